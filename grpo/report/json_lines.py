"""A file of one JSON object per line, each with its step, that survives a full disk and a run killed while writing."""

import json
import math
import sys
from pathlib import Path
from typing import Any

BLOCK = 2**18  # bytes
START = b'{"step": '  # of every line that JsonLines writes for a Log


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in order; broken lines, which a full disk or a killed run leaves, cost a warning."""
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if _step_of(line) is not None]
    if len(whole) < len(lines):
        print(f"\nwarning: {len(lines) - len(whole)} of {len(lines)} lines of {path} are broken and left out",
              file=sys.stderr, flush=True)
    return [json.loads(line) for line in whole]


def read_newest(path: Path) -> list[dict[str, Any]]:
    """The objects of the last step, without broken lines. Reads the end of the file alone, which may have gigabytes."""
    size, length = BLOCK, path.stat().st_size
    while True:
        with path.open("rb") as file:
            file.seek(max(0, length - size))
            lines = file.read().splitlines(keepends=True)
        whole = [json.loads(line) for line in lines if _step_of(line) is not None]  # half of the first is broken too
        if size >= length or len({row["step"] for row in whole}) > 1:
            return [row for row in whole if row["step"] == whole[-1]["step"]]
        size *= 2


def steps_of(path: Path) -> list[int]:
    """The steps that a file has lines of, in order. Parses none of them."""
    with path.open("rb") as file:
        heads = [line[:40].partition(b",")[0] for line in file if line.startswith(START) and line.endswith(b"\n")]
    return sorted({int(head.removeprefix(START)) for head in heads})


def read_step(path: Path, step: int) -> list[dict[str, Any]]:
    """The objects of one step, without broken lines; parses no others."""
    with path.open("rb") as file:
        lines = [line for line in file if line.startswith(START + f"{step},".encode())]
    return [json.loads(line) for line in lines if _step_of(line) is not None]


class JsonLines:
    """Appends to a file; lines that the disk does not take stay in memory and are written with the next ones."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path, self.pending, self.is_short = path, b"", False
        path.touch()
        lines = path.read_bytes().splitlines(keepends=True)
        # A resumed run takes its steps again from first_step on; each must be in the file once.
        kept = [line for line in lines if (step := _step_of(line)) is not None and step < first_step]
        fresh = path.with_suffix(".tmp")  # a run that is killed here still has the old file
        fresh.write_bytes(b"".join(kept))
        fresh.replace(path)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write one line for each; a number that is not finite becomes null, since JSON has no such number."""
        self.pending += "".join(json.dumps(_finite(record)) + "\n" for record in records).encode()
        self._write()

    def flush(self) -> None:
        """Write what is still in memory; OSError where the disk still does not take it."""
        self._write()
        if self.pending:
            raise OSError(f"{self.path} lacks its end: {len(self.pending):,} bytes that the disk does not take")

    def _write(self) -> None:
        try:
            with self.path.open("ab", buffering=0) as file:  # so that we know how many bytes are written
                while self.pending:
                    self.pending = self.pending[file.write(self.pending):]
            self.is_short = False
        except OSError as error:
            if not self.is_short:  # one warning for each time the disk is full
                print(f"\nwarning: {self.path} cannot be written ({error.strerror}): training goes on, its lines stay "
                      "in memory until it can", file=sys.stderr, flush=True)
            self.is_short = True


def _step_of(line: bytes) -> int | None:
    """None where the line is broken."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
