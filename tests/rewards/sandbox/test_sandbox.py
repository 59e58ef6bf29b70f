"""A program in the sandbox: what it gets, how it ends, what it costs; and a machine that cannot give one. 6 seconds."""

import os
import time
from pathlib import Path

import psutil
import pytest
from boxes import SOON, boxed, run

from rewards.sandbox import __main__ as command
from rewards.sandbox import cgroup, layers, seccomp
from rewards.sandbox.box import Broken
from rewards.sandbox.program import Limits, Process


@pytest.fixture(scope="module")
def box():
    with boxed() as box:
        yield box


# -- how a program ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "stdin", "code", "output"), [
    ("print(input()[::-1])", b"abc\n", 0, b"cba\n"), ("import sys\nsys.exit(7)", b"", 7, b""),
    ("print(1)\nraise SystemExit('no')", b"", 1, b"1\n"), ("1 / 0", b"", 1, b""), ("def", b"", 1, b""),
    ("import sys\nprint(len(sys.stdin.read()))", b"x" * 3_000_000, 0, b"3000000\n"),
    ("print('x' * 500_000)", b"", 0, b"x" * 500_000 + b"\n"),
    ("import ctypes\nctypes.string_at(0)", b"", -11, b""),
    ("if __name__ == '__main__': print('main')", b"", 0, b"main\n"),
    ("import threading\nthreading.stack_size(2**26)\nt = threading.Thread(target=lambda: print('deep'))\n"
     "t.start()\nt.join()", b"", 0, b"deep\n"),
    ("import dataclasses, collections, itertools, math, re, heapq, bisect, random, decimal, fractions, functools, json,"
     " hashlib, datetime, typing, enum, string, statistics, operator, copy, array, struct, time\nprint(2)", b"", 0,
     b"2\n"),
    ("open('a', 'w').write('b')\nprint(open('/tmp/a').read())", b"", 0, b"b\n"),
])
def test_a_script_reads_writes_and_ends_as_anywhere(box, source: str, stdin: bytes, code: int, output: bytes) -> None:
    ended = run(box, source, stdin)
    assert (ended.code, ended.output, ended.why) == (code, output, "")


def test_what_is_raised_is_on_stderr(box) -> None:
    assert run(box, "raise ValueError('no such thing')").errors == b"ValueError: no such thing\n"


@pytest.mark.parametrize(("source", "limits", "why"), [
    ("while True: pass", Limits(wall_s=0.3), "took more than 0.3 s"),
    ("import time\ntime.sleep(9)", Limits(wall_s=0.3), "took more than 0.3 s"),
    ("print('x' * 2000)", Limits(output=1000), "wrote more than 1,000 bytes"),
])
def test_a_limit_that_is_kept_from_outside_is_named(box, source: str, limits: Limits, why: str) -> None:
    ended = run(box, source, limits=limits)
    assert (ended.code, ended.why) == (None, why)


def test_the_kernel_ends_what_uses_up_its_processor_time(box) -> None:
    assert run(box, "while True: pass", limits=Limits(cpu_s=1, wall_s=9)).code == -9


def test_memory_is_what_was_allowed(box) -> None:
    source = "x = bytearray({} * 2**20)\nprint(1)"
    assert run(box, source.format(100), limits=Limits(memory=256 * 2**20)).output == b"1\n"
    assert run(box, source.format(250), limits=Limits(memory=256 * 2**20)).errors == b"MemoryError: \n"


def test_the_order_of_a_set_is_the_same_in_each_sandbox(box) -> None:
    source = "print({'a', 'b', 'c', 'd', 'e', 'f'})"
    with boxed() as other:
        assert run(box, source).output == run(other, source).output


def test_a_program_costs_little_more_than_its_own_time(box) -> None:
    def seconds() -> float:
        start = time.monotonic()
        assert run(box, "print(1)").code == 0
        return time.monotonic() - start

    assert sorted(seconds() for _ in range(20))[10] < 0.1  # 4 ms on an idle machine


# -- a box that fails --------------------------------------------------------------------------------------------------


def test_a_box_that_ended_says_so(box) -> None:
    with boxed() as other:
        other.process.kill()
        other.process.wait()
        with pytest.raises(Broken):
            run(other, "print(1)")


def test_a_box_that_ends_during_a_program_takes_it_along() -> None:
    with boxed() as other:
        before = len(os.listdir("/proc/self/fd"))
        process = Process(other, "script", SOON, {"source": "import time\nprint(1, flush=True)\ntime.sleep(99)"})
        while not process.output:
            process._step()
        other.close()
        with pytest.raises(Broken):
            process.finish()
        assert len(os.listdir("/proc/self/fd")) == before - 1  # without the box's socket


# -- a machine that cannot ---------------------------------------------------------------------------------------------


def fake(folder: Path, words: str) -> None:
    (folder / "bwrap").write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    (folder / "bwrap").chmod(0o755)


@pytest.mark.parametrize(("words", "line"), [
    ("bwrap: No permissions to create a new namespace, likely because the kernel does not allow it",
     r"code_sandbox=full: this machine or its container forbids user namespaces \(bwrap: No permissions .*\); allow "
     "them: sysctl -w kernel.unprivileged_userns_clone=1 .*, or code_sandbox=process, which sets limits and .*"),
    ("bwrap: Unknown option --disable", r"code_sandbox=full: bubblewrap does not start \(bwrap: Unknown option.*"),
])
def test_a_machine_that_forbids_a_layer_is_refused_in_one_line(tmp_path, monkeypatch, words: str, line: str) -> None:
    fake(tmp_path, words)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ValueError, match=f"^{line}$"):
        layers.opened("full")


def test_a_machine_without_bubblewrap_is_refused_and_told_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(layers, "bwrap", lambda: None)
    with pytest.raises(ValueError, match="^code_sandbox=full: needs bubblewrap: apt install bubblewrap, or pip inst"):
        layers.opened("full")


def test_a_machine_whose_calls_are_not_listed_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(layers.os, "uname", lambda: os.uname_result(("Linux", "", "", "", "riscv64")))
    with pytest.raises(ValueError, match="knows the system calls of x86_64 and aarch64, not of riscv64, or"):
        layers.opened("full")


def test_a_layer_that_does_not_hold_is_noticed_before_any_program_runs(monkeypatch) -> None:
    with boxed():
        pass
    monkeypatch.setitem(layers.KINDS, "full", ("namespaces", "limits"))
    with layers.opened("full") as box:
        assert layers.seen(box) == {"namespaces": True, "seccomp": False, "limits": True}
    monkeypatch.setattr(layers, "seen", lambda box: {"namespaces": True, "limits": False})
    with pytest.raises(ValueError, match="^code_sandbox=full: limits does not hold on this machine, or"):
        layers.opened("full")


def test_only_limits_are_had_where_they_are_asked_for_by_name() -> None:
    with layers.opened("process") as box:
        assert layers.seen(box) == {"namespaces": False, "seccomp": False, "limits": True}
    with pytest.raises(ValueError, match="code_sandbox='none': must be one of full, process; nearest valid value: f"):
        layers.opened("none")


def test_what_a_program_under_limits_alone_started_ends_with_it() -> None:
    source = "import subprocess, sys\nprint(subprocess.Popen(['sleep', '98.7654']).pid)"
    with layers.opened("process") as box:
        number = int(run(box, source).output)
        deadline = time.monotonic() + 5
        while psutil.pid_exists(number) and psutil.Process(number).status() != "zombie":
            assert time.monotonic() < deadline
            time.sleep(0.01)


# -- the filter --------------------------------------------------------------------------------------------------------


def test_the_filter_is_what_the_kernel_expects() -> None:
    for machine in seccomp.MACHINES:
        program = seccomp.filter_for(machine)
        assert len(program) % 8 == 0 and len(program) // 8 < 4096  # the kernel's limit
        assert program[-8:] == bytes.fromhex("0600000001000500")  # all else: EPERM
    with pytest.raises(KeyError):
        seccomp.filter_for("riscv64")


def test_the_check_prints_the_layers_and_the_attacks(capsys, monkeypatch) -> None:
    with boxed():
        pass
    few = [pair for pair in command.every() if pair[1].name in ("read /etc/passwd", "fork")]
    monkeypatch.setattr(command, "every", lambda: few)
    assert command.main(["--check"]) == 0
    *held, group, last = capsys.readouterr().out.splitlines()
    assert held == ["namespaces   holds", "seccomp      holds", "limits       holds"]
    assert group in ("cgroup       holds", "cgroup       not there: this user cannot make one")
    assert last.startswith("2 attacks, 0 reached something, ")
    monkeypatch.setattr(command, "opened", lambda kind: layers.opened("process"))
    assert command.main(["--check"]) == 1
    assert "reached      files: read /etc/passwd: ESCAPED" in capsys.readouterr().out
    monkeypatch.setattr(command, "opened", layers.opened)
    monkeypatch.setattr(layers, "bwrap", lambda: None)
    assert command.main(["--check"]) == 2
    assert capsys.readouterr().err.startswith("error: code_sandbox=full: needs bubblewrap")


# -- control groups ----------------------------------------------------------------------------------------------------


def test_a_sandbox_is_in_control_groups_of_its_own_where_they_can_be_made(box) -> None:
    if not box.groups:
        pytest.skip("no control group can be made here")
    assert {path.name for path in box.groups} == {box.groups[0].name}
    for path in box.groups:
        assert str(box.process.pid) in (path / "cgroup.procs").read_text().split()
    with boxed() as other:
        groups = other.groups
    assert not any(path.exists() for path in groups)


def groups_of(tmp_path: Path, monkeypatch, mounts: str, mine: str) -> list[str]:
    """The limits of the groups that would be made, by file, under a made tree of control groups."""
    for name, text in (("mounts", mounts.format(tmp_path)), ("cgroup", mine)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cgroup, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(cgroup, "MINE", tmp_path / "cgroup")
    make = Path.mkdir

    def as_the_kernel_does(path: Path, *args, **options) -> None:
        make(path, *args, **options)
        if path.name.startswith("sandbox-"):
            for file in ("memory.limit_in_bytes", "pids.max") if "v1" in str(path) else ("memory.max", "pids.max"):
                (path / file).write_text("max")

    monkeypatch.setattr(Path, "mkdir", as_the_kernel_does)
    return sorted(f"{path.parent.relative_to(tmp_path)} {file.name}={file.read_text()}"
                  for path in cgroup.made() for file in path.iterdir() if file.read_text() != "max")


def test_limits_are_written_to_version_1_and_to_version_2(tmp_path: Path, monkeypatch) -> None:
    for folder in ("v1/memory/a", "v1/pids/b", "v2/c"):
        (tmp_path / folder).mkdir(parents=True)
    one = groups_of(tmp_path, monkeypatch, "x {0}/v1/memory cgroup rw,memory 0 0\nx {0}/v1/pids cgroup rw,pids 0 0\n",
                    "8:pids:/b\n4:memory:/a\n0::/\n")
    assert one == [f"v1/memory/a memory.limit_in_bytes={8 * 2**30}", "v1/pids/b pids.max=4096"]
    (tmp_path / "v2/c/cgroup.subtree_control").write_text("cpu memory pids\n")
    two = groups_of(tmp_path, monkeypatch, "x {0}/v2 cgroup2 rw 0 0\n", "0::/c\n")
    assert two == [f"v2/c memory.max={8 * 2**30}", "v2/c pids.max=4096"]
    (tmp_path / "v2/c/cgroup.subtree_control").write_text("cpu\n")
    assert groups_of(tmp_path, monkeypatch, "x {0}/v2 cgroup2 rw 0 0\n", "0::/c\n") == []
