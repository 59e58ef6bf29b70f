"""Reasoning Gym's own score of an answer, for rows that `data.gym` made; needs the package reasoning-gym.

Some of its tasks hand the answer to Python's eval, or to sympy's parser, which calls eval. A model's text would run
there with the rights of the user, so those tasks get only answers that can call nothing.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from reasoning_gym import create_dataset
from reasoning_gym.dataset import ProceduralDataset

from rewards.arguments import reads_options
from rewards.completion import text_of
from rewards.math import ANSWER_LINE
from rewards.values import refuse

# Without brackets nothing is called, and without a dot no attribute is read.
LITERAL = re.compile(r"[\w\s,'\"\[\]-]*")
# Names of one letter and functions of numbers; a dot stands in front of a digit.
FORMULA = re.compile(
    r"(?:[\d\s+*/^(),-]|\.(?=\d)|(?<!\w)(?:[A-Za-z]|a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|Abs|Integral|pi)"
    r"(?!\w))*")
# The tasks of version 0.1.25 that evaluate an answer; a test compares them with the package's source.
EVALUATED = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), LITERAL),
    **dict.fromkeys(("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24",
                     "simple_integration"), FORMULA)}
PLACES = ("either", "tag", "line")
_TASKS: dict[str, ProceduralDataset] = {}  # by what they were made from: some read files when they are


def read_answer(answer_from: Any = "either", answer_tag: Any = "answer") -> dict[str, Any]:
    """The options of `reasoning_gym`.

    Args:
        answer_from: tag: the text behind the last <answer>, up to </answer> if it is there; line: the first answer
            line, as `format` reads it; either: the tag, or the line where there is no tag.
        answer_tag: the name of the tag.
    """
    if answer_from not in PLACES:
        refuse("answer_from", answer_from, f"must be {', '.join(PLACES)}", "either")
    if not isinstance(answer_tag, str) or not re.fullmatch(r"\w+", answer_tag):
        refuse("answer_tag", answer_tag, "must be a word", "answer")
    return {"answer_from": answer_from, "answer_tag": answer_tag}


@reads_options(read_answer)
def reasoning_gym(
    completions: list[Any], question: list[str], answer: list[Any], metadata: list[dict[str, Any]],
    gym_task: list[dict[str, Any]], answer_from: Literal["either", "tag", "line"], answer_tag: str,
    log_metric: Callable[[str, float], None] | None = None, **columns: Any
) -> list[float]:
    """What the task's score_answer gives for each answer, mostly 0.0 to 1.0; 0.0 where it raises.

    A completion without an answer is scored as such. `log_metric` gets the share of answers at which a task raised.
    """
    values, raised = [], 0
    rows = zip(completions, question, answer, metadata, gym_task, strict=True)
    for completion, asked, gold, more, task in rows:
        given = answer_of(text_of(completion), answer_from, answer_tag)
        if given is not None and not is_harmless(task["name"], given):
            given = None
        try:
            values.append(float(_task(task).score_answer(
                answer=given, entry={"question": asked, "answer": gold, "metadata": more})))
        except Exception:  # some tasks do so where an answer has another form than theirs
            values.append(0.0)
            raised += 1
    if log_metric:
        log_metric("reasoning_gym_raised", raised / max(len(values), 1))
    return values


def answer_of(text: str, answer_from: str, tag: str) -> str | None:
    """The answer in a text without the space around it; None if there is none."""
    _, tagged, behind = text.rpartition(f"<{tag}>")
    if tagged and answer_from != "line":
        return behind.partition(f"</{tag}>")[0].strip()
    line = None if answer_from == "tag" else ANSWER_LINE.search(text)
    return line[1].strip() if line else None


def is_harmless(task: str, answer: str) -> bool:
    """Whether a task that evaluates answers may have this one."""
    return task not in EVALUATED or EVALUATED[task].fullmatch(answer) is not None


def _task(task: dict[str, Any]) -> ProceduralDataset:
    key = repr(task)
    if key not in _TASKS:
        _TASKS[key] = create_dataset(task["name"], **task["config"])
    return _TASKS[key]
