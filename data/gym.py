"""Tasks of Reasoning Gym, generated: reasoning_gym:NAME?size=200&seed=1 names one; needs the package reasoning-gym.

Further parameters go to the task's configuration, with values as YAML has them. Held-out problems come from another
seed, without the questions that are trained on.
"""

import importlib.util
import os
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn, get_type_hints
from urllib.parse import unquote

import yaml

from data.conversation import converse
from data.example import Example
from data.prompts import build_prompt
from data.rows import Row

PREFIX = "reasoning_gym:"
NUM_SEEDS = 2**32
# What is added to the seed. Row i is drawn with seed + i, so neighbouring seeds have nearly all rows in common.
SPLITS = {"train": 0, "validation": NUM_SEEDS // 4, "test": NUM_SEEDS // 2}
# Their rows come in the order of a set of texts (seen in version 0.1.25): ranks, and a resumed run, would differ.
BY_HASH = ("codeio", "isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder")


class Task(NamedTuple):
    """A task with its parameters."""

    name: str
    config: dict[str, Any]  # without seed
    seed: int


def load(spec: str, split: str, *, num_shots: int, seed: int, chat: bool) -> list[Example]:
    """The examples of one split; columns are question, answer, metadata and what the reward `reasoning_gym` needs.

    Args:
        spec: PREFIX, the task's name and its parameters.
        num_shots: solved word problems before each question, which show the answer line.
        seed: of the training split, where `spec` has none.
        chat: whether questions become the user's message.

    Raises:
        ValueError: the package is missing; or no such split, task or parameter, a value that the task does not take, or
            no question that is left to hold out.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        _refuse(spec, "needs the package reasoning-gym, which is not installed here",
                "pip install reasoning-gym==0.1.25")
    if split not in SPLITS:
        _refuse(spec, f"no split {split!r}; it has {', '.join(SPLITS)}", "train")
    task = read_spec(spec, seed=seed)
    rows = _rows(spec, task, split)
    if split != "train":
        trained = {row["question"] for row in _rows(spec, task, "train")}
        rows = [row for row in rows if row["question"] not in trained]
        if not rows:
            _refuse(spec, f"the task has too few questions: all of split {split!r} are trained on too",
                    "a smaller size, or eval_examples=0")
    prompt_of = converse if chat else build_prompt
    return [_example(row, task, prompt_of(row["question"], num_shots=num_shots)) for row in rows]


def read_spec(spec: str, *, seed: int) -> Task:
    """The task that a text names; ValueError for a name, a parameter or a value that there is not."""
    from reasoning_gym.factory import DATASETS  # takes seconds

    name, _, query = spec.removeprefix(PREFIX).partition("?")
    names = [one for one in DATASETS if one != "composite"]  # which needs a list of tasks
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
        _refuse(spec, f"Reasoning Gym has no single task {name!r}", PREFIX + near)
    if name in BY_HASH and not os.environ.get("PYTHONHASHSEED", "random").isdecimal():
        _refuse(spec, f"the questions of {name} depend on PYTHONHASHSEED, which differs between processes",
                "PYTHONHASHSEED=0 in the environment")
    kinds = get_type_hints(DATASETS[name][1])
    known = [one.name for one in fields(DATASETS[name][1])]
    config: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, _, text = map(unquote, part.partition("="))
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)[0]
            _refuse(spec, f"{name} has no parameter {key!r}; it has {', '.join(known)}", near)
        config[key] = _value(spec, key, text, kinds[key])
    seed = config.pop("seed", seed)
    if config.get("size", 1) < 1:
        _refuse(spec, f"size={config['size']} must be at least 1", "size=1")
    if not 0 <= seed < NUM_SEEDS:
        _refuse(spec, f"seed={seed} must be from 0 to {NUM_SEEDS - 1}", f"seed={min(max(seed, 0), NUM_SEEDS - 1)}")
    return Task(name, config, seed)


def _value(spec: str, key: str, text: str, kind: Any) -> Any:
    """A parameter's value as the configuration's field has it."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(text if kind is str else yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        words = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "must be YAML"
        _refuse(spec, f"{key}={text!r:.40}: {words.replace('Input should', 'must', 1)}",
                f"{key} as {getattr(kind, '__name__', kind)}")


def _rows(spec: str, task: Task, split: str) -> list[Row]:
    """The questions, answers and metadata of a split."""
    from reasoning_gym import create_dataset

    try:
        dataset = create_dataset(task.name, **task.config, seed=(task.seed + SPLITS[split]) % NUM_SEEDS)
        return [dataset[index] for index in range(len(dataset))]
    except (AssertionError, ValueError, TypeError, LookupError) as error:  # as each task's configuration is checked
        words = " ".join(str(error).split())[:200] or type(error).__name__
        _refuse(spec, f"{task.name} does not take these parameters: {words}", f"{PREFIX}{task.name}, without them")


def _example(row: Row, task: Task, prompt: Any) -> Example:
    gold = "" if row["answer"] is None else str(row["answer"])  # where many answers are right, a task may name none
    columns = {"question": row["question"], "answer": row["answer"], "final_answer": gold, "prompt": prompt,
               "metadata": row["metadata"], "gym_task": {"name": task.name, "config": task.config}}
    return Example(question=row["question"], answer=gold, final_answer=gold, prompt=prompt, columns=columns)


def _refuse(spec: str, rule: str, nearest: str) -> NoReturn:
    raise ValueError(f"dataset={spec!r}: {rule}; nearest valid value: {nearest}")
