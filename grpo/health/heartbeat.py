"""Every rank says once a second that it lives and where it is; one that dies, fails or stands still ends them all.

A collective notices a missing rank only after its time-out, and cannot say which one or why. So rank 0 keeps a plain
TCP connection to every other rank beside the process group. Its end is a death, its silence a process or machine that
stands still, and what is said on it names step, phase and place. Rank 0 prints the verdict once, passes it on, and
every process ends; where rank 0 is the one that is gone, rank 1 says so. A rank alone beats too, for its own sake.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import threading
import time
from typing import Any, NoReturn

from grpo.distributed import gather_objects, rank, world_size
from grpo.health import door, last_words
from grpo.health.pulse import describe, pulse

BEAT_S = 1.0
SILENCE_S = 15.0  # of a rank whose connection stands
GRACE_S = 1.5  # a death explains the errors that it causes elsewhere; so long it may come after them
LAST_WORDS_S = 10.0  # for the verdict to arrive; then a failing rank ends without

_heart: "Heart | None" = None


def start(patience_s: float) -> None:
    """Begin to beat.

    Args:
        patience_s: how long a rank may show no progress at all, seconds.

    Collective: every rank, once, after the process group is joined.
    """
    global _heart
    _heart = Heart()
    last_words.advise("")
    pulse.begin(rank(), patience_s, tell=_heart.tell)
    _heart.thread.start()


def stop() -> None:
    """End the beat without alarm, where all ranks have come to their end as planned."""
    global _heart
    if _heart is not None:
        _heart.leave()
        _heart = None


def fail(text: str, code: int) -> int:
    """Say why this rank cannot go on, and end all ranks.

    Args:
        text: what a user is to read; printed once, whoever else fails for the same reason.
        code: exit code of every rank.

    Returns:
        The exit code, where no other rank is there to be ended; else this call does not return.
    """
    if _heart is None or world_size() == 1:
        stop()
        return last_words.fail(text, code)
    _heart.failure = {"rank": rank(), "text": text, "code": code}
    time.sleep(LAST_WORDS_S)
    os._exit(code)


class Wire:
    """A connection that carries one JSON object a line, to a rank, of which host and process id are known."""

    def __init__(self, connection: socket.socket, number: int, process: list[Any]) -> None:
        self.socket, self.rest, self.heard = connection, b"", time.monotonic()
        self.lock = threading.Lock()
        self.said: dict[str, Any] = {}  # the last pulse from the other side
        self.rank, self.process = number, process
        connection.settimeout(BEAT_S)

    def send(self, message: dict[str, Any]) -> None:
        """Send, or leave it: that the other side is gone is noticed where it is read."""
        with self.lock, contextlib.suppress(OSError):
            # A line of its own, also behind one that the time-out has cut off.
            self.socket.sendall(b"\n" + json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come but for lines that were cut off; None when the other side has closed."""
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
    """The thread that beats, and the connections it beats on.

    Collective: building one.
    """

    def __init__(self) -> None:
        self.failure: dict[str, Any] | None = None  # set by the main thread
        self.leaving = threading.Event()
        self.selector = selectors.DefaultSelector()
        self.wires: list[Wire] = []
        self.alarm: tuple[float, dict[str, Any]] | None = None  # when it was raised, and what it says
        self._connect()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def _connect(self) -> None:
        if world_size() == 1:
            return
        ours = door.Door(world_size()) if rank() == 0 else None
        everyone = gather_objects((_process(), ours and (ours.address, ours.tokens)))
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
        """Let the thread end; where others are a moment behind, GRACE_S covers it."""
        self.leaving.set()
        self.thread.join()
        for wire in self.wires:
            wire.socket.close()

    def _beat(self) -> None:
        due = time.monotonic()
        while not self.leaving.is_set():
            for key, _ in self.selector.select(max(0.0, min(due - time.monotonic(), 0.2))):
                self._hear(key.data)
            if time.monotonic() >= due or self.failure:
                due = time.monotonic() + BEAT_S
                self._speak()
            self._judge()

    def tell(self) -> dict[str, Any]:
        """Pass on where this rank is."""
        mine = pulse.take()
        for wire in self.wires:
            wire.send({"pulse": mine})
        return mine

    def _speak(self) -> None:
        mine, failed = self.tell(), self.failure
        trouble = pulse.trouble(mine, [wire.said for wire in self.wires] if rank() == 0 else None)
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
            wire.said = message.get("pulse", wire.said)
            if "verdict" in message:
                os._exit(message["verdict"]["code"])
            if "failed" in message:
                self._raise_alarm(message["failed"])

    def _gone(self, wire: Wire, how: str) -> dict[str, Any]:
        return {"rank": wire.rank, "text": f"error: {describe(wire.said | {'rank': wire.rank})} {how}", "code": 1}

    def _raise_alarm(self, failed: dict[str, Any], certain: bool = False) -> None:
        """The first alarm counts, unless a death comes right behind it: then that is why."""
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
        """Print the verdict if it is this rank's place to, tell the others, and be gone."""
        if rank() == 0 or rank() == 1 and verdict["rank"] == 0:
            last_words.say(verdict["text"])
        for wire in self.wires:
            wire.send({"verdict": verdict})
            if wire.rank == verdict["rank"] and verdict.get("deaf") and wire.process[0] == socket.gethostname():
                os.kill(wire.process[1], signal.SIGKILL)
        os._exit(verdict["code"])


def _process() -> list[Any]:
    return [socket.gethostname(), os.getpid()]
