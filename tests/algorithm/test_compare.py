"""Rewards of a step to its advantages, with what the options say, alone and on two ranks; numbers by hand. 4 seconds.

The two ranks are threads here, each with its own groups. Real ones compare in tests/trainer/checks/updates.py.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from grpo.config import Config
from grpo.report import measures
from grpo.run.groups import Groups
from grpo.step import compare
from rewards.workers.pool import Scored

NAN = math.nan
GDPO = {"multi_objective_aggregation": "normalize_then_sum"}


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(measures, "global_sum", lambda values: values)


def compared(reward_BG, parts, weights=(1.0, 1.0), num_tokens_BG=None, **options):
    """Advantages and metrics of these totals and parts, by name."""
    run = SimpleNamespace(config=Config(**options), rewards=SimpleNamespace(weights=list(weights)))
    reward_BG = torch.tensor(reward_BG)
    length_N = torch.ones(reward_BG.numel(), dtype=torch.int64)
    if num_tokens_BG is not None:
        length_N = torch.tensor(num_tokens_BG).flatten()
    groups = Groups(
        problems={b: b for b in range(len(reward_BG))}, scored=Scored(reward_BG.flatten().tolist(), parts, {}),
        rollout=SimpleNamespace(length_N=length_N, truncated_N=torch.zeros(len(length_N), dtype=torch.bool)))
    return compare(run, groups, num_sampled=reward_BG.numel())


# Both functions agree in the first group, and one of them is silent about the second.
REWARDS = [[2.0, 0.0], [1.0, 0.0]]
PARTS = {"correctness": [1.0, 0.0, 1.0, 0.0], "format": [1.0, 0.0, 0.0, 0.0]}


def test_normalised_one_by_one_a_group_in_which_two_rewards_agree_counts_more(alone):
    # Terms +-0.707, so sums +-1.414 and +-0.707; their squares' sum 2 * 2 + 2 * 0.5 = 5, std sqrt(5 / 3) = 1.291.
    advantage_BG, metrics = compared(REWARDS, PARTS, **GDPO)
    expected_BG = torch.tensor([[2.0, -2.0], [1.0, -1.0]]) * 0.5**0.5 / (5 / 3) ** 0.5
    torch.testing.assert_close(advantage_BG, expected_BG, atol=3e-4, rtol=0)  # for eps, twice
    assert metrics["accuracy"] == 0.5 and metrics["reward"] == 0.75
    # GRPO makes both full size: 1 / (sqrt(2) + 1e-4), 0.5 / (sqrt(0.5) + 1e-4).
    torch.testing.assert_close(
        compared(REWARDS, PARTS)[0], torch.tensor([[1.0, -1.0], [1.0, -1.0]]) * 0.5**0.5, atol=2e-4, rtol=0)


def test_rloo_and_pass_at_k_take_the_place_of_the_groups_std(alone):
    # rloo: 2 - 0 and 1 - 0. pass_at_k with k = 1 is GRPO with the population std, of right answers: 0.5 / 0.5.
    assert compared(REWARDS, PARTS, adv_estimator="rloo")[0].tolist() == [[2.0, -2.0], [1.0, -1.0]]
    advantage_BG, _ = compared(REWARDS, PARTS, adv_estimator="pass_at_k", pass_k=1, num_generations=2)
    assert advantage_BG.tolist() == [[1.0, -1.0], [1.0, -1.0]]


def test_reinforce_plus_plus_whitens_over_the_tokens_of_all_that_is_scored(alone):
    # Centred 1, -1, 0.5, -0.5 of 1, 1, 2 and 4 tokens: mean (1 - 1 + 1 - 2) / 8 = -0.125; squared distances 1.265625 +
    # 0.765625 + 2 * 0.390625 + 4 * 0.140625 = 3.375, over 7.
    advantage_BG, _ = compared(REWARDS, PARTS, adv_estimator="reinforce_plus_plus_baseline",
                               num_tokens_BG=[[1, 1], [2, 4]])
    expected_BG = torch.tensor([[1.125, -0.875], [0.625, -0.375]]) / (3.375 / 7) ** 0.5
    torch.testing.assert_close(advantage_BG, expected_BG)


def test_a_weight_acts_after_a_reward_s_own_scale_and_before_the_batch_s(alone):
    # (3 + 1) * 0.707 and 3 * 0.707: the ratio of the groups is 4 to 3
    advantage_BG, _ = compared(REWARDS, PARTS, weights=(3.0, 1.0), **GDPO)
    assert float(advantage_BG[0, 0] / advantage_BG[1, 0]) == pytest.approx(4 / 3)
    assert compared(REWARDS, PARTS, weights=(0.0, 1.0), **GDPO)[0][1].tolist() == [0.0, 0.0]


def test_a_group_in_which_no_function_differs_has_advantages_of_exactly_0_and_counts_as_without_variance(alone):
    parts = {"correctness": [1.0] * 3 + [1.0, 0.0, 0.0], "format": [0.95] * 3 + [0.95] * 3}
    advantage_BG, metrics = compared([[1.95] * 3, [1.95, 0.95, 0.95]], parts, **GDPO)
    assert advantage_BG[0].tolist() == [0.0] * 3 and advantage_BG[1].abs().min() > 0.1
    assert metrics["zero_variance_share"] == metrics["zero_variance_all_right"] == 0.5
    # The totals are equal, the rewards are not; three times the weight makes up for one being a third of the other.
    parts = {"correctness": [1.0, 0.0], "format": [0.0, 3.0]}
    assert compared([[3.0, 3.0]], parts, weights=(3.0, 1.0))[1]["zero_variance_share"] == 1.0
    assert compared([[3.0, 3.0]], parts, weights=(3.0, 1.0), **GDPO)[1]["zero_variance_share"] == 0.0


def test_what_has_no_reward_is_in_no_mean_and_what_one_function_is_silent_about_is_in_the_batch(alone):
    # The third completion failed in the second function: the first one's 9 counts nowhere. The fourth is 0 + (none).
    parts = {"correctness": [1.0, 0.0, 9.0, NAN], "format": [NAN, NAN, NAN, 1.0]}
    advantage_BG, metrics = compared([[1.0, 0.0, NAN, 1.0]], parts, **GDPO)
    # terms 0.707, -0.707 and 0; their std sqrt(1 / 2)
    torch.testing.assert_close(advantage_BG, torch.tensor([[1.0, -1.0, 0.0, 0.0]]), atol=4e-4, rtol=0)
    assert metrics["unscored_share"] == 0.25


def test_the_gate_acts_on_advantages_of_either_kind_by_the_outcome_that_is_named(alone):
    # Of the second group nothing passes all tests.
    parts = {"tests": [1.0, 0.5, 0.5, 0.25], "format": [0.0, 1.0, 0.0, 1.0]}
    options = {"reward_funcs": ["a.py:tests", "format"], "advantage_gate": "outcome", "outcome_reward": "tests"}
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        advantage_BG, metrics = compared(
            [[1.0, 1.5], [0.5, 1.25]], parts, multi_objective_aggregation=aggregation, **options)
        assert advantage_BG[1].tolist() == [0.0, 0.0]
        assert metrics["accuracy"] == 0.25 and metrics["phantom_advantage_share"] == 0.0
    open_BG, metrics = compared([[1.0, 1.5], [0.5, 1.25]], parts, **options | {"advantage_gate": "none"})
    assert open_BG[1].abs().min() > 0.5 and metrics["phantom_advantage_share"] == pytest.approx(0.5, abs=1e-3)


def two_ranks(monkeypatch, *work):
    """What each of two threads returns that add up their numbers as ranks do."""
    barrier, given = threading.Barrier(2, timeout=20), {}

    def global_sum(values):
        given[threading.get_ident()] = values
        barrier.wait()
        summed = {name: sum(one[name] for one in given.values()) for name in values}
        barrier.wait()
        return summed

    monkeypatch.setattr(measures, "global_sum", global_sum)
    with ThreadPoolExecutor(2) as pool:
        return [one.result() for one in [pool.submit(each) for each in work]]


@pytest.mark.parametrize("options", [GDPO, {"scale_rewards": "batch"}, {**GDPO, "advantage_gate": "outcome"}])
def test_the_groups_of_two_ranks_have_the_advantages_and_metrics_of_one(options, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    part_FBG = torch.stack([torch.randint(2, (6, 4), generator=generator).float(),
                            torch.randn(6, 4, generator=generator)])
    part_FBG[1, 0] *= 50  # the ranks' own std would differ
    part_FBG[1, 2, 1] = part_FBG[0, 4, 2] = part_FBG[1, 4, 2] = NAN
    reward_BG = torch.where(part_FBG.isnan().all(dim=0), NAN, part_FBG.nansum(dim=0))

    def of(chosen):
        parts = dict(zip(("correctness", "mine"), part_FBG[:, chosen].flatten(1).tolist()))
        return compared(reward_BG[chosen].tolist(), parts, **options)

    (first_BG, first), (second_BG, second) = two_ranks(
        monkeypatch, lambda: of(slice(0, 2)), lambda: of(slice(2, 6)))
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    whole_BG, metrics = of(slice(0, 6))
    torch.testing.assert_close(torch.cat([first_BG, second_BG]), whole_BG, atol=1e-6, rtol=1e-5)
    assert first == second == pytest.approx(metrics, rel=1e-6)
    shares = [metrics[f"phantom_advantage_share/{name}"] for name in ("correctness", "mine")]
    assert sum(shares) == pytest.approx(metrics["phantom_advantage_share"])
