"""What `fused_logprob` promises, for each implementation, against a float64 softmax over whole logits.

On a GPU the Triton kernels run compiled; without one in Triton's interpreter, in tiles of 16 tokens and 32 words, 64
words a span, 16 tokens a block. The reference takes tiles of 4 words. New memory is full of NaN, so what is read before
it is written shows.
"""

import math
import re

import kernel_cases
import pytest
import torch
from kernel_cases import (
    BOTH,
    DEVICE,
    HEAD,
    HIDDEN,
    IMPLS,
    MODES,
    SPAN,
    Mode,
    call,
    compute,
    draw,
    errors,
    exactly,
    gradients,
    rows_of,
    same,
    with_leaves,
    wrong,
)
from torch.utils.checkpoint import checkpoint

from kernels import fused_logprob

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
each = pytest.mark.parametrize("impl", IMPLS, scope="module")  # all of the reference first: it is fast
STASH = MODES["frozen head"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    kernel_cases.shrink(monkeypatch)


@pytest.mark.parametrize("name", MODES)
@each
def test_values_and_gradients_equal_those_of_whole_logits(impl, name):
    assert wrong(1e-5, draw(17, SPAN + 33, 40), MODES[name], impl) == {}


@each
def test_two_words_by_hand(impl):
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln 2 / 2 + ln(2/3) / 2 = 0.143841, entropy ln 2, and a token of q at
    # temperature 1/2: (1/16) / (1/16 + 9/16) = 1/10.
    p, q = torch.tensor([[0.5, 0.5]], device=DEVICE).log(), torch.tensor([[0.25, 0.75]], device=DEVICE).log()
    words = (torch.eye(2, device=DEVICE), torch.tensor([0], device=DEVICE))
    exact = fused_logprob(p, *words, ref_hidden_LH=q, kl="exact", entropy=True, impl=impl)
    cold = fused_logprob(q, *words, temperature=0.5, impl=impl)
    found = [*exact, cold.logprob_L]
    assert [x.item() for x in found] == pytest.approx([-0.693147, 0.693147, 0.143841, -2.302585], abs=1e-6)


@each
def test_probabilities_of_all_words_add_up_to_one(impl):
    num_words = SPAN + 6
    case = draw(num_words, num_words, 8)
    case = case._replace(hidden_LH=case.hidden_LH[:1].expand(num_words, -1), token_L=torch.arange(num_words).to(DEVICE))
    logprob_L, entropy_L, _ = call(case, MODES["no gradient"], impl)
    assert logprob_L.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert -(logprob_L.exp() * logprob_L).sum().item() == pytest.approx(entropy_L[0].item(), abs=1e-5)


@each
@pytest.mark.parametrize("logit", [0.0, 200.0, -360.0])
def test_equal_logits_are_a_uniform_distribution(impl, logit):
    num_words = SPAN + 13
    hidden_LH, weight_VH = torch.ones(2, 1, device=DEVICE), torch.full((num_words, 1), logit, device=DEVICE)
    token_L = torch.tensor([0, num_words - 1], device=DEVICE)
    output = fused_logprob(hidden_LH, weight_VH, token_L, entropy=True, impl=impl)
    assert output.logprob_L.tolist() == pytest.approx([-math.log(num_words)] * 2, abs=1e-6 * max(1, abs(logit)))
    assert output.entropy_L.tolist() == pytest.approx([math.log(num_words)] * 2, abs=1e-6 * max(1, abs(logit)))


@each
@pytest.mark.parametrize("name", ["exact", "frozen head"])
@pytest.mark.parametrize(("scale", "offset"), [(1, 200), (1, -200), (1, -360), (20, 0), (200, 0), (1e-3, 0)])
def test_extreme_logits(impl, name, scale, offset):
    case = draw(9, SPAN + 13, scale=scale, offset=offset)
    found, right = compute(case, MODES[name], impl), exactly(case, MODES[name])
    if offset:
        # Here all words of the head are the same: the gradient is 140 to 250 times a sum that is 0, but for rounding.
        found[HIDDEN][:, 0] = right[HIDDEN][:, 0]
    largest = max(10, abs(offset), 10 * scale)  # the error of a float32 logit grows with the logit
    assert max(errors(found, right).values()) <= 1e-6 * largest, errors(found, right)


@each
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


@each
@pytest.mark.parametrize("name", ["no gradient", "frozen head", "entropy gradient", "exact"])
def test_a_nan_token_stays_alone(impl, name):
    clean, spoilt = draw(9, SPAN + 13), draw(9, SPAN + 13)
    spoilt.hidden_LH[2] = math.nan
    others = [row for row in range(9) if row != 2]
    expected, found = (compute(case, MODES[name], impl) for case in (clean, spoilt))
    assert found["logprob_L"][2].isnan()
    assert same(rows_of(found, others), rows_of(expected, others))


@each
@pytest.mark.parametrize(("ref", "dtype"), [
    ("shared", torch.float32), ("separate", torch.float32), ("separate", torch.bfloat16), ("separate", torch.float16),
], ids=str)
def test_kl_of_a_policy_that_is_its_reference_is_exactly_zero(impl, ref, dtype):
    case = draw(9, SPAN + 13).to(dtype)
    case = case._replace(ref_hidden_LH=case.hidden_LH, ref_weight_VH=case.weight_VH)
    found = compute(case, Mode((HIDDEN,), ("kl_L",), "exact", ref), impl)
    assert found["kl_L"].tolist() == [0.0] * 9
    assert found[HIDDEN].abs().max() == 0


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_changes_no_bit_of_the_score(impl, dtype):
    case = draw(17, SPAN + 13, scale=8).to(dtype)  # some of the tokens are improbable
    without, *others = (compute(case, MODES[name], impl) for name in (
        "no gradient", "frozen head", "frozen head, entropy as a value", "trained head"))
    outputs = ("logprob_L", "entropy_L") if impl == "reference" else ("logprob_L",)
    for found in others:
        assert all(torch.equal(found[name], without[name]) for name in outputs if name in found)


@each
@pytest.mark.parametrize("token", [-100, -1, SPAN + 13])
@pytest.mark.parametrize("name", ["no gradient", "frozen head", "exact"])
def test_a_token_outside_the_vocabulary_is_refused_in_one_line(impl, token, name):
    case = draw(5, SPAN + 13)
    case.token_L[2] = token
    message = f"token_L={token} must lie in [0, {SPAN + 13}); nearest valid value: 0"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compute(case, MODES[name], impl)


@pytest.mark.parametrize(("options", "message"), [
    ({"kl": "k3"}, "^kl='k3' must be one of exact; nearest valid value: exact$"),
    ({"kl": "exact"}, "^ref_hidden_LH=None must be given for kl='exact'"),
    ({"temperature": 0.0}, "^temperature=0.0 must be > 0"),
    ({"impl": "tritn"}, "^impl='tritn' must be one of .* nearest valid value: triton$"),
])
def test_unusable_values_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        fused_logprob(*draw(5, 13)[:3], **options)


@each
def test_no_tokens_are_no_error(impl):
    case = with_leaves(draw(9, 13).rows(slice(0)), MODES["trained head"])
    output = call(case, MODES["no gradient"]._replace(leaves=BOTH), impl)
    (output.logprob_L.sum() + output.entropy_L.sum()).backward()
    assert output.logprob_L.shape == (0,) and case.hidden_LH.grad.shape == (0, 24)
    assert case.weight_VH.grad.tolist() == torch.zeros(13, 24).tolist()


@each
@pytest.mark.parametrize("name", ["exact", "frozen head"])
def test_autocast_changes_no_bit(impl, name):
    case = draw(9, SPAN + 13)
    expected = compute(case, MODES[name], impl)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert same(compute(case, MODES[name], impl), expected)


@each
@pytest.mark.parametrize(("name", "stashes", "operands"), [
    ("frozen head", 1, False), ("frozen head, entropy as a value", 1, True), ("trained head", 0, True),
])
def test_what_a_call_keeps_for_its_backward(impl, name, stashes, operands):
    case = with_leaves(draw(9, SPAN + 13), MODES[name])
    output = call(case, MODES[name], impl)
    kept = {tensor.data_ptr(): tensor.shape for tensor in output.logprob_L.grad_fn.saved_tensors if tensor is not None}
    for operand in case[:2]:
        assert (kept.pop(operand.data_ptr(), None) is not None) == operands
    assert case.weight_VH.shape not in kept.values()
    assert list(kept.values()).count(case.hidden_LH.shape) == stashes


@each
@pytest.mark.parametrize("leaf", [HIDDEN, HEAD])
def test_gradients_only_where_one_is_needed(impl, leaf):
    case = with_leaves(draw(5, 40, 8), Mode((leaf,)))
    case.ref_hidden_LH.requires_grad_()
    case.ref_weight_VH.requires_grad_()
    call(case, MODES["exact, two heads"], impl).kl_L.sum().backward()
    assert [name for name, tensor in case._asdict().items() if tensor.grad is not None] == [leaf]


@each
def test_no_output_needs_a_gradient_where_no_input_does(impl):
    output = fused_logprob(*draw(5, 40, 8)[:3], impl=impl)
    assert not output.logprob_L.requires_grad and output[1:] == (None, None)


@each
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["trained head", "frozen head"])
def test_works_inside_a_checkpoint(impl, reentrant, name):
    case = with_leaves(draw(5, SPAN + 13), MODES[name])
    leaves = [getattr(case, leaf) for leaf in MODES[name].leaves]

    def plain(*rows):
        return fused_logprob(*rows, impl=impl).logprob_L

    expected = torch.autograd.grad(plain(*case[:3]).square().sum(), leaves)
    checkpoint(plain, *case[:3], use_reentrant=reentrant).square().sum().backward()
    assert all(torch.equal(leaf.grad, right) for leaf, right in zip(leaves, expected, strict=True))


@each
def test_head_may_be_freed_between_forward_and_backward_as_zero3_does(impl):
    case, mode = draw(9, SPAN + 13), MODES["trained head"]
    head = torch.nn.Parameter(case.weight_VH.clone())
    parted = with_leaves(case, STASH)._replace(weight_VH=head)
    output = call(parted, mode, impl)
    head.data = torch.empty(0, device=DEVICE)
    head.data = case.weight_VH.clone()
    kept = {tensor.data_ptr() for tensor in output.logprob_L.grad_fn.saved_tensors if tensor is not None}
    assert head.data_ptr() in kept  # the Parameter, no copy of it
    expected = compute(case, mode, impl)
    assert same(gradients(parted, mode, output), {leaf: expected[leaf] for leaf in BOTH})
