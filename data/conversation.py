"""Prompts that are a list of messages, in the form of TRL, verl, OpenRLHF and Unsloth.

If the last message is the assistant's, the policy continues it; else it begins the assistant's next message.
"""

import re
from typing import Any

from data.example import Message, Prompt
from data.prompts import COMPLETION, EXEMPLARS, check_num_shots

LAST = ("user", "tool", "assistant")  # roles of a last message
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a letter, which JSON can write and no tokenizer reads
# Messages in a file that only holds text, as JSON or as Python prints them.
_WRITTEN_OUT = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']""")


def fault(prompt: Any, *, chat: bool) -> str:
    """What is wrong with a prompt, which must be messages or else a text; "" if nothing is."""
    if not chat:
        if not isinstance(prompt, str) or not prompt.strip() or _SURROGATE.search(prompt):
            return f"must be text, is {prompt!r:.40}"
        hint = "holds messages, but written as text; nearest valid: a list, in a .jsonl or .parquet file"
        return hint if _WRITTEN_OUT.match(prompt) else ""
    if not isinstance(prompt, list) or not prompt:
        return f"must be a list of messages as in row 1, is {prompt!r:.40}"
    for number, message in enumerate(prompt, start=1):
        parts = [message.get(key) if isinstance(message, dict) else None for key in ("role", "content")]
        if not all(isinstance(part, str) and not _SURROGATE.search(part) for part in parts):
            return f"must have messages with a role and a content, both text; message {number} is {message!r:.60}"
    last = prompt[-1]["role"]
    return "" if last in LAST else f"must end in a message of role {', '.join(LAST)}, not of {last!r:.40}"


def converse(text: str, *, num_shots: int = 0) -> list[Message]:
    """A text as the user's message, after solved examples as earlier turns; ValueError unless 0 <= num_shots <= 8."""
    check_num_shots(num_shots)
    messages = []
    for question, reasoning, final_answer in EXEMPLARS[:num_shots]:
        answer = COMPLETION.format(reasoning=reasoning, final_answer=final_answer).strip()
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": text}]


def is_continued(messages: list[Message]) -> bool:
    """Whether the policy goes on with the last message."""
    return messages[-1]["role"] == "assistant"


def last_said(messages: list[Message]) -> str:
    """What the user said last; without a user, the last message."""
    return next((one["content"] for one in reversed(messages) if one["role"] == "user"), messages[-1]["content"])


def for_rewards(prompt: Prompt, completion: str) -> tuple[Prompt, str | list[Message]]:
    """Both as TRL hands them to reward functions: of a conversation, the completion is one message.

    A message that the policy continued is the start of the completion, and no part of the prompt.
    """
    if isinstance(prompt, str):
        return prompt, completion
    start = prompt[-1]["content"] if is_continued(prompt) else ""
    before = prompt[:-1] if is_continued(prompt) else prompt[:]  # a list of its own: a function may change it
    return before, [{"role": "assistant", "content": start + completion}]
