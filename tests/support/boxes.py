"""Sandboxes for tests, which are skipped where the machine gives none, saying why."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rewards.sandbox.box import Box
from rewards.sandbox.layers import opened
from rewards.sandbox.program import Ended, Limits, Process

SOON = Limits(cpu_s=1, wall_s=2, memory=256 * 2**20)


@contextmanager
def boxed(kind: str = "full") -> Iterator[Box]:
    """A sandbox, ended at the end."""
    try:
        box = opened(kind)
    except ValueError as error:
        if any(words in str(error) for words in ("needs ", "forbids ", "knows the system calls")):
            pytest.skip(str(error))
        raise  # it could start here, and something is wrong with it
    try:
        yield box
    finally:
        box.close()


@contextmanager
def with_layers(*layers: str) -> Iterator[Box]:
    """A sandbox of these layers alone."""
    with boxed():
        pass
    box = Box(layers)
    try:
        yield box
    finally:
        box.close()


def run(box: Box, source: str, stdin: bytes = b"", limits: Limits = SOON) -> Ended:
    """How a script ended."""
    return Process(box, "script", limits, {"source": source}, stdin).finish()
