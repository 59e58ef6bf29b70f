"""The results on file are of the claims, mistakes and findings that are here now. 1 second."""

import json

import pytest
from ranks import ROOT

from tests.conformance import compare, mutations
from tests.conformance.claim import CLAIMS, STATUSES
from tests.conformance.findings import FINDINGS
from tests.conformance.planted import PLANTED
from tests.mutations.run import planted_source

RESULTS = ROOT / "benchmarks" / "results"
NAMES = [claim.name for claim in CLAIMS]


@pytest.mark.parametrize("name", ["conformance", "conformance-mutations"])
def test_the_page_is_the_one_that_its_record_gives(name: str) -> None:
    record, text = (json.loads((RESULTS / f"{name}.json").read_text()), (RESULTS / f"{name}.md").read_text())
    assert text == {"conformance": compare, "conformance-mutations": mutations}[name].page(record)


def test_the_table_has_every_claim_for_us_and_three_peers() -> None:
    """Where this fails: python -m tests.conformance.compare."""
    record = json.loads((RESULTS / "conformance.json").read_text())
    for one in [*record["implementations"], *(one for pair in record["mistakes"] for one in pair)]:
        assert list(one["outcomes"]) == NAMES and {status for status, _ in one["outcomes"].values()} <= set(STATUSES)
    ours, *peers = record["implementations"]
    assert [one["name"].split()[0] for one in peers] == ["trl", "verl", "openrlhf"]
    assert "failed" not in {status for status, _ in ours["outcomes"].values()}


def test_every_failed_claim_of_a_peer_was_looked_into() -> None:
    record = json.loads((RESULTS / "conformance.json").read_text())
    compare.check_findings(record["implementations"])
    without_number = [{key: value for key, value in one.items() if key != "number"} for one in record["findings"]]
    assert without_number == json.loads(json.dumps([finding._asdict() for finding in FINDINGS]))
    with pytest.raises(ValueError, match="failed without a finding: .*'one right of four'"):
        compare.check_findings([*record["implementations"], {
            "name": "another", "outcomes": {"one right of four": ["failed", ""]}}])


def test_at_least_fifty_mistakes_in_our_code_are_caught_and_every_claim_catches_one() -> None:
    """Where this fails: python -m tests.conformance.mutations."""
    record = json.loads((RESULTS / "conformance-mutations.json").read_text())
    rows = [(row["file"], row["words"], row["old"], row["new"]) for row in record["mistakes"]]
    assert rows == [(change.file, change.words, change.old, change.new) for change in PLANTED] and len(rows) >= 50
    assert record["claims"] == NAMES and [row["words"] for row in record["mistakes"] if not row["caught_by"]] == []
    assert [claim for claim, mistakes in mutations.kills_of(record).items() if not mistakes] == []


def test_every_planted_mistake_still_applies_and_is_another_program() -> None:
    for change in PLANTED:
        compile(planted_source(change), change.file, "exec")  # refuses a text that does not stand there once
    assert len({(change.file, change.words) for change in PLANTED}) == len(PLANTED)
