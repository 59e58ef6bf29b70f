"""Held-out accuracy and its uncertainty: 95 % intervals, and a paired test of before and after."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo.evaluation.answers import Answer

SCORES = ("strict", "lenient", "format", "truncated")  # fields of an Answer
Z_95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def num_right(answers: list[Answer], score: str = "strict") -> list[int]:
    """The number of right samples of each problem, in the order of the problems' index."""
    counts: dict[int, int] = {}
    for answer in answers:
        counts[answer.index] = counts.get(answer.index, 0) + getattr(answer, score)
    return [counts[index] for index in sorted(counts)]


def wilson_interval(share: float, num: float) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927): all p with |share - p| <= z sqrt(p (1 - p) / num)."""
    middle = (share + Z_95**2 / (2 * num)) / (1 + Z_95**2 / num)
    half = Z_95 / (1 + Z_95**2 / num) * math.sqrt(share * (1 - share) / num + Z_95**2 / (4 * num**2))
    # Shares of 0 and 1 are ends of their own interval; rounding would miss them slightly.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def accuracy_interval(right: Sequence[int], num_samples: int) -> tuple[float, float]:
    """95 % confidence interval of the accuracy over problems like these, each answered `num_samples` times.

    The samples of one problem are correlated, so they count as fewer: Wilson's interval with the effective number
    p (1 - p) / (var / B) of independent answers (Kish 1965), where var is the variance of the B problems' accuracies.
    The number lies between B (all samples of a problem agree) and B * num_samples.
    """
    share_B = np.asarray(right) / num_samples
    share, num = float(share_B.mean()), len(share_B)
    variance = float(share_B.var()) / num
    effective = share * (1 - share) / variance if variance > 0 else num
    return wilson_interval(share, min(max(effective, num), num * num_samples))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent values, and the half width of its 95 % interval by the normal distribution."""
    half = Z_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(np.mean(values)), half


def paired_test(before: Sequence[int], after: Sequence[int]) -> float:
    """Two-sided p value of "before and after are equally good", from the same problems answered by both.

    If that were true, each problem's difference would have either sign with chance 1/2. The p value is the chance, over
    all 2^B choices of signs, of a total at least as far from 0 as the observed one (Fisher 1935), exact by convolution.
    With one answer per problem this is McNemar's exact test. `before` and `after` are right answers to each of the B
    problems, in the same order and out of the same number.
    """
    differences = [y - x for x, y in zip(before, after, strict=True) if x != y]
    total = sum(abs(difference) for difference in differences)
    chance = np.zeros(total + 1)  # that the positive differences add up to 0, 1, ..., total
    chance[0] = 1.0
    for size in map(abs, differences):
        chance[size:] = chance[size:] + chance[:-size]  # the right side is complete before it is assigned
        chance /= 2
    signed_total = 2 * np.arange(total + 1) - total
    return min(1.0, float(chance[np.abs(signed_total) >= abs(sum(differences))].sum()))


def summarize(answers: list[Answer]) -> dict[str, Any]:
    """The shares of one evaluation, each with its 95 % interval."""
    num_problems = len(num_right(answers))
    num_samples = len(answers) // num_problems
    summary: dict[str, Any] = {"num_problems": num_problems, "num_samples": num_samples}
    for score in SCORES:
        right = num_right(answers, score)
        summary[score] = sum(right) / len(answers)
        summary[f"{score}_interval"] = accuracy_interval(right, num_samples)
    return summary


def compare(before: list[Answer], after: list[Answer]) -> dict[str, float]:
    """The strict accuracy of both, and the p value of the paired test on the same problems."""
    right_before, right_after = num_right(before), num_right(after)
    return {"accuracy_before": sum(right_before) / len(before), "accuracy_after": sum(right_after) / len(after),
            "p_value": paired_test(right_before, right_after)}
