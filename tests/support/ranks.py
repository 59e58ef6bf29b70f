"""Start real ranks from a test: torchrun with gloo on the CPU, the way a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Nothing stays gathered between uses, so a tiny model is sharded like a big one and no sharding bug can hide.
SHARD_EVERYTHING = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
        "overlap_comm": False,
    }
}


def launch(
    *arguments: str, num_ranks: int, timeout_s: float = 300, extra: tuple[str, ...] = ("--standalone",),
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """torchrun `arguments` and wait; the finished process, its output as text."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_ranks}"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [*command, *extra, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
    )
