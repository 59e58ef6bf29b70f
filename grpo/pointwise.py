"""What the decoder computes between two matrix products; on a GPU each of these functions is one kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; on a GPU compiled, at its first call and for all sizes, so that it launches one kernel."""
    compiled = torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(x: torch.Tensor, *args: Any) -> Any:
        return (compiled if x.is_cuda else function)(x, *args)

    return call


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """`weight · x / √(mean x² + eps)` in float32, rounded before the weight is applied, as in transformers."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], weight_H, eps)
    return weight_H * F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


@fused
def add_norm(
    hidden_XH: torch.Tensor, update_XH: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual sum, and its norm."""
    hidden_XH = hidden_XH + update_XH
    return hidden_XH, rms_norm(hidden_XH, weight_H, eps)


@fused
def swiglu(gate_up_XI: torch.Tensor) -> torch.Tensor:
    """`silu(gate) · up` (Shazeer 2020, arXiv 2002.05202), gate and up side by side."""
    gate_XI, up_XI = gate_up_XI.chunk(2, dim=-1)
    return F.silu(gate_XI).mul_(up_XI)


@fused
def rotate_(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in the half-split layout, in place: `x · cos + (−x₂, x₁) · sin` (Su et al. 2021, equation 34).

    Args:
        x: [..., D] heads.
        cos: broadcasts to x.
        signed_sin: likewise, −sin in its first half.
    """
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x.mul_(cos).add_(swapped.mul_(signed_sin))
