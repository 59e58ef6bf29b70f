"""Triton's interpreter without what it does over and over: a third of its seconds, and most of a custom reduction."""

import inspect
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, nothing that a kernel computes is another number."""
    np_dtype, patch_builtin = interpreter._get_np_dtype, interpreter._patch_builtin
    np_dtype_of_number = cache(np_dtype)  # each time it makes a table of all

    def quick_np_dtype(dtype: tl.dtype) -> np.dtype:
        number = dtype.scalar
        return (np_dtype if isinstance(number, tl.pointer_type) else np_dtype_of_number)(number)

    def unless_patched(package: Any, *rest: Any) -> None:
        # For each function that a kernel calls it looks through the language, which the kernel has patched already.
        name = first_builtin(package)
        if name and tl.core.is_builtin(getattr(package, name)):
            patch_builtin(package, *rest)

    def quick_tensor(tensor: tl.tensor, handle: Any, type: tl.dtype) -> None:
        tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
        tensor.shape, tensor.numel = shape_and_size(type.shape if type.is_block() else ())

    def quick_block_type(block: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:
        block.element_ty, block.shape = element_ty, tuple(getattr(size, "value", size) for size in shape)
        block.numel, block.name = shape_and_size(block.shape)[1].value, f"<{block.shape}, {element_ty}>"

    patch.setattr(interpreter, "_get_np_dtype", quick_np_dtype)
    patch.setattr(tl.tensor, "__init__", quick_tensor)
    patch.setattr(tl.block_type, "__init__", quick_block_type)
    # It repeats each sum and product of whole numbers in 64 bits; those of a test are far from 2^31.
    patch.setattr(TritonSemantic, "binary_op_sanitize_overflow_impl", lambda *given: None)
    patch.setattr(interpreter, "_patch_builtin", unless_patched)
    patch.setattr(interpreter.ReduceOps, "generic_reduce", by_halves)
    patch.setattr(interpreter.ReduceOps, "sum", lambda self, tensor: by_halves(self, (tensor,))[0])  # in the same order


@cache
def shape_and_size(shape: tuple[int, ...]) -> tuple[tl.tuple, tl.constexpr]:
    return tl.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(shape))


@cache
def first_builtin(package: Any) -> str:
    """A name of a package that a kernel needs patched, seen first where none is; "" if it has none."""
    return next((name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)), "")


def by_halves(reduction: Any, tensors: tuple) -> list:
    """A reduction as a GPU does it, in the order of a tree; for a function of ours the interpreter has a slow loop."""
    assert not reduction.keep_dims
    tensors, axis = reduction.unravel(tensors, reduction.axis)
    while (width := tensors[0].handle.data.shape[axis]) > 1:
        halves = [[reduction.to_tensor(part, one.dtype) for part in np.split(one.handle.data, [width // 2], axis)]
                  for one in tensors]
        found = reduction.combine_fn.fn(*(left for left, _ in halves), *(right for _, right in halves))
        tensors = found if isinstance(found, tuple) else (found,)
    return [reduction.to_tensor(one.handle.data.squeeze(axis), one.dtype) for one in tensors]
