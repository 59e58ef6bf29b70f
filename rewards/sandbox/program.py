"""A process in a sandbox from outside: what it is given, what it says, and the limits that are kept from here."""

import json
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from rewards.sandbox.box import Box, Broken

CHUNK = 2**16
END_S = 10.0  # for the kernel to end what was killed


@dataclass(frozen=True)
class Limits:
    """Of one process: seconds of CPU and of time, bytes of address space, of its folder and each file, of output."""

    cpu_s: float = 5.0
    wall_s: float = 10.0
    memory: int = 512 * 2**20
    disk: int = 16 * 2**20
    output: int = 2**20


class Ended(NamedTuple):
    """How a process ended."""

    code: int | None  # the exit code, or minus the signal that ended it
    why: str  # the limit that it broke; empty if none
    output: bytes  # of stdout
    errors: bytes  # of stderr


class Process:
    """A process that a box starts; its first request says what it is to do.

    Raises:
        Broken: the box does not start it.
    """

    def __init__(self, box: Box, kind: str, limits: Limits, first: dict[str, Any], stdin: bytes = b"") -> None:
        self.box, self.limits = box, limits
        self.output, self.errors, self.answers, self.report = bytearray(), bytearray(), bytearray(), bytearray()
        self.why, self.ended = "", False
        self.deadline = time.monotonic() + limits.wall_s
        pipes = [os.pipe() for _ in range(6)]
        (stdin_r, stdin_w), (out_r, out_w), (err_r, err_w), (asked_r, asked_w), (said_r, said_w), (end_r, end_w) = pipes
        self.read = {out_r: self.output, err_r: self.errors, said_r: self.answers, end_r: self.report}
        self.write = {stdin_w: bytearray(stdin), asked_w: bytearray()}
        self.requests, self.end, self.said = asked_w, end_r, said_r
        self.last = {stdin_w}  # closed when all is written
        for file in (*self.read, *self.write):
            os.set_blocking(file, False)
        try:
            self.number = box.start(kind, {"cpu_s": limits.cpu_s, "memory": limits.memory, "disk": limits.disk},
                                    [stdin_r, out_w, err_w, asked_r, said_w, end_w])
        finally:
            for file in (stdin_r, out_w, err_w, asked_r, said_w, end_w):
                os.close(file)
        self.send(first)

    def send(self, request: dict[str, Any]) -> None:
        """Send a line to the process, as it reads."""
        if self.requests in self.write:
            self.write[self.requests] += json.dumps(request).encode() + b"\n"

    def line(self) -> bytes | None:
        """The next line that the process answers; None if it ended or broke a limit."""
        while b"\n" not in self.answers:
            if self.ended or self.said not in self.read:
                return None
            self._step()
        line, _, rest = bytes(self.answers).partition(b"\n")
        self.answers[:] = rest
        return line

    def finish(self, kill: bool = False) -> Ended:
        """Wait for the end, after `kill` or a broken limit a forced one; whatever the process started is gone then.

        Raises:
            Broken: the box does not say that it has ended.
        """
        self.last.add(self.requests)
        if kill and not self.ended:
            self.box.kill(self.number)
        give_up = time.monotonic() + (0 if kill else self.limits.wall_s) + END_S
        while not self.ended and time.monotonic() < give_up:
            self._step()
        for file in [*self.read, *self.write]:
            self._close(file)
        if not self.report:
            raise Broken("it does not say how a program ended")
        return Ended(None if self.why else int(self.report), self.why, bytes(self.output), bytes(self.errors))

    def _step(self) -> None:
        """Wait for something to read or write, and do it; end the process if it breaks a limit."""
        writable = [file for file, data in self.write.items() if data]
        for file in [file for file in self.last if not self.write.get(file, True)]:
            self._close(file)
        wait_s = max(0.0, min(1.0, self.deadline - time.monotonic()))
        ready, free, _ = select.select(list(self.read), writable, [], wait_s)
        for file in free:
            try:
                del self.write[file][:os.write(file, self.write[file][:CHUNK])]
            except BrokenPipeError:
                self._close(file)
        for file in ready:
            data = os.read(file, CHUNK)
            if not data:
                self.ended |= file == self.end
                self._close(file)
            elif len(self.read[file]) + len(data) <= self.limits.output:
                self.read[file] += data
            else:
                self._stop(f"wrote more than {self.limits.output:,} bytes")
        if time.monotonic() > self.deadline:
            self._stop(f"took more than {self.limits.wall_s:g} s")

    def _stop(self, why: str) -> None:
        if not self.why:
            self.why = why
            self.box.kill(self.number)
            self.deadline = float("inf")

    def _close(self, file: int) -> None:
        if self.read.pop(file, None) is not None or self.write.pop(file, None) is not None:
            with suppress(OSError):
                os.close(file)
