"""Which implementation computes a call, and why."""

import importlib.util
import os

import torch

from kernels.gpu.tiles import MIN_CAPABILITY, architecture, prefers_hybrid
from kernels.refusals import check_choice, refuse

IMPLEMENTATIONS = ("auto", "reference", "triton", "hybrid")


def choose(
    impl: str, device: torch.device | str, *, dtype: torch.dtype, hidden_size: int, num_tokens: int
) -> tuple[str, str]:
    """(name, reason) of the implementation for these hidden states. ValueError: no such name, or it cannot run."""
    # Not by what needs a gradient: scores with and without one must agree bit for bit.
    device = torch.device(device)
    check_choice("impl", impl, IMPLEMENTATIONS)
    obstacle = _obstacle(device, dtype)
    if impl in ("triton", "hybrid") and obstacle:
        refuse("impl", impl, f"cannot run: {obstacle}", "reference")
    if impl != "auto":
        return impl, "asked for"
    if device.type == "cpu":
        return "reference", "PyTorch in tiles, on the CPU"
    if obstacle:
        return "reference", f"PyTorch in tiles: {obstacle}"
    hybrid, reason = prefers_hybrid(architecture(device), dtype, hidden_size, num_tokens)
    return ("hybrid", f"cuBLAS multiplies, Triton folds; {reason}") if hybrid else ("triton", f"one kernel; {reason}")


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if dtype == torch.float64:
        return "Triton kernels have no float64"
    if device.type == "cpu":
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "it needs a GPU, or TRITON_INTERPRET=1"
    if device.type != "cuda":
        return f"there is no Triton on {device.type}"
    if not torch.version.hip and torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return "this GPU's tensor cores have no bfloat16"
    return None
