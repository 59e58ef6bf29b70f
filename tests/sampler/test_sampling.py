"""Noise against SplitMix64 in Python's big integers, sampling against exact probabilities. Under 2 seconds on a CPU."""

import math

import pytest
import torch

from grpo.sampler.draw import sample, uniform

PINNED = [0.47458121919106555, 0.9530402743592327, 0.4209501063444101]
LOGITS_V = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -3.0, 0.5, -torch.inf])


def keys(count: int, **fixed: int) -> dict:
    """The five key parts with the position running and the others 0 unless given."""
    part = {"prompt_N": torch.zeros(count, dtype=torch.int64), "sample_N": torch.zeros(count, dtype=torch.int64)}
    return {"seed": 0, "step": 0, "position_N": torch.arange(count)} | part | fixed


def chi_square(count_V: torch.Tensor, expected_V: torch.Tensor) -> float:
    return float(((count_V - expected_V) ** 2 / expected_V).sum())


def splitmix64(key: int) -> int:
    key = (key + 0x9E3779B97F4A7C15) % 2**64
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
    return key ^ (key >> 31)


def test_noise_is_splitmix64_chained_over_the_five_key_parts():
    parts = [(42, 7, 1_000_003, 5, 511), (0, 0, 0, 0, 0), (2**62, 1, 2, 3, 4)]
    for seed, step, *rest in parts:
        hashed = 0
        for part in (seed, step, *rest):
            hashed = splitmix64(hashed ^ part)
        prompt_N, sample_N, position_N = torch.tensor(rest)[:, None]
        drawn = uniform(seed=seed, step=step, prompt_N=prompt_N, sample_N=sample_N, position_N=position_N)
        assert drawn.item() == (hashed >> 11) / 2**53


def test_noise_never_changes_between_versions():
    drawn = uniform(**keys(3, seed=42, step=1))
    # SplitMix64 of state 0 is 0xE220A8397B1DCDAF, its published first output.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert drawn.tolist() == PINNED


def test_every_key_part_changes_the_noise():
    base = uniform(**keys(1000))
    ones = torch.ones(1000, dtype=torch.int64)
    for change in ({"seed": 1}, {"step": 1}, {"prompt_N": ones}, {"sample_N": ones}):
        other = uniform(**keys(1000) | change)
        assert (other != base).all()
        # Independent uniforms correlate by about 1/sqrt(1000) = 0.03.
        assert abs(torch.corrcoef(torch.stack([base, other]))[0, 1]) < 0.15


def test_noise_is_uniform():
    position_N = torch.arange(20_000)
    drawn = uniform(**keys(20_000, position_N=position_N % 100, prompt_N=position_N // 100))
    assert drawn.min() >= 0 and drawn.max() < 1 and drawn.dtype == torch.float64
    # 50 cells, 49 degrees of freedom: 85.4 is exceeded with probability 0.001.
    assert chi_square(torch.histc(drawn.float(), 50, min=0, max=1), torch.full((50,), 400.0)) < 85.4


def test_noise_broadcasts_to_the_same_numbers():
    prompt_N, sample_N, position_N = torch.tensor([3, 8]), torch.tensor([1, 0]), torch.tensor([5, 6])
    table = uniform(seed=1, step=2, prompt_N=prompt_N[:, None], sample_N=sample_N[:, None], position_N=position_N)
    for t in range(2):
        column = uniform(seed=1, step=2, prompt_N=prompt_N, sample_N=sample_N, position_N=position_N[[t, t]])
        assert torch.equal(table[:, t], column)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_frequencies_of_20000_draws_match_the_exact_probabilities(temperature):
    prob_V = (LOGITS_V.double() / temperature).softmax(-1)
    token_N, _ = sample(LOGITS_V.expand(20_000, -1), uniform(**keys(20_000, seed=3)), temperature=temperature)
    count_V = torch.bincount(token_N, minlength=7)
    possible = prob_V > 0
    assert count_V[~possible].sum() == 0
    # 5 possible tokens, 4 degrees of freedom: 18.5 is exceeded with probability 0.001.
    assert chi_square(count_V[possible], prob_V[possible] * 20_000) < 18.5


def test_the_extremes_of_the_noise_give_possible_tokens():
    # The first and last token with any probability are 0 and 5; tokens 2 and 6 have none.
    logits_NV = LOGITS_V.expand(2, -1)
    token_N, _ = sample(logits_NV, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), temperature=1.0)
    assert token_N.tolist() == [0, 5]
    token_N, _ = sample(logits_NV.flip(-1), torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), temperature=1.0)
    assert token_N.tolist() == [1, 6]


def test_a_large_vocabulary_gives_possible_tokens_up_to_the_last_noise_value():
    # 50,000 logits spread so far that most probabilities underflow to 0.
    logits_NV = 60 * torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    last = torch.full((4,), 1 - 2.0**-53, dtype=torch.float64)
    for uniform_N in (torch.zeros_like(last), last):
        token_N, logprob_N = sample(logits_NV, uniform_N, temperature=1.0)
        assert (logits_NV.softmax(-1).gather(-1, token_N[:, None]) > 0).all()
        assert logprob_N.isfinite().all()


def test_the_last_noise_value_never_leaves_a_short_last_block():
    # 200 words are a block of 128 and one of 72. Where float32 sums of 72 weights came out too large, word 200 is next.
    logits_NV = torch.randn(2000, 200, generator=torch.Generator().manual_seed(0))
    token_N, logprob_N = sample(logits_NV, torch.full((2000,), 1 - 2.0**-53, dtype=torch.float64), temperature=1.0)
    assert (token_N == 199).all() and logprob_N.isfinite().all()


def test_blocks_may_be_cut_off_whole():
    # The two likeliest of 300 words are 7 and 140, with 22 and 68 of 1,000; nothing is left of the last block.
    logits_NV = torch.zeros(2, 300)
    logits_NV[:, 7], logits_NV[:, 140] = 2.0, 2.0 + math.log(3)
    token_N, logprob_N = sample(logits_NV, torch.tensor([0.2, 0.3], dtype=torch.float64), temperature=1.0, top_p=0.08)
    assert token_N.tolist() == [7, 140]
    assert logprob_N.tolist() == pytest.approx([math.log(0.25), math.log(0.75)])


def test_inverse_cdf_takes_the_first_token_whose_cumulative_probability_exceeds_the_noise():
    # Probabilities 1/4, 1/2, 1/4: the borders are 0.25 and 0.75, and a border belongs to the token above it.
    logits_NV = torch.tensor([0.25, 0.5, 0.25]).log().expand(5, -1)
    token_N, logprob_N = sample(
        logits_NV, torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501], dtype=torch.float64), temperature=1.0
    )
    assert token_N.tolist() == [0, 0, 1, 1, 2]
    torch.testing.assert_close(logprob_N.exp(), torch.tensor([0.25, 0.25, 0.5, 0.5, 0.25]))


def test_logprob_is_taken_at_the_sampling_temperature():
    logits_NV = torch.randn(64, 11, generator=torch.Generator().manual_seed(1))
    token_N, logprob_N = sample(logits_NV, uniform(**keys(64)), temperature=0.6)
    expected = (logits_NV / 0.6).log_softmax(-1).gather(-1, token_N[:, None])[:, 0]
    torch.testing.assert_close(logprob_N, expected)
    assert logprob_N.dtype == torch.float32 and token_N.dtype == torch.int64


def test_temperature_zero_is_greedy_with_logprobs_at_one():
    logits_NV = torch.randn(64, 11, generator=torch.Generator().manual_seed(1)).bfloat16()
    token_N, logprob_N = sample(logits_NV, uniform(**keys(64)), temperature=0.0)
    assert torch.equal(token_N, logits_NV.argmax(-1))
    torch.testing.assert_close(logprob_N, logits_NV.float().log_softmax(-1).amax(-1))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        # Probabilities in order of tokens: 0.1, 0.4, 0.05, 0.25, 0.2.
        (0.5, [1, 3]),  # 0.4 < 0.5, so the second is needed; 0.65 is enough
        (0.3, [1]),
        (1e-9, [1]),
        (0.99, [0, 1, 2, 3, 4]),
    ],
)
def test_truncation_keeps_the_likeliest_tokens_and_renormalises(top_p, kept):
    prob_V = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    token_N, logprob_N = sample(
        prob_V.log().expand(2000, -1), uniform(**keys(2000)), temperature=1.0, top_p=top_p
    )
    assert sorted(set(token_N.tolist())) == kept
    torch.testing.assert_close(logprob_N.exp(), (prob_V / prob_V[kept].sum())[token_N])
