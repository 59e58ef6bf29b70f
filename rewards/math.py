r"""Rewards for problems whose answer is one number: does the completion state it in the right shape, and is it right?

Both functions have TRL's signature and never raise for any text. A completion is a text, or TRL's conversational form:
a list of {"role", "content"} messages. The first answer line counts, even without a number: nobody may guess twice.
"""

import re
from decimal import Decimal
from typing import Any

FORMAT_REWARD = 0.5
CORRECTNESS_REWARD = 1.0
TOLERANCE = Decimal("0.001")
MAX_NUMBER_LENGTH = 32  # characters; no answer to a problem is longer

# With its line break: where a completion begins with "#### The final answer is", the marker stands in the middle of a
# line of the whole text, after "Let's think step by step.".
ANSWER_LINE = re.compile(r"\n#### The final answer is(?!\S)([^\n]*)")
# Linear time: no two neighbouring repetitions match the same character.
NUMBER = re.compile(
    r"(?P<sign>-?\$?|\$-)"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:\.| *[A-Za-z°%$€£][A-Za-z°%$€£²³./' -]*)?"  # a full stop or a unit ("%", "miles per hour", "sq. ft.")
)


def format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """0.5 for each completion whose first answer line states a number, else 0.0."""
    return [0.0 if answer_number(completion) is None else FORMAT_REWARD for completion in completions]


def correctness_reward(completions: list[Any], final_answer: list[Any], **columns: Any) -> list[float]:
    """1.0 for each completion whose first answer line states the gold number, |N - gold| <= 0.001, else 0.0.

    A final_answer is a number ("1,234", "$12.50", -5) or a solution that ends in "#### N"; else nothing is right.
    """
    rewards = []
    for completion, gold in zip(completions, final_answer, strict=True):
        answer, truth = answer_number(completion), gold_number(gold)
        right = answer is not None and truth is not None and abs(answer - truth) <= TOLERANCE
        rewards.append(CORRECTNESS_REWARD if right else 0.0)
    return rewards


def answer_number(completion: Any) -> Decimal | None:
    """The number on the first answer line of a completion; None if there is no such line or no number on it."""
    line = ANSWER_LINE.search(_text(completion))
    return parse_number(line[1]) if line else None


def gold_number(gold: Any) -> Decimal | None:
    """The number of a gold answer: itself, or what follows the last "####" of a text, or the whole text."""
    if isinstance(gold, (int, float)):
        number = Decimal(gold)
        return number if number.is_finite() else None
    return parse_number(str(gold).rpartition("####")[2].strip().removeprefix("The final answer is"))


def parse_number(text: str) -> Decimal | None:
    """The value of "N": minus, "$", thousands commas, decimals, then a full stop or a unit; None for anything else."""
    match = NUMBER.fullmatch(text.strip())
    if match is None or len(match["digits"]) > MAX_NUMBER_LENGTH:
        return None
    return Decimal(match["sign"].replace("$", "") + match["digits"].replace(",", ""))


def _text(completion: Any) -> str:
    """The text of a completion; of a conversation, its last message; empty if that has no text."""
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    return completion if isinstance(completion, str) else ""
