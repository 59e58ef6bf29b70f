"""The sharded engine on two real ranks, against plain PyTorch in one process. About three minutes.

One start of two gloo ranks runs all of engine_checks.py; each check is a test here, so that a failure has a name.
"""

import json
from pathlib import Path

import pytest
from ranks import ROOT, launch
from tiny_models import tiny_qwen2, tiny_tokenizer


def run_checks(folder: Path, num_ranks: int, *names: str) -> dict[str, str]:
    """What each check said: "ok", or the traceback of the rank it failed on."""
    for name, tied in (("tied", True), ("untied", False)):
        tiny_qwen2(tied=tied, num_hidden_layers=2).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    checks = ROOT / "tests" / "support" / "engine_checks.py"
    run = launch(str(checks), str(folder), *names, num_ranks=num_ranks, timeout_s=1000)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_checks(tmp_path_factory.mktemp("engine"), 2)


NAMES = [
    line.split("(")[0].removeprefix("def ")
    for line in (ROOT / "tests" / "support" / "engine_checks.py").read_text().splitlines()
    if line.startswith("def check_")
]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks(results: dict[str, str], name: str) -> None:
    assert results[name] == "ok", results[name]


def test_one_rank_survives_the_end_of_memory(tmp_path: Path) -> None:
    name = "alone_check_survives_the_end_of_memory"
    assert run_checks(tmp_path, 1, name)[name] == "ok"
