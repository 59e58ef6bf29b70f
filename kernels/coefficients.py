"""What both implementations of the backward pass share: four numbers per token, and matrix products in float32.

With logp = log softmax(z), p = exp(logp), logq of the reference, and upstream gradients g of logprob, e of entropy and
k of kl, the gradient with respect to the logit z_v of the token y is, divided by the temperature,

    p (a + b logp + c logq) + g 1[v = y]     a = -g - e entropy - k kl     b = k - e     c = -k
"""

from typing import NamedTuple

import torch


class Coefficients(NamedTuple):
    """a, b, c and g of each token, already divided by the temperature."""

    a_L: torch.Tensor
    b_L: torch.Tensor
    c_L: torch.Tensor
    g_L: torch.Tensor


def coefficients(
    grads: tuple[torch.Tensor | None, ...], entropy_L: torch.Tensor | None, kl_L: torch.Tensor | None,
    like_L: torch.Tensor, *, temperature: float,
) -> Coefficients:
    """The four numbers from the upstream gradients g, e and k (None means 0); `like_L` gives type and device."""
    zero_L = torch.zeros_like(like_L)
    g_L, e_L, k_L = (zero_L if grad is None else grad for grad in grads)
    entropy_L, kl_L = (zero_L if value_L is None else value_L for value_L in (entropy_L, kl_L))
    a_L = -g_L - e_L * entropy_L - k_L * kl_L
    return Coefficients(*(x_L / temperature for x_L in (a_L, k_L - e_L, -k_L, g_L)))


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left right, of two matrices of one type, summed in float32 (float64 for float64) also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        if left.is_cuda and left.itemsize == 2:
            return torch.mm(left, right, out_dtype=torch.float32)  # no float32 copies of the operands
        return _upcast(left) @ _upcast(right)


def add_matmul(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left right, in place, in the precision of `matmul`."""
    with torch.autocast(left.device.type, enabled=False):
        if left.is_cuda and left.itemsize == 2:
            torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        else:
            total.addmm_(_upcast(left), _upcast(right))


def _upcast(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))
