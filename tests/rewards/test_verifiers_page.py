"""docs/verifiers.md agrees with the code: every reward, what it reads and needs, every option and its default."""

import importlib
import inspect
import re
from collections.abc import Callable

import pytest
from ranks import ROOT

from data import gym as tasks
from rewards.arguments import ARGUMENTS
from rewards.loading import BUILT_IN, EXTRAS

PAGE = (ROOT / "docs" / "verifiers.md").read_text(encoding="utf-8")
MODULES = ("rewards.latex", "rewards.trl", "rewards.open_r1", "rewards.gym")
PLACES = {name: place.split(":") for name, place in BUILT_IN.items() if place.split(":")[0] in MODULES}
LACKING = {"rewards.latex": "math_verify", "rewards.gym": "reasoning_gym"}  # what a module cannot be imported without


def rows(header: str) -> list[list[str]]:
    """The cells of the table with this first line."""
    table = PAGE.partition(header + "\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def function_of(name: str) -> Callable:
    module, function = PLACES[name]
    if module in LACKING:
        pytest.importorskip(LACKING[module], reason=f"{LACKING[module]} is not installed")
    return getattr(importlib.import_module(module), function)


REWARDS = {name.strip("`"): rest for name, *rest in rows("| name | value | reads | needs | source |")}
OPTIONS = {(function, name): default for name, function, default in (
    (cell.strip("`") for cell in row) for row in rows("| option of `reward_options` | of | default |"))}


def test_the_page_has_every_reward_and_the_package_that_it_needs() -> None:
    assert [*REWARDS] == [name for name in REWARDS if name in PLACES] and REWARDS.keys() == PLACES.keys()
    assert {name: needs for name, (_, _, needs, _) in REWARDS.items() if needs} == EXTRAS


@pytest.mark.parametrize("name", PLACES)
def test_the_page_has_the_columns_and_the_options_of_a_reward(name: str) -> None:
    function = function_of(name)
    reader = getattr(function, "read_options", lambda: {})
    options = inspect.signature(reader).parameters
    said = {option: default for (of, option), default in OPTIONS.items() if of == name}
    assert said.keys() == options.keys()
    for option, one in options.items():
        value = ["</think>"] if option == "reasoning_delimiters" else one.default
        shown = "must be given" if option == "max_len" else str(value).replace("'", "")
        assert re.match(rf"{re.escape(shown)}(, |$)", said[option]), option
    taken = [one for one in inspect.signature(function).parameters if one not in (*ARGUMENTS, *options, "columns")]
    if name == "reasoning_gym":
        assert taken == ["question", "answer", "metadata", "gym_task"]
    else:
        assert taken == re.findall(r"^`(\w+)`", REWARDS[name][1])


def test_the_page_names_the_tasks_that_are_treated_apart() -> None:
    listed = PAGE.partition("on an answer, or sympy's parser, which does:")[2].partition("They")[0]
    evaluated = re.findall(r"`(\w+)`", listed)
    by_hash = re.findall(r"`(\w+)`", PAGE.partition("- The rows of ")[2].partition("depend on")[0])
    assert sorted(by_hash) == sorted(tasks.BY_HASH) and len(evaluated) == 9
    assert 2**30 == tasks.SPLITS["validation"] and "a seed 2³⁰ further on" in PAGE
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    from reasoning_gym.factory import DATASETS

    from rewards import gym

    assert sorted(evaluated) == sorted(gym.EVALUATED)
    assert f"one of its {len(DATASETS) - 1} single tasks" in PAGE
