"""Matrix products that sum in float32, whatever the operands are and whatever autocast would make of them."""

import torch


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left right, in float32 (float64 for float64 operands).

    Args:
        left: [M, K] float.
        right: [K, C] float, of the same type.
    """
    with torch.autocast(left.device.type, enabled=False):
        if left.is_cuda and left.itemsize == 2:
            return torch.mm(left, right, out_dtype=torch.float32)
        return _upcast(left) @ _upcast(right)


def add_matmul(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left right, in place.

    Args:
        total: [M, C] float32 (float64 for float64 operands).
        left: [M, K] float.
        right: [K, C] float, of the same type.
    """
    with torch.autocast(left.device.type, enabled=False):
        if left.is_cuda and left.itemsize == 2:
            torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        else:
            total.addmm_(_upcast(left), _upcast(right))


def _upcast(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))
