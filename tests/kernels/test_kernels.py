"""kernels.fused_logprob on the CPU against float64 log_softmax over whole logits, and gradcheck; tiles of 4 words."""

import math

import pytest
import torch
from kernel_cases import OUTPUTS, H, L, Shapes, V, eager, fused, gradients, inputs

from kernels import fused_logprob, reference


@pytest.fixture(autouse=True)
def tiles_of_four_words(monkeypatch):
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4 * L)


@pytest.mark.parametrize("name", OUTPUTS)
def test_gradcheck_with_respect_to_hidden_and_weight(name):
    hidden_LH, weight_VH, *rest = inputs()
    assert torch.autograd.gradcheck(lambda h, w: fused(name, h, w, *rest, temperature=0.7), (hidden_LH, weight_VH))


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_those_of_whole_logits(name, temperature):
    given = inputs()
    ours, theirs = (function(name, *given, temperature=temperature) for function in (fused, eager))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients(ours, *given[:2]), gradients(theirs, *given[:2]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("elements", [1, 5 * L, (V - 1) * L, V * L, 10**6])
def test_tile_size_changes_nothing(name, elements, monkeypatch):
    given = inputs()
    monkeypatch.setattr(reference, "TILE_ELEMENTS", elements)
    ours = fused(name, *given)
    expected = eager(name, *given)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients(ours, *given[:2]), gradients(expected, *given[:2]), rtol=1e-12, atol=1e-13)


def test_all_outputs_of_one_call_share_their_gradients():
    hidden_LH, weight_VH, token_L, *ref = given = inputs()
    output = fused_logprob(hidden_LH, weight_VH, token_L, ref_hidden_LH=ref[0], ref_weight_VH=ref[1], kl="exact",
                           entropy=True)
    ours = output.logprob_L + 2 * output.entropy_L + 3 * output.kl_L
    theirs = eager("logprob", *given) + 2 * eager("entropy", *given) + 3 * eager("exact", *given)
    torch.testing.assert_close(gradients(ours, *given[:2]), gradients(theirs, *given[:2]), rtol=1e-12, atol=1e-13)


def test_two_words_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln 2 / 2 + ln(2/3) / 2 = 0.143841, entropy ln 2, and a token of q at
    # temperature 1/2: (1/16) / (1/16 + 9/16) = 1/10.
    p, q, identity = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log(), torch.eye(2)
    token_L = torch.tensor([0])
    exact = fused_logprob(p, identity, token_L, ref_hidden_LH=q, kl="exact", entropy=True)
    cold = fused_logprob(q, identity, token_L, temperature=0.5)
    found = torch.cat([exact.logprob_L, exact.entropy_L, exact.kl_L, cold.logprob_L])
    expected = torch.tensor([-0.693147, 0.693147, 0.143841, -2.302585])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kl_of_a_policy_that_is_its_reference_is_exactly_zero(dtype):
    hidden_LH, weight_VH, token_L, *_ = inputs(dtype=dtype)
    ref = {"ref_hidden_LH": hidden_LH.detach().clone(), "ref_weight_VH": weight_VH.detach().clone()}
    kl_L = fused_logprob(hidden_LH, weight_VH, token_L, kl="exact", **ref).kl_L
    assert kl_L.tolist() == [0.0] * L
    assert torch.autograd.grad(kl_L.sum(), hidden_LH)[0].abs().max() == 0


def test_reference_weight_defaults_to_the_policys():
    hidden_LH, weight_VH, token_L, ref_hidden_LH, _ = inputs()
    ours = fused_logprob(hidden_LH, weight_VH, token_L, kl="exact", ref_hidden_LH=ref_hidden_LH).kl_L
    theirs = eager("exact", hidden_LH, weight_VH, token_L, ref_hidden_LH, weight_VH.detach())
    torch.testing.assert_close(gradients(ours, weight_VH), gradients(theirs, weight_VH), rtol=1e-12, atol=1e-13)


def test_a_kl_of_a_millionth_is_right_in_float32():
    hidden_LH, weight_VH, token_L, *_ = given = inputs(words=301)
    near_LH = hidden_LH.detach() * (1 - 5e-4)
    truth_L = eager("exact", *given[:3], near_LH, weight_VH)
    hidden_LH, weight_VH, near_LH = hidden_LH.float(), weight_VH.float(), near_LH.float()
    kl_L = fused_logprob(hidden_LH, weight_VH, token_L, kl="exact", ref_hidden_LH=near_LH).kl_L
    assert truth_L.max() < 3e-6
    torch.testing.assert_close(kl_L.double(), truth_L, rtol=0, atol=5e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OUTPUTS)
def test_half_precision_inputs_are_computed_in_float32(name, dtype):
    half, full = inputs(dtype=dtype), inputs(dtype=dtype)
    full = [tensor.detach().float().requires_grad_() if tensor.is_floating_point() else tensor for tensor in full]
    ours, expected = fused(name, *half), fused(name, *full)
    assert ours.dtype == torch.float32 and torch.equal(ours, expected)
    for found, exact in zip(gradients(ours, *half[:2]), gradients(expected, *full[:2])):
        assert found.dtype == dtype and torch.equal(found, exact.to(dtype))


def test_autocast_does_not_round_the_logits():
    given = inputs(dtype=torch.float32)
    expected = fused("entropy", *given)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fused("entropy", *given)
        found = gradients(inside, *given[:2])
    assert torch.equal(inside, expected)
    torch.testing.assert_close(found, gradients(expected, *given[:2]), rtol=0, atol=0)


def test_no_tensor_of_all_logits_is_made_or_saved():
    num_tokens, num_words = 64, 1000
    given = inputs(length=num_tokens, words=num_words)
    reference.TILE_ELEMENTS = 4096  # the fixture restores it
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    hidden_LH, weight_VH, token_L, *ref = given
    with Shapes() as shapes, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = fused_logprob(hidden_LH, weight_VH, token_L, ref_hidden_LH=ref[0], ref_weight_VH=ref[1], kl="exact",
                               entropy=True)
        (output.logprob_L + output.entropy_L + output.kl_L).sum().backward()
    largest_input = num_words * H
    largest_made = max(math.prod(shape) for shape in shapes.seen)
    assert largest_made == max(saved) == largest_input  # 5,000, where all logits are 64,000
    assert sum(saved) <= 2 * (num_words + num_tokens) * H + 6 * num_tokens


def test_frozen_head_costs_no_gradient_of_its_size():
    hidden_LH, weight_VH, token_L, *_ = inputs(words=1000)
    for head, made in ((weight_VH, True), (weight_VH.detach(), False)):
        with Shapes() as shapes:
            fused_logprob(hidden_LH, head, token_L).logprob_L.sum().backward()
        assert ((1000, H) in shapes.seen) == made


def test_gradients_only_where_one_is_needed():
    hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH = inputs()
    ref_hidden_LH.requires_grad_()
    ref_weight_VH.requires_grad_()
    frozen = weight_VH.detach()
    ref = {"ref_hidden_LH": ref_hidden_LH, "ref_weight_VH": ref_weight_VH, "kl": "exact"}
    fused_logprob(hidden_LH, frozen, token_L, **ref).kl_L.sum().backward()
    assert hidden_LH.grad is not None and frozen.grad is None
    assert ref_hidden_LH.grad is None and ref_weight_VH.grad is None
    fused_logprob(hidden_LH.detach(), weight_VH, token_L).logprob_L.sum().backward()
    assert weight_VH.grad is not None
    output = fused_logprob(hidden_LH.detach(), frozen, token_L)
    assert not output.logprob_L.requires_grad and output[1:] == (None, None)


def test_head_may_be_freed_between_forward_and_backward_as_zero3_does():
    hidden_LH, weight_VH, token_L, *_ = inputs()
    expected = gradients(fused_logprob(hidden_LH, weight_VH, token_L).logprob_L, hidden_LH, weight_VH)
    head = torch.nn.Parameter(weight_VH.detach().clone())
    logprob_L = fused_logprob(hidden_LH, head, token_L).logprob_L
    head.data = torch.empty(0, dtype=torch.float64)
    head.data = weight_VH.detach().clone()
    assert logprob_L.grad_fn.saved_tensors[1].data_ptr() == head.data_ptr()  # the Parameter, no copy of it
    torch.testing.assert_close(gradients(logprob_L, hidden_LH, head), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_frozen_heads_gradient_is_stashed_and_nothing_else_is_kept(dtype):
    hidden_LH, weight_VH, token_L, *_ = inputs(dtype=dtype)
    frozen_VH = weight_VH.detach()
    logprob_L = fused_logprob(hidden_LH, frozen_VH, token_L, temperature=0.7).logprob_L
    kept = [tensor.shape for tensor in logprob_L.grad_fn.saved_tensors if tensor is not None]
    assert (V, H) not in kept and kept.count((L, H)) == 1
    expected = gradients(fused_logprob(hidden_LH, weight_VH, token_L, temperature=0.7).logprob_L, hidden_LH)[0]
    tolerance = 1e-13 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(gradients(logprob_L, hidden_LH)[0], expected, rtol=tolerance, atol=tolerance)


def test_an_entropy_beside_a_stash_brings_its_own_gradient():
    hidden_LH, weight_VH, token_L, *_ = given = inputs()
    output = fused_logprob(hidden_LH, weight_VH.detach(), token_L, temperature=0.7, entropy=True)
    expected_L = eager("logprob", *given, temperature=0.7) + 2 * eager("entropy", *given, temperature=0.7)
    found = gradients(output.logprob_L + 2 * output.entropy_L, hidden_LH)
    torch.testing.assert_close(found, gradients(expected_L, hidden_LH), rtol=1e-12, atol=1e-13)


def test_scores_with_and_without_gradient_are_the_same_bits():
    hidden_LH, weight_VH, token_L, *_ = inputs(dtype=torch.float32, words=301)
    with torch.no_grad():
        plain = fused_logprob(hidden_LH, weight_VH, token_L, entropy=True)
    for head_VH in (weight_VH, weight_VH.detach()):
        output = fused_logprob(hidden_LH, head_VH, token_L, entropy=True)
        assert torch.equal(output.logprob_L, plain.logprob_L) and torch.equal(output.entropy_L, plain.entropy_L)
