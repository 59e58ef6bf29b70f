"""What only the Triton kernels promise: sizes, spans and slices of any length, and results that do not change.

On a GPU they run compiled; without one in Triton's interpreter, in the small tiles of test_kernels.py.
"""

import kernel_cases
import pytest
import torch
from kernel_cases import (
    BOTH,
    COMPILED,
    DEVICE,
    MODES,
    SPAN,
    calls_of,
    compute,
    draw,
    errors,
    exactly,
    improbable,
    rows_of,
    same,
    widen,
    wrong,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
both = pytest.mark.parametrize("impl", ["triton", "hybrid"])
EVERYTHING = MODES["exact"]
STASH = MODES["frozen head"]
SIZES = [(1, 1, 1), (1, 2 * SPAN + 1, 16), (15, 31, 33), (16, 32, 31), (17, 33, 32), (9, 64, 5), (7, 65, 5)]
SIZES += [(63, 65, 64), (65, 513, 72), (129, 257, 63)] if COMPILED else []


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    kernel_cases.shrink(monkeypatch)


@both
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_that_do_not_fill_a_tile(impl, size):
    assert wrong(1e-5, draw(*size), EVERYTHING, impl) == wrong(1e-5, draw(*size), STASH, impl) == {}


@both
def test_shipped_spans_and_tiles(impl, monkeypatch):
    from kernels.gpu import tiles

    monkeypatch.setattr("kernels.gpu.launch.span_of", tiles.span_of)
    monkeypatch.setattr("kernels.gpu.launch.FOLD", tiles.FOLD)
    assert wrong(1e-5, draw(9, 513, 16), EVERYTHING, impl) == wrong(1e-5, draw(9, 513, 16), STASH, impl) == {}


@both
@pytest.mark.parametrize("span", [2 * SPAN, 8 * SPAN])
def test_number_of_spans_changes_nothing(impl, span, monkeypatch):
    monkeypatch.setattr("kernels.gpu.launch.span_of", lambda num_tokens: span)
    assert wrong(1e-5, draw(9), EVERYTHING, impl) == wrong(1e-5, draw(9), STASH, impl) == {}


@both
def test_gradient_of_a_large_vocabulary_comes_in_slices(impl, monkeypatch):
    widen(monkeypatch)
    slopes = calls_of("kernels.gpu.launch.slope", monkeypatch)
    assert wrong(1e-5, draw(5, 2100, 8), EVERYTHING, impl) == {}
    assert [(words.start, words.stop) for _, words, *_ in slopes] == [(0, 2048), (2048, 2100)]


@pytest.mark.skipif(COMPILED, reason="about Triton's interpreter")
def test_interpreters_own_reduction_gives_what_stands_in_for_it(monkeypatch):
    monkeypatch.undo()
    assert wrong(1e-5, draw(3, 33, 8), MODES["no gradient"], "triton") == {}


@both
@pytest.mark.parametrize(("name", "again"), [("no gradient", 2), ("frozen head", 2), ("exact", 3)])
def test_improbable_tokens_are_computed_again_around_their_maximum(impl, name, again, monkeypatch):
    # Less than 2^-100 = exp(-69) at temperature 0.7, where this is exp(-143).
    case = improbable(draw(), [3, 17], [17, 19])
    sweeps = calls_of("kernels.gpu.launch.sweep", monkeypatch)
    found, right = compute(case, MODES[name], impl), exactly(case, MODES[name])
    assert max(errors(found, right).values()) <= 1e-4, errors(found, right)
    assert {len(problem.token_L) for problem, _, _, shifts, *_ in sweeps if shifts is None} == {again}
    assert right["logprob_L"][[3, 17]].max() < -100


@both
@pytest.mark.parametrize("strided", ["hidden_LH", "weight_VH", "token_L", "ref_hidden_LH", "ref_weight_VH"])
def test_tensors_that_are_not_contiguous_are_read_as_they_are(impl, strided):
    case, mode = draw(9, SPAN + 13), MODES["exact, two heads, no gradient"]
    apart = torch.stack([getattr(case, strided), torch.zeros_like(getattr(case, strided))], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    assert wrong(1e-5, case._replace(**{strided: apart}), mode, impl) == {}


@both
@pytest.mark.parametrize("name", ["exact", "frozen head"])
def test_two_runs_are_the_same_bit_for_bit(impl, name):
    assert same(*(compute(draw(9, SPAN + 13), MODES[name], impl) for _ in range(2)))


def test_scores_do_not_depend_on_the_other_tokens(monkeypatch):
    # Not so in the hybrid: cuBLAS takes another kernel for another number of tokens. On some CPUs the same holds for
    # numpy.matmul, by which the interpreter multiplies. Here each number of a product is summed in the same order.
    monkeypatch.setattr("numpy.matmul", lambda left, right, dtype: (left[:, :, None] * right).sum(1, dtype))
    case, mode = draw(), MODES["exact, two heads, no gradient"]
    order_L = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    expected = compute(case, mode, "triton")
    padded = compute(case.rows([*range(20), *[0] * 16]), mode, "triton")
    assert same(rows_of(padded, slice(20)), expected)
    assert same(compute(case.rows(order_L.to(DEVICE)), mode, "triton"), rows_of(expected, order_L))


@both
@pytest.mark.parametrize("dtypes", [
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.bfloat16, torch.float32),
], ids=str)
@pytest.mark.parametrize("name", ["exact", "frozen head"])
def test_half_precision_inputs_are_computed_in_float32(impl, dtypes, name):
    hidden, head = dtypes
    case = draw(9, SPAN + 13).to(head)
    case = case._replace(hidden_LH=case.hidden_LH.to(hidden), ref_hidden_LH=case.ref_hidden_LH.to(hidden))
    found = errors(compute(case, MODES[name], impl), exactly(case, MODES[name]))
    assert all(error <= (1e-2 if output in BOTH else 1e-5) for output, error in found.items()), found
