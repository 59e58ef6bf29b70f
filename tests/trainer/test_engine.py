"""The sharded engine on two real ranks, against plain PyTorch in one process. A minute.

One start of two gloo ranks runs all checks of a topic (tests/trainer/checks); each check is a test here.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import rank_checks
from faults import Warm
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_qwen2, tiny_tokenizer

TOPICS = [f"tests.trainer.checks.{name}" for name in ("gradients", "policies", "saving", "sharding", "updates")]

# Of the first topic: without a second rank that would do the same.
ALONE = ("alone_check_survives_the_end_of_memory", "alone_check_triton_kernels_run_inside_the_engine")


ONE_LAYER = [f"tests.trainer.checks.{name}" for name in ("gradients", "policies", "saving", "updates")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a topic, with its models: of one layer, but where layers are gathered one after the other."""
    made = cache(lambda num_layers: models(tmp_path_factory.mktemp("engine"), num_layers))
    return lambda topic: made(1 if topic in ONE_LAYER else 2)


def models(folder: Path, num_layers: int) -> Path:
    """A tied model, one that is not, and an adapter of the first."""
    for name, tied in (("tied", True), ("untied", False)):
        tiny_qwen2(tied=tied, num_hidden_layers=num_layers).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    lora = LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 5},
                      modules_to_save=["lm_head", "embed_tokens"], task_type="CAUSAL_LM")
    # Of ranks and factors by module, and with a head and an embedding of the tied model that are two.
    get_peft_model(tiny_qwen2(num_hidden_layers=num_layers), lora).save_pretrained(folder / "elsewhere")
    return folder


@pytest.fixture(scope="module")
def results(warm: Warm, folders: Callable[[str], Path]) -> Callable[[str], dict[str, str]]:
    """What each check of a topic said."""
    return cache(lambda topic: rank_checks.results(warm, folders(topic), topic))


@pytest.mark.parametrize(
    ("topic", "name"), [pytest.param(topic, name, id=name) for topic in TOPICS for name in rank_checks.names(topic)])
def test_two_ranks(results: Callable[[str], dict[str, str]], topic: str, name: str) -> None:
    said = results(topic)[name]
    assert said == "ok", said


@pytest.fixture(scope="module")
def results_of_one(warm: Warm, folders: Callable[[str], Path]) -> dict[str, str]:
    return rank_checks.results(warm, folders(TOPICS[0]), TOPICS[0], *ALONE, num_ranks=1)


@pytest.mark.parametrize("name", ALONE)
def test_one_rank(results_of_one: dict[str, str], name: str) -> None:
    assert results_of_one[name] == "ok", results_of_one[name]
