"""A folder that proves it is whole: a list of checksums, written last, and every byte on the disk.

The list has the format of `sha256sum`, so `sha256sum -c SHA256SUMS` in the folder finds the same as `damage`.
"""

import hashlib
import os
from pathlib import Path

NAME = "SHA256SUMS"


def seal(folder: Path) -> None:
    """Write the checksums of all its files into a folder, and wait until everything is on the disk."""
    make_readable(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / NAME).write_text("".join(lines), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:  # folders too: they have the files' names
        sync(path)


def make_readable(folder: Path) -> None:
    """Give every file the rights that the umask leaves: safetensors lets nobody else read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str:
    """What is wrong with a sealed folder, in words; empty where nothing is."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return f"{NAME} is missing or cannot be read"
    if not lines:  # a seal always lists something
        return f"{NAME} is empty"
    for line in lines:
        expected, _, name = line.partition("  ")
        path = folder / name
        if not name or not path.is_file():
            return f"{name or 'a file'} is missing"
        if _digest(path) != expected:
            return f"{name} is not what was written"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
