"""Every planted mistake still applies, and one is caught; `python -m tests.mutations.run` tries them all. 3 seconds."""

import ast
from pathlib import Path

from ranks import ROOT

from tests.mutations.planted import PLANTED
from tests.mutations.run import copy_project, outcome, planted_source


def test_every_planted_mistake_still_applies_and_is_another_program() -> None:
    there = {path.name for path in (ROOT / "tests").rglob("*.py")}
    for change in PLANTED:
        source = planted_source(change)  # refuses a text that does not stand there once
        if change.file.endswith(".py"):  # the others are of a shell
            ast.parse(source, change.file)
        assert change.old != change.new
        assert there.issuperset(change.tests), change.tests
    assert len(PLANTED) == len({(change.file, change.old, change.new) for change in PLANTED}) >= 60


def test_a_planted_mistake_is_caught_by_the_test_of_its_subject_and_taken_back(tmp_path: Path) -> None:
    (border,) = [change for change in PLANTED if change.words == "the border of the tolerance excluded"]
    copy = copy_project(tmp_path)
    before = (copy / border.file).read_text()
    caught_by = outcome(border, copy, start="spawn").caught_by
    assert caught_by == "test_rewards.py::test_a_number_written_as_people_write_it_scores_fully"
    assert (copy / border.file).read_text() == before
