"""README, docs/, --help and the code agree: each file, option, command and number on a page exists. 1 second."""

import ast
import json
import re
import statistics
from dataclasses import fields
from pathlib import Path

import peer_fields
import pytest
import recipe_page
import torch
import yaml
from ranks import ROOT

import eval as evaluation_script
from benchmarks.record import number
from grpo.advantage import group_advantages
from grpo.config import Config
from grpo.options import export
from grpo.options.recipe import ForeignNames
from grpo.report.tokens.worked import EXAMPLE, worked

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
OPTIONS = {field.name for cls in (Config, ForeignNames, evaluation_script.Settings, export.Settings)
           for field in fields(cls)} | {"version"}
COMMAND = ROOT / "benchmarks" / "kernel" / "command.py"
OPTIONS |= {"config", *re.findall(r'"--(\w+)"', COMMAND.read_text())}
OPTIONS |= set(re.findall(r'add\("--(\w+)"', (ROOT / "recipes" / "launch" / "sagemaker_job.py").read_text()))
OPTIONS |= set(re.findall(r'"--(\w+)"', (ROOT / "data" / "gsm8k.py").read_text()))
FOLDERS = ("grpo", "kernels", "rewards", "data")
BELOW = ("grpo.config", "grpo.distributed", "kernels", "rewards", "data")  # the folders below, besides those of grpo
OPTIONS |= {"against", "html", "markdown"}  # of tests/conformance
TORCHRUN = {"nproc_per_node", "nnodes", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "help"}
# Of sbatch, docker, deepspeed, accelerate, pip, rewards.sandbox and grpo.report.tokens.
OTHERS = {"nodes", "gpus-per-node", "signal", "gpus", "shm-size", "init", "stop-timeout", "num_gpus",
          "num_accelerators", "num_processes", "multi_gpu", "cpu", "security-opt", "check", "step", "no-deps", "target"}
# The files of the algorithm in reading order: README's first table of files.
TABLE = README.partition("## What is where")[2].partition("[train.py]")[0]
ALGORITHM = re.findall(r"^\| \[(\S+\.py)\]\(", TABLE, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_links_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert len(links) > (30 if page.name == "README.md" else 0)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_of_the_docs_is_linked_from_readme() -> None:
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in README] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_option_and_make_target_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"--([a-zA-Z][\w-]*)", page.read_text()))
    assert named - OPTIONS - TORCHRUN - OTHERS == set()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_readme_names_options_and_make_targets() -> None:
    assert len(set(re.findall(r"--([a-z_]+)", README))) >= 8
    assert {"install", "train", "test", "lint", "bench"} == set(re.findall(r"`make (\w+)", README))


@pytest.mark.parametrize("page", [*PAGES, *sorted(RESULTS.glob("*.md"))], ids=lambda path: path.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    for module in set(re.findall(r"python -m ((?:benchmarks|grpo|tests|data)[\w.]*\w)", page.read_text())):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_readme_and_recipes_use_names_that_load(recipe) -> None:
    assert set(yaml.safe_load(recipe.read_text())) <= OPTIONS


def test_every_file_on_top_and_every_room_is_on_the_map() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "grpo").glob("*.py") if path.stem != "__init__"]
    rooms = [f"grpo/{path.parent.name}/" for path in (ROOT / "grpo").glob("*/__init__.py")]
    assert len(files) > 6 and len(rooms) > 6
    assert [path for path in files + rooms if f"({path})" not in README] == []


def imported(path: Path) -> list[str]:
    """The project's modules that a file imports; `from grpo import update` is grpo.update."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "grpo":
            found += [f"grpo.{one.name}" for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return [name for name in found if name.split(".")[0] in (*FOLDERS, "train", "eval", "benchmarks", "tests")]


def test_each_file_of_the_algorithm_imports_only_files_above_it_and_rooms() -> None:
    assert len(ALGORITHM) == 8 and ALGORITHM[-1] == "grpo/step.py"
    rooms = [f"grpo.{path.parent.name}" for path in (ROOT / "grpo").glob("*/__init__.py")]
    above: list[str] = []
    for file in ALGORITHM:
        allowed = (*above, *rooms, *BELOW)
        wrong = [name for name in imported(ROOT / file) if not any(f"{name}.".startswith(f"{one}.") for one in allowed)]
        assert wrong == [], file
        above.append(file.removesuffix(".py").replace("/", "."))


def test_each_function_of_a_variant_stands_at_the_line_that_its_row_links() -> None:
    links = re.findall(r"\[`(\w+)`\]\(\.\./(\S+?)#L(\d+)\)", (ROOT / "docs" / "variants.md").read_text())
    assert len(links) > 20
    for name, file, line in links:
        lines = (ROOT / file).read_text().splitlines()
        starts = f"def {name}(", f"class {name}:"
        defined, = [number for number, text in enumerate(lines, 1) if text.startswith(starts)]
        assert (name, int(line)) == (name, defined)


def test_what_each_variant_changes_in_a_run_is_what_was_found() -> None:
    difference = r"[+-]\d+\.\d ± \d+\.\d"
    found = re.findall(rf"^\| (?!30 tokens).* \| ({difference}) \|", (RESULTS / "variants.md").read_text(), re.M)
    rows = re.findall(r"^\| .*#L\d+\).* \| (.+) \|$", (ROOT / "docs" / "variants.md").read_text(), re.M)
    assert [one for row in rows for one in re.findall(difference, row)] == found
    assert len(found) >= len(rows) - 2  # all but the default, and no grader fails in these runs


def test_readme_says_how_many_variants_there_are() -> None:
    rows = re.findall(r"^\| .*#L\d+\)", (ROOT / "docs" / "variants.md").read_text(), re.M)
    named, more = re.search(r"^\| variants \| (.+) and (\d+) more", README, re.M).groups()
    assert len(named.split(", ")) + int(more) == len(rows)


def test_readme_is_short_and_says_how_long_the_algorithm_is() -> None:
    assert README.count("\n") <= 170
    said, = re.findall(r"about ([\d,]+) lines in eight files", README)
    lines = sum((ROOT / file).read_text().count("\n") for file in ALGORITHM)
    assert float(said.replace(",", "")) == pytest.approx(lines, rel=0.05), lines


def test_every_accident_of_the_table_is_planted_by_a_test() -> None:
    rows = [line.split(" | ") for line in (ROOT / "tests" / "faults.md").read_text().splitlines()[9:]]
    assert {len(row) for row in rows} == {5}
    assert f"\n{len(rows)} accidents" in (ROOT / "docs" / "accidents.md").read_text()
    for *_, named in rows:
        if named != "as above |":
            file, test = re.fullmatch(r"(test_\w+): (test_\w+) \|", named).groups()
            path, = (ROOT / "tests").rglob(f"{file}.py")
            assert f"def {test}(" in path.read_text(), named


def test_the_result_in_readme_is_the_one_on_file() -> None:
    result = json.loads((RESULTS / "toy.json").read_text())
    for run in result["runs"]:
        for name in ("accuracy_before", "accuracy_after"):
            assert f"{100 * run[name]:.1f}" in README, (run["seed"], name)


def test_the_real_model_s_result_in_readme_is_the_one_on_file() -> None:
    result = json.loads((RESULTS / "wordproblems.json").read_text())
    for record in result["evaluations"]:
        for name in ("strict", "lenient"):
            assert f"{100 * record[name]:.1f}" in README, (record["label"], name)
    trained, training = result["evaluations"][1], result["training"]
    assert f"p = {trained['p_value']:.2g}" in README and trained["num_problems"] == 100
    said = f"After {training['steps']} steps of {training['completions'] // training['steps']} completions, " \
           f"{training['seconds'] / 60:.0f} minutes"
    assert said in README


def test_the_steps_compared_with_trl_are_those_on_file() -> None:
    rows = json.loads((RESULTS / "step.json").read_text())["parts"]["steps"]["tables"][0]["rows"]
    of = {row["engine"]: row for row in rows}
    engines = ("ours", "TRL", "TRL, 4 rows at once", "ours, checkpointed", "TRL, 4 rows at once, checkpointed")
    cells = [(statistics.median(of[one]["seconds"]), number(of[one]["total_bytes"] / 2**20)) for one in engines]
    table = re.findall(r"\| ([\d.]+) \| ([\d,]+) \|$", (ROOT / "docs" / "update.md").read_text(), re.M)
    assert table == [(f"{seconds:.1f}", mib) for seconds, mib in cells]


def test_the_speed_of_sampling_on_a_gpu_is_the_one_on_file() -> None:
    page = (ROOT / "docs" / "sampler.md").read_text()
    for shape, times in (("0.5b", "43 and"), ("7b", "and 21 times")):
        row = json.loads((RESULTS / f"bandwidth-{shape}.json").read_text())["rows"][0]
        assert row["slots"] == 64 and times in page
        assert times.replace("times", "").replace("and", "").split() == [
            f"{row['tokens_per_s'] / row['generate_tokens_per_s']:.0f}"]


def test_what_attacks_reach_is_on_the_sandbox_s_page_as_on_file() -> None:
    page, found = (ROOT / "docs" / "sandbox.md").read_text(), (RESULTS / "sandbox.md").read_text()
    rows = [line for line in found.splitlines() if re.match(r"\| [a-z]+ \| \d+ \| 0 \|", line)]
    assert len(rows) == 6 and all(f"{row}\n" in page for row in rows)


def test_the_worked_example_is_what_the_code_says() -> None:
    """README and the docstring of group_advantages have word for word what `worked` computes, as has the token page."""
    assert group_advantages(torch.tensor([EXAMPLE]))[0].tolist() == pytest.approx(worked(EXAMPLE).advantages, abs=1e-6)
    for shown in (README, group_advantages.__doc__):
        assert " ".join(shown.replace("**", "").split()).count(worked(EXAMPLE).text) == 1


def test_the_page_on_recipes_is_the_one_that_the_table_gives() -> None:
    """Where this fails: python -m tests.support.recipe_page."""
    assert (ROOT / "docs" / "recipes.md").read_text() == recipe_page.page()


def test_the_fields_on_file_are_of_the_pinned_transformers_and_of_trl_1_16() -> None:
    """Where this fails: python tests/support/peer_fields.py, and a place in the table for each new key."""
    pinned, = re.findall(r"^transformers==(.+)$", (ROOT / "requirements.lock").read_text(), re.M)
    assert [peer_fields.committed(name)["version"] for name in ("transformers", "trl")] == [pinned, "1.16.0"]


def test_files_and_functions_stay_short() -> None:
    for path in [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]:
        source = path.read_text()
        assert source.count("\n") <= 300, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert not body or node.end_lineno - body[0].lineno < 60, (path, node.name)
