"""Inputs, right answers and small tiles for the tests of `kernels.fused_logprob`.

Without a GPU the Triton kernels run in Triton's interpreter: tests/conftest.py has set TRITON_INTERPRET.
"""

import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from quick_interpreter import hasten
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import LogprobOutput, fused_logprob
from kernels.gpu.tiles import FOLD, INTERPRETER

COMPILED = torch.cuda.is_available()
DEVICE = "cuda" if COMPILED else "cpu"
IMPLS = ("reference", "triton", "hybrid")
SPAN = 256 if COMPILED else 64  # words: a multiple of every tile's
HIDDEN, HEAD = "hidden_LH", "weight_VH"


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Several tiles, spans, blocks and slices in a small case; new memory full of NaN; a faster interpreter."""
    patch.setattr("kernels.reference.TILE_ELEMENTS", 96)  # 4 words for 24 hidden units
    patch.setattr("kernels.gpu.launch.span_of", lambda num_tokens: SPAN)
    patch.setattr("kernels.gpu.autograd.BLOCK", 16)
    patch.setattr("kernels.gpu.autograd.TILE", 16 * SPAN)
    for name in ("torch.empty", "torch.empty_like", "torch.Tensor.new_empty"):
        patch.setattr(name, full_of_nan(pkgutil.resolve_name(name)))
    if not COMPILED:
        patch.setattr("kernels.gpu.launch.FOLD", FOLD._replace(words=32))
        hasten(patch)


def widen(patch: pytest.MonkeyPatch) -> None:
    """After `shrink`, for a large vocabulary: tiles and spans of 512 words, so that the interpreter runs few."""
    patch.setattr("kernels.gpu.launch.span_of", lambda num_tokens: 512)
    if not COMPILED:
        patch.setattr("kernels.gpu.launch.FOLD", FOLD)
        patch.setattr("kernels.gpu.launch.tile_of", lambda *args, **options: INTERPRETER._replace(words=512))


def full_of_nan(function: Callable) -> Callable:
    """A function that makes a tensor, and fills it."""
    def filled(*args: Any, **options: Any) -> torch.Tensor:
        tensor = function(*args, **options)
        with torch.no_grad():
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor
    return filled


def calls_of(name: str, patch: pytest.MonkeyPatch) -> list[tuple]:
    """The positional arguments of each call of a function, as they come."""
    function, calls = pkgutil.resolve_name(name), []

    def noted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return function(*args, **options)
    patch.setattr(name, noted)
    return calls


class Case(NamedTuple):
    """The tensors of a call."""

    hidden_LH: torch.Tensor
    weight_VH: torch.Tensor
    token_L: torch.Tensor
    ref_hidden_LH: torch.Tensor
    ref_weight_VH: torch.Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        """The same values in another type."""
        return Case(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in self))

    def rows(self, rows: Any) -> "Case":
        """Some of the rows."""
        return self._replace(**{name: getattr(self, name)[rows] for name in (HIDDEN, "token_L", "ref_hidden_LH")})


def draw(
    rows: int = 20, words: int = 2 * SPAN + 13, hidden: int = 24, *, scale: float = 1.0, offset: float = 0.0
) -> Case:
    """float32, a reference near by, tokens at both ends and borders of spans, some of them twice.

    At temperature 0.7 the logits are normal with mean `offset` and a standard deviation of 2.1 * `scale`.
    """
    generator = torch.Generator().manual_seed(0)
    hidden_LH, noise_LH = torch.randn(2, rows, hidden, generator=generator)
    weight_VH, noise_VH = torch.randn(2, words, hidden, generator=generator) * 1.5 / hidden ** 0.5
    hidden_LH, weight_VH = scale * hidden_LH, weight_VH.clone()
    ref_hidden_LH, ref_weight_VH = hidden_LH + 0.2 * noise_LH, weight_VH + 0.2 * noise_VH
    if offset:
        hidden_LH[:, 0] = ref_hidden_LH[:, 0] = 1
        weight_VH[:, 0] = ref_weight_VH[:, 0] = 0.7 * offset
    token_L = torch.randint(words, (rows,), generator=generator)
    special_K = torch.tensor([words - 1, 0, SPAN - 1, SPAN, SPAN, 0])[:rows] % words
    token_L[: len(special_K)] = special_K
    return Case(*(tensor.to(DEVICE) for tensor in (hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH)))


def improbable(case: Case, rows: list[int], ref_rows: list[int]) -> Case:
    """The case, with a token of probability exp(-100 / temperature) in `rows`; in `ref_rows` under the reference."""
    case.weight_VH[:, 0], case.weight_VH[7, 0] = 0, -1
    case.hidden_LH[rows, 0], case.ref_hidden_LH[ref_rows, 0] = 100, 100
    case.token_L[[*rows, *ref_rows]] = 7
    return case


class Mode(NamedTuple):
    """What is asked of a call.

    Args:
        leaves: the inputs that need a gradient.
        loss: the outputs that are differentiated.
        kl: as in `fused_logprob`.
        ref: what is given of the reference: "shared" (hidden states) or "separate" (and a head of its own).
        entropy: as in `fused_logprob`.
    """

    leaves: tuple[str, ...] = ()
    loss: tuple[str, ...] = ("logprob_L",)
    kl: str | None = None
    ref: str | None = None
    entropy: bool = False


ALL, BOTH = LogprobOutput._fields, (HIDDEN, HEAD)
MODES = {
    "no gradient": Mode(entropy=True),
    "frozen head": Mode((HIDDEN,)),
    "frozen head, entropy as a value": Mode((HIDDEN,), entropy=True),
    "entropy gradient": Mode((HIDDEN,), ("entropy_L", "logprob_L"), entropy=True),
    "trained head": Mode(BOTH),
    "trained head alone": Mode((HEAD,), ("entropy_L",), entropy=True),
    "exact": Mode(BOTH, ALL, "exact", "shared", entropy=True),
    "exact, two heads": Mode(BOTH, ("kl_L",), "exact", "separate"),
    "exact, two heads, no gradient": Mode((), (), "exact", "separate", entropy=True),
    "exact, frozen head": Mode((HIDDEN,), ("logprob_L", "kl_L"), "exact", "separate"),
    "exact as a value": Mode(BOTH, ("logprob_L",), "exact", "shared"),
}


def whole_logits(
    hidden_LH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_L: torch.Tensor,
    *,
    temperature: float = 1.0,
    ref_hidden_LH: torch.Tensor | None = None,
    ref_weight_VH: torch.Tensor | None = None,
    kl: str | None = None,
    entropy: bool = False,
) -> LogprobOutput:
    """`fused_logprob` by definition."""
    logp_LV = (hidden_LH @ weight_VH.T / temperature).log_softmax(dim=1)
    logprob_L = logp_LV.gather(1, token_L[:, None])[:, 0]
    entropy_L = -(logp_LV.exp() * logp_LV).sum(dim=1) if entropy else None
    if kl is None:
        return LogprobOutput(logprob_L, entropy_L)
    ref_weight_VH = weight_VH.detach() if ref_weight_VH is None else ref_weight_VH
    logq_LV = (ref_hidden_LH @ ref_weight_VH.T / temperature).log_softmax(dim=1)
    return LogprobOutput(logprob_L, entropy_L, (logp_LV.exp() * (logp_LV - logq_LV)).sum(dim=1))


def call(case: Case, mode: Mode, impl: str | Callable, *, temperature: float = 0.7, **options: Any) -> LogprobOutput:
    """One call, of `fused_logprob` or of a function like it."""
    function = partial(fused_logprob, impl=impl) if isinstance(impl, str) else impl
    ref = {} if mode.ref is None else {"ref_hidden_LH": case.ref_hidden_LH}
    if mode.ref == "separate":
        ref["ref_weight_VH"] = case.ref_weight_VH
    with torch.set_grad_enabled(bool(mode.leaves)):
        return function(*case[:3], temperature=temperature, kl=mode.kl, entropy=mode.entropy, **ref, **options)


def with_leaves(case: Case, mode: Mode) -> Case:
    """The case, with new tensors where the mode wants a gradient."""
    return case._replace(**{name: getattr(case, name).detach().clone().requires_grad_() for name in mode.leaves})


def gradients(case: Case, mode: Mode, output: LogprobOutput) -> dict[str, torch.Tensor]:
    """Of a weighed sum, by the names of the leaves: another weight for each output and for most rows, for some 0."""
    weight_L = torch.tensor([-2.0, 1.0, 3.0, 0.0, -1.0], device=DEVICE)[case.token_L % 5]
    total = sum((n * weight_L * getattr(output, name)).sum() for n, name in enumerate(mode.loss, start=1))
    return dict(zip(mode.leaves, torch.autograd.grad(total, [getattr(case, name) for name in mode.leaves])))


def compute(case: Case, mode: Mode, impl: str | Callable, **options: Any) -> dict[str, torch.Tensor]:
    """All that a call gives, by the names of the outputs and of the leaves."""
    case = with_leaves(case, mode)
    output = call(case, mode, impl, **options)
    found = {name: tensor.detach() for name, tensor in output._asdict().items() if tensor is not None}
    return found | gradients(case, mode, output) if mode.leaves else found


def exactly(case: Case, mode: Mode) -> dict[str, torch.Tensor]:
    """What `compute` should give: the same in float64, by definition."""
    return compute(case.to(torch.float64), mode, whole_logits)


def errors(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of outputs the largest, in nats; of gradients the norm, relative to the gradient's if that is above 1."""
    assert found.keys() == right.keys()
    difference = {name: (found[name] - right[name]).nan_to_num(nan=torch.inf) for name in right}
    return {
        name: (x.norm() / right[name].norm().clamp(min=1) if name in BOTH else x.abs().max()).item()
        for name, x in difference.items()
    }


def wrong(tolerance: float, case: Case, mode: Mode, impl: str) -> dict[str, float]:
    """The errors above the tolerance."""
    found = errors(compute(case, mode, impl), exactly(case, mode))
    return {name: error for name, error in found.items() if error > tolerance}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Bit for bit; a nan is like itself."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name].nan_to_num(nan=1e38), expected[name].nan_to_num(nan=1e38)) for name in found
    )


def rows_of(found: dict[str, torch.Tensor], rows: Any) -> dict[str, torch.Tensor]:
    """What belongs to some of the rows: all but the head's gradient."""
    return {name: tensor[rows] for name, tensor in found.items() if name != HEAD}


class Shapes(TorchDispatchMode):
    """Collects the shape of every tensor an operation makes, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        self.seen |= {tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        return result
