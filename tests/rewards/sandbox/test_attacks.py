"""Nothing escapes from the sandbox, nothing is forged, nothing is left; each layer is needed for that. 15 seconds."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from boxes import SOON, boxed, run, with_layers

from rewards.sandbox.attacks import Attack, every, floods, forgeries, reached
from rewards.sandbox.program import Limits
from rewards.sandbox.verdict import passes

ALL = list(every())
QUICK = [pytest.param(attack, id=f"{room}: {attack.name}") for room, attack in ALL if room != "floods"]
NAMED = {attack.name: attack for _, attack in ALL}


@pytest.fixture(scope="module")
def box():
    with boxed() as box:
        yield box


@pytest.fixture(scope="module")
def flooded(box):
    """What each flood reached, and the seconds it took, eight at the same time."""
    def timed(attack: Attack) -> tuple[str, float]:
        start = time.monotonic()
        return reached(box, attack, Limits(cpu_s=1, wall_s=0.6)), time.monotonic() - start

    with ThreadPoolExecutor(8) as pool:
        return dict(zip((attack.name for attack in floods.ATTACKS), pool.map(timed, floods.ATTACKS), strict=True))


def test_there_are_many_attacks_each_with_a_name_of_its_own() -> None:
    names = [f"{room} {attack.name}" for room, attack in ALL]
    assert len(names) == len({*names}) >= 300
    assert len(forgeries.ATTACKS) >= 60


@pytest.mark.parametrize("attack", QUICK)
def test_an_attack_reaches_nothing(box, attack: Attack) -> None:
    assert reached(box, attack, SOON) == ""


@pytest.mark.parametrize("name", [attack.name for attack in floods.ATTACKS])
def test_a_flood_ends_soon_and_reaches_nothing(flooded, name: str) -> None:
    what, seconds = flooded[name]
    assert what == "" and seconds < 5


def test_the_honest_function_passes_the_test_that_no_forgery_passes(box) -> None:
    assert passes(box, "def add(a, b): return a + b", forgeries.TEST, SOON, []).passed


def at_rest(box) -> bool:
    """Whether bubblewrap and the first process are all there is of the sandbox, and wait."""
    try:
        inside = [one.status() for one in psutil.Process(box.process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:  # one that was just ending
        return False
    return inside in ([], ["sleeping"])


def test_after_all_of_them_the_sandbox_is_one_process_and_its_folder_empty(box, flooded) -> None:
    assert run(box, "import os; print(os.listdir('/tmp'), os.getpid())").output == b"[] 1\n"
    # On a busy machine the first process has still to fall asleep.
    assert any(at_rest(box) or time.sleep(0.02) for _ in range(100))


# -- what holds when another layer is gone -----------------------------------------------------------------------------

# Each would do no harm here if it succeeded.
WITHOUT_FILTER = ["the call mount", "the call umount2", "the call chroot", "the call sethostname", "ask for loopback",
                  "ask for an address", "other processes seen", "read /etc/passwd", "list /proc", "list /dev",
                  "into the standard library", "every file that can be seen", "memory limits raised"]
WITHOUT_NAMESPACES = ["fork", "a shell by system", "ask for loopback", "a socket of AF_UNIX stream",
                      "the call ptrace", "the call unshare user", "the call bpf", "a handle of a process"]


@pytest.mark.parametrize("name", WITHOUT_FILTER)
def test_namespaces_hold_without_the_filter_of_calls(name: str) -> None:
    with with_layers("namespaces", "limits") as box:
        assert reached(box, NAMED[name], SOON) == ""


@pytest.mark.parametrize("name", WITHOUT_NAMESPACES)
def test_the_filter_of_calls_holds_without_namespaces(name: str) -> None:
    with with_layers("seccomp", "limits") as box:
        assert reached(box, NAMED[name], SOON) == ""


@pytest.mark.parametrize(("layers", "name"), [
    (("seccomp", "limits"), "read /etc/passwd"), (("seccomp", "limits"), "list /proc"),
    (("namespaces", "limits"), "fork"), (("namespaces", "limits"), "a socket of AF_INET stream"),
    (("namespaces", "seccomp"), "a mapping"), (("namespaces", "seccomp"), "many open files"),
    (("namespaces", "seccomp"), "a sparse file"),
])
def test_an_attack_notices_a_layer_that_is_missing(layers: tuple[str, ...], name: str) -> None:
    with with_layers(*layers) as box:
        assert reached(box, NAMED[name], SOON) != ""


def test_a_program_leaves_nothing_for_the_next(box) -> None:
    write = "import json, os\nopen('/tmp/trace', 'w').write('x')\njson.trace = 1\nprint(os.listdir('/tmp'))"
    look = "import json, os\nprint(os.listdir('/tmp'), hasattr(json, 'trace'))"
    assert run(box, write).output == b"['trace']\n" and run(box, look).output == b"[] False\n"


def test_programs_at_the_same_time_do_not_see_each_other(box) -> None:
    source = ("import os, time\nopen('/tmp/' + input(), 'w')\ntime.sleep(0.2)\n"
              "print(os.listdir('/tmp'), os.getpid(), os.getppid())")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: run(box, source, f"{n}\n".encode()).output, range(8)))
    assert found == [f"['{n}'] 1 0\n".encode() for n in range(8)]


def test_no_descriptor_is_left_open_here(box) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        run(box, "print(1)")
        passes(box, "def add(a, b): return 5", forgeries.TEST, SOON, [])
        passes(box, "import os\nos._exit(0)", forgeries.TEST, SOON, [])
    assert len(os.listdir("/proc/self/fd")) == before
