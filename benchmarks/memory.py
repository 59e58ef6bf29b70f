"""How much memory a call needs: `peak_bytes(function)` counts tensors, `Memory` the whole process or a GPU."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(function: Callable[[], Any], device: torch.device | str | None = None) -> int:
    """The most memory that tensors made during a call held at one time.

    What was there before, the inputs, does not count; what the call returns does. On the CPU a tensor that lives only
    inside one PyTorch operation is not seen, because the operation is not taken apart; a CUDA allocator sees it.

    Args:
        function: called once, without arguments; may run a backward pass.
        device: where it works; None means the GPU if there is one.

    Returns:
        Bytes: of the CUDA allocator, or else of the storages of CPU tensors.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as storages:
        function()
    return storages.peak


class _Storages(TorchDispatchMode):
    """Knows every live storage an operation has touched, without keeping any alive; forward and backward pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        # By address, which no new storage can take while the weak reference is held. Bytes: 0 if older than the call.
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._forget_freed()
        for tensor in _tensors((args, kwargs)):
            storage = StorageWeakRef(tensor.untyped_storage())
            self.seen.setdefault(storage.cdata, (storage, 0))
        result = function(*args, **kwargs)
        for tensor in _tensors(result):
            storage = StorageWeakRef(tensor.untyped_storage())
            self.seen.setdefault(storage.cdata, (storage, tensor.untyped_storage().nbytes()))
        self._forget_freed()
        self.peak = max(self.peak, sum(size for _, size in self.seen.values()))
        return result

    def _forget_freed(self) -> None:
        self.seen = {address: one for address, one in self.seen.items() if not one[0].expired()}


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Memory:
    """How far memory goes above what the process held when this was made: all of it, or the GPU's allocator."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.restart()
        self.before = torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")

    def restart(self) -> None:
        """Forget the peak so far, and give back what is free, so that it does not hide what is taken from now on."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see man 5 proc

    def peak(self) -> int:
        """Bytes, the most since `restart`."""
        return (torch.cuda.max_memory_allocated() if self.device == "cuda" else _status("VmHWM")) - self.before


def _status(name: str) -> int:
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])
