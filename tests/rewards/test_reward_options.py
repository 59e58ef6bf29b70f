"""reward_options: what a reward function is told besides completions and columns."""

from datetime import date
from pathlib import Path

import pytest
from reward_pools import score, starting

from grpo.run.command import load
from rewards import loading
from rewards.arguments import check_json

SOURCE = '''
def longer(completions, limit=3, bonus=1.0, **columns):
    return [bonus * (len(text) > limit) for text in completions]

def by_row(completions, terms):
    return [float(term in text) for text, term in zip(completions, terms)]
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(SOURCE)
    return str(tmp_path / "own.py")


def test_a_function_gets_its_options_and_no_column_changes_them(file: str) -> None:
    with starting() as start:
        pool = start(f"{file}:longer", reward_options={"longer": {"limit": 1, "bonus": 0.25}})
        found = score(pool, "a", "ab", limit=[0, 0])  # as a column, limit would be a list, and nothing is longer
    assert found.total == [0.0, 0.25] and not found.failures


def test_an_option_may_take_the_place_of_a_column(file: str) -> None:
    with starting() as start:
        pool = start(f"{file}:by_row", reward_options={"by_row": {"terms": ["x", "y"]}})
        pool.check_columns(["prompt"])
        assert score(pool, "x", "x").total == [1.0, 0.0]


@pytest.mark.parametrize(("value", "strange"), [
    ({1: 0.1}, "1"), ({"a": [{True: 2}]}, "True"), (date(2024, 1, 1), r"datetime.date\(2024, 1, 1\)"),
])
def test_what_would_change_on_the_way_to_the_functions_is_refused(file: str, value: object, strange: str) -> None:
    with pytest.raises(ValueError, match=f"^reward_options of longer: {strange} is no number, text, list, or mapping"):
        with starting() as start:
            start(f"{file}:longer", reward_options={"longer": {"limit": value}})
    check_json({"longer": {"limit": {"1": [0.1, (2, None)]}, "bonus": "b"}})


@pytest.mark.parametrize(("options", "line"), [
    ({"longr": {}}, "reward_options='longr': must be one of reward_funcs: longer"),
    ({"longer": {"limits": 1}},
     r"reward_options=\{longer: \{limits: ...\}\}: must be one of limit, bonus; nearest valid value: limit"),
    ({"longer": {"completions": 1}}, r".*completions: ...\}\}: must be one of limit, bonus"),
    ({"longer": 3}, r"reward_options=\{longer: 3\}: must be arguments by name, such as \{longer: .*"),
])
def test_an_option_that_no_function_has_is_refused_in_one_line(file: str, options: dict, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        loading.load([f"{file}:longer"], None, options)


def test_a_recipe_and_the_command_line_give_options(file: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"reward_funcs: ['{file}:longer']\nreward_options:\n  longer: {{limit: 7}}\n")
    given = ["--config", str(tmp_path / "a.yaml"), "--output_dir", str(tmp_path / "out")]
    assert load(given).reward_options == {"longer": {"limit": 7}}
    assert load([*given, "--reward_options", "{longer: {limit: 9}}"]).reward_options == {"longer": {"limit": 9}}
