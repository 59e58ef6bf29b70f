"""What every test runs under: no network, one thread, and on a machine without a GPU no test that is marked `gpu`."""

import atexit
import functools
import gc
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
WARM = pytest.StashKey()
gc.disable()  # imports leave no garbage; to look for it takes seconds
# Set before deepspeed, transformers or tokenizers are imported; processes that a test starts inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
if not torch.cuda.is_available():
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # as train.py does
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are Python then; before anything imports Triton
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A `faults.Warm`: starts ranks of train.py in a second."""
    process = request.config.stash[WARM]
    process.folder = tmp_path_factory.mktemp("warm")
    yield process
    process.close()


@pytest.fixture(scope="module")
def generated() -> Iterator[None]:
    """Runs have a tenth of the word problems."""
    import few_problems

    from data import wordproblems

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wordproblems, "load", few_problems.load)
        yield


@pytest.fixture(scope="module", autouse=True)
def at_rest() -> Iterator[None]:
    """After a file's tests no step is under way and nothing is saved, or messages in the next file's would tell of it.

    The process is in no group either: one that is forked from it cannot leave its groups, whose threads it lacks.
    """
    from grpo.health import last_words
    from grpo.health.pulse import pulse

    yield
    last_words.advise("")
    pulse.begin(0, math.inf, tell=lambda: None)
    if torch.distributed.is_initialized():
        from deepspeed import comm

        comm.destroy_process_group()  # DeepSpeed's: it holds on to groups of its own


@pytest.fixture(scope="module")
def begin(generated: None) -> Iterator[Callable]:
    """Builds runs of train.py in this process, from its options; what runs their rewards ends with the file's tests."""
    from grpo.run.build import build
    from grpo.run.command import load

    runs = []

    def begin(*argv: str):
        runs.append(build(load(list(argv))))
        return runs[-1]

    yield begin
    for run in runs:
        run.rewards.close()


@pytest.fixture(scope="module")
def one_pool() -> Iterator[None]:
    """The runs of a file's tests have one process for the same rewards: most of a refusal's time is its start."""
    from grpo.run import scoring

    pools = {}

    def shared(*given: object, **options: object):
        key = repr((given, options))
        if key not in pools:
            pool = pools[key] = RewardPool(*given, **options)
            pool.end, pool.close = pool.close, lambda: None
        return pools[key]

    RewardPool, scoring.RewardPool = scoring.RewardPool, shared
    yield
    scoring.RewardPool = RewardPool
    for pool in pools.values():
        pool.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest pieces of work first: the many small ones fill what is left of both workers' time.
    items.sort(key=lambda item: not starts_ranks(item.nodeid.partition("::")[0]))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.enable()
    gc.freeze()  # what was imported: starts of DeepSpeed and measurements collect garbage, and would look through it
    if hasattr(session.config, "workerinput"):
        atexit.register(os._exit, 0)  # a worker has told everything: to take the libraries apart takes three seconds
    else:
        atexit.register(gc.unfreeze)  # or libraries speak of leaks at the end
    if any("warm" in getattr(item, "fixturenames", ()) for item in session.items):
        from faults import Warm

        session.config.stash[WARM] = Warm()  # before any test has changed this process


class OneWorker(LoadScopeScheduling):
    """Of pytest-xdist: a file stays in one worker, for its fixtures' sake, and files that start ranks share two.

    More at once would be too many processes on two cores: some tests count seconds.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if not starts_ranks(file):
            return file
        return "accidents" if file.startswith("tests/health/") else "ranks"


@functools.cache
def starts_ranks(file: str) -> bool:
    """Whether the tests of a file start ranks of train.py or of their own."""
    return bool(re.search(r"def \w+\(.*\bwarm\b|from ranks import .*\blaunch\b", (ROOT / file).read_text()))


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneWorker:
    config.option.loadscopereorder = False  # in the order of collection, not by the number of tests
    return OneWorker(config, log)
