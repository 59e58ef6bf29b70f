"""What `pip install .` installs, run from another folder. 10 seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import ROOT

TAKEN = {"grpo", "bin"}  # of the names in site-packages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages, with nothing but this project."""
    site = tmp_path_factory.mktemp("install") / "site"
    tree = site.parent / "tree"  # pip builds in the folder that it installs
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a checkout")
    for name in files.stdout.splitlines():
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(tree)], check=True)
    return site


def grpo(site: Path, *argv: str) -> subprocess.CompletedProcess:
    """The command `grpo` as installed, in a folder that has nothing."""
    here = site.parent / "elsewhere"
    here.mkdir(exist_ok=True)
    return subprocess.run([sys.executable, str(site / "bin" / "grpo"), *argv], cwd=here, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(site)})


def test_no_common_name_is_taken_and_no_file_is_left_out(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.startswith(("grpo-", "__"))}
    assert names == TAKEN
    inside = site / "grpo" / "_project"
    for room in ("grpo", "data", "kernels", "rewards", "recipes", "train.py", "eval.py"):
        here, there = ROOT / room, site / "grpo" if room == "grpo" else inside / room
        expected = [path for path in [here, *here.rglob("*")] if path.is_file() and path.suffix != ".pyc"
                    and path.parent != ROOT / "recipes" / "launch"]  # they start a checkout
        assert expected
        for path in expected:
            assert (there / path.relative_to(here)).read_bytes() == path.read_bytes()
    assert not (inside / "setup.py").exists() and not (inside / "tests").exists()


def test_the_command_answers_from_any_folder(site: Path) -> None:
    assert grpo(site, "--version").stdout.startswith("grpo 0.1.0")
    ended = grpo(site, "train", "--optim", "x")
    assert (ended.returncode, ended.stderr.startswith("error: optim='x' is not offered")) == (2, True)
    ended = grpo(site, "train", "--nproc_per_node", "3", "--prompts_per_step", "16")
    assert "prompts_per_step=16 must be a multiple of the 3 ranks" in ended.stderr
    ended = grpo(site, "train", "--config", "recipes/qwen2.5-0.5b-gsm8k.yaml", "--beta", "-1")
    assert ended.stderr.startswith("error: beta=-1")
    assert "rank" in grpo(site, "train", "--nproc_per_node", "2", "--plan", "2").stdout
    assert grpo(site, "export").stderr.startswith("error: FOLDER is missing")
