"""Do the claims notice? `python -m tests.conformance.mutations` plants mistakes in our own code.

Each row of planted.py is made alone in a copy of the project. All claims are tried on our adapter, and all but those
about two ranks on its other settings. A mistake is caught by each claim that fails then; each claim must catch one.
The result goes to benchmarks/results/conformance-mutations.json and .md.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT, commit, machine
from tests.conformance.planted import PLANTED
from tests.mutations.run import copy_project, planted_source, warm_up

COMMAND = "python -m tests.conformance.mutations"
SETTINGS = ("ours.py", "ours.py:PAPER", "ours.py:DR_GRPO", "ours.py:GSPO", "ours.py:RLOO")
Statuses = dict[str, dict[str, str]]  # by setting and claim


def _try_claims(copy: Path, sender: Connection) -> None:
    """In a process of its own: the status of every claim on the copy's code."""
    gc.freeze()
    sys.dont_write_bytecode = True  # a stale one would hide a change of the same length within the same second
    sys.path[:] = [str(copy), *(entry for entry in sys.path if Path(entry).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "benchmarks")]:
        del sys.modules[name]  # those of the project, not of the copy
    os.chdir(copy)
    with open(copy / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        from tests.conformance.adapter import load
        from tests.conformance.claim import outcomes
        from tests.conformance.claims import CLAIMS

        found: Statuses = {}
        for setting in SETTINGS:
            some = [claim for claim in CLAIMS if setting == SETTINGS[0] or claim.subject != "two ranks"]
            adapter = load(str(copy / "tests" / "conformance" / "adapters" / setting))
            found[setting] = {one.claim.name: one.status for one in outcomes(adapter, some)}
        sender.send(found)
    except BaseException:
        sender.send(traceback.format_exc())


def try_claims(copy: Path) -> Statuses:
    """The status of every claim on the code of a copy of the project.

    Raises:
        RuntimeError: they could not be tried.
    """
    context = multiprocessing.get_context("fork")  # this process has imported libraries, and nothing of the project
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try_claims, args=(copy, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = "the process ended"
    process.join()
    if isinstance(found, str):
        raise RuntimeError(f"claims could not be tried:\n{found}")
    return found


def failed(found: Statuses) -> list[str]:
    """The claims that fail in any setting."""
    return sorted({claim for statuses in found.values() for claim, status in statuses.items() if status == "failed"})


def page(record: dict[str, Any]) -> str:
    """The result as a page: the mistakes, and the claims."""
    kills = kills_of(record)
    caught = sum(bool(row["caught_by"]) for row in record["mistakes"])
    lines = [
        "# Mistakes planted in our code, and the claims that notice", "",
        f"`{COMMAND}`, commit {record['commit']}.", f"{record['machine']}; {record['minutes']:.0f} minutes.", "",
        f"**{caught} of {len(record['mistakes'])} mistakes are caught, and {sum(map(bool, kills.values()))} of "
        f"{len(kills)} claims catch at least one.** Without a mistake no claim fails.", "The mistakes: "
        "`tests/conformance/planted.py`.", "",
        "| file | mistake | claims that fail | which |", "|---|---|---|---|"]
    for row in record["mistakes"]:
        shown = ", ".join(row["caught_by"][:4]) + (", ..." if len(row["caught_by"]) > 4 else "")
        lines.append(f"| {row['file']} | {row['words']} | {len(row['caught_by'])} | {shown or '**SURVIVED**'} |")
    lines += ["", "| claim | mistakes it catches | that no other catches | such as |", "|---|---|---|---|"]
    alone = Counter(row["caught_by"][0] for row in record["mistakes"] if len(row["caught_by"]) == 1)
    for claim, mistakes in kills.items():
        lines.append(f"| {claim} | {len(mistakes)} | {alone[claim]} | {mistakes[0] if mistakes else '**none**'} |")
    return "\n".join(lines) + "\n"


def kills_of(record: dict[str, Any]) -> dict[str, list[str]]:
    """For each claim the mistakes that it catches, those first that few others catch."""
    rows = sorted(record["mistakes"], key=lambda row: len(row["caught_by"]))
    return {claim: [row["words"] for row in rows if claim in row["caught_by"]] for claim in record["claims"]}


def main() -> int:
    """Plant every mistake, and write record and page; 1 where one survived or a claim caught none."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Plants one mistake at a time and tries all claims.")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose file or words hold this; no page")
    options = parser.parse_args()
    changes = [change for change in PLANTED if options.only in f"{change.file} {change.words}"]
    for change in PLANTED:
        planted_source(change)  # all of them before the first minutes are spent
    warm_up()
    started_s, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_project(Path(folder))
        untouched = try_claims(copy)
        if failed(untouched):
            raise RuntimeError(f"fail without any mistake: {failed(untouched)}")
        for change in changes:
            (copy / change.file).write_text(planted_source(change))
            caught_by = failed(try_claims(copy))
            (copy / change.file).write_text((ROOT / change.file).read_text())
            rows.append({"file": change.file, "words": change.words, "old": change.old, "new": change.new,
                         "caught_by": caught_by})
            print(f"{len(caught_by):3} {change.file}: {change.words}  {', '.join(caught_by[:6])}", flush=True)
    record = {"command": COMMAND, "commit": commit(), "machine": machine(), "claims": list(untouched[SETTINGS[0]]),
              "minutes": (time.perf_counter() - started_s) / 60, "mistakes": rows}
    survived = [row["words"] for row in rows if not row["caught_by"]]
    idle = [] if options.only else [claim for claim, mistakes in kills_of(record).items() if not mistakes]
    print(f"survived: {survived or 'none'}; claims that caught nothing: {idle or 'none'}")
    if not options.only:
        (RESULTS / "conformance-mutations.json").write_text(json.dumps(record, indent=1) + "\n")
        (RESULTS / "conformance-mutations.md").write_text(page(record))
    return int(bool(survived or idle))


if __name__ == "__main__":
    sys.exit(main())
