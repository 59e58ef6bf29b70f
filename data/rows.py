"""Rows of a dataset, from a file, a folder or the Hugging Face Hub, each a mapping from column to value."""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from data import tables
from data.code import with_tests
from data.conversation import fault

Row = dict[str, Any]

SPLITS = ("train", "validation", "test")
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", *tables.READERS)
# What reward functions are called with besides the columns.
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
MAX_DEPTH = 100  # lists and mappings in one another; pickle, on the way to the reward functions, fails at 500
GSM8K_COLUMNS = ("question", "answer")
VALIDATION_SHARE = 0.1


def read(
    path_or_name: str, split: str, *, prompt_column: str, seed: int, dataset_config: str | None = None
) -> tuple[list[Row], list[str]]:
    """The rows of one split, with a text or messages in `prompt_column`, or with GSM8K's `question` and `answer`.

    With the place of each, such as "row 7 of split 'train'".

    Rows with prompts come as they are, in their order. The train split of GSM8K rows is shuffled, and if there is no
    validation split, a tenth of it is held out as one.

    Args:
        path_or_name: a file with one of SUFFIXES, a folder with train.jsonl, test.jsonl (or another of SUFFIXES), a
            folder of `save_to_disk`, or a Hub name. A file is the split it is named after, with any other name it is
            train; all but train can also be asked for as test. So is a folder of `save_to_disk` without splits.
        split: train, validation, test, or another split that a Hub dataset has.
        dataset_config: of a Hub dataset.

    ValueError for a missing dataset or split, a file that cannot be read, no rows, a row that lacks a needed column, or
    a column nested too deeply.
    """
    splits = find_splits(path_or_name, split, dataset_config)
    hold_out = "validation" not in splits and split in ("train", "validation")
    source = "train" if hold_out else split
    if source not in splits:
        raise ValueError(f"dataset={path_or_name!r}: no split {source!r}; nearest valid value: {' or '.join(splits)}")
    rows = splits[source]()
    if not rows:
        raise ValueError(f"dataset={path_or_name!r}: split {source!r} is empty; it needs at least one row")
    try:
        rows = with_tests(rows)
    except ValueError as error:
        raise ValueError(f"dataset={path_or_name!r}: {error}") from None
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


def find_splits(
    path_or_name: str, split: str, dataset_config: str | None = None
) -> dict[str, Callable[[], list[Row]]]:
    """The splits of a source by name, each with the function that reads it; `split` is the one that is wanted."""
    path = Path(path_or_name).expanduser()
    if dataset_config is not None and path.exists():
        raise ValueError(f"dataset_config={dataset_config!r}: is of a Hub dataset, and {path_or_name} is here; "
                         "nearest valid value: none")
    if path.is_file():
        return _of_one(path, split, partial(read_file, path))
    if path.is_dir() and tables.is_saved(path):
        saved = tables.saved_splits(path)
        return saved if "" not in saved else _of_one(path, split, saved[""])
    if path.is_dir():
        files = [path / (name + suffix) for name in SPLITS for suffix in SUFFIXES]
        splits: dict[str, Callable[[], list[Row]]] = {
            _stem(file): partial(read_file, file) for file in files if file.is_file()}
        if not splits:
            raise ValueError(f"dataset={path_or_name!r}: a folder must hold one of {', '.join(f.name for f in files)}")
        return splits
    if path.name.endswith(SUFFIXES) or path_or_name.startswith((".", "/", "~")):
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        nearest = [str(path.with_name(name)) for name in get_close_matches(path.name, siblings, n=1)]
        raise ValueError(f"dataset={path_or_name!r}: no such file or folder; "
                         f"nearest valid value: {(nearest or ['openai/gsm8k'])[0]}")
    return tables.hub_splits(path_or_name, dataset_config)


def _of_one(path: Path, split: str, rows: Callable[[], list[Row]]) -> dict[str, Callable[[], list[Row]]]:
    """The split that a path without splits is."""
    name = _stem(path)
    if split == "test" and name != "train":  # any other path that a user names for the evaluation
        return {"test": rows}
    return {name if name in SPLITS else "train": rows}


def _stem(path: Path) -> str:
    return path.name.removesuffix(_suffix(path))


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), path.suffix)


def read_file(path: Path) -> list[Row]:
    """The rows of a table, or of a file of JSON objects, one a line or all in one list, where what lacks is None.

    ValueError, whose message starts with the file, and if it is JSON with file:line, if there is something else in it.
    """
    if _suffix(path) in tables.READERS:
        return tables.read_table(path, _suffix(path))
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            text = file.read()  # without the byte order mark that some editors begin with
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
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
    chat = columns == [prompt_column] and isinstance(rows[0][prompt_column], list)
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if wrong := fault(row[column], chat=chat):
                raise ValueError(f"dataset={path_or_name!r}: row {number}, column {column!r} {wrong}")


def check_answers(path_or_name: str, rows: list[Row], answer_column: str) -> None:
    """Refuse rows without this column."""
    for number, row in enumerate(rows, start=1):
        try:
            look_up(row, answer_column)
        except (KeyError, TypeError):
            there = list(_paths(row))
            nearest = get_close_matches(answer_column, there, n=1, cutoff=0.0)
            raise ValueError(f"dataset={path_or_name!r}: row {number} has no answer_column={answer_column!r}; it has "
                             f"{', '.join(there)}; nearest valid value: answer_column={nearest[0]}") from None


def look_up(row: Row, column: str) -> Any:
    """The value in a column, or in an inner one such as reward_model.ground_truth; KeyError, TypeError without it."""
    value: Any = row
    for key in [column] if column in row else column.split("."):
        value = value[key]
    return value


def _paths(row: Row) -> Iterator[str]:
    """The names of the columns, and of those inside them."""
    for name, value in row.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in value)
