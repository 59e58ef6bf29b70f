"""The heartbeat: every rank reports once a second where it is; one that dies, fails or hangs ends all of them.

A collective notices a missing rank only after its time-out, and cannot tell which one or why. So rank 0 also keeps a
plain TCP connection to every other rank. If it closes, the rank is dead; if it is silent, the process or machine hangs;
what comes over it names step, phase and place. Rank 0 prints the verdict once and passes it on, and every process ends.
If rank 0 itself is gone, rank 1 prints. A run of one rank has a heartbeat too, to notice its own hanging.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from grpo.distributed import gather_objects, rank, world_size
from grpo.health import door, last_words
from grpo.health.pulse import SUSPENDED_S, describe, pulse

BEAT_S = 1.0
SILENCE_S = 15.0  # of a rank whose connection is open
GRACE_S = 1.5  # a death causes errors on other ranks; if it is noticed within this time after them, it is the reason
FAREWELL_S = 5.0  # what is to be done before this process ends may take so long
LAST_WORDS_S = 10.0  # a failing rank waits for the verdict this long, then ends without it

_heart: "Heart | None" = None


def start(patience_s: float) -> None:
    """Start the heartbeat; a rank may be without progress for `patience_s` seconds.

    Collective: every rank, once, after the process group is joined.
    """
    global _heart
    _heart = Heart()
    last_words.advise("")
    pulse.begin(rank(), patience_s, tell=_heart.tell)
    _heart.thread.start()


def stop() -> None:
    """Stop the heartbeat without alarm: all ranks have finished."""
    global _heart
    if _heart is not None:
        _heart.leave()
        _heart = None
        # What this process says next is not of this run.
        last_words.advise("")
        pulse.begin(0, float("inf"), tell=lambda: None)


def before_end(act: Callable[[], object]) -> None:
    """Let a verdict on the run wait for this call, which is on another thread than the main one, for FAREWELL_S."""
    if _heart is not None:
        _heart.farewell = act


def fail(text: str, code: int) -> int:
    """End all ranks with this exit code, after one of them has printed why this one cannot go on.

    Returns the code if the heartbeat does not run or there is one rank; else it does not return.
    """
    if _heart is None or world_size() == 1:
        code = last_words.fail(text, code)
        stop()
        return code
    _heart.failure = {"rank": rank(), "text": text, "code": code}
    time.sleep(LAST_WORDS_S)
    os._exit(code)


class Wire:
    """A connection to a rank that carries one JSON object a line; `process` is the rank's host and process id."""

    def __init__(self, connection: socket.socket, number: int, process: tuple[str, int]) -> None:
        self.socket, self.rest, self.heard = connection, b"", time.monotonic()
        self.lock = threading.Lock()
        self.pulse: dict[str, Any] = {}  # the last pulse from the other side
        self.rank, self.process = number, process
        connection.settimeout(BEAT_S)

    def send(self, message: dict[str, Any]) -> None:
        """Send, or do nothing if the other side has gone: `receive` notices that."""
        with self.lock, contextlib.suppress(OSError):
            # The first newline ends a line that the time-out has cut off.
            self.socket.sendall(b"\n" + json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come, without lines that were cut off; None when the other side has closed."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.heard = time.monotonic()
        messages = []
        for line in lines:
            with contextlib.suppress(ValueError):
                messages.append(json.loads(line))
        return [message for message in messages if isinstance(message, dict)]


class Heart:
    """The heartbeat's thread and its connections. Collective: every rank builds one."""

    def __init__(self) -> None:
        self.failure: dict[str, Any] | None = None  # set by the main thread
        self.leaving = threading.Event()
        self.selector = selectors.DefaultSelector()
        self.wires: list[Wire] = []
        self.farewell: Callable[[], object] = lambda: None
        self.alarm: tuple[float, dict[str, Any]] | None = None  # time and verdict
        self._connect()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def _connect(self) -> None:
        if world_size() == 1:
            return
        ours = door.Door(world_size()) if rank() == 0 else None
        process = socket.gethostname(), os.getpid()
        everyone = gather_objects((process, ours and (ours.address, ours.tokens)))
        if ours:
            connections = ours.let_in()
        else:
            address, tokens = everyone[0][1]
            connections = {0: door.knock(address, tokens[rank()])}
        for number, connection in connections.items():
            self.wires.append(Wire(connection, number, everyone[number][0]))
            self.selector.register(connection, selectors.EVENT_READ, self.wires[-1])
        if ours and ours.missing:
            who = describe({"rank": ", ".join(map(str, sorted(ours.missing)))})
            self._raise_alarm({"rank": min(ours.missing), "code": 1, "text": (
                f"error: {who} has not come to {door.spelled(ours.address)} within {door.HELLO_S:g} s: "
                "it is stopped, or a firewall is between it and rank 0")})

    def leave(self) -> None:
        """Let the thread end. To ranks that are a little later this looks like a death, but they end within GRACE_S."""
        self.leaving.set()
        self.thread.join()
        for wire in self.wires:
            wire.socket.close()

    def _beat(self) -> None:
        due = looked = time.monotonic()
        while not self.leaving.is_set():
            if time.monotonic() - looked > SUSPENDED_S:  # the others may have been stopped with us
                for wire in self.wires:
                    wire.heard = time.monotonic()
            looked = time.monotonic()
            for key, _ in self.selector.select(max(0.0, min(due - time.monotonic(), 0.2))):
                self._hear(key.data)
            if time.monotonic() >= due or self.failure:
                due = time.monotonic() + BEAT_S
                self._speak()
            self._judge()

    def tell(self) -> dict[str, Any]:
        """Send the other ranks where this one is."""
        mine = pulse.take()
        for wire in self.wires:
            wire.send({"pulse": mine})
        return mine

    def _speak(self) -> None:
        mine, failed = self.tell(), self.failure
        trouble = pulse.trouble(mine, [wire.pulse for wire in self.wires] if rank() == 0 else None)
        if trouble and not failed:
            failed = {"rank": rank(), "text": f"error: {describe(mine)} {trouble}", "code": 1}
        if failed and rank() == 0:
            self._raise_alarm(failed)
        elif failed:
            self.wires[0].send({"failed": failed})

    def _hear(self, wire: Wire) -> None:
        messages = wire.receive()
        if messages is None:
            self.selector.unregister(wire.socket)
            self._raise_alarm(self._gone(wire, "is dead: its process has ended"), certain=True)
            return
        for message in messages:
            wire.pulse = message.get("pulse", wire.pulse)
            if "verdict" in message:
                os._exit(message["verdict"]["code"])
            if "failed" in message:
                self._raise_alarm(message["failed"])

    def _gone(self, wire: Wire, how: str) -> dict[str, Any]:
        return {"rank": wire.rank, "text": f"error: {describe(wire.pulse | {'rank': wire.rank})} {how}", "code": 1}

    def _raise_alarm(self, failed: dict[str, Any], certain: bool = False) -> None:
        """The first alarm counts, unless a death follows within GRACE_S: then that was the reason."""
        if self.alarm is None:
            self.alarm = (time.monotonic(), failed)
        elif certain:
            self.alarm = (self.alarm[0], failed)

    def _judge(self) -> None:
        now = time.monotonic()
        for wire in self.wires:
            if self.alarm is None and now - wire.heard > SILENCE_S:
                silent = self._gone(wire, f"has said nothing for {SILENCE_S:.0f} s: it is stopped, or cut off")
                self._raise_alarm(silent | {"deaf": True})
        if self.alarm is not None and now - self.alarm[0] >= GRACE_S:
            self._end(self.alarm[1])

    def _end(self, verdict: dict[str, Any]) -> NoReturn:
        """Print the verdict if this rank is the one to, tell the others, and exit."""
        if rank() == 0 or rank() == 1 and verdict["rank"] == 0:
            last_words.say(verdict["text"])
        # Before the others are told: when they end, torchrun asks this rank to stop and save.
        farewell = threading.Thread(target=self.farewell, daemon=True)
        farewell.start()
        farewell.join(FAREWELL_S)
        for wire in self.wires:
            wire.send({"verdict": verdict})
            if wire.rank == verdict["rank"] and verdict.get("deaf") and wire.process[0] == socket.gethostname():
                os.kill(wire.process[1], signal.SIGKILL)
        os._exit(verdict["code"])
