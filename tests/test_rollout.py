"""The sampling loop against transformers' generate, against itself in other orders, and against plain rescoring.

About 12 seconds on a CPU.
"""

import pytest
import torch
from tiny_models import decoder_of, tiny_llama, tiny_qwen2, tiny_qwen3, tiny_tokenizer

from grpo import rollout
from grpo.decoder import Decoder
from grpo.rollout import generate
from grpo.types import Rollout

TOKENIZER = tiny_tokenizer()
PREFIX = "Question: 12 + 30?\nSolution: 42\n"
PROMPTS = [
    TOKENIZER.encode(PREFIX + text) for text in ("Question: 60 * 4?", "Tom has 12 apples", "A", "How far? 30 miles")
]


def sample_rows(decoder: Decoder, prompts: list[list[int]] = PROMPTS, **options) -> Rollout:
    """Rows at temperature 1 that never stop, unless the options say otherwise."""
    defaults = {
        "tokenizer": TOKENIZER, "num_generations": 3, "max_completion_length": 12, "temperature": 1.0,
        "stop_token_ids": set(), "stop_strings": [], "seed": 5, "step": 2, "prompt_index": list(range(len(prompts))),
    }
    return generate(decoder, prompts, **defaults | options)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of(tiny_qwen2())


@pytest.mark.parametrize("build", [tiny_qwen2, tiny_qwen3, tiny_llama])
def test_greedy_tokens_equal_transformers_generate_on_ragged_prompts(build):
    model = build()
    padded = TOKENIZER.pad({"input_ids": PROMPTS}, padding_side="left", return_tensors="pt")
    expected = model.generate(
        input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], do_sample=False,
        max_new_tokens=40, eos_token_id=None, pad_token_id=0)[:, padded["input_ids"].shape[1]:]
    ours = sample_rows(decoder_of(model), num_generations=1, temperature=0.0, max_completion_length=40)
    assert torch.equal(ours.token_NT, expected)
    assert ours.text == TOKENIZER.batch_decode(expected, skip_special_tokens=True)


def assert_same_rows(left: Rollout, right: Rollout, rows: list[int]) -> None:
    """Rows of `left` equal all rows of `right`; either may be padded further than the other."""
    for n, m in enumerate(rows):
        length = int(left.length_N[m])
        assert int(right.length_N[n]) == length
        assert torch.equal(left.token_NT[m, :length], right.token_NT[n, :length])
        torch.testing.assert_close(
            left.sampler_logprob_NT[m, :length], right.sampler_logprob_NT[n, :length], atol=1e-4, rtol=0)
        assert left.text[m] == right.text[n] and left.truncated_N[m] == right.truncated_N[n]


STOPPING = {"stop_token_ids": set(range(0, 320, 9)), "max_completion_length": 30}  # a ninth of the vocabulary stops


def test_sampled_rows_do_not_depend_on_the_order_of_prompts(decoder):
    order = [2, 0, 3, 1]
    whole = sample_rows(decoder, **STOPPING)
    shuffled = sample_rows(decoder, [PROMPTS[b] for b in order], prompt_index=order, **STOPPING)
    assert_same_rows(whole, shuffled, [3 * b + g for b in order for g in range(3)])


def test_two_ranks_sample_what_one_does(decoder):
    whole = sample_rows(decoder, **STOPPING)
    for part in ([0, 1], [2, 3]):
        rank = sample_rows(decoder, [PROMPTS[b] for b in part], prompt_index=part, **STOPPING)
        assert_same_rows(whole, rank, [3 * b + g for b in part for g in range(3)])


def test_sharing_the_prefix_changes_nothing(decoder):
    shared, apart = (sample_rows(decoder, share_prefix=share, **STOPPING) for share in (True, False))
    assert_same_rows(shared, apart, list(range(12)))


@pytest.mark.parametrize("num_slots", [1, 2, 5, 64])
def test_the_number_of_slots_changes_nothing(decoder, num_slots):
    whole, few = sample_rows(decoder, **STOPPING), sample_rows(decoder, num_slots=num_slots, **STOPPING)
    assert len(set(whole.length_N.tolist())) > 3
    assert_same_rows(whole, few, list(range(12)))
    assert few.cost.num_slots == min(num_slots, 12)


def test_samples_seeds_steps_and_prompt_indices_differ(decoder):
    base = sample_rows(decoder)
    assert len(set(base.text)) == 12
    for change in ({"seed": 6}, {"step": 3}, {"prompt_index": [4, 5, 6, 7]}):
        assert not set(base.text) & set(sample_rows(decoder, **change).text)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_sampler_logprobs_equal_plain_rescoring(decoder, temperature):
    rows = sample_rows(decoder, temperature=temperature, **STOPPING)
    for n, (token_T, length) in enumerate(zip(rows.token_NT, rows.length_N.tolist())):
        prompt = rows.prompt_ids[n // 3]
        logits_LV = decoder.logits(torch.tensor([prompt + token_T[:length].tolist()]))[0, len(prompt) - 1 : -1]
        expected_T = (logits_LV / (temperature or 1.0)).log_softmax(-1).gather(-1, token_T[:length, None])[:, 0]
        torch.testing.assert_close(rows.sampler_logprob_NT[n, :length], expected_T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_of_20000_rows_follow_the_exact_probabilities(decoder, temperature):
    rows = sample_rows(
        decoder, PROMPTS[:2], num_generations=20_000, max_completion_length=1, temperature=temperature)
    for b in range(2):
        prob_V = (decoder.logits(torch.tensor([PROMPTS[b]]))[0, -1].double() / temperature).softmax(-1)
        count_V = torch.bincount(rows.token_NT[20_000 * b : 20_000 * (b + 1), 0], minlength=320).double()
        often = prob_V * 20_000 >= 5  # the rest in one cell, as the chi-square approximation needs
        expected = torch.cat([prob_V[often], prob_V[~often].sum()[None]]) * 20_000
        count = torch.cat([count_V[often], count_V[~often].sum()[None]])
        statistic, freedom = ((count - expected) ** 2 / expected).sum(), len(count) - 1
        # A chi-square has mean `freedom` and variance 2·freedom; 4 deviations are exceeded less than once in 1,000.
        assert freedom > 20 and abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_rows_hold_their_stop_token_and_zeros_beyond_it(decoder):
    stops = STOPPING["stop_token_ids"]
    rows = sample_rows(decoder, **STOPPING)
    assert rows.token_NT.shape == (12, int(rows.length_N.max())) and not rows.truncated_N.all()
    for token_T, logprob_T, length, truncated in zip(
        rows.token_NT, rows.sampler_logprob_NT, rows.length_N.tolist(), rows.truncated_N.tolist()
    ):
        stopped = [int(token) in stops for token in token_T[:length]]
        assert not any(stopped[:-1]) and stopped[-1] == (not truncated)
        assert not truncated or length == 30
        assert (logprob_T[:length] < 0).all()
        assert (token_T[length:] == 0).all() and (logprob_T[length:] == 0).all()


def test_a_row_whose_last_allowed_token_stops_it_is_not_truncated(decoder):
    free = sample_rows(decoder, num_generations=1)
    for length in (1, 5, 12):
        last = int(free.token_NT[0, length - 1])
        assert last not in free.token_NT[0, : length - 1]
        rows = sample_rows(decoder, num_generations=1, max_completion_length=length, stop_token_ids={last})
        assert rows.length_N[0] == length and not rows.truncated_N[0]
    assert free.truncated_N.all() and (free.length_N == 12).all()


def test_a_stop_string_across_tokens_ends_the_row_and_its_text_exactly(decoder):
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


def test_progress_counts_tokens_and_finished_rows(decoder):
    seen = []
    rows = sample_rows(decoder, progress=lambda tokens, finished: seen.append((tokens, finished)), **STOPPING)
    assert seen[0][0] == 12
    assert seen == sorted(seen)
    assert seen[-1] == (int(rows.length_N.sum()), 12 - int(rows.truncated_N.sum()))


def test_prompts_of_one_token_and_identical_prompts_work(decoder):
    rows = sample_rows(decoder, [[7], [7], [7, 9]], num_generations=2, prompt_index=[0, 0, 1])
    assert torch.equal(rows.token_NT[:2], rows.token_NT[2:4])
    single = sample_rows(decoder, [[7, 9]], num_generations=2, prompt_index=[1])
    assert_same_rows(rows, single, [4, 5])


@pytest.mark.gpu
def test_a_gpu_samples_the_text_that_a_cpu_does(decoder):
    on_gpu = decoder_of(tiny_qwen2())
    on_gpu.move("cuda")
    assert_same_rows(sample_rows(decoder, **STOPPING), sample_rows(on_gpu, **STOPPING), list(range(12)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bfloat16_sampler_logprobs_stay_close_to_plain_rescoring(decoder, device):
    weight = {name: tensor.to(device).bfloat16() for name, tensor in decoder.tensors().items()}
    half = Decoder(decoder.config, weight, {})
    rows = sample_rows(half)
    for n, token_T in enumerate(rows.token_NT):
        prompt = rows.prompt_ids[n // 3]
        logits_LV = half.logits(torch.tensor([prompt + token_T.tolist()]))[0, len(prompt) - 1 : -1].cpu()
        gap_T = logits_LV.log_softmax(-1).gather(-1, token_T[:, None])[:, 0] - rows.sampler_logprob_NT[n]
        # Hidden states of bfloat16 carry 2⁻⁸ relative; logits of size 7 err by a few hundredths.
        assert gap_T.abs().mean() < 0.05


def test_an_empty_prompt_is_refused(decoder):
    with pytest.raises(ValueError, match="prompt 9 is empty"):
        sample_rows(decoder, [[7], []], prompt_index=[8, 9])
