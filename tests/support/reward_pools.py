"""Pools of the functions in reward_cases.py, and a call of one; for the tests of rewards in a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ranks import ROOT

from rewards.loading import BUILT_IN
from rewards.workers import pool

CASES = ROOT / "tests" / "support" / "reward_cases.py"
MISLED = "killed, stopped or misled the process that watches it"


@contextmanager
def starting() -> Iterator[Callable]:
    """What starts pools; none of their processes may be left when they are closed."""
    pools, others = [], set(psutil.Process().children(recursive=True))

    def start(*names: str, weights: list[float] | None = None, timeout_s: float = 10.0, memory_gib: float = 4.0,
              **options: Any):
        functions = [name if name in BUILT_IN or ":" in name else f"{CASES}:{name}" for name in names]
        pools.append(pool.RewardPool(
            functions, weights, timeout_s=timeout_s, memory_bytes=int(memory_gib * 2**30), **options))
        return pools[-1]

    yield start
    for one in pools:
        one.close()
        assert pool.bearers(one._token) == []
    assert set(psutil.Process().children(recursive=True)) <= others


def score(one: pool.RewardPool, *completions: Any, seed: str = "", prompts: list[Any] | None = None,
          state: dict[str, Any] | None = None, **columns: Any) -> pool.Scored:
    """What a pool says of these completions; completion n has the tokens 0, 1, ..., n."""
    return one.score(
        prompts=prompts or ["p"] * len(completions), completions=list(completions),
        completion_ids=[list(range(n + 1)) for n in range(len(completions))], columns=columns,
        trainer_state=state or {"global_step": 0}, seed=seed)
