"""Rows of a dataset, from a file, a folder or the Hugging Face Hub, each a mapping from column to value."""

import json
import random
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")
SUFFIXES = (".json", ".jsonl")
RESERVED = ("prompts", "completions", "trainer_state")  # TRL passes the last one
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a letter, which JSON can write and no tokenizer reads
MAX_DEPTH = 100  # lists and mappings in one another; pickle, on the way to the reward functions, fails at 500
GSM8K_COLUMNS = ("question", "answer")
HUB_CONFIG = {"openai/gsm8k": "main"}
VALIDATION_SHARE = 0.1


def read(path_or_name: str, split: str, *, prompt_column: str, seed: int) -> tuple[list[Row], list[str]]:
    """The rows of one split, each with a text in `prompt_column`, or else in `question` and `answer` as in GSM8K.

    With the place of each, such as "row 7 of split 'train'".

    Rows with prompts come as they are, in their order. The train split of GSM8K rows is shuffled, and if there is no
    validation split, a tenth of it is held out as one.

    Args:
        path_or_name: a .jsonl or .json file, a folder with train.jsonl, test.jsonl (or .json), or a Hub name. A file is
            the split it is named after, with any other name it is train; all but train can also be asked for as test.
        split: train, validation, test, or another split that a Hub dataset has.

    ValueError for a missing dataset or split, a line that is not JSON, no rows, a row that lacks a needed column, or a
    column nested too deeply.
    """
    splits = find_splits(path_or_name, split)
    hold_out = "validation" not in splits and split in ("train", "validation")
    source = "train" if hold_out else split
    if source not in splits:
        raise ValueError(f"dataset={path_or_name!r}: no split {source!r}; nearest valid value: {' or '.join(splits)}")
    rows = splits[source]()
    if not rows:
        raise ValueError(f"dataset={path_or_name!r}: split {source!r} is empty; it needs at least one row")
    _check_depth(path_or_name, rows)
    has_prompts = prompt_column in rows[0]
    _check_columns(path_or_name, rows, [prompt_column] if has_prompts else GSM8K_COLUMNS, prompt_column)
    if has_prompts and source != split:
        raise ValueError(
            f"dataset={path_or_name!r}: has no split 'validation', and rows with ready prompts are not split again; "
            "nearest valid value: a folder with train.json and validation.json, or a second file for evaluation")
    order = list(range(len(rows)))
    if not has_prompts and source == "train":
        # The same shuffle for both splits, so train and validation share no row.
        random.Random(seed).shuffle(order)
        num_held_out = int(VALIDATION_SHARE * len(rows)) if hold_out else 0
        order = order[:num_held_out] if split == "validation" else order[num_held_out:]
    if not order:
        raise ValueError(f"dataset={path_or_name!r}: a tenth becomes validation, so it needs at least 10 rows")
    return [rows[index] for index in order], [f"row {index + 1} of split {source!r}" for index in order]


def find_splits(path_or_name: str, split: str) -> dict[str, Callable[[], list[Row]]]:
    """The splits of a source by name, each with the function that reads it; `split` is the one that is wanted."""
    path = Path(path_or_name).expanduser()
    if path.is_file():
        if split == "test" and path.stem != "train":  # any other file that a user names for the evaluation
            return {"test": partial(read_file, path)}
        return {path.stem if path.stem in SPLITS else "train": partial(read_file, path)}
    if path.is_dir():
        files = [path / (name + suffix) for name in SPLITS for suffix in SUFFIXES]
        splits: dict[str, Callable[[], list[Row]]] = {
            file.stem: partial(read_file, file) for file in files if file.is_file()}
        if not splits:
            raise ValueError(f"dataset={path_or_name!r}: a folder must hold one of {', '.join(f.name for f in files)}")
        return splits
    if path.suffix in SUFFIXES or path_or_name.startswith((".", "/", "~")):
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = [str(path.with_name(name)) for name in get_close_matches(path.name, siblings, n=1)]
        raise ValueError(f"dataset={path_or_name!r}: no such file or folder; "
                         f"nearest valid value: {(nearest or ['openai/gsm8k'])[0]}")
    return _hub_splits(path_or_name)


def read_file(path: Path) -> list[Row]:
    """The rows of a file of JSON objects, one a line or all in one list; a key that a row lacks becomes None.

    ValueError, whose message starts with file:line, if there is something else in the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if text.lstrip().startswith("["):
        rows = [(1, row) for row in _parse(text, path, line=1)]
    else:
        # Not splitlines(): it would also split inside a text, at a Unicode line separator.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        rows = [(number, _parse(line, path, line=number)) for number, line in lines]
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a row must be a JSON object, this one is {json.dumps(row):.40}")
    every_key = dict.fromkeys(key for _, row in rows for key in row)
    return [every_key | row for _, row in rows]


def _parse(text: str, path: Path, *, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        raise ValueError(f"{place}: must be JSON; {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{path}:{line}: is nested too deeply; nearest valid: at most {MAX_DEPTH} deep") from None
    except ValueError as error:  # a key that comes twice, an integer of more than 4,300 digits
        raise ValueError(f"{path}:{line}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} comes twice in a row")
    return row


def _hub_splits(name: str) -> dict[str, Callable[[], list[Row]]]:
    import datasets  # here because it takes a second and local files do not need it

    try:
        loaded = datasets.load_dataset(name, HUB_CONFIG.get(name))
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"dataset={name!r}: no file or folder of this name, and not to be had from the Hub either: "
                         f"{reason}") from None
    return {split: rows.to_list for split, rows in loaded.items()}


def _check_depth(path_or_name: str, rows: list[Row]) -> None:
    """Refuse columns that are nested too deeply for pickle."""
    for number, row in enumerate(rows, start=1):
        for column, value in row.items():
            depth, layer = 0, [value]
            while layer := [one for one in layer if isinstance(one, (dict, list, tuple))]:
                depth += 1
                layer = [inner for one in layer for inner in (one.values() if isinstance(one, dict) else one)]
            if depth > MAX_DEPTH:
                raise ValueError(f"dataset={path_or_name!r}: row {number}, column {column!r} is nested {depth} deep, "
                                 f"in lists or mappings; nearest valid: at most {MAX_DEPTH} deep")


def _check_columns(path_or_name: str, rows: list[Row], columns: Sequence[str], prompt_column: str) -> None:
    """Refuse rows without text in these columns; the message for a missing column names prompt_column."""
    if not set(columns) <= set(rows[0]):
        nearest = get_close_matches(prompt_column, rows[0], n=1, cutoff=0.0)
        raise ValueError(
            f"dataset={path_or_name!r}: needs the column prompt_column={prompt_column!r}, or question and answer; "
            f"it has {', '.join(rows[0])}; nearest valid value: prompt_column={(nearest or ['prompt'])[0]}")
    for column in RESERVED:
        if column in rows[0]:
            raise ValueError(f"dataset={path_or_name!r}: the column {column!r} has the name of what reward functions "
                             f"receive besides the columns; nearest valid value: {column}_of_dataset")
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if not isinstance(row[column], str) or not row[column].strip() or _SURROGATE.search(row[column]):
                raise ValueError(f"dataset={path_or_name!r}: row {number}, column {column!r} must be text, "
                                 f"is {row[column]!r:.40}")
