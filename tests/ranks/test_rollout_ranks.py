"""The rollout on two real ranks that finish at very different times. About 20 seconds, most of it imports.

One start of two gloo ranks runs all of tests/support/rollout_checks.py; each check is a test here.
"""

import json

import pytest
from ranks import ROOT, launch
from tiny_models import tiny_qwen2, tiny_tokenizer

CHECKS = ROOT / "tests" / "support" / "rollout_checks.py"
NAMES = [
    line.split("(")[0].removeprefix("def ")
    for line in CHECKS.read_text().splitlines()
    if line.startswith("def check_")
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check said: "ok", or the traceback of the rank it failed on."""
    folder = tmp_path_factory.mktemp("rollout")
    tiny_qwen2().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Question: Tom has {i} apples.\nSolution:", "final_answer": str(i)} for i in range(8)]
    (folder / "data.json").write_text(json.dumps(rows))
    run = launch(str(CHECKS), str(folder), num_ranks=2, timeout_s=200)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks(results: dict[str, str], name: str) -> None:
    assert results[name] == "ok", results[name]
