"""Reasoning Gym's scores: oracle answers, where an answer is found, and that no answer is run. 6 seconds.

Skipped where the package is not installed.
"""

import functools
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
from reward_pools import score, starting

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

import reasoning_gym as package  # noqa: E402
from reasoning_gym.factory import DATASETS, create_dataset  # noqa: E402

from rewards import gym, loading  # noqa: E402

ORACLES = [  # of every category, and all that evaluate an answer
    "acre", "aiw", "arc_1d", "base_conversion", "basic_arithmetic", "bf", "binary_matrix", "caesar_cipher", "chain_sum",
    "circuit_logic", "coin_flip", "color_cube_rotation", "complex_arithmetic", "count_bits", "countdown",
    "course_schedule", "dice",
    "family_relationships", "gcd", "intermediate_integration", "kakurasu", "knights_knaves", "leg_counting",
    "letter_counting", "maze", "mini_sudoku", "n_queens", "number_sequence", "polynomial_equations",
    "polynomial_multiplication", "power_function", "prime_factorization", "puzzle24", "rotate_matrix",
    "simple_equations", "simple_geometry", "simple_integration", "spiral_matrix", "string_insertion", "syllogism",
    "time_intervals", "tower_of_hanoi", "word_sorting"]
# Modules that evaluate what they wrote themselves; the parser of propositional_logic is its own.
GENERATORS = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "generators_00_49", "generators_50_99",
              "number_sorting", "propositional_logic"}


@functools.cache
def columns(name: str, size: int = 2) -> dict[str, list[Any]]:
    """The columns of a task's first rows."""
    rows = list(create_dataset(name, seed=5, size=size))
    return {key: [row[key] for row in rows] for key in ("question", "answer", "metadata")} | {
        "gym_task": [{"name": name, "config": {"size": size}}] * size}


def scored(completions: list[str], table: dict[str, list[Any]], **options: Any) -> list[float]:
    given = {"reasoning_gym": options} if options else None
    return loading.load(["reasoning_gym"], None, given)["reasoning_gym"](completions=completions, **table)


@pytest.mark.parametrize("name", ORACLES)
def test_the_task_s_own_answer_scores_fully_and_no_answer_does_not(name: str) -> None:
    table = columns(name)
    answers = [f"Let me see. <answer>{answer}</answer>" for answer in table["answer"]]
    assert scored(answers, table) == [1.0, 1.0]
    assert all(value < 0.1 for value in scored(["nothing"] * 2, table))


def test_the_oracles_are_of_every_category() -> None:
    category = {name: cls.__module__.split(".")[1] for name, (cls, _) in DATASETS.items()}
    assert {category[name] for name in ORACLES} == {*category.values()} - {"composite"} and len(ORACLES) >= 20
    assert {*gym.EVALUATED} <= {*ORACLES}


@pytest.mark.parametrize(("text", "found"), [
    ("<answer>7</answer>", ("7", "7", None)),
    ("<answer>6</answer> no: <answer> 7 </answer> done", ("7", "7", None)),
    ("<answer>6<answer>7</answer>", ("7", "7", None)),
    ("so <answer>\n1 0\n0 1\n</answer>", ("1 0\n0 1", "1 0\n0 1", None)),
    ("<answer>7", ("7", "7", None)),  # a stop string may have cut the end
    ("x\n#### The final answer is 7 \nmore", ("7", None, "7")),
    ("<answer>6</answer>\n#### The final answer is 7", ("6", "6", "7")),
    ("\n#### The final answer is 7\n#### The final answer is 8", ("7", None, "7")),
    ("7", (None, None, None)), ("</answer>7", (None, None, None)), ("", (None, None, None)),
])
def test_an_answer_is_in_the_last_tag_or_on_the_first_answer_line(text: str, found: tuple[str | None, ...]) -> None:
    assert tuple(gym.answer_of(text, place, "answer") for place in gym.PLACES) == found


def test_options_say_where_the_answer_stands() -> None:
    table = columns("chain_sum", size=3)
    texts = [f"<final>{answer}</final>\n#### The final answer is 0.5" for answer in table["answer"]]
    assert scored(texts, table) == [0.0] * 3
    assert scored(texts, table, answer_tag="final") == [1.0] * 3
    assert scored(texts, table, answer_tag="final", answer_from="line") == [0.0] * 3
    texts = [f"so\n#### The final answer is {answer}" for answer in table["answer"]]
    assert scored(texts, table) == scored(texts, table, answer_from="line") == [1.0] * 3
    assert scored(texts, table, answer_from="tag") == [0.0] * 3
    for wrong, line in (({"answer_from": "end"}, "answer_from='end' must be either, tag, line; .*: either"),
                        ({"answer_tag": "<a>"}, "answer_tag='<a>' must be a word; nearest valid value: answer")):
        with pytest.raises(ValueError, match=f"^reward_options of reasoning_gym: {line}$"):
            scored(texts, table, **wrong)


@pytest.mark.parametrize("name", sorted(gym.EVALUATED))
def test_no_answer_is_run(name: str, tmp_path: Path) -> None:
    table = {key: value[:1] for key, value in columns(name).items()}
    trap = tmp_path / "run"
    attacks = [f"open({str(trap)!r}, 'w')", f"[open({str(trap)!r}, 'w')]",
               f"__import__('pathlib').Path({str(trap)!r}).touch()"]
    task = DATASETS[name][0](DATASETS[name][1]())
    entry = {key: table[key][0] for key in ("question", "answer", "metadata")}
    for attack in attacks:
        assert scored([f"<answer>{attack}</answer>"], table)[0] < 0.1 and not trap.exists()
    task.score_answer(attacks[0], entry)  # what would have happened
    assert trap.exists()


@pytest.mark.parametrize(("rule", "answer"), [
    (gym.LITERAL, "f'{exit()}'"), (gym.LITERAL, "exit()"), (gym.LITERAL, "a.b"), (gym.LITERAL, "[9**9**9]"),
    (gym.LITERAL, "'\\x28'"), (gym.FORMULA, "exit(1)"), (gym.FORMULA, "x.func"), (gym.FORMULA, "x . func"),
    (gym.FORMULA, "x. func"), (gym.FORMULA, "x.n()"), (gym.FORMULA, "eval(x)"), (gym.FORMULA, "'a'"),
    (gym.FORMULA, "x[0]"), (gym.FORMULA, "_"), (gym.FORMULA, "chr(40)"), (gym.FORMULA, "x1real"),
    (gym.FORMULA, "lambda: 1"),
    (gym.FORMULA, "sinh2(x)"), (gym.FORMULA, "ℯxec(x)"), (gym.FORMULA, "𝐞xit(1)"),
])
def test_an_answer_that_could_call_something_is_none(rule: re.Pattern[str], answer: str) -> None:
    assert rule.fullmatch(answer) is None


def test_the_tasks_that_evaluate_an_answer_are_those_of_the_package() -> None:
    calls = re.compile(r"(?<![\w.])(?:eval|exec)\(|(?:parse_expr|sympify)\(")
    folder = Path(package.__file__).parent
    found = {path.stem for path in folder.rglob("*.py") if calls.search(path.read_text(encoding="utf-8"))}
    assert found == GENERATORS | {*gym.EVALUATED}


def test_where_a_task_raises_the_answer_earns_nothing_and_the_run_is_told() -> None:
    table, noted = columns("prime_factorization"), {}
    values = loading.load(["reasoning_gym"])["reasoning_gym"](
        completions=["<answer>two</answer>", f"<answer>{table['answer'][1]}</answer>"], **table,
        log_metric=noted.__setitem__)
    assert values == [0.0, 1.0] and noted == {"reasoning_gym_raised": 0.5}


def test_a_task_is_scored_with_the_parameters_of_its_rows_where_a_run_calls_it() -> None:
    table = {key: value[:1] for key, value in columns("puzzle24").items()}
    with starting() as start:
        pool = start("reasoning_gym")
        pool.check_columns(["prompt", *table])
        found = score(pool, f"<answer>{table['answer'][0]}</answer>", **table)
    assert found.parts == {"reasoning_gym": [1.0]} and not found.failures
    other = table | {"gym_task": [{"name": "puzzle24", "config": {"max_value": 2}}]}  # it counts larger ones as wrong
    assert scored([f"<answer>{table['answer'][0]}</answer>"], other) == [0.01]


def test_another_version_is_refused_since_nobody_read_what_it_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.metadata.version("reasoning-gym") == loading.EXTRAS["reasoning_gym"].partition("==")[2]
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.1.26")
    with pytest.raises(ValueError, match="^reward_funcs='reasoning_gym': needs the package reasoning-gym==0.1.25, and "
                                         "0.1.26 is installed here; nearest valid: pip install reasoning-gym==0.1.25$"):
        loading.load(["reasoning_gym"])
