"""The options of train.py and eval.py that say how messages become a text."""

from pathlib import Path
from typing import Any

from grpo.options.refusal import refuse

# What the trainer gives `apply_chat_template` itself, or what would leave it other than whole tokens.
TAKEN = ("conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding",
         "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
         "tokenizer_kwargs")


def read_template(value: str | None) -> str | None:
    """The text of a chat template, which an option gives as such or as the name of a file.

    Raises:
        ValueError: there is no such file, or no template in it.
    """
    if value is None or _is_template(value):
        return value
    try:
        text = Path(value).expanduser().read_text(encoding="utf-8")
        problem = "" if _is_template(text) else "it has neither {{ nor {%"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "it is no UTF-8 text"
    if problem:
        refuse("chat_template", value, f"must be a template or a file with one: {problem}",
               "a file such as chat_template.jinja")
    return text


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


def check_variables(variables: dict[Any, Any] | None) -> None:
    """Refuse with ValueError, among the variables of a chat template, what the trainer decides."""
    for name, value in (variables or {}).items():
        if not isinstance(name, str) or name in TAKEN:
            refuse("chat_template_kwargs", {name: value}, "is not for the template to use", "without this key")
