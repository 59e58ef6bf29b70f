"""Do the tests notice? `python -m tests.mutations.run` plants mistakes and writes benchmarks/results/mutations.md.

Each row of planted.py is made alone in a copy of the project, and the test files named beside it run up to the
first that fails. A process that has imported what the tests import, and nothing of the project, is forked for each.
"""

import argparse
import gc
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.record import RESULTS, ROOT, commit, machine
from tests.mutations.planted import PLANTED, Planted

COMMAND = "python -m tests.mutations.run"
PACKAGES = ("torch", "transformers", "pytest")
COPIED = (
    "benchmarks", "data", "docs", "grpo", "kernels", "recipes", "rewards", "tests", "eval.py", "setup.cfg", "train.py")
# What the tests import, conftest first: it sets what the others read from the environment.
WARM = ("tests.conftest", "torch._inductor", "transformers.models.qwen2.modeling_qwen2", "peft", "deepspeed")
LIMIT_S = 300  # of one change; one that never ends is noticed too


class Outcome(NamedTuple):
    """What the tests made of a change: the name of the first that failed, or an empty text; and how long they took."""

    caught_by: str
    seconds: float


class _FirstFailure:
    """Of pytest: remembers which test failed first."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid.partition("[")[0].rpartition("/")[2]


def _run_tests(copy: Path, file: str, tests: tuple[str, ...], sender: Connection) -> None:
    """In a process of its own: run test files of the copy, send pytest's exit status and what failed first."""
    gc.freeze()  # what was imported before the fork need not be searched for garbage
    sys.dont_write_bytecode = True  # a stale one would hide a change of the same length within the same second
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.chdir(copy)
    with open(copy / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    first = _FirstFailure()
    paths = [str(path) for name in tests for path in Path("tests").rglob(name)]
    status = pytest.main([*paths, "-x", "-q", "-p", "no:cacheprovider"], [first])
    # Where only processes that the tests start import it: those begin in the folder of the tests, the copy.
    module = sys.modules.get(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert module is None or Path(module.__file__) == copy / file, f"the tests ran {module.__file__}"
    sender.send((int(status), first.name))


def run_tests(copy: Path, file: str, tests: tuple[str, ...], *, start: str = "fork") -> Outcome:
    """Run test files against a copy of the project as it is now.

    Args:
        copy: its folder, from `copy_project`.
        file: the file in question; that the tests import the copy's is checked.
        tests: names of test files.
        start: of the process, "fork" where this one has imported nothing of the project, else "spawn".

    Raises:
        RuntimeError: the tests could not be run.
    """
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_tests, args=(copy, file, tests, sender))
    started_s = time.perf_counter()
    process.start()
    sender.close()
    ended = receiver.poll(LIMIT_S)
    seconds = time.perf_counter() - started_s
    if not ended:
        process.kill()
    process.join()
    if not ended:
        return Outcome(f"no end after {LIMIT_S} s", seconds)
    try:
        status, caught_by = receiver.recv()
    except EOFError:
        status, caught_by = None, ""
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"{file}: the tests did not run:\n{(copy / 'output.txt').read_text()[-3000:]}")
    return Outcome(caught_by, seconds)


def warm_up() -> None:
    """Import what the tests import. The root leaves the path: transformers would take our `kernels` for another's."""
    importlib.import_module(WARM[0])
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    for name in WARM[1:]:
        importlib.import_module(name)


def copy_project(folder: Path) -> Path:
    """What the tests need, in a folder of its own."""
    copy = folder.resolve() / "project"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


def planted_source(change: Planted) -> str:
    """The file with the mistake in it.

    Raises:
        ValueError: its text does not stand there once.
    """
    source = (ROOT / change.file).read_text()
    if source.count(change.old) != 1:
        raise ValueError(f"{change.file} ({change.words}) says {source.count(change.old)} times: {change.old}")
    return source.replace(change.old, change.new)


def outcome(change: Planted, copy: Path, *, start: str = "fork") -> Outcome:
    """Make a change, run its tests, take it back."""
    (copy / change.file).write_text(planted_source(change))
    try:
        return run_tests(copy, change.file, change.tests, start=start)
    finally:
        shutil.copy2(ROOT / change.file, copy / change.file)


def _code(text: str) -> str:
    """A text of source as a cell of a Markdown table."""
    return f"`{' '.join(text.split())}`".replace("|", "\\|") if text.strip() else "nothing"


def markdown(outcomes: list[tuple[Planted, Outcome]], seconds: float) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    num_caught = sum(bool(found.caught_by) for _, found in outcomes)
    lines = [
        "# Planted mistakes\n",
        f"`{COMMAND}`, commit {commit()}.",
        f"{machine()}; Python {platform.python_version()}, {versions}; {seconds / 60:.0f} minutes.\n",
        f"**{num_caught} of {len(outcomes)} caught.** Each mistake of tests/mutations/ was made alone in a copy of the",
        "project; without any, the same tests pass. Named is the first test that failed.\n",
        "| file | change | in words | caught by |",
        "|---|---|---|---|",
    ]
    for change, found in outcomes:
        end = found.caught_by.replace(".py::", ": ") or f"**SURVIVED**: {change.tolerated or 'a test is missing'}"
        lines.append(f"| {change.file} | {_code(change.old)} → {_code(change.new)} | {change.words} | {end} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make every change, and write the page; 1 where one survived that must not."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Plants one mistake at a time and runs the tests.")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose file or words hold this; no page")
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="folder of mutations.md")
    options = parser.parse_args()
    changes = [change for change in PLANTED if options.only in f"{change.file} {change.words}"]
    for change in PLANTED:
        planted_source(change)  # all of them before the first minutes are spent
    warm_up()
    started_s = time.perf_counter()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(Path(folder))
        for tests, file in {change.tests: change.file for change in changes}.items():
            untouched = run_tests(copy, file, tests)
            if untouched.caught_by:
                raise RuntimeError(f"{untouched.caught_by} fails without any change")
            print(f"{untouched.seconds:5.1f} s  passed    {' '.join(tests)}", flush=True)
        for change in changes:
            found = outcome(change, copy)
            outcomes.append((change, found))
            word = "caught" if found.caught_by else "tolerated" if change.tolerated else "SURVIVED"
            print(f"{found.seconds:5.1f} s  {word:8}  {change.file}: {change.words}  {found.caught_by}", flush=True)
    print(f"{sum(bool(found.caught_by) for _, found in outcomes)} of {len(outcomes)} caught")
    if not options.only:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        (options.output_dir / "mutations.md").write_text(markdown(outcomes, time.perf_counter() - started_s))
    return int(any(not found.caught_by and not change.tolerated for change, found in outcomes))


if __name__ == "__main__":
    sys.exit(main())
