"""README, --help and the code say the same: every file, option and number that README names exists. 1 second."""

import ast
import json
import re
from dataclasses import fields

import pytest
import torch
import yaml
from ranks import ROOT

import eval as evaluation_script
from grpo.advantage import group_advantages
from grpo.config import Config
from grpo.options.recipe import ForeignNames

README = (ROOT / "README.md").read_text()
OPTIONS = {field.name for cls in (Config, ForeignNames, evaluation_script.Settings) for field in fields(cls)}
OPTIONS |= {"config", *re.findall(r'"--(\w+)"', (ROOT / "benchmarks" / "kernel" / "command.py").read_text())}
FOLDERS = ("grpo", "kernels", "rewards", "data")
TORCHRUN = {"nproc_per_node", "nnodes", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "help"}


def test_every_file_that_readme_links_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 30
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_option_that_readme_names_exists() -> None:
    named = set(re.findall(r"--([a-zA-Z][\w-]*)", README))
    assert len(named) > 10
    assert named - OPTIONS - TORCHRUN == set()


def test_every_make_target_that_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)) - {"it"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_readme_and_recipes_use_names_that_load(recipe) -> None:
    assert set(yaml.safe_load(recipe.read_text())) <= OPTIONS


def test_every_file_on_top_and_every_room_is_on_the_map() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "grpo").glob("*.py") if path.stem != "__init__"]
    rooms = [f"grpo/{path.parent.name}/" for path in (ROOT / "grpo").glob("*/__init__.py")]
    assert len(files) > 6 and len(rooms) > 6
    assert [path for path in files + rooms if f"({path})" not in README] == []


def test_every_accident_of_the_table_is_planted_by_a_test() -> None:
    rows = [line.split(" | ") for line in (ROOT / "tests" / "faults.md").read_text().splitlines()[9:]]
    assert len(rows) >= 25 and {len(row) for row in rows} == {5}
    for *_, named in rows:
        if named != "as above |":
            file, test = re.fullmatch(r"(test_\w+): (test_\w+) \|", named).groups()
            path, = (ROOT / "tests").rglob(f"{file}.py")
            assert f"def {test}(" in path.read_text(), named


def test_the_result_in_readme_is_the_one_on_file() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "toy.json").read_text())
    for run in result["runs"]:
        for name in ("accuracy_before", "accuracy_after"):
            assert f"{100 * run[name]:.1f}" in README, (run["seed"], name)


def test_the_worked_example_is_what_the_code_says() -> None:
    (winner, *losers), = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).tolist()
    assert f"{winner:.4f}" in README and f"{losers[0]:.4f}".replace("-", "−") in README


def test_files_and_functions_stay_short() -> None:
    for path in [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]:
        source = path.read_text()
        assert source.count("\n") <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert not body or node.end_lineno - body[0].lineno < 60, (path, node.name)
