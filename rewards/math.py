r"""Rewards for problems whose answer is one number: does the completion state it in the right shape, and is it right?

Both functions have TRL's signature and never raise for any text. The first answer line counts, even without a number:
nobody may guess twice.
"""

import re
from fractions import Fraction
from math import inf
from typing import Any

from rewards.completion import text_of
from rewards.number import parse_number

FORMAT_REWARD = 0.5
CORRECTNESS_REWARD = 1.0
TOLERANCE = Fraction(1, 1000)

# With its line break: where a completion begins with "#### The final answer is", the marker stands in the middle of a
# line of the whole text, after "Let's think step by step.".
ANSWER_LINE = re.compile(r"\n#### The final answer is(?!\S)([^\n]*)")


def format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """0.5 for each completion whose first answer line states a number, else 0.0."""
    return [0.0 if answer_number(completion) is None else FORMAT_REWARD for completion in completions]


def correctness_reward(completions: list[Any], final_answer: list[Any], **columns: Any) -> list[float]:
    """1.0 for each completion whose first answer line states the gold number, |N - gold| <= 0.001, else 0.0.

    A final_answer is a number ("1,234", "$12.50", -5) or a solution that ends in "#### N". With any other
    nothing is right; a run refuses such a row before it starts.
    """
    return [CORRECTNESS_REWARD if is_right(answer_number(completion), gold_number(gold)) else 0.0
            for completion, gold in zip(completions, final_answer, strict=True)]


def is_right(answer: Fraction | None, truth: Fraction | None) -> bool:
    """Whether both are numbers, and the same one but for the tolerance."""
    return answer is not None and truth is not None and abs(answer - truth) <= TOLERANCE


def answer_number(completion: Any) -> Fraction | None:
    """The number on the first answer line of a completion; None if there is no such line or no number on it."""
    line = ANSWER_LINE.search(text_of(completion))
    return parse_number(line[1]) if line else None


def gold_number(gold: Any) -> Fraction | None:
    """The number of a gold answer: itself, or what follows the last "####" of a text, or the whole text."""
    if isinstance(gold, bool):  # an integer of Python, and no answer
        return None
    if isinstance(gold, (int, float)):
        return Fraction(gold) if abs(gold) < inf else None  # NaN is not less either
    return parse_number(str(gold).rpartition("####")[2].strip().removeprefix("The final answer is"))
