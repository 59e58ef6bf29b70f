"""The text of a completion, which is a text or TRL's conversational form: a list of {"role", "content"} messages."""

from typing import Any


def text_of(completion: Any) -> str:
    """The text; of a conversation, its last message; empty if that has no text."""
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
    return completion if isinstance(completion, str) else ""
