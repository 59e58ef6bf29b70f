"""Stop tokens and stop strings on a byte-level tokenizer, token by token. About 3 seconds on a CPU."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo.sampler.stopping import StopRule

TOKENIZER = tiny_tokenizer()
EOS, END = 1, 2


def rule(
    *stop_strings: str, stop_token_ids: tuple[int, ...] = (EOS,), tokenizer: PreTrainedTokenizerBase = TOKENIZER
) -> StopRule:
    return StopRule(tokenizer, set(stop_token_ids), list(stop_strings), vocab_size=330)


def run(stop: StopRule, ids: list[int]) -> int | None:
    """Number of tokens after which a row with these tokens ends, None if it does not; other rows hold end tokens."""
    token_NT = np.full((3, len(ids) + 1), EOS)
    token_NT[1, : len(ids)] = np.array(ids)
    for length in range(1, len(ids) + 1):
        if stop.ended(token_NT, np.array([1]), np.array([length - 1]))[0]:
            return length
    return None


def tokens_of(*pieces: str) -> list[int]:
    """The pieces tokenized each for itself, so that no token joins two."""
    return [token for piece in pieces for token in TOKENIZER.encode(piece)]


def test_every_stop_token_ends_a_row_and_no_other():
    stop = rule(stop_token_ids=(EOS, END, 77))
    last_N1 = np.array([[EOS], [5], [END], [77], [0]])
    assert stop.ended(last_N1, np.arange(5), np.zeros(5, dtype=int)).tolist() == [True, False, True, True, False]
    assert stop.ended(last_N1, np.array([1, 3]), np.array([0, 0])).tolist() == [False, True]


def test_each_row_is_judged_by_the_token_in_its_own_column():
    stop = rule("b", stop_token_ids=(EOS, 77))
    a, b = tokens_of("a", "b")
    token_NT = np.array([[EOS, a, 77], [a, b, a], [a, a, b]])
    assert stop.ended(token_NT, np.array([2, 0, 1]), np.array([2, 1, 1])).tolist() == [True, False, True]
    assert stop.ended(token_NT, np.array([0, 1, 2]), np.array([2, 2, 1])).tolist() == [True, False, False]


@pytest.mark.parametrize("stop_string", ["\nQuestion:", "Question: ", "n", " é", "日本", "42.", "本"])
def test_a_stop_string_ends_the_row_with_the_token_that_completes_it(stop_string):
    before, after = tokens_of("The answer is 7 日 e"), tokens_of(" and more")
    ids = before + tokens_of(*stop_string) + after  # one character at a time: the string spans tokens
    ids = ids if stop_string != "n" else tokens_of("It was 7", " a", "n", "d")
    stop = rule(stop_string)
    length = run(stop, ids)
    assert stop_string in TOKENIZER.decode(ids[:length]) and stop_string not in TOKENIZER.decode(ids[: length - 1])
    assert stop.texts([ids[:length]]) == [TOKENIZER.decode(ids).split(stop_string)[0]]


def test_a_character_that_arrives_byte_by_byte_ends_the_row_with_its_last_byte():
    # "é" is two bytes here and "本" three; 日本 shares its first byte with 日 and 本 (E6), which must not end it.
    assert [len(tokens_of(letter)) for letter in "é日本"] == [2, 3, 3]
    assert run(rule("é"), tokens_of("caf", "é", "s")) == len(tokens_of("caf")) + 2
    assert run(rule("本"), tokens_of("日", "日", "本", "日")) == 9
    assert run(rule("日本"), tokens_of("日", "日", "本", "日")) == 9
    assert run(rule("日本"), tokens_of("日", "本")[:5]) is None


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


def test_the_token_that_ends_a_row_does_not_show_even_where_it_is_not_special():
    seven, comma = tokens_of("7", ",")
    stop = rule(stop_token_ids=(EOS, comma))
    assert stop.texts([[seven, comma], [comma], [seven, seven], [], [seven, EOS]]) == ["7", "", "77", "", "7"]


def test_a_long_row_is_searched_only_at_its_end():
    ids = tokens_of("ab" * 50) + tokens_of(*"\nQuestion:")
    stop = rule("\nQuestion:")
    assert run(stop, ids) == len(ids)
    assert stop.tail == len("\nQuestion:") + 1


def test_only_rows_that_may_have_ended_are_decoded_and_only_their_tails(monkeypatch):
    stop, decoded = rule("\nQ:", "日"), []
    monkeypatch.setattr(stop, "_decode", lambda rows: decoded.extend(rows) or [""] * len(rows))
    ids = tokens_of("a long text\nQ", "x", ":", "y", "é")
    run(stop, ids)
    # "\nQ:" ends in ":", the two bytes of "é" are pieces of a character; 3 bytes and one more make a tail of 4.
    colon = ids.index(tokens_of(":")[0])
    assert decoded == [ids[end - 4 : end] for end in (colon + 1, len(ids) - 1, len(ids))]


# Few letters make the strings frequent; "é" and "日本" come byte by byte, also broken off and interleaved. The second
# time half of the tokens show nothing: only the model's head of 330 rows has them.
@pytest.mark.parametrize("silent", [[], [320, 329]], ids=["", "silent"])
@pytest.mark.parametrize(
    "stop_strings", [("ab",), ("a b", "ba"), ("é",), ("日本", "b日"), (" ",), ("é\n", "aaa")]
)
def test_a_row_ends_as_soon_as_its_whole_text_holds_a_stop_string(stop_strings, silent):
    letters = sorted(set(tokens_of("a", "b", " ", "\n", "é", "日", "本")))
    letters += silent * (len(letters) // 2)
    generator, stop, ends = torch.Generator().manual_seed(0), rule(*stop_strings), []
    for _ in range(40):
        ids = [letters[k] for k in torch.randint(len(letters), (60,), generator=generator).tolist()]
        place = int(torch.randint(52, (), generator=generator))
        ids[place : place + 8] = tokens_of("日", "本", "é")
        texts = [TOKENIZER.decode(ids[:length], skip_special_tokens=True) for length in range(1, 61)]
        expected = next((n + 1 for n, text in enumerate(texts) if any(one in text for one in stop_strings)), None)
        ends.append(run(stop, ids))
        assert ends[-1] == expected
    assert len(set(ends)) > 3


def sentence_piece_tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """As Llama 2 has it: a space is part of the word after it and dropped at the start of a text; bytes are tokens."""
    pieces = ["<pad>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁7", "▁Question", "Question", "▁", ":"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"), vocab


def byte_tokens(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


@pytest.mark.parametrize("before", ["", "日日", "\U0001f600", "x"])
def test_a_tokenizer_that_drops_a_leading_space_and_falls_back_to_bytes(before):
    tokenizer, vocab = sentence_piece_tokenizer()
    ids = [vocab[piece] for piece in ("▁7", *byte_tokens(before + "\n"), "Question", ":", "▁7")]
    assert tokenizer.decode(ids) == f"7{before}\nQuestion: 7"
    assert run(rule("\nQuestion:", tokenizer=tokenizer), ids) == len(ids) - 1
    # The space that completes ": " comes with the next word, whose text alone has none.
    assert tokenizer.decode(ids[-1:]) == "7"
    assert run(rule(": ", tokenizer=tokenizer), ids) == len(ids)
    # A space of its own, at the start of the shortest tail that holds the string, must not be dropped.
    assert run(rule(" x", tokenizer=tokenizer), [vocab[piece] for piece in ("▁7", "▁", *byte_tokens("xy"))]) == 3


@pytest.mark.parametrize("before", ["日日日", "\U0001f600日日"])
def test_a_stop_string_behind_many_bytes_of_a_byte_fallback_tokenizer(before):
    tokenizer, vocab = sentence_piece_tokenizer()
    ids = [vocab[piece] for piece in ("▁7", *byte_tokens(before + "\n"), "Question", ":")]
    assert tokenizer.decode(ids) == f"7{before}\nQuestion:"
    assert run(rule("\nQuestion:", tokenizer=tokenizer), ids) == len(ids)


@pytest.mark.parametrize("silent", [END, 320, 329])  # special, and what only the model's head of 330 rows has
def test_a_stop_string_interrupted_by_tokens_that_show_nothing(silent):
    ids = tokens_of("7", "\n") + [silent] * 3 + tokens_of("Q", ":")
    assert TOKENIZER.decode([silent], skip_special_tokens=True) == ""
    assert rule("\nQ:").texts([ids]) == ["7"]
    assert run(rule("\nQ:"), ids) == len(ids)
    assert run(rule("\nQ:"), [*ids, silent]) == len(ids), "such a token behind it is too late"


def test_a_stop_token_that_the_model_does_not_have_ends_nothing():
    # The model's head has 330 rows; a tokenizer may have more tokens.
    stop = rule(stop_token_ids=(EOS, 330, 5000))
    token_NT = np.array([[EOS], [329]])
    assert stop.ended(token_NT, np.array([0, 1]), np.array([0, 0])).tolist() == [True, False]
