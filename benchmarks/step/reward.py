"""The reward of `benchmarks.step`: a cheap program of the completion, the same for every trainer."""

from typing import Any


def vowel_reward(completions: list[str], **columns: Any) -> list[float]:
    """Share of vowels among the characters of each completion: never equal within a group of long random texts."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in completions]
