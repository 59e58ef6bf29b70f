"""What several samples of a problem are worth together: pass@k and maj@k, each the mean over all choices of k of the n.

    pass@k = 1 − C(n − c, k) / C(n, k), c of the n are right      (Chen et al. 2021, arXiv 2107.03374)
    maj@k: the number that most of the k state is right; where several are stated equally often, one of them is drawn

Both are unbiased: with k = n they are what was seen.
"""

from collections import Counter
from math import comb
from typing import Any

from grpo.evaluation.answers import Answer
from grpo.evaluation.statistics import mean_interval
from rewards.math import answer_number


def pass_at(num_samples: int, num_right: int, k: int) -> float:
    """The chance that one of k different samples of a problem is right."""
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def majority_at(right: int, wrong: list[int], num_silent: int, k: int) -> float:
    """The chance that the majority of k different samples is right.

    Args:
        right: samples that state the right number.
        wrong: how many state each of the other numbers.
        num_silent: samples that state none, and have no vote.
    """
    total = 0.0
    for votes in range(1, min(right, k) + 1):
        # By the samples drawn so far and the other numbers with as many votes: how often that happens.
        ways = Counter({(votes, 0): comb(right, votes)})
        for size in wrong:
            ways = _drawn(ways, size, most=votes)
        ways = _drawn(ways, num_silent, most=None)
        total += sum(number / (1 + ties) for (drawn, ties), number in ways.items() if drawn == k)
    return total / comb(right + sum(wrong) + num_silent, k)


def _drawn(ways: Counter, size: int, *, most: int | None) -> Counter:
    """`ways` after drawing from `size` more samples, at most `most` of them; none has a tie where most is None."""
    after: Counter = Counter()
    for (drawn, ties), number in ways.items():
        for count in range(min(size, size if most is None else most) + 1):
            after[drawn + count, ties + (count == most)] += number * comb(size, count)
    return after


def several(answers: list[Answer]) -> dict[str, Any]:
    """pass@k and maj@k, k = 1, 2, 4, ... and all samples: the mean over problems, and its 95 % interval."""
    problems: dict[int, list[Answer]] = {}
    for answer in answers:
        problems.setdefault(answer.index, []).append(answer)
    num_samples = len(answers) // len(problems)
    found: dict[str, Any] = {}
    for k in sorted({2**power for power in range(num_samples.bit_length())} | {num_samples}):
        passed, majority = [], []
        for group in problems.values():
            right = sum(answer.strict for answer in group)
            stated = [answer_number(answer.completion) for answer in group if not answer.strict]
            wrong = Counter(number for number in stated if number is not None)
            passed.append(pass_at(num_samples, right, k))
            majority.append(majority_at(right, list(wrong.values()), stated.count(None), k))
        found |= {f"pass@{k}": _of_shares(passed), f"maj@{k}": _of_shares(majority)}
    return found


def _of_shares(values: list[float]) -> tuple[float, float, float]:
    mean, half = mean_interval(values)
    return mean, max(0.0, mean - half), min(1.0, mean + half)
