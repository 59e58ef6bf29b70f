"""What only the reference promises: float64, any tile size, and no tensor of the size of the logits."""

import math

import kernel_cases
import pytest
import torch
from kernel_cases import ALL, BOTH, MODES, Mode, Shapes, call, compute, draw, exactly, with_leaves, wrong

from kernels import fused_logprob

L, V, H = 7, 13, 5


@pytest.fixture(autouse=True)
def tiles_of_four_words(monkeypatch):
    kernel_cases.shrink(monkeypatch)


@pytest.mark.parametrize(("output", "mode"), [
    ("logprob_L", Mode(BOTH)), ("entropy_L", Mode(BOTH, entropy=True)), ("kl_L", Mode(BOTH, (), "exact", "separate"))])
def test_gradcheck_with_respect_to_hidden_and_weight(output, mode):
    hidden_LH, weight_VH, *rest = with_leaves(draw(L, V, H).to(torch.float64), mode)

    def function(*leaves):
        return getattr(call(kernel_cases.Case(*leaves, *rest), mode, "reference"), output)

    assert torch.autograd.gradcheck(function, (hidden_LH, weight_VH))


@pytest.mark.parametrize("name", MODES)
def test_float64_values_and_gradients_equal_those_of_whole_logits(name):
    assert wrong(1e-12, draw(9, 40).to(torch.float64), MODES[name], "reference") == {}


@pytest.mark.parametrize("elements", [1, 5 * L, (V - 1) * L, V * L, 10**6])
def test_tile_size_changes_nothing(elements, monkeypatch):
    monkeypatch.setattr("kernels.reference.TILE_ELEMENTS", elements)
    case = draw(L, V, H).to(torch.float64)
    for name in ("exact", "frozen head"):
        assert wrong(1e-12, case, MODES[name], "reference") == {}


def test_a_kl_of_a_millionth_is_right_in_float32():
    case = draw(L, 301, H)
    case = case._replace(ref_hidden_LH=case.hidden_LH * (1 - 5e-4))
    mode = Mode((), (), "exact", "shared")
    assert exactly(case, mode)["kl_L"].max() < 3e-6
    assert wrong(5e-8, case, mode, "reference").keys() <= {"logprob_L"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["exact", "frozen head"])
def test_half_precision_gives_the_bits_of_float32_and_rounded_gradients(name, dtype):
    half = draw(9, 40).to(dtype)
    found, full = (compute(case, MODES[name], "reference") for case in (half, half.to(torch.float32)))
    for output, tensor in found.items():
        assert tensor.dtype == (dtype if output in BOTH else torch.float32)
        assert torch.equal(tensor, full[output].to(tensor.dtype)), output


def test_no_tensor_of_all_logits_is_made_or_saved(monkeypatch):
    monkeypatch.setattr("kernels.reference.TILE_ELEMENTS", 4096)
    num_tokens, num_words, saved = 64, 1000, []
    mode = Mode(BOTH, ALL, "exact", "separate", entropy=True)
    case = with_leaves(draw(num_tokens, num_words, H), mode)

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with Shapes() as shapes, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sum(call(case, mode, "reference")).sum().backward()
    largest_made = max(math.prod(shape) for shape in shapes.seen)
    assert largest_made == max(saved) == num_words * H  # 5,000, where all logits are 64,000
    assert sum(saved) <= 2 * (num_words + num_tokens) * H + 6 * num_tokens


def test_frozen_head_costs_no_gradient_of_its_size():
    for name, made in (("trained head", True), ("frozen head", False)):
        case = with_leaves(draw(L, 1000, H), MODES[name])
        with Shapes() as shapes:
            fused_logprob(*case[:3]).logprob_L.sum().backward()
        assert ((1000, H) in shapes.seen) == made
