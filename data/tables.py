"""Tables that the library `datasets` reads: Parquet, CSV and TSV files, folders of `save_to_disk`, and the Hub."""

import logging
from collections.abc import Callable
from glob import escape
from pathlib import Path
from typing import Any

Table = list[dict[str, Any]]
# Only an empty cell is missing: the library's own list would take an answer "None" or "NA" away.
_CSV = {"keep_default_na": False, "na_values": [""]}
_TSV = _CSV | {"sep": "\t"}
# Suffix of a file -> the library's name of its format, and how to read it.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {}), ".csv": ("csv", _CSV), ".tsv": ("csv", _TSV),
    ".csv.gz": ("csv", _CSV), ".tsv.gz": ("csv", _TSV)}
HUB_CONFIG = {"openai/gsm8k": "main"}
LONGEST_REASON = 200  # characters of an exception's message


def read_table(path: Path, suffix: str) -> Table:
    """The rows of a file whose name ends in one of READERS; ValueError, which begins with the file, if it is broken."""
    import datasets  # here and below, because it takes seconds and JSON does not need it

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # it logs what it raises
    kind, options = READERS[suffix]
    try:
        # A name is a pattern to the library. As a stream, so that no copy of the file goes to its cache.
        return list(datasets.load_dataset(kind, data_files=escape(str(path)), split="train", streaming=True, **options))
    except Exception as error:  # each format has its own
        raise ValueError(f"{path}: cannot be read as {suffix}: {_words(error)}") from None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_splits(folder: Path) -> dict[str, Callable[[], Table]]:
    """What reads each split of such a folder, by name; "" where it has no splits."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise ValueError(f"{folder}: cannot be read as a folder of save_to_disk: {_words(error)}") from None
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    return {split: part.to_list for split, part in parts.items()}


def hub_splits(name: str, config: str | None) -> dict[str, Callable[[], Table]]:
    """What reads each split of a Hub dataset, by name."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, config or HUB_CONFIG.get(name))
    except Exception as error:  # also RuntimeError of one with a script, and the library's own
        raise ValueError(f"dataset={name!r}: no file or folder of this name, and not to be had from the Hub either "
                         f"(dataset_config={config}): {_words(error)}") from None
    return {split: part.to_list for split, part in loaded.items()}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
