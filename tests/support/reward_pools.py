"""Pools of the functions in reward_cases.py, and a call of one; for the tests of rewards in a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ranks import ROOT

from rewards import pool

CASES = ROOT / "tests" / "support" / "reward_cases.py"
MISLED = "killed, stopped or misled the process that watches it"


@contextmanager
def starting() -> Iterator[Callable]:
    """What starts pools; none of their processes may be left when they are closed."""
    pools, others = [], set(psutil.Process().children(recursive=True))

    def start(*names: str, weights: list[float] | None = None, timeout_s: float = 10.0, memory_gib: float = 4.0):
        functions = [name if name in ("format", "correctness") or ":" in name else f"{CASES}:{name}" for name in names]
        pools.append(pool.RewardPool(functions, weights, timeout_s=timeout_s, memory_bytes=int(memory_gib * 2**30)))
        return pools[-1]

    yield start
    for one in pools:
        one.close()
        assert pool.bearers(one._token) == []
    assert set(psutil.Process().children(recursive=True)) <= others


def score(one: pool.RewardPool, *completions: str, seed: str = "", **columns: Any) -> pool.Scored:
    """What a pool says of these completions."""
    return one.score(prompts=["p"] * len(completions), completions=list(completions), columns=columns, seed=seed)
