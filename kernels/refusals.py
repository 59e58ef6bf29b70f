"""What `fused_logprob` refuses, in one line each."""

from difflib import get_close_matches
from typing import Any, NoReturn

import torch


def refuse(name: str, value: Any, rule: str, valid: Any) -> NoReturn:
    raise ValueError(f"{name}={value!r} {rule}; nearest valid value: {valid}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        refuse(name, value, f"must be one of {', '.join(choices)}", get_close_matches(value, choices, 1, 0)[0])


def check_tokens(token_L: torch.Tensor, num_words: int) -> None:
    """Refuse a token outside the vocabulary. Waits for the GPU if the tokens are there."""
    outside_L = token_L[(token_L < 0) | (token_L >= num_words)]
    if len(outside_L):
        refuse("token_L", outside_L[0].item(), f"must lie in [0, {num_words})", 0)
