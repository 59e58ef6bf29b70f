r"""The reward functions that TRL ships, under its names and by its definitions (version 1.16).

TRL makes some of them by a call, such as get_cosine_scaled_reward(max_len=100). Here the arguments of that call are
`reward_options`: {get_cosine_scaled_reward: {max_len: 100}}. Those that know what is right need math-verify.
"""

from math import cos, isfinite, pi
from typing import Any

from rewards.arguments import reads_options
from rewards.completion import text_of
from rewards.values import refuse


def read_reasoning(reasoning_delimiters: Any = None) -> dict[str, Any]:
    """The options of `reasoning_accuracy_reward`: texts, each of which ends the reasoning; None: </think>."""
    delimiters = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    is_list = isinstance(delimiters, list) and delimiters
    if not is_list or not all(isinstance(one, str) and one for one in delimiters):
        refuse("reasoning_delimiters", delimiters, "must be a list of texts", ["</think>"])
    return {"reasoning_delimiters": delimiters}


def read_cosine(max_len: Any = None, min_value_wrong: Any = -1.0, max_value_wrong: Any = -0.5,
                min_value_correct: Any = 0.5, max_value_correct: Any = 1.0) -> dict[str, Any]:
    """The options of `get_cosine_scaled_reward`; max_len, in tokens, must be given."""
    values = {"min_value_wrong": min_value_wrong, "max_value_wrong": max_value_wrong,
              "min_value_correct": min_value_correct, "max_value_correct": max_value_correct}
    return {"max_len": _whole("max_len", max_len, least=1, nearest=512)} | {
        name: _number(name, value, nearest=0.0) for name, value in values.items()}


def read_repetition(ngram_size: Any = 3, max_penalty: Any = -1.0) -> dict[str, Any]:
    """The options of `get_repetition_penalty_reward`: tokens of an n-gram, and a penalty that is not above 0."""
    if _number("max_penalty", max_penalty, nearest=-1.0) > 0:
        refuse("max_penalty", max_penalty, "must be at most 0", -max_penalty)
    return {"ngram_size": _whole("ngram_size", ngram_size, least=1, nearest=3), "max_penalty": max_penalty}


def read_overlong(max_completion_len: Any = 1280, soft_punish_cache: Any = 256) -> dict[str, Any]:
    """The options of `get_soft_overlong_punishment`, in tokens; the defaults are what TRL's script sets."""
    return {"max_completion_len": _whole("max_completion_len", max_completion_len, least=1, nearest=1280),
            "soft_punish_cache": _whole("soft_punish_cache", soft_punish_cache, least=0, nearest=256)}


def accuracy_reward(completions: list[Any], solution: list[str], **columns: Any) -> list[float | None]:
    r"""1.0 where the LaTeX of a completion equals the solution, else 0.0; None where the solution cannot be read.

    The last \boxed{} counts, or else the LaTeX behind "answer".
    """
    return [_accuracy(text_of(completion), one) for completion, one in zip(completions, solution, strict=True)]


@reads_options(read_reasoning)
def reasoning_accuracy_reward(
    completions: list[Any], solution: list[str], reasoning_delimiters: list[str], **columns: Any
) -> list[float | None]:
    """accuracy_reward of what follows the reasoning, or 0.0 where nothing ends it.

    Where a text has several of the delimiters, the one that is named first counts, at its last place in the text.
    """
    values: list[float | None] = []
    for completion, one in zip(completions, solution, strict=True):
        text = text_of(completion)
        end = next((delimiter for delimiter in reasoning_delimiters if delimiter in text), None)
        values.append(0.0 if end is None else _accuracy(text.rpartition(end)[2], one))
    return values


@reads_options(read_cosine)
def get_cosine_scaled_reward(
    completions: list[Any], solution: list[str], completion_ids: list[list[int]], max_len: int, min_value_wrong: float,
    max_value_wrong: float, min_value_correct: float, max_value_correct: float, **columns: Any
) -> list[float | None]:
    """What an answer earns, right or wrong as by accuracy_reward, by its number of tokens n:

        long + (short - long) * (1 + cos(pi * min(n / max_len, 1))) / 2

    short and long are max_value_correct and min_value_correct where it is right, min_value_wrong and max_value_wrong
    where it is wrong: a short right answer earns most, a short wrong one least. None where accuracy_reward gives None.
    """
    values: list[float | None] = []
    for right, ids in zip(accuracy_reward(completions, solution), completion_ids, strict=True):
        if right is None:
            values.append(None)
            continue
        short, long = (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
        values.append(long + (short - long) * (1 + cos(pi * min(len(ids) / max_len, 1.0))) / 2)
    return values


def think_format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """1.0 where a completion begins with <think>, has it once, and </think> behind it, else 0.0."""
    parts = [text_of(completion).partition("<think>") for completion in completions]
    return [float(not before and "<think>" not in rest and "</think>" in rest) for before, _, rest in parts]


@reads_options(read_repetition)
def get_repetition_penalty_reward(
    completion_ids: list[list[int]], ngram_size: int, max_penalty: float, **columns: Any
) -> list[float]:
    """max_penalty times the share of n-grams of tokens that came before; 0.0 below ngram_size tokens."""
    values = []
    for ids in completion_ids:
        ngrams = [tuple(ids[start:start + ngram_size]) for start in range(len(ids) - ngram_size + 1)]
        repeated = len(ngrams) - len({*ngrams})
        values.append(max_penalty * repeated / len(ngrams) if repeated else 0.0)
    return values


@reads_options(read_overlong)
def get_soft_overlong_punishment(
    completion_ids: list[list[int]], max_completion_len: int, soft_punish_cache: int, **columns: Any
) -> list[float]:
    """0.0 up to max_completion_len - soft_punish_cache tokens, from there on a line to -1.0 at max_completion_len.

    Equation 13 of DAPO (arXiv:2503.14476).
    """
    values = []
    for ids in completion_ids:
        over = len(ids) - (max_completion_len - soft_punish_cache)
        values.append(0.0 if over <= 0 else -1.0 if len(ids) > max_completion_len else -over / soft_punish_cache)
    return values


def _accuracy(text: str, solution: str) -> float | None:
    from rewards.latex import MARKED_LATEX, agrees  # here, as the other functions need no math-verify

    return agrees(text, solution, places=MARKED_LATEX)


def _whole(name: str, value: Any, *, least: int, nearest: int) -> int:
    """The value of an option that must be a whole number."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least:
        refuse(name, value, f"must be a whole number of at least {least}", least if is_whole else nearest)
    return value


def _number(name: str, value: Any, *, nearest: float) -> float:
    """The value of an option that must be a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        refuse(name, value, "must be a number", nearest)
    return value
