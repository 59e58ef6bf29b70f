"""What the model computes between two matrix products; on a GPU each of these functions is one kernel."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, on a GPU compiled to one kernel: at the first call, and once more when its first axis changes."""
    # One version for each of many shapes: beyond this limit torch.compile would stop compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    compiled = torch.compile(function)

    @functools.wraps(function)
    def call(x: torch.Tensor, *args: Any) -> Any:
        return (compiled if x.is_cuda else function)(x, *args)

    return call


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """`weight · x / √(mean x² + eps)` in float32, rounded before the weight is applied, as in transformers."""
    x_float = x.float()
    square_X1 = (x_float * x_float).sum(-1, keepdim=True)
    scale_X1 = torch.add(eps, square_X1, alpha=1 / x.shape[-1]).rsqrt_()
    return (x_float * scale_X1).to(x.dtype).mul_(weight_H)


@fused
def add_norm(
    hidden_XH: torch.Tensor, update_XH: torch.Tensor, weight_H: torch.Tensor, eps: torch.Tensor
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
def rotate(heads_XED: torch.Tensor, cos_X1D: torch.Tensor, signed_sin_X1D: torch.Tensor, num_kv: int) -> torch.Tensor:
    """Rotary embedding in the half-split layout, `x · cos + (−x₂, x₁) · sin` (Su et al. 2021, equation 34).

    The last num_kv heads, the values, stay as they are. `signed_sin_X1D` is −sin in its first half. On a CPU the heads
    are changed in place.
    """
    turned = heads_XED[:, :-num_kv]
    swapped = turned.roll(turned.shape[-1] // 2, -1)
    if heads_XED.is_cuda:
        return torch.cat([turned * cos_X1D + swapped * signed_sin_X1D, heads_XED[:, -num_kv:]], dim=1)
    turned.mul_(cos_X1D).add_(swapped.mul_(signed_sin_X1D))
    return heads_XED
