"""A request to stop early: SIGTERM, as schedulers send it before they take a machine away, or SIGUSR1.

The run finishes the step it is in, saves, and exits with 0. The same signal may come twice, from the scheduler and
passed on by torchrun; it asks for the same.
"""

import signal
from types import FrameType

from grpo.distributed import global_max

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Listens from when it is built until `close`; to one rank or to all, the whole run stops."""

    def __init__(self) -> None:
        self.name = ""
        self.before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

    def agreed(self) -> bool:
        """Has any rank been asked to stop? Collective: every rank, once per step."""
        return global_max({"asked": float(bool(self.name))})["asked"] > 0

    def close(self) -> None:
        """Let the signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
