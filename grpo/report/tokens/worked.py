"""Advantages worked through by hand, in plain arithmetic: the example of README, and any other group of rewards.

README, the docstring of `group_advantages`, the start block, the token page and the tests show what is computed here.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

EXAMPLE = (1.0, 0.0, 0.0, 0.0)  # four completions of one prompt, only the first is right
EPS = 1e-4  # of `group_advantages`
MOST_TERMS = 4  # different rewards that are written out


class Worked(NamedTuple):
    """A group's advantages and the way to them."""

    mean: float  # of the scored rewards
    std: float  # that the differences are divided by, without EPS; 1 where nothing divides them
    advantages: tuple[float, ...]  # 0 for a completion that is not scored
    text: str


def worked(rewards: Sequence[float | None], *, scale: str = "group", batch_std: float | None = None) -> Worked:
    """Work a group through, as `group_advantages` does with tensors.

    Args:
        rewards: None for a completion that is not scored.
        scale: "group", "batch" or "none".
        batch_std: the std of the scored rewards of the whole step, for "batch".

    >>> worked(EXAMPLE).text
    'rewards (1, 0, 0, 0). The mean is 0.25 and the sample standard deviation √((0.75² + 3·0.25²)/3) = 0.5. So the \
advantages are 0.75/0.5 = 1.500 and 3 times −0.25/0.5 = −0.500 (1.4997 and −0.4999 with the 1e-4 in the divisor). They \
sum to 0.'
    """
    scored = [reward for reward in rewards if reward is not None]
    mean = sum(scored) / len(scored) if scored else math.nan
    text = f"rewards ({', '.join('not scored' if reward is None else _number(reward) for reward in rewards)}). "
    if len(scored) < 2 or max(scored) == min(scored):
        why = "They are all equal" if len(scored) > 1 else "Fewer than two are scored"
        return Worked(mean, 1.0, (0.0,) * len(rewards), f"{text}{why}: every advantage is 0.")
    counted = Counter(reward - mean for reward in scored)  # how often there is each difference, in order
    std, spread, eps = 1.0, "", 0.0
    if scale == "group":
        std, eps = math.sqrt(sum(number * one**2 for one, number in counted.items()) / (len(scored) - 1)), EPS
        spread = f" and the sample standard deviation √({_squares(counted)}/{len(scored) - 1}) = {_number(std)}"
    elif scale == "batch":
        std, spread, eps = batch_std, f" and the standard deviation of the whole step {_number(batch_std)}", EPS
    advantages = tuple(0.0 if reward is None else (reward - mean) / (std + eps) for reward in rewards)
    return Worked(mean, std, advantages,
                  f"{text}The mean is {_number(mean)}{spread}. So the advantages are {_quotients(counted, std, eps)}. "
                  "They sum to 0.")


def spelled(values: Sequence[float], digits: int) -> str:
    """Numbers in brackets, with so many digits after the point."""
    return f"({', '.join(f'{value:.{digits}f}' for value in values)})"


def _squares(counted: Counter) -> str:
    """The sum of the squared differences."""
    if len(counted) > MOST_TERMS:
        return "sum of (reward − mean)²"
    return "(" + " + ".join(f"{_times(number, '·')}{_number(abs(one))}²" for one, number in counted.items()) + ")"


def _quotients(counted: Counter, std: float, eps: float) -> str:
    """The advantages: the plain quotients, and what they are with `eps`."""
    if len(counted) > MOST_TERMS:
        return f"(reward − mean)/({_number(std)} + 1e-4)" if eps else "reward − mean"
    if not eps:
        return " and ".join(f"{_times(number, ' times ')}{_number(one)}" for one, number in counted.items())
    plain = " and ".join(f"{_times(number, ' times ')}{_number(one)}/{_number(std)} = {_fixed(one / std, 3)}"
                         for one, number in counted.items())
    exact = " and ".join(_fixed(one / (std + eps), 4) for one in counted)
    return f"{plain} ({exact} with the 1e-4 in the divisor)"


def _times(number: int, sign: str) -> str:
    return f"{number}{sign}" if number > 1 else ""


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
