"""Launches of the Triton kernels: grids, tile shapes, strides, and what they write into."""

import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton

from kernels.coefficients import matmul
from kernels.gpu import backward, forward
from kernels.gpu.tiles import FOLD, Tile, architecture, span_of, tile_of

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Problem:
    """The tokens of a call, and how they are computed. All tensors are contiguous."""

    hidden_LH: torch.Tensor
    weight_VH: torch.Tensor
    token_L: torch.Tensor
    ref_hidden_LH: torch.Tensor | None  # None: no KL
    ref_weight_VH: torch.Tensor
    temperature: float
    hybrid: bool  # cuBLAS multiplies
    tile: Tile
    span: int  # words whose sums are one part of the total

    @classmethod
    def of(
        cls, hidden_LH: torch.Tensor, weight_VH: torch.Tensor, token_L: torch.Tensor,
        ref_hidden_LH: torch.Tensor | None, ref_weight_VH: torch.Tensor, temperature: float, hybrid: bool,
    ) -> "Problem":
        # The tile and the span follow from the sizes: calls with and without gradient add up in the same order.
        ref_hidden_LH = None if ref_hidden_LH is None else ref_hidden_LH.contiguous()
        tile = FOLD if hybrid else _tile(hidden_LH, weight_VH, two_sums=ref_hidden_LH is not None)
        rows = (hidden_LH.contiguous(), weight_VH.contiguous(), token_L.contiguous())
        ref = (ref_hidden_LH, ref_weight_VH.contiguous())
        return cls(*rows, *ref, temperature, hybrid, tile, span_of(len(token_L)))

    @property
    def grad_dtype(self) -> torch.dtype:
        """Of E and of the logits' gradients."""
        # bfloat16 also for float16, whose range is too small.
        return torch.float32 if self.weight_VH.dtype == torch.float32 else torch.bfloat16

    def rows(self, rows: slice | torch.Tensor) -> "Problem":
        """Some of the tokens. Tile and span stay, so their results stay the same bit for bit."""
        ref_hidden_LH = None if self.ref_hidden_LH is None else self.ref_hidden_LH[rows]
        return replace(self, hidden_LH=self.hidden_LH[rows], token_L=self.token_L[rows], ref_hidden_LH=ref_hidden_LH)

    def head(self, words: slice) -> torch.Tensor:
        """[C, H] part of the head, in the type that gradients are multiplied in."""
        return self.weight_VH[words].to(self.grad_dtype)

    def products(self, words: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the kernels read as `hidden` and `ref_hidden`: in the hybrid cuBLAS's products, else the states."""
        if not self.hybrid:
            return self.hidden_LH, self.ref_hidden_LH
        ref = None if self.ref_hidden_LH is None else _product(self.ref_hidden_LH, self.ref_weight_VH[words])
        return _product(self.hidden_LH, self.weight_VH[words]), ref

    @property
    def flags(self) -> dict[str, Any]:
        """The compile-time arguments of `sweep` and `slope`."""
        tile = self.tile
        mixed = self.hidden_LH.dtype != self.weight_VH.dtype
        return {
            "H": self.hidden_LH.shape[1], "ROWS": tile.rows, "WORDS": tile.words, "INNER": tile.inner,
            "DESCRIPTORS": tile.descriptors, "WARP_SPECIALIZE": tile.warp_specialize,
            "UPCAST": mixed or not self.hidden_LH.is_cuda,  # the interpreter multiplies bfloat16 wrongly
            "GIVEN": self.hybrid, "REF": self.ref_hidden_LH is not None,
            "num_warps": tile.num_warps, "num_stages": tile.num_stages,
            # z - r must be 0 where the two are equal, which a multiplication fused into the subtraction breaks.
            "enable_fp_fusion": False,
        }


def target(problem: Problem, *, reference: bool = False) -> torch.Tensor:
    """[L] float32 base-2 logits of the tokens, under the policy or its reference."""
    hidden_LH = problem.ref_hidden_LH if reference else problem.hidden_LH
    weight_VH = problem.ref_weight_VH if reference else problem.weight_VH
    num_words, hidden_size = weight_VH.shape
    logit_L = hidden_LH.new_empty(len(hidden_LH), dtype=torch.float32)
    inner = min(1024, triton.next_power_of_2(hidden_size))
    args = (hidden_LH, weight_VH, problem.token_L, logit_L, num_words, LOG2E / problem.temperature)
    _launch(forward.target, (len(logit_L),), *args, H=hidden_size, INNER=inner)
    return logit_L


def sweep(
    problem: Problem, words: slice, part_KPL: torch.Tensor, shifts: tuple[torch.Tensor, torch.Tensor | None] | None,
    *, emit: bool,
) -> torch.Tensor | None:
    """Write the sums of some words to part_KPL, span by span, around the shifts or, without any, the running maximum.

    Returns [L, C] E = 2^(z - shift) if `emit`.
    """
    width, num_tokens, flags = words.stop - words.start, len(problem.token_L), problem.flags
    online = shifts is None
    shift_L, ref_shift_L = (None, None) if online else shifts
    emitted_LC = problem.hidden_LH.new_empty(num_tokens, width if emit else 0, dtype=problem.grad_dtype)
    # To store E, a program owns one tile: more of them run at once. Their sums are then added up as without E.
    tiled = emit and not problem.hybrid
    span = flags["WORDS"] if tiled else problem.span
    out_KPL = part_KPL.new_empty(len(part_KPL), triton.cdiv(width, span), num_tokens) if tiled else part_KPL
    hidden, ref_hidden = problem.products(words)
    args = (hidden, problem.weight_VH, ref_hidden, problem.ref_weight_VH, shift_L, ref_shift_L, out_KPL, emitted_LC)
    sizes = (num_tokens, len(problem.weight_VH), words.start, words.stop, span, LOG2E / problem.temperature)
    grid = (triton.cdiv(num_tokens, flags["ROWS"]) * triton.cdiv(width, span),)
    flags |= {"ONLINE": online, "EMIT": emit or problem.hybrid, "TILED": tiled}
    _launch(forward.sweep, grid, *args, *sizes, *out_KPL.stride()[:2], int(emit), **flags)
    if tiled:
        merge(problem, out_KPL, part_KPL, problem.span // span)
    return emitted_LC if emit else None


def merge(
    problem: Problem, part_KPL: torch.Tensor, out_KPL: torch.Tensor, group: int, logit_L: torch.Tensor | None = None
) -> None:
    """Add up each `group` parts; with the tokens' logits, make the outputs of the sums."""
    num_parts, num_tokens = part_KPL.shape[1:]
    strides = (*part_KPL.stride()[:2], *out_KPL.stride()[:2])
    grid = (triton.cdiv(num_tokens, 128), triton.cdiv(num_parts, group))
    flags = {"ROWS": 128, "FINAL": logit_L is not None, "REF": problem.ref_hidden_LH is not None}
    _launch(forward.merge, grid, part_KPL, out_KPL, logit_L, num_tokens, num_parts, group, *strides, **flags)


def stash(problem: Problem, sum_L: torch.Tensor, mean_LH: torch.Tensor, stashed_LH: torch.Tensor) -> None:
    """Write D = (W_y - U / s) / T."""
    num_tokens, hidden_size = mean_LH.shape
    args = (problem.weight_VH, problem.token_L, sum_L, mean_LH, stashed_LH, num_tokens, len(problem.weight_VH))
    grid = (triton.cdiv(num_tokens, 16), triton.cdiv(hidden_size, 128))
    _launch(backward.stash, grid, *args, 1 / problem.temperature, H=hidden_size, ROWS=16, COLUMNS=128)


def slope(problem: Problem, words: slice, coefficient_6L: torch.Tensor) -> torch.Tensor:
    """[L, C] gradient with respect to the logits of some words. coefficient_6L: a, b, c, g and both lse."""
    width, num_tokens, flags = words.stop - words.start, len(problem.token_L), problem.flags
    slope_LC = problem.hidden_LH.new_empty(num_tokens, width, dtype=problem.grad_dtype)
    hidden, ref_hidden = problem.products(words)
    args = (hidden, problem.weight_VH, ref_hidden, problem.ref_weight_VH, problem.token_L, coefficient_6L, slope_LC)
    sizes = (num_tokens, len(problem.weight_VH), words.start, words.stop, LOG2E / problem.temperature)
    grid = (triton.cdiv(num_tokens, flags["ROWS"]) * triton.cdiv(width, flags["WORDS"]),)
    _launch(backward.slope, grid, *args, *sizes, coefficient_6L.stride(0), **flags)
    return slope_LC


def _tile(hidden_LH: torch.Tensor, weight_VH: torch.Tensor, *, two_sums: bool) -> Tile:
    device, dtype = hidden_LH.device, torch.promote_types(hidden_LH.dtype, weight_VH.dtype)
    num_tokens, hidden_size = hidden_LH.shape
    tile = tile_of(architecture(device), dtype, hidden_size, num_tokens, two_sums=two_sums)
    if tile.warp_specialize and not specialises(device, dtype, hidden_size, tile):
        return without_specialisation(tile)
    return tile


@cache
def specialises(device: torch.device, dtype: torch.dtype, hidden_size: int, tile: Tile) -> bool:
    """Whether a warp-specialised kernel compiles here and agrees with the plain one to 1e-5. Warns if not."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (2 * tile.rows + 2 * tile.words, hidden_size)
    rows = torch.randn(shape, generator=generator, device=device).to(dtype)
    hidden_LH, weight_VH = rows.split([2 * tile.rows, 2 * tile.words])
    token_L = torch.zeros(len(hidden_LH), dtype=torch.int64, device=device)
    sums = []
    for one in (without_specialisation(tile), tile):
        rows = (hidden_LH, weight_VH, token_L, None, weight_VH)
        problem = Problem(*rows, hidden_size**0.5, hybrid=False, tile=one, span=tile.words)
        part_KPL = torch.empty(3, 2, len(hidden_LH), device=device)
        try:
            sweep(problem, slice(0, len(weight_VH)), part_KPL, None, emit=False)
        except Exception as error:  # whatever the compiler says, the plain kernel runs
            warnings.warn(f"warp specialisation is off: {type(error).__name__} while compiling {tile}", stacklevel=2)
            return False
        sums.append(part_KPL)
    agree = torch.allclose(*sums, rtol=1e-5, atol=1e-5)
    if not agree:
        warnings.warn(f"warp specialisation is off: {tile} computes something else than the plain kernel", stacklevel=2)
    return agree


def without_specialisation(tile: Tile) -> Tile:
    # Twice as many warps, because each then has more to store.
    return tile._replace(warp_specialize=False, num_warps=8)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **flags: Any) -> None:
    if 0 in grid:
        return
    device = args[0].device
    if flags.get("DESCRIPTORS"):
        # A context variable, which autograd's own thread does not inherit: set at each launch.
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **flags)


def _product(hidden_LH: torch.Tensor, weight_CH: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(hidden_LH.dtype, weight_CH.dtype)
    return matmul(hidden_LH.to(dtype), weight_CH.to(dtype).T)
