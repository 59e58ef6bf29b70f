"""Accidents that tests plant into a rank of train.py before it starts; see tests/support/warm.py."""

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from grpo.health import heartbeat
from grpo.health import pulse as pulses
from grpo.health.pulse import pulse
from grpo.report.json_lines import JsonLines
from grpo.run import build
from grpo.saving import checkpoint
from grpo.trainer.engine import Engine

# What anybody may say to an open port.
PASSERS_BY = {
    "a scanner": b"GET / HTTP/1.0\r\n\r\n", "nothing": b"", "no UTF-8": b"\xff\xfe\0\n", "a list": b'["token", 1]\n',
    "a message": b'{"token": "\\ud800", "rank": [1]}\n', "a line without end": b"{" * 1_000_000, "a token": b"0" * 32,
}
# Places inside a phase: before each of these the accident happens.
PLACES = {
    "forward": ("update", Engine, "__call__"), "backward": ("update", Engine, "backward"),
    "optimizer": ("update", Engine, "step"), "written": ("save", checkpoint, "seal"),
    "sealed": ("save", checkpoint, "_publish"), "published": ("save", checkpoint, "_superfluous"),
    "writing": ("save", checkpoint, "save_file"), "loading": ("start", build, "load_base"),
}


def at(where: str, rank: int, step: int | None, act: Callable[[], None]) -> None:
    """Let `act` happen on one rank in one step: where a phase begins, or at a place inside it."""
    if int(os.environ["RANK"]) != rank:
        return
    if where not in PLACES:
        enter = pulse.enter

        def entering(phase: str, number: int | None = None) -> None:
            enter(phase, number)
            if (phase, pulse.step) == (where, step):
                act()

        pulse.enter = entering
        return
    within, owner, name = PLACES[where]
    method = getattr(owner, name)

    def calling(*args, **options):
        if (pulse.step, pulse.phase) == (step, within):
            act()
        return method(*args, **options)

    setattr(owner, name, calling)


def kill(where: str, *, rank: int, step: int | None) -> None:
    """The rank's process is gone, as by the kernel's memory killer."""
    at(where, rank, step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def freeze(where: str, *, rank: int, step: int) -> None:
    """The rank's process stands still with all its threads."""
    at(where, rank, step, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def sleep(where: str, *, rank: int, step: int) -> None:
    """The main thread stands still; the process lives."""
    at(where, rank, step, lambda: time.sleep(1000))


def fail(where: str, *, rank: int, step: int) -> None:
    """An error that nobody expects."""
    def act() -> None:
        raise KeyError("planted")

    at(where, rank, step, act)


def quick() -> None:
    """Waits of seconds, so that a test is short; how long they are in earnest, tests/health/test_heartbeat.py says."""
    pulses.IDLE_S, heartbeat.SILENCE_S = 3.0, 4.0


def patient() -> None:
    """A rank that refuses what rank 0 refuses waits until it is ended, however busy the machine is."""
    heartbeat.ALIKE_S = 1000.0


def environ(**values: str) -> None:
    """Variables of the environment."""
    os.environ.update(values)


def deadlock(where: str, *, rank: int, step: int) -> None:
    """One rank waits for a message that the other does not send."""
    at(where, rank, step, lambda: dist.recv(torch.zeros(1), src=1 - rank, tag=99))


def strangers() -> None:
    """Everybody speaks to the heartbeat's port before the last rank does."""
    if os.environ["RANK"] != "1":
        return
    connect, kept = socket.create_connection, []

    def late(address: tuple[str, int], *options) -> socket.socket:
        for said in PASSERS_BY.values():
            kept.append(connect(address))
            kept[-1].setblocking(False)
            with contextlib.suppress(OSError):
                kept[-1].sendall(said)
        return connect(address, *options)

    socket.create_connection = late


def jump(where: str, *, rank: int, step: int) -> None:
    """The clock of one machine is set back by a day and forward by two."""
    def act() -> None:
        now = time.time
        time.time = lambda: now() + 86_400 * (1 if pulse.count % 2 else -1)

    at(where, rank, step, act)


def small_disk(where: str, *, rank: int, step: int, num_bytes: int, until: str = "sync") -> None:
    """From here on no file can grow beyond so many bytes; until the next step begins, or this phase of the same one."""
    def limit(soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    sizes = iter([num_bytes])  # once: a step comes to some phases twice
    at(where, rank, step, lambda: limit(next(sizes, resource.RLIM_INFINITY)))
    at(until, rank, step + (until == "sync"), lambda: limit(resource.RLIM_INFINITY))


def full_device(name: str, *, step: int) -> None:
    """From this step on a file of JSON lines goes to a device that is always full."""
    write = JsonLines._write

    def writing(file: JsonLines) -> None:
        if file.path.name == name and pulse.step >= step:
            file.path = Path("/dev/full")
        write(file)

    JsonLines._write = writing


def full_file(path: str, *, step: int) -> None:
    """In this step a disk is found full when this file is written."""
    def act() -> None:
        Path(path).parent.mkdir()
        Path(path).symlink_to("/dev/full")

    at("update", 0, step, act)


def tell(where: str, *, step: int | None) -> None:
    """Rank 0 says when it comes to this phase."""
    at(where, 0, step, lambda: print("lingers", file=sys.stderr, flush=True))


def linger(where: str, *, step: int | None, seconds: float = 2.0) -> None:
    """In this phase every sign of progress takes so long, on every rank."""
    progress = pulse.progress
    tell(where, step=step)

    def slowly() -> None:
        progress()
        if (pulse.phase, pulse.step) == (where, step):
            time.sleep(seconds)

    pulse.progress = slowly


def poison(*, rank: int, first: int, last: int) -> None:
    """The loss of one rank is not a number in these steps."""
    backward = Engine.backward

    def poisoned(engine: Engine, loss: torch.Tensor, *, last_one: bool) -> None:
        bad = int(os.environ["RANK"]) == rank and first <= pulse.step <= last
        backward(engine, loss * float("nan") if bad else loss, last=last_one)

    Engine.backward = lambda engine, loss, *, last: poisoned(engine, loss, last_one=last)


def spoil(*, step: int) -> None:
    """A trained weight becomes something that is no number, on every rank."""
    copy_to = Engine.copy_to

    def spoiling(engine: Engine, target: dict[str, torch.Tensor]) -> None:
        if pulse.step == step:
            for parameter in engine.trainable.values():
                state = engine.state(parameter)
                engine.set_state(parameter, state | {"master": torch.full_like(state["master"], float("nan"))})
        copy_to(engine, target)

    Engine.copy_to = spoiling
