from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Example:
    """One problem of a dataset, as text; a text is empty if the dataset has none."""

    question: str  # without any template
    answer: str  # the worked solution
    final_answer: str  # the gold answer, with which rewards compare
    prompt: str  # the text that the policy continues
    columns: dict[str, Any] = field(default_factory=dict)  # of the dataset row; reward functions get these, as in TRL
    place: str = ""  # of the row, as in "row 7 of split 'train'": in the file, before any shuffle
