"""Peak memory against what kernels/reference.py and kernels/gpu/autograd.py say about it, on the CPU.

A bound may be passed by 10 %, and by 4 KiB for the [L] vectors. The interpreter stores a program's registers outside
PyTorch, so they do not count, as on a GPU they would not.
"""

import pytest
import torch
from kernel_cases import COMPILED, MODES, SPAN, call, draw, gradients, shrink, widen, with_leaves

from benchmarks.memory import peak_bytes

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.skipif(COMPILED, reason="counts CPU tensors; for a GPU see test_triton_gpu.py"),
]
L = 16
TILE = L * 2 * SPAN  # numbers
EXACT = "exact, two heads, no gradient"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    shrink(monkeypatch)
    monkeypatch.setattr("kernels.gpu.autograd.TILE", TILE)
    monkeypatch.setattr("kernels.reference.TILE_ELEMENTS", 64 * 64)
    # The interpreter copies arguments to the host and back, and keeps the copies until garbage is collected.
    monkeypatch.setattr("triton.runtime.interpreter.GridExecutor._init_args_hst", lambda self, *args: args)
    monkeypatch.setattr("triton.runtime.interpreter.GridExecutor._restore_args_dev", lambda self, *args: None)


def peaks(name, impl, *, rows=L, words, hidden=32, dtype=torch.float32):
    """(bytes of the forward, bytes of the backward but for the gradients it returns)."""
    mode, outputs = MODES[name], []
    case = with_leaves(draw(rows, words, hidden).to(dtype), mode)
    forward = peak_bytes(lambda: outputs.append(call(case, mode, impl)), "cpu")
    if not mode.leaves:
        return forward, 0
    backward = peak_bytes(lambda: gradients(case, mode, outputs[0]), "cpu")
    return forward, backward - sum(getattr(case, leaf).nbytes for leaf in mode.leaves)


def within(found, bound):
    return found <= 1.1 * bound + 4096


@pytest.mark.parametrize(("name", "forward_tiles", "forward_rows", "backward_tiles", "backward_rows"), [
    ("no gradient", 3, 0, 0, 0),
    ("frozen head", 3, 2, 0, 1),
    ("trained head", 3, 0, 2, 1),
    (EXACT, 6, 0, 0, 0),
    ("exact", 6, 0, 3, 1),
])
@pytest.mark.parametrize("half", [False, True])
def test_reference_needs_its_tiles_whatever_the_vocabulary(
    name, forward_tiles, forward_rows, backward_tiles, backward_rows, half
):
    # Tiles are 64 x 64 float32 numbers; half precision takes one more, and [L, H] upcast hidden states (two with a KL).
    upcast = half * (2 if "exact" in name else 1)
    options = {"rows": 64, "dtype": torch.bfloat16 if half else torch.float32}
    forward, backward = peaks(name, "reference", words=1024, **options)
    assert within(forward, 4 * (64 * 64 * (forward_tiles + half) + 64 * 32 * (forward_rows + upcast)))
    assert within(backward, 4 * (64 * 64 * (backward_tiles + half) + 64 * 32 * (backward_rows + upcast)))
    assert peaks(name, "reference", words=2048, **options) == (forward, backward)


@pytest.mark.parametrize(("name", "stats", "stash"), [
    ("no gradient", 3, False), ("frozen head", 3, True), (EXACT, 6, False),
])
@pytest.mark.parametrize("impl", ["triton", "hybrid"])
def test_forward_grows_with_the_vocabulary_only_by_its_sums(name, stats, stash, impl):
    # The stash: D and U [L, H], and E, here of 4 bytes a number. The hybrid: cuBLAS's product, two with a KL.
    tiles = stash + (impl == "hybrid") * stats // 3
    forward, _ = peaks(name, impl, words=8 * SPAN)
    assert within(forward, 4 * (stats * L * 8 + stash * 2 * L * 32 + tiles * TILE))
    assert peaks(name, impl, words=16 * SPAN)[0] - forward == 4 * stats * L * 8


@pytest.mark.parametrize("impl", ["triton", "hybrid"])
def test_backward_of_a_trained_head_holds_one_slice_of_2048_words(impl, monkeypatch):
    widen(monkeypatch)
    # Of them the logits' gradient [L, 2048], what comes of it [2048, H], and in the hybrid the logits [L, 2048].
    bound = 4 * (L * 2048 * (1 + (impl == "hybrid")) + 2048 * 4)
    assert within(peaks("trained head", impl, words=4096 + 64, hidden=4)[1], bound)
