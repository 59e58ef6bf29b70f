"""The Triton kernels against float64 softmax over whole logits.

On a GPU they run compiled; without one in Triton's interpreter, in tiles of 16 rows and 32 words, 64 words a span, 16
rows a block: 70 seconds on one core. New memory is full of NaN, so what is read before it is written shows.
"""

import math
import re

import pytest
import torch
import triton_cases
from torch.utils.checkpoint import checkpoint
from triton_cases import (
    BOTH,
    COMPILED,
    DEVICE,
    HIDDEN,
    MODES,
    SPAN,
    Mode,
    call,
    calls_of,
    compute,
    draw,
    errors,
    exactly,
    gradients,
    improbable,
    rows_of,
    same,
    with_leaves,
    wrong,
)

from kernels import fused_logprob

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
both = pytest.mark.parametrize("impl", ["triton", "hybrid"])
EVERYTHING = MODES["exact"]
STASH = MODES["frozen head"]
SIZES = [(1, 1, 1), (1, 513, 16), (15, 31, 33), (16, 32, 31), (17, 33, 32), (9, 64, 5), (7, 65, 5)]
SIZES += [(63, 65, 64), (65, 513, 72), (129, 257, 63)] if COMPILED else []


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    triton_cases.shrink(monkeypatch)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("impl", ["reference", "triton", "hybrid"])
def test_values_and_gradients_equal_those_of_whole_logits(impl, name):
    assert wrong(1e-5, draw(17, 161, 40), MODES[name], impl) == {}


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
    assert wrong(1e-5, draw(), EVERYTHING, impl) == wrong(1e-5, draw(), STASH, impl) == {}


@both
def test_gradient_of_a_large_vocabulary_comes_in_slices(impl, monkeypatch):
    slopes = calls_of("kernels.gpu.launch.slope", monkeypatch)
    assert wrong(1e-5, draw(5, 2100, 8), EVERYTHING, impl) == {}
    assert [(words.start, words.stop) for _, words, *_ in slopes] == [(0, 2048), (2048, 2100)]


@pytest.mark.skipif(COMPILED, reason="about Triton's interpreter")
def test_interpreters_own_reduction_gives_what_stands_in_for_it(monkeypatch):
    monkeypatch.undo()
    assert wrong(1e-5, draw(3, 70, 8), MODES["no gradient"], "triton") == {}


@both
@pytest.mark.parametrize(("name", "stashes", "operands"), [
    ("frozen head", 1, False), ("frozen head, entropy as a value", 1, True), ("trained head", 0, True),
])
def test_what_a_call_keeps_for_its_backward(impl, name, stashes, operands):
    case = with_leaves(draw(), MODES[name])
    output = call(case, MODES[name], impl)
    kept = {tensor.data_ptr(): tensor.shape for tensor in output.logprob_L.grad_fn.saved_tensors if tensor is not None}
    for operand in case[:2]:
        assert (kept.pop(operand.data_ptr(), None) is not None) == operands
    assert list(kept.values()).count(case.hidden_LH.shape) == stashes


@both
def test_probabilities_of_all_words_add_up_to_one(impl):
    case = draw(130, 130, 16)
    case = case._replace(hidden_LH=case.hidden_LH[:1].expand(130, -1), token_L=torch.arange(130, device=DEVICE))
    logprob_L, entropy_L, _ = call(case, MODES["no gradient"], impl)
    assert logprob_L.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert -(logprob_L.exp() * logprob_L).sum().item() == pytest.approx(entropy_L[0].item(), abs=1e-5)


@both
@pytest.mark.parametrize("logit", [0.0, 200.0, -360.0])
def test_equal_logits_are_a_uniform_distribution(impl, logit):
    hidden_LH, weight_VH = torch.ones(2, 1, device=DEVICE), torch.full((301, 1), logit, device=DEVICE)
    output = fused_logprob(hidden_LH, weight_VH, torch.tensor([0, 300], device=DEVICE), entropy=True, impl=impl)
    assert output.logprob_L.tolist() == pytest.approx([-math.log(301)] * 2, abs=1e-6 * max(1, abs(logit)))
    assert output.entropy_L.tolist() == pytest.approx([math.log(301)] * 2, abs=1e-6 * max(1, abs(logit)))


@both
@pytest.mark.parametrize("name", ["exact", "frozen head"])
@pytest.mark.parametrize(("scale", "offset"), [(1, 200), (1, -200), (1, -360), (20, 0), (1e-3, 0)])
def test_extreme_logits(impl, name, scale, offset):
    case = draw(scale=scale, offset=offset)
    found, right = compute(case, MODES[name], impl), exactly(case, MODES[name])
    if offset:
        # Here all words of the head are the same: the gradient is 140 to 250 times a sum that is 0, but for rounding.
        found[HIDDEN][:, 0] = right[HIDDEN][:, 0]
    largest = max(10, abs(offset), 10 * scale)  # a float32 logit is off by so much more
    assert max(errors(found, right).values()) <= 1e-6 * largest, errors(found, right)


@both
@pytest.mark.parametrize(("name", "again"), [("no gradient", 2), ("frozen head", 2), ("exact", 3)])
def test_rows_of_an_improbable_token_are_computed_again_around_their_maximum(impl, name, again, monkeypatch):
    # Less than 2^-100 = exp(-69) at temperature 0.7, where this is exp(-143).
    case = improbable(draw(), [3, 17], [17, 19])
    sweeps = calls_of("kernels.gpu.launch.sweep", monkeypatch)
    found, right = compute(case, MODES[name], impl), exactly(case, MODES[name])
    assert max(errors(found, right).values()) <= 1e-4, errors(found, right)
    assert {len(problem.token_L) for problem, _, _, shifts, *_ in sweeps if shifts is None} == {again}
    assert right["logprob_L"][[3, 17]].max() < -100


@both
@pytest.mark.parametrize("kl", ["exact", None])
def test_a_word_of_probability_zero_makes_no_nan(impl, kl):
    # Logits (0, 0, -inf): two words of 1/2, and gradients as if the third were not there.
    hidden_LH = torch.tensor([[1e30, 0.0]], device=DEVICE, requires_grad=True)
    weight_VH = torch.tensor([[0.0, 1.0], [0.0, -1.0], [-1e30, 0.0]], device=DEVICE)
    ref = {"ref_hidden_LH": hidden_LH.detach(), "kl": kl, "entropy": True} if kl else {}
    output = fused_logprob(hidden_LH, weight_VH, torch.tensor([0], device=DEVICE), impl=impl, **ref)
    expected = (-math.log(2), math.log(2), 0.0) if kl else (-math.log(2),)
    found = [x for x in output if x is not None]
    assert [x.item() for x in found] == pytest.approx(expected, abs=1e-6)
    assert torch.autograd.grad(sum(found), hidden_LH)[0].tolist() == [[0.0, 1.0]]  # W_y - sum p W = (0, 1) - 0


@both
@pytest.mark.parametrize("name", ["no gradient", "frozen head", "entropy gradient"])
def test_a_nan_row_stays_in_its_row(impl, name):
    clean, spoilt = draw(), draw()
    spoilt.hidden_LH[2] = math.nan
    others = [row for row in range(20) if row != 2]
    expected, found = (compute(case, MODES[name], impl) for case in (clean, spoilt))
    assert found["logprob_L"][2].isnan()
    assert same(rows_of(found, others), rows_of(expected, others))


@both
@pytest.mark.parametrize("ref", ["shared", "separate"])
def test_kl_of_a_policy_that_is_its_reference_is_exactly_zero(impl, ref):
    case = draw()
    case = case._replace(ref_hidden_LH=case.hidden_LH, ref_weight_VH=case.weight_VH)
    found = compute(case, Mode((HIDDEN,), ("kl_L",), "exact", ref), impl)
    assert found["kl_L"].tolist() == [0.0] * 20
    assert found[HIDDEN].abs().max() == 0


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_changes_no_bit_of_the_score(impl, dtype):
    case = draw(scale=8).to(dtype)  # in some of the rows the token is improbable
    without, stashed, trained = (
        compute(case, MODES[name], impl)["logprob_L"] for name in ("no gradient", "frozen head", "trained head")
    )
    assert torch.equal(without, stashed) and torch.equal(without, trained)


@both
@pytest.mark.parametrize("strided", ["hidden_LH", "weight_VH", "token_L", "ref_hidden_LH", "ref_weight_VH"])
def test_tensors_that_are_not_contiguous_are_read_as_they_are(impl, strided):
    case, mode = draw(9), MODES["exact, two heads, no gradient"]
    apart = torch.stack([getattr(case, strided), torch.zeros_like(getattr(case, strided))], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    assert wrong(1e-5, case._replace(**{strided: apart}), mode, impl) == {}


@both
@pytest.mark.parametrize("name", ["exact", "frozen head"])
def test_two_runs_are_the_same_bit_for_bit(impl, name):
    assert same(*(compute(draw(), MODES[name], impl) for _ in range(2)))


def test_scores_do_not_depend_on_the_other_rows():
    # Not so in the hybrid: cuBLAS takes another kernel for another number of rows.
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
    case = draw().to(head)
    case = case._replace(hidden_LH=case.hidden_LH.to(hidden), ref_hidden_LH=case.ref_hidden_LH.to(hidden))
    found = errors(compute(case, MODES[name], impl), exactly(case, MODES[name]))
    assert all(error <= (1e-2 if output in BOTH else 1e-5) for output, error in found.items()), found


@both
@pytest.mark.parametrize("token", [-100, -1, 301])
@pytest.mark.parametrize("name", ["no gradient", "frozen head", "exact"])
def test_a_token_outside_the_vocabulary_is_refused_in_one_line(impl, token, name):
    case = draw(5, 301)
    case.token_L[2] = token
    message = f"token_L={token} must lie in [0, 301); nearest valid value: 0"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compute(case, MODES[name], impl)


@both
@pytest.mark.parametrize("name", ["exact", "frozen head"])
def test_autocast_changes_no_bit(impl, name):
    expected = compute(draw(9), MODES[name], impl)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert same(compute(draw(9), MODES[name], impl), expected)


@both
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["trained head", "frozen head"])
def test_works_inside_a_checkpoint(impl, reentrant, name):
    case = with_leaves(draw(9), MODES[name])
    plain, checkpointed = (lambda *rows: fused_logprob(*rows, impl=impl).logprob_L), []
    expected = torch.autograd.grad(plain(*case[:3]).square().sum(), [getattr(case, x) for x in MODES[name].leaves])
    checkpoint(plain, *case[:3], use_reentrant=reentrant).square().sum().backward()
    checkpointed = [getattr(case, leaf).grad for leaf in MODES[name].leaves]
    assert all(torch.equal(found, right) for found, right in zip(checkpointed, expected))


@both
def test_head_may_be_freed_between_forward_and_backward_as_zero3_does(impl):
    case, mode = draw(9), MODES["trained head"]
    head = torch.nn.Parameter(case.weight_VH.clone())
    parted = with_leaves(case, STASH)._replace(weight_VH=head)
    output = call(parted, mode, impl)
    head.data = torch.empty(0, device=DEVICE)
    head.data = case.weight_VH.clone()
    kept = {tensor.data_ptr() for tensor in output.logprob_L.grad_fn.saved_tensors if tensor is not None}
    assert head.data_ptr() in kept  # the Parameter, no copy of it
    expected = compute(case, mode, impl)
    assert same(gradients(parted, mode, output), {leaf: expected[leaf] for leaf in BOTH})
