"""The ends of completions and the extremes of prompts, lengths and slots, through the whole sampler.

Many completions here are scripted: they say given tokens, and all else is the sampler's own. About 4 s on a CPU.
"""

import pytest
import torch
from rollout_cases import (
    END,
    EOS,
    JUNK,
    PROMPTS,
    STOPPING,
    TOKENIZER,
    assert_same_rows,
    assert_scored_as_plain_text,
    sample_rows,
    script,
    share_no_prefix,
)
from tiny_models import decoder_of, tiny_qwen2

from grpo.sampler import generate
from grpo.sampler.decoder import Decoder
from grpo.types import Rollout


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of(tiny_qwen2())


def tokens_of(*pieces: str) -> list[int]:
    """The pieces tokenized each for itself, so that no token joins two."""
    return [token for piece in pieces for token in TOKENIZER.encode(piece)]


def say(decoder: Decoder, monkeypatch, said: list[list[int]], **options) -> Rollout:
    """A row for each list of tokens, two rows a prompt; a script that has come to its end says junk."""
    script(monkeypatch, said)
    prompts = [PROMPTS[b % 4] for b in range(-(-len(said) // 2))]
    said += [[EOS]] * (2 * len(prompts) - len(said))
    return sample_rows(decoder, prompts, num_generations=2, num_slots=2, stop_token_ids={EOS}, **options)


def lengths_of(decoder: Decoder, monkeypatch, said: list[list[int]], **options) -> list[int]:
    """After how many tokens each of the rows ended, all of them by a stop."""
    rows = say(decoder, monkeypatch, said, **options)
    assert not rows.truncated_N.any()
    for token_T, tokens, length in zip(rows.token_NT, said, rows.length_N.tolist()):
        assert token_T[:length].tolist() == tokens[:length] and not token_T[length:].any()
    return rows.length_N.tolist()


def test_rows_end_after_any_of_several_stop_ids_and_after_no_other(decoder, monkeypatch):
    script(monkeypatch, [[5, EOS], [EOS], [6, 7, END, EOS], [8, 9, 77]])
    rows = sample_rows(decoder, PROMPTS[:2], num_generations=2, stop_token_ids={EOS, END, 77})
    assert rows.length_N.tolist() == [2, 1, 3, 3] and not rows.truncated_N.any()
    rows = sample_rows(decoder, PROMPTS[:2], num_generations=2, stop_token_ids={EOS})
    assert rows.length_N.tolist() == [2, 1, 4, 12] and rows.truncated_N.tolist() == [False, False, False, True]
    assert rows.token_NT[3].tolist() == [8, 9, 77] + [JUNK] * 9


def test_an_empty_completion_is_one_token_or_one_stop_string_long(decoder, monkeypatch):
    stop = tokens_of(*"\nQ:")
    rows = say(decoder, monkeypatch, [[EOS], stop, [END, EOS], tokens_of("7") + [EOS]], stop_strings=["\nQ:"])
    assert rows.length_N.tolist() == [1, len(stop), 2, 2] and len(stop) == 3
    assert rows.text == ["", "", "", "7"]
    assert not rows.truncated_N.any()


def test_a_stop_string_across_tokens_ends_the_row_with_the_token_that_completes_it(decoder, monkeypatch):
    said = [
        tokens_of("7", "\n", "Question", ":", " x"),  # the string in three pieces
        tokens_of("7 \nQuestion", "\n", *"Question:", "y"),  # begun, broken off, begun again
        tokens_of("12", "####", " 7"),  # a token that reaches beyond the string
        tokens_of("7", "#", "#", "#"),
    ]
    ends = [len(said[0]) - len(tokens_of(" x")), len(said[1]) - 1, len(tokens_of("12")) + 1, 3]
    stop_strings = ["\nQuestion:", "never", "##"]
    assert lengths_of(decoder, monkeypatch, said, stop_strings=stop_strings, max_completion_length=40) == ends
    rows = say(decoder, monkeypatch, said, stop_strings=stop_strings, max_completion_length=40)
    assert rows.text == ["7", "7 \nQuestion", "12", "7"]


def test_a_stop_string_of_characters_that_arrive_byte_by_byte(decoder, monkeypatch):
    # "é" is 2 tokens and "日", "本" are 3 each. The last row breaks 本 off after 2 bytes, so its end token ends it.
    said = [tokens_of("caf", "é", "s"), tokens_of("日", "日", "本", "日"), tokens_of("日", "日"),
            tokens_of("日", "本")[:5]]
    said[2:] = [row + [EOS] for row in said[2:]]
    ends = [len(tokens_of("caf")) + 2, 9, 7, 6]
    assert lengths_of(decoder, monkeypatch, said, stop_strings=["é", "日本"]) == ends
    rows = say(decoder, monkeypatch, said, stop_strings=["é", "日本"])
    assert rows.text == ["caf", "日", "日日", "日\ufffd"]


def test_a_stop_string_inside_a_longer_text_of_bytes(decoder, monkeypatch):
    said = [tokens_of("a", "本", "é", "b"), tokens_of("é", "é", "x") + [EOS]]
    assert lengths_of(decoder, monkeypatch, said, stop_strings=["本é", "éx"]) == [6, 5]


def test_a_stop_in_the_sampled_text_ends_it_exactly_there(decoder):
    free = sample_rows(decoder, num_generations=1, max_completion_length=40)
    for n in range(4):
        pieces = [TOKENIZER.decode([token]) for token in free.token_NT[n].tolist()]
        # Three tokens in the middle of the row that are whole characters make the stop string.
        end = next(end for end in range(9, 40) if "\ufffd" not in "".join(pieces[end - 3 : end]))
        stop_string = "".join(pieces[end - 3 : end])
        assert free.text[n].count(stop_string) == 1
        rows = sample_rows(decoder, num_generations=1, max_completion_length=40, stop_strings=["never", stop_string])
        assert rows.length_N[n] == end and not rows.truncated_N[n]
        assert torch.equal(rows.token_NT[n, :end], free.token_NT[n, :end])
        assert rows.text[n] == free.text[n].split(stop_string)[0]


@pytest.mark.parametrize("length", [1, 5, 12])
def test_a_row_whose_last_allowed_token_stops_it_is_not_truncated(decoder, length):
    free = sample_rows(decoder, num_generations=1)
    assert free.truncated_N.all() and (free.length_N == 12).all()
    last = int(free.token_NT[0, length - 1])
    assert last not in free.token_NT[0, : length - 1]
    rows = sample_rows(decoder, num_generations=1, max_completion_length=length, stop_token_ids={last})
    assert rows.length_N[0] == length and not rows.truncated_N[0]


def test_completions_of_one_token(decoder):
    whole, rows = sample_rows(decoder), sample_rows(decoder, max_completion_length=1)
    assert torch.equal(rows.token_NT, whole.token_NT[:, :1]) and rows.truncated_N.all()
    assert rows.text == [TOKENIZER.decode(token_T, skip_special_tokens=True) for token_T in rows.token_NT]
    assert rows.cost.num_steps == 1


@pytest.mark.parametrize("share_prefix", [True, False])
def test_one_row_of_one_prompt_is_that_row_among_others(decoder, monkeypatch, share_prefix):
    whole = sample_rows(decoder, **STOPPING)
    if not share_prefix:
        share_no_prefix(monkeypatch)
    rows = sample_rows(decoder, PROMPTS[2:3], num_generations=1, prompt_index=[2], **STOPPING)
    assert_same_rows(whole, rows, [6])
    assert rows.cost.num_slots == 1 and rows.cost.num_steps == int(rows.length_N[0])


def test_one_slot_takes_the_rows_one_after_the_other(decoder):
    whole, rows = sample_rows(decoder, **STOPPING), sample_rows(decoder, num_slots=1, **STOPPING)
    assert_same_rows(whole, rows, list(range(12)))
    assert rows.cost.num_slots == 1 and rows.cost.num_steps == int(rows.length_N.sum())


EXTREME_PROMPTS = {
    "one token": [[7], [9], [200]],
    "one token and longer ones": [[7], [7, 9], [7, 9, 11, 12, 13, 14]],
    "all identical": [PROMPTS[1]] * 3,
    "all identical, of one token": [[7]] * 3,
    "each a prefix of the next": [PROMPTS[0][:5], PROMPTS[0][:6], PROMPTS[0]],
    "nothing in common": [[7, 8, 9], [8, 9], [9, 7, 8, 7]],
}


@pytest.mark.parametrize("prompts", EXTREME_PROMPTS.values(), ids=EXTREME_PROMPTS)
@pytest.mark.parametrize("num_slots", [2, 6])
def test_extreme_prompts_are_continued_as_plain_texts(decoder, prompts, num_slots):
    options = {"num_generations": 2, "stop_token_ids": set(range(0, 320, 15)), "temperature": 0.8}
    rows = sample_rows(decoder, prompts, num_slots=num_slots, **options)
    assert_scored_as_plain_text(decoder, rows, temperature=0.8)
    for b in range(3):
        alone = sample_rows(decoder, [prompts[b]], prompt_index=[b], **options)
        assert_same_rows(rows, alone, [2 * b, 2 * b + 1])
    assert len(set(rows.text)) >= 4


def test_identical_prompts_of_one_index_say_the_same_and_of_others_do_not(decoder):
    rows = sample_rows(decoder, [PROMPTS[0]] * 3, num_generations=2, prompt_index=[4, 4, 5])
    assert torch.equal(rows.token_NT[:2], rows.token_NT[2:4])
    assert (rows.token_NT[:2] != rows.token_NT[4:]).any(1).all()


@pytest.mark.parametrize("steps", [1, 8])
def test_a_completion_may_fill_the_context_to_its_last_position(monkeypatch, steps):
    # 9 and 6 prompt tokens and 15 sampled ones: the longer text fills 24 positions exactly.
    monkeypatch.setitem(generate.STEPS, "cpu", steps)
    model = tiny_qwen2(max_position_embeddings=24)
    decoder, prompts = decoder_of(model), [PROMPTS[0][:9], PROMPTS[0][:6]]
    rows = sample_rows(decoder, prompts, num_generations=1, max_completion_length=15, temperature=0.0)
    assert rows.length_N.tolist() == [15, 15] and rows.truncated_N.all()
    for prompt, token_T in zip(prompts, rows.token_NT):
        expected = model.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(), do_sample=False,
            max_new_tokens=15, eos_token_id=None, pad_token_id=0)
        assert expected[0, len(prompt) :].tolist() == token_T.tolist()
    assert_scored_as_plain_text(decoder, rows)


def test_an_empty_prompt_is_refused(decoder):
    with pytest.raises(ValueError, match="prompt 9 is empty"):
        sample_rows(decoder, [[7], []], prompt_index=[8, 9])
