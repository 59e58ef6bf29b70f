"""Ranks, the sums they agree on, and a rank's free memory. Sets up DeepSpeed's environment before importing it."""

import ctypes
import datetime
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # oneDNN caches compiled products by shape, about half a megabyte each: by default the last 1,024. 256 are as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    # Large tensors in pages of 2 MiB, if the system has them: an update of 3,000 tokens takes a fifth less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# DeepSpeed's autotuner imports MLflow where it is installed, 4 seconds in which nothing of it is used.
unwanted = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
import deepspeed  # noqa: E402 (reads DS_ACCELERATOR when imported)

if unwanted:
    del sys.modules["mlflow"]

M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 2**20
GLIBC = platform.libc_ver()[0] == "glibc"
MIB = 2**20


def start(timeout_s: float) -> torch.device:
    """Join the process group, in which a collective waits at most `timeout_s` for a rank; returns this rank's device.

    Collective: every rank, once, first.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        if GLIBC:
            # By default freed tensors of up to 32 MiB stay in the process in pieces: 2 to 6 times an update's memory.
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a first start compiles C++ for a minute
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        # A plain `python train.py` is a group of one. It needs no port, which another process could take.
        alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group(backend, timeout=timeout, **alone)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    return device


@contextmanager
def as_before() -> Iterator[None]:
    """At its end this process is in a group only if it was in one before, so that it can join another one."""
    before, given = dist.is_initialized(), os.environ.get("LOCAL_RANK")
    try:
        yield
    finally:
        if dist.is_initialized() and not before:
            with suppress(RuntimeError):  # NCCL leaves nothing in order after an error of the GPU
                deepspeed.comm.destroy_process_group()  # DeepSpeed's: it holds on to groups of its own
        if given is None:
            os.environ.pop("LOCAL_RANK", None)  # Accelerate takes it for a launcher's


def free_bytes(device: torch.device) -> int:
    """Memory that this rank may still take: of its GPU, or its share of what the machine or container has left."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        used = int(limit.with_name("memory.current").read_text())
        counts = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
        free = min(free, int(most) - used + int(counts["inactive_file"]))  # cached files give way
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def trim_heap() -> None:
    """Return free heap memory to the system; over hundreds of steps it would add up."""
    mkl = ctypes.CDLL(torch._C.__file__)
    if hasattr(mkl, "mkl_serv_free_buffers"):  # MKL keeps one by the size of a product; torch may have another BLAS
        mkl.mkl_serv_free_buffers()
    if GLIBC:
        ctypes.CDLL(None).malloc_trim(0)  # the gaps between small tensors


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size()


def _reduce(values: dict[str, float], operation: dist.ReduceOp) -> dict[str, float]:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL reduces nothing on a CPU
    reduced = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(reduced, op=operation)
    return dict(zip(values, reduced.tolist()))


def global_sum(values: dict[str, float]) -> dict[str, float]:
    """Named numbers added up over ranks, in one all-reduce. Collective: every rank with the same names."""
    return _reduce(values, dist.ReduceOp.SUM)


def global_max(values: dict[str, float]) -> dict[str, float]:
    """The largest of each named number over ranks, in one all-reduce. Collective: every rank with the same names."""
    return _reduce(values, dist.ReduceOp.MAX)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank. Collective: every rank."""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
