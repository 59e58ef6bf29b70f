"""kernels.fused_logprob on the CPU at its edges: extreme logits, rows that do not count, and what it refuses."""

import math

import pytest
import torch

from kernel_cases import H, Shapes, V, eager, fused, gradients, inputs, L
from kernels import choose, fused_logprob, reference


@pytest.fixture(autouse=True)
def tiles_of_four_words(monkeypatch):
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4 * L)


@pytest.mark.parametrize("scale", [1e-3, 50.0, 200.0])
def test_extreme_logits_are_right_in_float32(scale):
    hidden_LH, weight_VH, *rest = inputs()
    given = [(hidden_LH * scale).detach().requires_grad_(), weight_VH, *rest]
    single = [tensor.float() if tensor.is_floating_point() else tensor for tensor in given]
    for name in ("logprob", "entropy", "exact", "reverse"):
        torch.testing.assert_close(fused(name, *single).double(), eager(name, *given), rtol=1e-5, atol=1e-4)


def test_equal_very_low_logits_are_a_uniform_distribution():
    hidden_LH, weight_VH = torch.ones(2, 1, requires_grad=True), torch.full((V, 1), -360.0)
    output = fused_logprob(hidden_LH, weight_VH, torch.tensor([0, V - 1]), entropy=True)
    torch.testing.assert_close(output.logprob_L, torch.full((2,), -math.log(V)))
    torch.testing.assert_close(output.entropy_L, torch.full((2,), math.log(V)))


def test_a_word_of_probability_zero_makes_no_nan():
    # Logits (0, 0, -inf): two words of 1/2, and gradients as if the third were not there.
    hidden_LH = torch.tensor([[1e30, 0.0]], requires_grad=True)
    weight_VH = torch.tensor([[0.0, 1.0], [0.0, -1.0], [-1e30, 0.0]])
    ref = {"ref_hidden_LH": hidden_LH.detach(), "kl": "exact"}
    output = fused_logprob(hidden_LH, weight_VH, torch.tensor([0]), entropy=True, **ref)
    assert output.logprob_L.item() == pytest.approx(-math.log(2)) and output.kl_L.item() == 0.0
    assert output.entropy_L.item() == pytest.approx(math.log(2))
    grad_LH = torch.autograd.grad(output.logprob_L + output.entropy_L + output.kl_L, hidden_LH)[0]
    assert grad_LH.tolist() == [[0.0, 1.0]]  # W_y - sum p W = (0, 1) - 0


def test_a_nan_row_stays_in_its_row():
    hidden_LH, weight_VH, token_L, *ref = inputs()
    spoilt_LH = hidden_LH.detach().clone()
    spoilt_LH[2] = math.nan
    clean_L, found_L = (fused("exact", x, weight_VH, token_L, *ref) for x in (hidden_LH, spoilt_LH))
    assert found_L[2].isnan()
    assert torch.equal(found_L[[0, 1, 3, 4, 5, 6]], clean_L[[0, 1, 3, 4, 5, 6]])


@pytest.mark.parametrize("kl", ["exact", "k3"])
def test_rows_outside_the_mask_are_never_multiplied_and_give_exactly_zero(kl):
    hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH = inputs()
    mask_L = torch.tensor([True, False, True, True, False, False, True])
    spoilt_LH = torch.where(mask_L[:, None], hidden_LH, math.nan).detach().requires_grad_()
    token_L = torch.where(mask_L, token_L, -100)
    ref = {"ref_hidden_LH": ref_hidden_LH, "ref_weight_VH": ref_weight_VH, "kl": kl, "entropy": True}
    with Shapes() as shapes:
        output = fused_logprob(spoilt_LH, weight_VH, token_L, mask_L=mask_L, **ref)
        grads = torch.autograd.grad(sum(x.sum() for x in output), (spoilt_LH, weight_VH))
    assert (7, 4) not in shapes.seen and (4, 3) in shapes.seen  # of 13 words the last 3, for 4 rows instead of 7
    few_KH = hidden_LH.detach()[mask_L].requires_grad_()
    expected = fused_logprob(few_KH, weight_VH, token_L[mask_L], **ref | {"ref_hidden_LH": ref_hidden_LH[mask_L]})
    expected_grads = torch.autograd.grad(sum(x.sum() for x in expected), (few_KH, weight_VH))
    for found_L, expected_K in zip(output, expected):
        assert torch.equal(found_L[mask_L], expected_K) and found_L[~mask_L].tolist() == [0.0] * 3
    assert torch.equal(grads[0][mask_L], expected_grads[0]) and not grads[0][~mask_L].any()
    assert torch.equal(grads[1], expected_grads[1])


def test_a_mask_of_nothing_is_no_error():
    hidden_LH, weight_VH, token_L, *_ = inputs()
    output = fused_logprob(hidden_LH, weight_VH, token_L, mask_L=torch.zeros(L, dtype=torch.bool), entropy=True)
    (output.logprob_L.sum() + output.entropy_L.sum()).backward()
    assert not output.logprob_L.any() and not hidden_LH.grad.any() and not weight_VH.grad.any()


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3_unbiased"])
@pytest.mark.parametrize("separate_head", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_estimates_take_the_references_rows_in_place_of_its_logprobs(kl, separate_head, grad):
    hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH = inputs()
    given = {"ref_hidden_LH": ref_hidden_LH, "ref_weight_VH": ref_weight_VH if separate_head else None}
    with torch.set_grad_enabled(grad):
        output = fused_logprob(hidden_LH, weight_VH, token_L, kl=kl, entropy=True, **given)
    ref = (ref_hidden_LH, ref_weight_VH if separate_head else weight_VH.detach())
    expected = eager(kl, hidden_LH, weight_VH, token_L, *ref)
    torch.testing.assert_close(output.kl_L, expected, rtol=1e-12, atol=1e-13)
    assert len(output.logprob_L) == len(output.entropy_L) == L
    if grad:
        found = gradients(output.kl_L, hidden_LH, weight_VH)
        torch.testing.assert_close(found, gradients(expected, hidden_LH, weight_VH), rtol=1e-12, atol=1e-13)


def test_no_tokens_are_no_error():
    hidden_LH = torch.zeros(0, H, requires_grad=True)
    output = fused_logprob(hidden_LH, torch.ones(V, H), torch.zeros(0, dtype=torch.int64), entropy=True)
    (output.logprob_L.sum() + output.entropy_L.sum()).backward()
    assert output.logprob_L.shape == (0,) and hidden_LH.grad.shape == (0, H)


@pytest.mark.parametrize(("options", "message"), [
    ({"kl": "k4"}, "^kl='k4' must be one of k1, .*reverse; nearest valid value: k"),
    ({"kl": "exact"}, "^ref_hidden_LH=None must be given for kl='exact'"),
    ({"kl": "k3"}, "^ref_logprob_L=None must be given for kl='k3'"),
    ({"temperature": 0.0}, "^temperature=0.0 must be > 0"),
    ({"impl": "tritn"}, "^impl='tritn' must be one of .* nearest valid value: triton$"),
    ({"token_L": torch.full((L,), -100)}, r"^token_L=-100 must lie in \[0, 13\)"),
    ({"token_L": torch.full((L,), V)}, r"^token_L=13 must lie in \[0, 13\)"),
])
def test_unusable_values_are_refused_in_one_line(options, message):
    hidden_LH, weight_VH, token_L, *_ = inputs()
    with pytest.raises(ValueError, match=message):
        fused_logprob(hidden_LH, weight_VH, **{"token_L": token_L, **options})


def test_choice_comes_with_its_reason():
    sizes = {"dtype": torch.float32, "hidden_size": H, "num_tokens": L}
    assert choose("reference", "cpu", **sizes) == ("reference", "asked for")
    assert choose("auto", "cpu", **sizes) == ("reference", "PyTorch in tiles, on the CPU")
