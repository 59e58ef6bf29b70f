"""Limits for a whole sandbox by control groups, where the machine lets this user make one; programs have their own.

They keep what single limits cannot see: the memory of all programs together, with their files, and the kernel's own.
"""

import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

PROCESSES = 4096  # and threads, of all programs: for the machine's sake, so that none fails for another one's
MEMORY = 8 * 2**30
END_S = 2.0
MOUNTS = Path("/proc/self/mounts")
MINE = Path("/proc/self/cgroup")
_numbers = count()


def made() -> list[Path]:
    """New control groups with these limits, one of version 2 or two of version 1; empty where none can be made."""
    name = f"sandbox-{os.getpid()}-{next(_numbers)}"
    limits = {"memory": [("memory.max", MEMORY), ("memory.limit_in_bytes", MEMORY)], "pids": [("pids.max", PROCESSES)]}
    groups: list[Path] = []
    try:
        for place, controllers in _places():
            _swept(place)
            group = place / name
            group.mkdir()
            groups.append(group)
            for controller in controllers:
                file, value = next((file, value) for file, value in limits[controller] if (group / file).exists())
                (group / file).write_text(str(value))
    except (OSError, StopIteration):
        gone(groups)
        return []
    return groups


def gone(groups: list[Path]) -> None:
    """Remove groups whose processes were killed, as soon as they have ended."""
    give_up = time.monotonic() + END_S
    for group in groups:
        while group.exists() and time.monotonic() < give_up:
            with suppress(OSError):
                group.rmdir()
            time.sleep(0.001)


def _swept(place: Path) -> None:
    """Remove what a process left that was killed itself."""
    for group in place.glob("sandbox-*"):
        if not Path("/proc", group.name.split("-")[1]).exists():
            with suppress(OSError):
                group.rmdir()


def _places() -> list[tuple[Path, list[str]]]:
    """The groups of this process that hold memory and number of processes, with the limits that each can have.

    Raises:
        StopIteration: there are none.
    """
    mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    mine = [line.split(":", 2) for line in MINE.read_text().splitlines()]
    places: list[tuple[Path, list[str]]] = []
    for controller in ("memory", "pids"):
        path = next((path for _, names, path in mine if controller in names.split(",")), None)
        if path is not None:  # version 1
            place = next(one[1] for one in mounts if one[2] == "cgroup" and controller in one[3].split(","))
            places.append((Path(place + path), [controller]))
    if places:
        return places
    path = next(path for _, names, path in mine if not names)
    whole = next(Path(one[1] + path) for one in mounts if one[2] == "cgroup2")
    if not {"memory", "pids"} <= {*(whole / "cgroup.subtree_control").read_text().split()}:
        raise StopIteration  # a group with processes in it cannot hand its limits on
    return [(whole, ["memory", "pids"])]
