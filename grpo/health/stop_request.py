"""A request to stop early: SIGTERM, as schedulers send it before they take a machine away, or SIGUSR1.

The run leaves what it can do again (completions, their scores, an evaluation), finishes an update or a save, writes a
checkpoint, and exits with 0. The same signal may come twice, from the scheduler and passed on by torchrun; it asks for
the same.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from grpo.distributed import global_max
from grpo.health.pulse import describe, pulse

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was asked to stop."""


class StopRequest:
    """What this process has been asked; to one rank or to all, the whole run stops."""

    def __init__(self) -> None:
        self.name = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals as requests; afterwards they do again what they did before."""
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            self.name = ""
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if pulse.rank == 0 and not self.name:  # written past Python's buffers, which a handler may have interrupted
            where, name = describe(pulse.take()), signal.Signals(number).name
            os.write(2, f"\n{where} {name}: stops and saves; an update is finished first\n".encode())
        self.name = signal.Signals(number).name

    def leave(self) -> None:
        """Raise Stopped where this rank has been asked; for work inside `may_end_this`."""
        if self.name:
            raise Stopped

    def check(self) -> None:
        """Raise Stopped on every rank where any has been asked. Collective: every rank."""
        if global_max({"asked": float(bool(self.name))})["asked"] > 0:
            raise Stopped

    @contextmanager
    def may_end_this(self) -> Iterator[None]:
        """Work without a collective: a rank that is asked leaves it at once, and behind it they all stop.

        Collective: every rank.
        """
        with suppress(Stopped):
            yield
        self.check()


stop_request = StopRequest()  # of this process
