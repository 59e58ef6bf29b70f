"""What every test runs under: no network, one thread, and on a machine without a GPU no test that is marked `gpu`."""

import math
import os
from collections.abc import Callable, Iterator

import pytest
import torch

# Set before deepspeed, transformers or tokenizers are imported; processes that a test starts inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are Python then; before anything imports Triton
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A `faults.Warm`: starts ranks of train.py in a second."""
    from faults import Warm

    process = Warm(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def begin() -> Iterator[Callable]:
    """Builds runs of train.py in this process, from its options; what runs their rewards ends with the file's tests."""
    from grpo.config import load
    from grpo.health.pulse import pulse
    from grpo.run.build import build

    runs = []

    def begin(*argv: str):
        runs.append(build(load(list(argv))))
        return runs[-1]

    yield begin
    for run in runs:
        run.rewards.close()
    pulse.begin(0, math.inf, tell=lambda: None)  # no step is under way any more


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # With pytest-xdist a file stays in one worker, for its fixtures' sake. All that start ranks share one: two such
    # tests at once would be four processes on two cores, and some of them count seconds.
    ranks = {item.module for item in items if "warm" in item.fixturenames or hasattr(item.module, "launch")}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ranks" if item.module in ranks else item.module.__name__))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
