"""Claims x implementations: `python -m tests.conformance.compare` writes benchmarks/results/conformance.json and .md.

Ours, three peers, and the public mistakes with their repaired forms. The peers' packages are in a folder of their own:
adapters/peers.py. Each adapter runs in a process of its own.
"""

import importlib
import json
import multiprocessing
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT, commit, machine, versions
from tests.conformance.adapter import load
from tests.conformance.claim import FAILED, Outcome, outcomes
from tests.conformance.claims import CLAIMS
from tests.conformance.findings import FINDINGS, Finding
from tests.conformance.page import cell, markdown

COMMAND = "python -m tests.conformance.compare"
INSTALL = "pip install --no-deps --target .peers -r tests/conformance/adapters/requirements.txt"
ADAPTERS = Path(__file__).parent / "adapters"
IMPLEMENTATIONS = ("ours.py", "peer_trl.py", "peer_verl.py", "peer_openrlhf.py")
MISTAKES = ("ClipOfWholeCompletions", "NegatedTwice", "ComparedAcrossPrompts", "NeverReduced", "StdOfTheOthers",
            "NegativeKL", "AnotherDivergence")


def tried(file: str) -> dict[str, Any]:
    """What came of all claims on one of our adapters, for the record."""
    adapter = load(str(ADAPTERS / file))
    found = {one.claim.name: [one.status, one.found] for one in outcomes(adapter)}
    return {"name": adapter.name, "adapter": file, "clip": adapter.clip, "beta": adapter.beta, "outcomes": found}


def line_number(finding: Finding) -> int:
    """Where the line of a finding stands in the peer's installed file.

    Raises:
        ValueError: it does not stand there once.
    """
    source = (ROOT / ".peers" / finding.file).read_text().splitlines()
    numbers = [number for number, line in enumerate(source, start=1) if finding.line in line]
    if len(numbers) != 1:
        raise ValueError(f"{finding.file} has {len(numbers)} times: {finding.line}")
    return numbers[0]


def check_findings(implementations: Sequence[dict[str, Any]]) -> None:
    """Every failed claim of a peer has been looked into, and nothing else.

    Raises:
        ValueError: some have not, or no longer fail.
    """
    failed = {(one["name"], claim) for one in implementations
              for claim, (status, _) in one["outcomes"].items() if status == FAILED}
    found = {(finding.peer, claim) for finding in FINDINGS for claim in finding.claims}
    if failed != found:
        raise ValueError(f"failed without a finding: {sorted(failed - found)}; found but not failed: "
                         f"{sorted(found - failed)}")


def outcomes_of(record: dict[str, Any]) -> list[Outcome]:
    """An implementation's outcomes, as they were before they were written down."""
    return [Outcome(claim, *record["outcomes"][claim.name]) for claim in CLAIMS]


def finding_rows(record: dict[str, Any]) -> list[str]:
    """A table of the findings."""
    lines = ["| implementation | claim | found | line | what it is |", "|---|---|---|---|---|"]
    outcome = {one["name"]: one["outcomes"] for one in record["implementations"]}
    for finding in record["findings"]:
        of = outcome[finding["peer"]]
        lines += [f"| {finding['peer']} | {claim} | {cell(of[claim][1])} | {finding['file']}:{finding['number']} "
                  f"`{cell(finding['line'])}` | **{finding['kind']}**. {finding['words']} |"
                  for claim in finding["claims"]]
    return lines


def mistake_rows(record: dict[str, Any]) -> list[str]:
    """A table of the public mistakes, each beside its repaired form."""
    lines = ["| mistake | from | the claim that is meant for it | other claims that fail | repaired |",
             "|---|---|---|---|---|"]
    for wrong, right in record["mistakes"]:
        failed, left = ([claim for claim, (status, _) in one["outcomes"].items() if status == FAILED]
                        for one in (wrong, right))
        others = ", ".join(claim for claim in failed if claim != wrong["meant"]) or "none"
        meant = f"{wrong['meant']}: {cell(wrong['outcomes'][wrong['meant']][1])}"
        lines.append(f"| {wrong['name']} | {cell(wrong['from'])} | {meant} | {others} | "
                     f"{', '.join(left) or 'all that it offers hold'} |")
    return lines


def page(record: dict[str, Any]) -> str:
    """The whole page, from the record alone."""
    of = {one["name"]: outcomes_of(one) for one in record["implementations"]}
    judged = sum(not claim.names for claim in CLAIMS)
    settings = "; ".join(f"{one['name']}: clip {tuple(one['clip'])}, beta {one['beta']}"
                         for one in record["implementations"])
    versions_ = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "# Conformance", "", f"`{COMMAND}`, commit {record['commit']}.",
        f"{record['machine']}; Python {record['python']}, {versions_}.", "",
        f"{judged} claims that code must meet, and {len(CLAIMS) - judged} that name the convention it follows. Each",
        "has its equation, its source and a number worked by hand in `tests/conformance/claims/`. What each adapter",
        "calls of its package: `tests/conformance/adapters/`.", "", f"Settings: {settings}.", "", markdown(of),
        "## Failed claims of the peers, looked into", "",
        "The line that does it, and whether it is a convention or an error. A loss function that is called outside its",
        "trainer can fail more: adapters give it what its trainer gives it.", "", *finding_rows(record), "",
        "## Public mistakes, made again", "",
        "From their descriptions, in our words and our code: `tests/conformance/adapters/bugs.py`, `repaired.py`.", "",
        *mistake_rows(record)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Try everything, and write record and page; 2 where the peers are not installed."""
    if not (ROOT / ".peers").is_dir():
        print(f"error: there is no folder .peers; first: {INSTALL}", file=sys.stderr)
        return 2
    # A process each: peers patch libraries, and some stand in for packages that others look for.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        implementations = list(pool.map(tried, IMPLEMENTATIONS))
    check_findings(implementations)
    bugs = importlib.import_module("tests.conformance.adapters.bugs")
    mistakes = []
    for name in MISTAKES:
        wrong, right = tried(f"bugs.py:{name}"), tried(f"repaired.py:{name}")
        mistake = getattr(bugs, name)
        wrong |= {"from": mistake.__doc__.strip(), "meant": mistake.CAUGHT_BY[0]}
        mistakes.append([wrong, right])
    record = {
        "command": COMMAND, "commit": commit(), "machine": machine(), "python": platform.python_version(),
        "versions": versions(("torch", "transformers", "accelerate", "deepspeed")),
        "implementations": implementations, "mistakes": mistakes,
        "findings": [finding._asdict() | {"number": line_number(finding)} for finding in FINDINGS]}
    (RESULTS / "conformance.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "conformance.md").write_text(page(json.loads(json.dumps(record))))
    print(f"written: {RESULTS / 'conformance.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
