r"""Mathematical answers as LaTeX and as plain text: read and compared by the package math-verify, an optional extra.

Its time-outs are alarms, which a process sets in its main thread: there reward functions are called. What no alarm ends
is ended by --reward_timeout.
"""

from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from rewards.completion import text_of

READ_S, COMPARE_S = 10, 5  # seconds that a text is read for at most, and an answer compared with the gold one
Places = tuple[Any, ...]  # where a text is searched for an answer
Answer = tuple[Any, ...]  # an expression and its text; empty where nothing was found, or took too long

ANYWHERE: Places = (LatexExtractionConfig(), ExprExtractionConfig())
LATEX: Places = (LatexExtractionConfig(),)
_MARKED = {"boxed_match_priority": 0, "try_extract_without_anchor": False}  # \boxed{} first, then what follows "answer"
MARKED: Places = (LatexExtractionConfig(**_MARKED), ExprExtractionConfig(try_extract_without_anchor=False))
MARKED_LATEX: Places = (LatexExtractionConfig(normalization_config=NormalizationConfig(units=True), **_MARKED),)


def math_verify(completions: list[Any], final_answer: list[Any], **columns: Any) -> list[float | None]:
    r"""1.0 for each completion whose last \boxed{}, or else what follows "answer", equals the gold, else 0.0.

    A final_answer is a number or mathematics, with or without $ and \boxed{}. None where it is neither.
    """
    golds = [_marked(str(gold)) for gold in final_answer]
    return [agrees(text_of(completion), gold, places=MARKED)
            for completion, gold in zip(completions, golds, strict=True)]


def agrees(text: str, gold: str, *, places: Places, gold_places: Places = ANYWHERE, first: bool = False
           ) -> float | None:
    """1.0 if a text has the gold answer where `places` look, in whatever form, else 0.0; None without a gold answer.

    Only the first place counts that may hold an answer, even if nothing can be read there: nobody may guess twice.

    Args:
        first: the same is true of the gold.
    """
    known = read_gold(gold, gold_places, "first_match" if first else "any_match")
    return float(equal(known, read(text, places, "first_match"))) if known else None


def read(text: str, places: Places, mode: str) -> Answer:
    """What a text says; `mode` is any_match or first_match, where no second place is tried."""
    return tuple(parse(text, places, extraction_mode=mode, parsing_timeout=READ_S))


read_gold = lru_cache(maxsize=1024)(read)  # all completions of a group have the same


def equal(gold: Answer, answer: Answer) -> bool:
    """Whether an answer is the gold one, in whatever form; False where that takes too long to say."""
    return verify(list(gold), list(answer), timeout_seconds=COMPARE_S)


def _marked(gold: str) -> str:
    r"""A gold answer in \boxed{}, so that bare LaTeX is read as such; a single $ is money."""
    return gold if "\\boxed" in gold or gold.count("$") > 1 else rf"\boxed{{{gold}}}"
