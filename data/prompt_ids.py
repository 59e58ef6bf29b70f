"""A prompt becomes tokens: a text as it is, messages through the tokenizer's chat template."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.conversation import is_continued
from data.example import Message, Prompt

if TYPE_CHECKING:  # rows are read without it, and it takes seconds
    from transformers import PreTrainedTokenizerBase

LONGEST_REASON = 200  # characters of an exception's message
BATCH = 256  # prompts in one call, which keeps much about each token until it is done
ANSWER = "zqvx"  # a word that stands in no template


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, variables: dict[str, Any] | None = None
) -> list[int]:
    """The tokens of one prompt, as `all_prompt_ids`."""
    return all_prompt_ids(tokenizer, [prompt], variables)[0]


def all_prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], variables: dict[str, Any] | None = None
) -> list[list[int]]:
    """The tokens of each prompt; `variables` are those that the user gives the chat template.

    A text gets the special tokens that the tokenizer puts around any text, messages only those of the template.

    ValueError if there is no chat template, or it does not take these messages.
    """
    found: list[list[int]] = []
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first:first + BATCH]
        as_they_are = isinstance(batch[0], str)  # a dataset has texts or messages
        texts = [one if isinstance(one, str) else _rendered(tokenizer, one, variables) for one in batch]
        found += tokenizer(texts, add_special_tokens=as_they_are)["input_ids"]
    return found


def _rendered(tokenizer: "PreTrainedTokenizerBase", prompt: list[Message], variables: dict[str, Any] | None) -> str:
    """Messages as the policy reads them."""
    continued = is_continued(prompt)
    return _render(tokenizer, prompt, variables, add_generation_prompt=not continued,
                   continue_final_message=continued)


def end_of_turn(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, variables: dict[str, Any] | None = None
) -> set[int]:
    """The token that the chat template puts behind the answer to a prompt; none if it puts ordinary text there.

    It may be another one than the tokenizer's end: of Qwen2.5's base models that is <|endoftext|>, and a turn ends with
    <|im_end|>.
    """
    if isinstance(prompt, str):
        return set()
    before = prompt[:-1] if is_continued(prompt) else prompt
    text = _render(tokenizer, [*before, {"role": "assistant", "content": ANSWER}], variables)
    _, found, behind = text.rpartition(ANSWER)
    tokens = tokenizer.encode(behind, add_special_tokens=False) if found else []
    first = next((token for token in tokens if tokenizer.decode([token]).strip()), None)
    return {first} & tokenizer.added_tokens_decoder.keys()


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], variables: dict[str, Any] | None, **form: bool
) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(f"chat_template=None: the prompts are messages, and {tokenizer.name_or_path} has no chat "
                         "template; nearest valid: a file with one, or a model that was trained with one")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **form, **(variables or {}))
    except Exception as error:  # a template is a program, and refuses messages in its own words
        words = " ".join(str(error).split())[:LONGEST_REASON]
        raise ValueError(f"chat_template: it does not take messages that end in {messages[-1]['content'][-40:]!r}: "
                         f"{type(error).__name__}: {words}") from error
