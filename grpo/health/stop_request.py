"""A request to stop early: SIGTERM, which schedulers send before they take a machine away, SIGUSR1, or Ctrl-C.

The run drops what it can repeat (completions, their scores, an evaluation), finishes an update or a save, writes a
checkpoint, and exits with 0. The signal may come twice, from the scheduler and from torchrun; this changes nothing.
Only a second Ctrl-C ends the run at once.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from grpo.distributed import global_max
from grpo.health.pulse import describe, pulse

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(Exception):
    """The run was asked to stop."""


class StopRequest:
    """The signal that this process has received, if any. If one rank is asked, all stop."""

    def __init__(self) -> None:
        self.name, self.interrupted = "", False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals as requests; restores the old handlers at the end."""
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            self.name, self.interrupted = "", False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT":
            if self.interrupted:  # whatever other signals came between
                raise KeyboardInterrupt
            self.interrupted = True
        if pulse.rank == 0 and not self.name:  # os.write: the signal may have interrupted Python's own buffers
            again = "; Ctrl-C again ends it now" if name == "SIGINT" else ""
            line = f"\n{describe(pulse.take())} {name}: stops and saves; an update is finished first{again}\n"
            os.write(2, line.encode())
        self.name = name

    def leave(self) -> None:
        """Raise Stopped if this rank has been asked; for work inside `may_end_this`."""
        if self.name:
            raise Stopped

    def check(self) -> None:
        """Raise Stopped on every rank if any has been asked. Collective: every rank."""
        if global_max({"asked": float(bool(self.name))})["asked"] > 0:
            raise Stopped

    @contextmanager
    def may_end_this(self) -> Iterator[None]:
        """For work without a collective: a rank that is asked leaves it at once, and at its end all ranks stop.

        Collective: every rank.
        """
        with suppress(Stopped):
            yield
        self.check()


stop_request = StopRequest()  # of this process
