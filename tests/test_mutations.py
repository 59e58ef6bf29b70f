"""Every planted mistake still applies, and one is caught; `python -m tests.mutations` tries them all. 2 seconds."""

from pathlib import Path

from tests.mutations import copy_project, outcome, planted_source
from tests.planted import PLANTED


def test_every_planted_mistake_still_applies_and_is_another_program() -> None:
    for change in PLANTED:
        source = planted_source(change)  # refuses a text that does not stand there once
        compile(source, change.file, "exec")
        assert change.old != change.new
    assert len(PLANTED) == len({(change.file, change.old, change.new) for change in PLANTED}) >= 60


def test_a_planted_mistake_is_caught_by_the_test_of_its_subject_and_taken_back(tmp_path: Path) -> None:
    (floor,) = [change for change in PLANTED if change.words == "eps as a floor"]
    copy = copy_project(tmp_path)
    before = (copy / floor.file).read_text()
    assert outcome(floor, copy, start="spawn").caught_by == "test_advantage.py::test_eps_is_added_to_the_std"
    assert (copy / floor.file).read_text() == before
