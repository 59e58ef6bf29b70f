"""A problem of a dataset, in the form that everything else reads."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Example:
    """One problem of a dataset.

    Args:
        question: the problem as text, without any template.
        answer: the worked solution as text; empty when the dataset has none.
        final_answer: the gold answer as text, what the rewards compare with; empty when the dataset has none.
        prompt: the text the policy continues.
        columns: every column of the dataset row by name; reward functions receive these, as in TRL.
    """

    question: str
    answer: str
    final_answer: str
    prompt: str
    columns: dict[str, Any] = field(default_factory=dict)
