"""Reward functions of open-r1 that TRL has not, by its definitions: <think>, <answer> and length."""

from typing import Any

from rewards.completion import text_of

TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def tag_count_reward(completions: list[Any], **columns: Any) -> list[float]:
    """0.25 for each of the four TAGS, with its line breaks, that a completion has exactly once."""
    return [sum((0.25 for tag in TAGS if text_of(completion).count(tag) == 1), 0.0) for completion in completions]


def think_answer_format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """1.0 where a completion begins with <think>, goes on to <answer> and ends its last line in </answer>, else 0.0.

    Each tag has a line of its own, and <answer> stands right below </think>. It is the `format` of open-r1's recipes.
    """
    values = []
    for completion in completions:
        before, _, rest = text_of(completion).partition("<think>\n")
        _, both, answer = rest.partition("\n</think>\n<answer>\n")
        values.append(float(not before and bool(both) and "\n</answer>\n" in f"{answer}\n"))
    return values


def len_reward(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """0.5 - (n - shortest) / (longest - shortest) by the n characters of a completion; at most 0.0 where it is wrong.

    Shortest and longest are of all completions of the call, those of a rank's step; with equal lengths all get 0.0.
    Right is what equals the LaTeX of the solution, and everything where the solution has none. As in Kimi k1.5
    (arXiv:2501.12599), which compares the completions of one prompt.
    """
    from rewards.latex import LATEX, MARKED_LATEX, agrees  # here, as the other functions need no math-verify

    texts = [text_of(completion) for completion in completions]
    lengths = [len(text) for text in texts]
    shortest, spread = min(lengths, default=0), max(lengths, default=0) - min(lengths, default=0)
    values = []
    for text, one in zip(texts, solution, strict=True):
        share = 0.5 - (len(text) - shortest) / spread if spread else 0.0
        wrong = spread and agrees(text, one, places=MARKED_LATEX, gold_places=LATEX, first=True) == 0
        values.append(min(0.0, share) if wrong else share)
    return values
