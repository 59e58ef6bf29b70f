"""What a program in the sandbox sees of the file system: a read-only Python, an empty /tmp, and nothing else."""

import functools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

INSIDE = Path(__file__).parent / "inside"
PLACE = "/sandbox"  # of INSIDE there
HIDDEN = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip", "turtledemo")
# Imports every module written in C, so that the libraries they need are in the list of what is mapped.
FIND = """
import importlib, json, pathlib, sysconfig
for file in sorted(pathlib.Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")):
    name = file.name.partition(".")[0]
    if name not in ("_tkinter", "readline", "_curses", "_curses_panel") and not name.startswith(("_test", "xx")):
        try:
            importlib.import_module(name)
        except ImportError:
            pass
files = [line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line]
print(json.dumps([file for file in files if ".so" in file]))
"""


def python() -> str:
    """The interpreter itself, not a link to it in a virtual environment."""
    return os.path.realpath(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))


@functools.cache
def arguments() -> list[str]:
    """bwrap's options for this view."""
    binary, library = python(), sysconfig.get_path("stdlib")
    found = subprocess.run([binary, "-I", "-S", "-c", FIND], capture_output=True, text=True, check=True).stdout
    shared = [path for path in sorted({*json.loads(found)}) if not path.startswith(f"{library}/")]
    view = ["--tmpfs", "/"]
    for link in ("/lib", "/lib64", "/bin"):
        if os.path.islink(link):
            view += ["--symlink", os.readlink(link), link]
    for path in [library, binary, *shared]:
        view += ["--ro-bind", path, path]
    loader = Path(_loader(binary))
    names = {Path(os.path.realpath(loader.parent), loader.name): loader.resolve()}
    for path in map(Path, shared):  # a library is looked for under another name than its file's
        names |= {link: path for link in path.parent.glob(f"{path.name.partition('.so')[0]}.so*")}
    for name, target in names.items():
        if name.is_symlink() and name.resolve() == target:
            view += ["--symlink", str(target), str(name)]
    for hidden in HIDDEN:
        if Path(library, hidden).is_dir():
            view += ["--tmpfs", str(Path(library, hidden)), "--remount-ro", str(Path(library, hidden))]
    return [*view, "--ro-bind", str(INSIDE), PLACE, "--dir", "/tmp", "--remount-ro", "/"]


def _loader(binary: str) -> str:
    """The dynamic loader, under the name by which a program asks for it (ELF's PT_INTERP)."""
    with open(binary, "rb") as file:
        data = file.read(4096)
    start = data.index(b"/lib")
    return data[start:data.index(b"\0", start)].decode()
