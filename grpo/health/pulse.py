"""What one rank knows of itself: the step and phase it is in, and whether anything moves there.

Three states look alike from outside. A rank that computes uses its processor. One that waits for others is inside
torch.distributed or DeepSpeed. One that does neither hangs; only that one is to blame.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

IDLE_S = 20.0  # without motion for longer, in a phase that only computes, is an error
SUSPENDED_S = 10.0  # after so long without a look this whole process was stopped, and went on
IDLE_SHARE = 0.02  # of one core; the heartbeat itself uses a tenth of it
UNHURRIED = ("start", "log", "save", "export")  # these phases may wait for a disk or a network
WAITING = ("/torch/distributed/", "/deepspeed/")


class Pulse:
    """Where a rank is: set by the main thread, read by the heartbeat's."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.phase = "start"
        self.rank, self.patience_s = int(os.environ.get("RANK", 0)), float("inf")
        self.count = self.counted = 0  # signs of progress, and how many of them `take` has seen
        self.progressed = self.moved = self.taken = time.monotonic()
        self.used_s = time.process_time()
        self.tell: Callable[[], object] = lambda: None

    def begin(self, rank: int, patience_s: float, tell: Callable[[], object]) -> None:
        """Reset; this rank may be without progress for `patience_s` seconds, and `tell` sends out where it is."""
        self.__init__()
        self.rank, self.patience_s, self.tell = rank, patience_s, tell

    def enter(self, phase: str, step: int | None = None) -> None:
        """A phase begins, by default of the same step."""
        self.phase = phase
        self.step = self.step if step is None else step
        self.progress()
        self.tell()  # now, not at the next beat: the rank may die in this phase

    def progress(self) -> None:
        """Note that something has been done."""
        self.count += 1

    def take(self) -> dict[str, Any]:
        """Rank, step, phase and place in the code; seconds without progress and without motion; waits for others?"""
        now, used_s = time.monotonic(), time.process_time()
        if self.count != self.counted:
            self.counted, self.progressed, self.moved = self.count, now, now
        if now - self.taken > SUSPENDED_S:
            self.progressed = self.moved = now
        elif used_s - self.used_s > IDLE_SHARE * (now - self.taken):
            self.moved = now
        self.taken, self.used_s = now, used_s
        frame = sys._current_frames()[threading.main_thread().ident]
        file = frame.f_code.co_filename
        return {"rank": self.rank, "step": self.step, "phase": self.phase,
                "place": f"{file}:{frame.f_lineno} in {frame.f_code.co_name}", "quiet_s": now - self.progressed,
                "idle_s": now - self.moved, "waits": any(part in file for part in WAITING)}

    def trouble(self, mine: dict[str, Any], others: list[dict[str, Any]] | None = None) -> str:
        """Why this rank must be ended, or ""; `others` are the last pulses of all other ranks, which rank 0 has."""
        idle = mine["idle_s"] > IDLE_S and mine["phase"] not in UNHURRIED
        if idle and not mine["waits"]:
            return f"stands still: nothing has moved for {IDLE_S:.0f} s at {mine['place']}"
        if mine["quiet_s"] > self.patience_s and not mine["waits"]:
            return f"has made no progress for ddp_timeout={self.patience_s:.0f} s at {mine['place']}"
        if idle and others and all(one.get("waits") and one["idle_s"] > IDLE_S for one in others):
            places = "; ".join(f"{describe(one)} at {one['place']}" for one in others)
            return f"at {mine['place']}: all ranks wait for each other: {places}"
        return ""


def describe(where: dict[str, Any]) -> str:
    """Who and where: the start of every message of a rank."""
    step = "" if where.get("step") is None else f" step {where['step']}"
    return f"[rank {where['rank']}{step} {where.get('phase', 'start')}]"


pulse = Pulse()  # of this process
