"""Stop tokens and stop strings on a byte-level tokenizer, token by token. Under 2 seconds on a CPU."""

import pytest
import torch
from tiny_models import tiny_tokenizer

from grpo.stopping import StopRule

TOKENIZER = tiny_tokenizer()
EOS, END = 1, 2


def rule(*stop_strings: str, stop_token_ids: tuple[int, ...] = (EOS,)) -> StopRule:
    return StopRule(
        TOKENIZER, set(stop_token_ids), list(stop_strings), vocab_size=330, device=torch.device("cpu")
    )


def run(stop: StopRule, ids: list[int]) -> int | None:
    """Number of tokens after which a row with these tokens ends, None if it does not."""
    for length in range(1, len(ids) + 1):
        if stop.ended(torch.tensor([ids[:length]]), torch.tensor([0]))[0]:
            return length
    return None


def tokens_of(*pieces: str) -> list[int]:
    """The pieces tokenized each for itself, so that no token joins two."""
    return [token for piece in pieces for token in TOKENIZER.encode(piece)]


def test_every_stop_token_ends_a_row_and_no_other():
    stop = rule(stop_token_ids=(EOS, END, 77))
    last_N1 = torch.tensor([[EOS], [5], [END], [77], [0]])
    assert stop.ended(last_N1, torch.arange(5)).tolist() == [True, False, True, True, False]
    assert stop.ended(last_N1, torch.tensor([1, 3])).tolist() == [False, True]


@pytest.mark.parametrize("stop_string", ["\nQuestion:", "Question: ", "n", " é", "日本", "42."])
def test_a_stop_string_ends_the_row_with_the_token_that_completes_it(stop_string):
    before, after = tokens_of("The answer is 7 日 e"), tokens_of(" and more")
    ids = before + tokens_of(*stop_string) + after  # one character at a time: the string spans tokens
    ids = ids if stop_string != "n" else tokens_of("It was 7", " a", "n", "d")
    stop = rule(stop_string)
    length = run(stop, ids)
    assert stop_string in TOKENIZER.decode(ids[:length]) and stop_string not in TOKENIZER.decode(ids[: length - 1])
    assert stop.texts([ids[:length]]) == [TOKENIZER.decode(ids).split(stop_string)[0]]


def test_a_token_that_reaches_beyond_the_stop_string_stays_but_its_text_is_cut():
    # "####" is one token of this tokenizer, so only the whole of it completes "\n##".
    assert len(tokens_of("####")) == 1
    ids = tokens_of("7\n", "####", " 7")
    stop = rule("\n##")
    assert run(stop, ids) == len(tokens_of("7\n")) + 1
    assert stop.texts([ids]) == ["7"]


def test_the_first_of_several_stop_strings_cuts():
    stop = rule("world", "lo wo", "xyz")
    assert stop.texts([tokens_of("hello world"), tokens_of("hell"), []]) == ["hel", "hell", ""]


def test_a_stop_string_may_be_the_whole_completion():
    ids = tokens_of(*"\nQuestion:")
    assert run(rule("\nQuestion:"), ids) == len(ids)
    assert rule("\nQuestion:").texts([ids]) == [""]


def test_an_unfinished_stop_string_does_not_end_the_row():
    assert run(rule("\nQuestion:"), tokens_of("7\nQuestion", "\n: Question")) is None


def test_special_tokens_do_not_show_in_the_text():
    assert rule().texts([tokens_of("7") + [END, EOS]]) == ["7"]


def test_a_long_row_is_searched_only_at_its_end():
    ids = tokens_of("ab" * 50) + tokens_of(*"\nQuestion:")
    stop = rule("\nQuestion:")
    assert run(stop, ids) == len(ids)
    assert stop.tail == len("\nQuestion:") + 1
