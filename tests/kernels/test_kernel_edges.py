"""kernels.fused_logprob on the CPU at its edges: extreme logits, and what it refuses."""

import math

import pytest
import torch
from kernel_cases import H, L, V, eager, fused, inputs

from kernels import choose, fused_logprob, reference


@pytest.fixture(autouse=True)
def tiles_of_four_words(monkeypatch):
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4 * L)


@pytest.mark.parametrize("scale", [1e-3, 50.0, 200.0])
def test_extreme_logits_are_right_in_float32(scale):
    hidden_LH, weight_VH, *rest = inputs()
    given = [(hidden_LH * scale).detach().requires_grad_(), weight_VH, *rest]
    single = [tensor.float() if tensor.is_floating_point() else tensor for tensor in given]
    for name in ("logprob", "entropy", "exact"):
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


def test_no_tokens_are_no_error():
    hidden_LH = torch.zeros(0, H, requires_grad=True)
    output = fused_logprob(hidden_LH, torch.ones(V, H), torch.zeros(0, dtype=torch.int64), entropy=True)
    (output.logprob_L.sum() + output.entropy_L.sum()).backward()
    assert output.logprob_L.shape == (0,) and hidden_LH.grad.shape == (0, H)


@pytest.mark.parametrize(("options", "message"), [
    ({"kl": "k3"}, "^kl='k3' must be one of exact; nearest valid value: exact$"),
    ({"kl": "exact"}, "^ref_hidden_LH=None must be given for kl='exact'"),
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
