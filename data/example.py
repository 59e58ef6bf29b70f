import json
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]  # with a role and a content, as chat templates read them
Prompt = str | list[Message]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One problem of a dataset; a text is empty if the dataset has none."""

    question: str  # without any template; of a conversation, what the user said last
    answer: str  # the worked solution
    final_answer: str  # the gold answer, with which rewards compare
    prompt: Prompt  # the text that the policy continues, or the messages that it answers
    columns: dict[str, Any] = field(default_factory=dict)  # of the dataset row; reward functions get these, as in TRL
    place: str = ""  # of the row, as in "row 7 of split 'train'": in the file, before any shuffle

    @property
    def prompt_text(self) -> str:
        """The prompt as one text, to compare it with others."""
        return self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt)

    @property
    def title(self) -> str:
        """What a reader knows the problem by: its question, or the prompt where the dataset gives only that."""
        return self.question or self.prompt_text
