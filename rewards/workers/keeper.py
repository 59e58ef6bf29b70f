"""The keeper: a small process for each rank that runs no user code and watches the one that does.

It passes requests from the trainer to a runner (`rewards.workers.runner`), and answers back. It limits the time of a
call, memory and number of the runner's processes, and what they print. If a limit is broken, if the runner dies, and at
the end of a run, it kills every process that descends from it; the next call gets a new runner. If the trainer dies,
its pipe closes, which ends the keeper and so everything.

This guards the run against accidents. It is no sandbox: a reward function has the rights of its user.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import IO, Any

import psutil

from rewards.workers.processes import command, descendants, end, in_session, use_more, watch_over_descendants
from rewards.workers.requests import HEAD, LOADING, read

MAX_PROCESSES = 64  # of a runner's descendants at the same time
OUTPUT_BYTES = 2**16  # printed by a call and passed on to the trainer's stderr; the rest is dropped
ANSWER_BYTES = 2**24
LOOK_S, IDLE_LOOK_S = 0.05, 1.0  # seconds between two looks at the limits, within a call and between calls
LOADS = b"loads"  # first answer to a call that needs a new runner: the functions are loaded first
MISLED = {"failure": "killed, stopped or misled the process that watches it", "alone": True}
LEAVE_S = 2.0  # at the end of a run, for the runner to flush its files and exit


class Keeper:
    """Keeps one runner at a time. A new one may take import_s to load the functions, a call timeout_s.

    Args:
        parent: process id of the trainer.
        wanted: arguments of `rewards.load`.
        taken: metrics of the trainer, whose names no function may log.
        memory_bytes: resident memory of all the runner's processes together.
    """

    def __init__(self, *, parent: int, wanted: list[Any], taken: list[str], import_s: float, timeout_s: float,
                 memory_bytes: int) -> None:
        self.parent, self.wanted, self.taken, self.import_s = parent, wanted, taken, import_s
        self.timeout_s, self.memory_bytes = timeout_s, memory_bytes
        self.runner: subprocess.Popen | None = None
        self.answers: IO[bytes] | None = None
        self.open: set[IO[bytes]] = set()  # the runner's answers and output, while their other end is open
        self.num_passed = self.num_dropped = 0  # bytes printed since the last call began
        self.next_look = 0.0

    def serve(self) -> None:
        """Answer the trainer until it closes the pipe."""
        call, reply = LOADING, self._start()
        while True:
            _tell(call, reply if isinstance(reply, bytes) else json.dumps(reply).encode())
            self._idle()
            if (asked := read(sys.stdin.buffer)) is None:
                return self._leave()
            call, request = asked
            reply = self._answer(call, request)

    def end(self) -> None:
        """Kill the runner and all that descends from it."""
        end(self._found)
        if self.runner:
            for pipe in (self.runner.stdin, self.runner.stdout, self.answers):
                pipe.close()
        self.runner, self.open = None, set()

    def _answer(self, call: int, request: bytes) -> bytes | dict[str, Any]:
        """The runner's answer to a request; starts a runner if there is none."""
        is_new = self.runner is None
        if is_new:
            _tell(call, LOADS)
            reply = self._start()
            if self.runner is None:
                return reply
        reply = self._ask(call, HEAD.pack(call, len(request)) + request, self.timeout_s)
        if reply is not MISLED or is_new:
            return reply
        # The line may come from the call of another function: this one must not lose its reward for that.
        self._say("an answer came that this call did not ask for; they are loaded again")
        return self._answer(call, request)

    def _start(self) -> bytes | dict[str, Any]:
        """Start a runner; its first answer says whether it could load the functions."""
        read_end, write_end = os.pipe()
        # A session of its own: a signal that a function sends to its process group reaches neither trainer nor keeper.
        self.runner = subprocess.Popen(
            command("runner", *map(json.dumps, (write_end, self.taken, *self.wanted))), bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(write_end,),
            start_new_session=True)
        os.close(write_end)
        os.set_blocking(self.runner.stdin.fileno(), False)
        self.answers = open(read_end, "rb", buffering=0)
        self.open = {self.answers, self.runner.stdout}
        reply = self._ask(LOADING, b"", self.import_s)
        if isinstance(reply, dict):
            return {"failure": f"reward_funcs={self.wanted[0]}: loading them {reply['failure']}", "alone": False}
        if b'"failure"' in reply:
            self.end()
        return reply

    def _ask(self, call: int, request: bytes, limit_s: float) -> bytes | dict[str, Any]:
        """Pass a request on; the runner's answer, or a failure if it broke a limit, lied or died and was ended."""
        start, reply, reason = time.monotonic(), b"", None
        self.num_passed = self.num_dropped = 0
        self.next_look = start + LOOK_S
        while not reply.endswith(b"\n") and reason is None:
            wait_s = max(0.0, min(self.next_look, start + limit_s) - time.monotonic())
            readable, writable, _ = select.select([0, *self.open], [self.runner.stdin] if request else [], [], wait_s)
            if 0 in readable and not os.read(0, 1):  # the trainer sends nothing before it has its answer
                raise SystemExit(0)
            if writable:
                try:
                    request = request[os.write(self.runner.stdin.fileno(), request):]
                except BrokenPipeError:
                    request = b""
            if self.runner.stdout in readable:
                self._pass_on()
            if self.answers in readable:
                reply += self._read(self.answers)
            reason = self._broken_limit()
            if len(reply) > ANSWER_BYTES:
                reason = f"answered more than {ANSWER_BYTES / 2**20:g} MiB"
            if time.monotonic() > start + limit_s:
                reason = f"took more than {limit_s:g} s"
        self._drain()
        # A function may write lines of its own into the pipe: one with another number does not count as an answer.
        head = b"%d " % call
        if reply.startswith(head) and reply.find(b"\n") == len(reply) - 1:
            return reply[len(head):-1]
        self.end()
        return MISLED if reply.endswith(b"\n") else {"failure": reason, "alone": True}

    def _idle(self) -> None:
        """Wait between two calls until the trainer sends something."""
        while True:
            readable, _, _ = select.select([0, *self.open - {self.answers}], [], [], IDLE_LOOK_S)
            if 0 in readable:
                return
            if readable:
                self._pass_on()
            reason = self._broken_limit() if self.runner else None
            if reason:
                self._say(f"between two calls they {reason}; they are loaded again")
                self.end()

    def _leave(self) -> None:
        """Give an idle runner a moment to exit by itself."""
        if self.runner:
            self.runner.stdin.close()
            give_up = time.monotonic() + LEAVE_S
            while self.runner.returncode is None and time.monotonic() < give_up:
                self._reap()
                if select.select([*self.open - {self.answers}], [], [], 0.01)[0]:
                    self._pass_on()

    def _broken_limit(self) -> str | None:
        """The limit that the runner broke, if it is time to look."""
        now = time.monotonic()
        if now < self.next_look:
            return None
        if os.getppid() != self.parent:
            raise SystemExit(0)
        self._reap()
        code = self.runner.returncode
        if code is not None:
            return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
        # The session first: on a busy machine a look at each of a storm's processes takes longer than they live.
        if in_session(self.runner.pid) > 1 + MAX_PROCESSES or len(processes := self._found()) > 1 + MAX_PROCESSES:
            return f"started more than {MAX_PROCESSES} processes"
        if use_more(processes, self.memory_bytes):
            return f"used more than {self.memory_bytes / 2**30:g} GiB"
        done = time.monotonic()
        self.next_look = done + max(LOOK_S, 9 * (done - now))  # so looking takes at most a tenth of a core
        return None

    def _found(self) -> list[psutil.Process]:
        """All descendants that have not ended."""
        self._reap()
        return descendants()

    def _reap(self) -> None:
        """Wait for children that have ended: the runner, and its orphans, which this process adopted."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if self.runner and ended[0] == self.runner.pid:
                    self.runner.returncode = os.waitstatus_to_exitcode(ended[1])

    def _read(self, pipe: IO[bytes]) -> bytes:
        data = pipe.read(2**16)
        if not data:
            self.open.discard(pipe)
            self.next_look = 0.0  # look now: the runner has probably ended
        return data

    def _pass_on(self) -> None:
        """Pass the beginning of what a function printed to the trainer's stderr."""
        data = self._read(self.runner.stdout)
        shown = data[:max(0, OUTPUT_BYTES - self.num_passed)]
        self.num_passed, self.num_dropped = self.num_passed + len(shown), self.num_dropped + len(data) - len(shown)
        _write_error(shown)

    def _drain(self) -> None:
        """At the end of a call, pass on what is still in the pipe, and report how much was dropped."""
        for _ in range(16):  # not until it is empty: a process left behind may print for ever
            if not select.select([*self.open - {self.answers}], [], [], 0)[0]:
                break
            self._pass_on()
        if self.num_dropped:
            self._say(f"dropped {self.num_dropped:,} bytes of what they printed after the first {OUTPUT_BYTES:,}")

    def _say(self, text: str) -> None:
        _write_error(f"\nreward functions {', '.join(self.wanted[0])}: {text}\n".encode())


def _tell(call: int, text: bytes) -> None:
    """Send the trainer a line about a call."""
    line = b"%d %s\n" % (call, text)
    while line:
        line = line[os.write(1, line):]


def _write_error(data: bytes) -> None:
    with suppress(OSError):  # the reader may be gone
        while data:
            data = data[os.write(2, data):]


def main() -> None:
    """Serve the trainer; argv is one JSON object, the arguments of `Keeper`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends when the trainer does
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the runner would inherit
    watch_over_descendants()
    keeper = Keeper(**json.loads(sys.argv[1]))
    try:
        with suppress(BrokenPipeError):  # the trainer died while it was answered
            keeper.serve()
    finally:
        keeper.end()
