"""Conventions of advantages: which standard deviation, over what, and what happens where there is none."""

import math

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, claims_of
from tests.conformance.claims.advantages import PAPER, WORKED, advantages
from tests.conformance.tools import words

claim = claims_of("advantages")
BY_WINNER = {1.5: "sample, of n - 1", 1.732: "population, of n", 0.75: "none: divided by nothing",
             1.0: "none, and the mean is of the others (RLOO)"}


def named(value: float, names: dict[float, str], tolerance: float) -> str:
    return next((name for number, name in names.items() if abs(value - number) < tolerance), f"another: {value:.4g}")


@claim(
    "advantages", tolerance=0.01, names=True,
    says="Which standard deviation divides.",
    equation="s = sqrt(sum_g (r_g - mean r)^2 / (G - 1)), or / G, or s = 1",
    source=f"{PAPER} writes std and does not say which; Dr. GRPO, arXiv 2503.20783, has none",
    by_hand="the winner of (1, 0, 0, 0): 0.75 / 0.5 = 1.5, 0.75 / 0.433 = 1.732, or 0.75",
    violation="Steps are longer by sqrt(G / (G - 1)): 15 % for 4 completions, 3 % for 16.")
def standard_deviation(adapter: Adapter, tolerance: float) -> str:
    return named(advantages(adapter, WORKED)[0, 0].item(), BY_WINNER, tolerance)


@claim(
    "advantages", tolerance=0.01, names=True,
    says="Whose standard deviation divides.",
    equation="std over a group, or over the batch", source="arXiv 2508.08221 (Lite PPO) takes the batch's",
    by_hand="(1, 0, 0, 0) beside (10, 0, 0, 0): both winners get 1.5; or the second 10 times the first",
    violation="Over a group, rare answers of hard and easy prompts weigh more; over the batch, big rewards do.")
def standard_deviation_of(adapter: Adapter, tolerance: float) -> str:
    first, second = advantages(adapter, WORKED, (10.0, 0.0, 0.0, 0.0))[:, 0].tolist()
    alone = advantages(adapter, (10.0, 0.0, 0.0, 0.0))[0, 0].item()
    if abs(alone / advantages(adapter, WORKED)[0, 0].item() - 10) < tolerance:
        raise NotOffered("nothing divides")
    return named(second / first, {1.0: "the group", 10.0: "the batch"}, 10 * tolerance)


@claim(
    "advantages", names=True,
    says="What is added to the standard deviation.",
    equation="A_g = (r_g - mean r) / (s + eps)", source="1e-4 in TRL, 1e-6 in verl, 1e-9 in OpenRLHF",
    by_hand="the winner of (0.001, 0, 0, 0): s is 0.0005, so 0.00075 / 0.0006 = 1.25 with eps 1e-4",
    violation="Rewards that differ by less than eps teach less; the smaller eps, the more rounding counts.")
def eps_of_the_divisor(adapter: Adapter, tolerance: float) -> str:
    full, small = (advantages(adapter, (reward, 0.0, 0.0, 0.0))[0, 0].item() for reward in (1.0, 1e-3))
    if abs(full / small - 1000) < 1:
        raise NotOffered("nothing divides")
    divisor = 0.75 / full  # s for the rewards (1, 0, 0, 0), and eps, which is nothing beside it
    eps = 0.75e-3 / small - divisor * 1e-3
    return f"{10 ** round(math.log10(eps)):.0e}" if eps > 3e-8 else "less than 1e-7"


@claim(
    "advantages", names=True,
    says="What a completion without a reward does to its group.",
    equation="mean and std over the scored completions", source="huggingface/trl: None from a reward function",
    by_hand="(nan, 1, 0, 0): of the others the mean is 1/3, so the second is 2 to -1 and the first 0",
    violation="Left out, it teaches nothing; as a 0, it is a wrong answer; as NaN, it spoils its group or the run.")
def a_completion_without_reward(adapter: Adapter, tolerance: float) -> str:
    first, winner, loser, _ = advantages(adapter, (float("nan"), 1.0, 0.0, 0.0), WORKED)[0].tolist()
    if math.isnan(winner):
        return "its group is not a number"
    if first == winner == loser == 0.0:
        return "its group teaches nothing"
    if first == 0.0 and abs(winner + 2 * loser) < 1e-3:
        return "left out"
    return f"another: {words(torch.tensor([first, winner, loser]))}"


@claim(
    "advantages", names=True,
    says="What a prompt with one completion gets.",
    equation="A = r - mean r = 0, or A = r", source="verl takes the reward itself, REINFORCE",
    by_hand="(3): 0, or 3",
    violation="With 0 nothing is learned; with the reward itself everything that is rewarded becomes likelier. "
              "NaN is no choice: \"one completion\" judges it.")
def a_group_of_one(adapter: Adapter, tolerance: float) -> str:
    value = advantages(adapter, (3.0,), (1.0,))[0, 0].item()
    return "not a number" if math.isnan(value) else named(value, {0.0: "0", 3.0: "its reward"}, 1e-3)
