"""The sampler on two real ranks that finish at very different times. About 10 seconds.

One start of two gloo ranks runs all of tests/support/rollout_checks.py; each check is a test here.
"""

import json

import pytest
import rank_checks
from faults import Warm
from tiny_models import tiny_qwen2, tiny_tokenizer


@pytest.fixture(scope="module")
def results(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check said: "ok", or the traceback of the rank it failed on."""
    folder = tmp_path_factory.mktemp("rollout")
    tiny_qwen2(num_hidden_layers=1).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Question: Tom has {i} apples.\nSolution:", "final_answer": str(i)} for i in range(8)]
    (folder / "data.json").write_text(json.dumps(rows))
    return rank_checks.results(warm, folder, "tests.support.rollout_checks")


@pytest.mark.parametrize("name", rank_checks.names("tests.support.rollout_checks"))
def test_two_ranks(results: dict[str, str], name: str) -> None:
    assert results[name] == "ok", results[name]
