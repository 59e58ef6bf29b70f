"""kernels.fused_logprob against float64 log_softmax over whole logits, and gradcheck; 5 seconds on one core.

Sizes are ragged on purpose: 7 tokens, 13 words, 5 hidden, tiles of 4 words.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import choose, fused_logprob, reference

L, V, H = 7, 13, 5
OUTPUTS = ["logprob", "entropy", "k1", "k2", "k3", "k3_unbiased", "exact", "reverse"]


@pytest.fixture(autouse=True)
def tiles_of_four_words(monkeypatch):
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4 * L)


def inputs(*, dtype=torch.float64, length=L, words=V, seed=0):
    """hidden_LH and weight_VH that need gradients, token_L with duplicates and both ends, and a reference."""
    generator = torch.Generator().manual_seed(seed)
    hidden_LH, ref_hidden_LH = torch.randn(2, length, H, generator=generator, dtype=torch.float64).to(dtype)
    weight_VH, ref_weight_VH = torch.randn(2, words, H, generator=generator, dtype=torch.float64).to(dtype)
    token_L = torch.randint(words, (length,), generator=generator)
    token_L[:4] = torch.tensor([0, words - 1, words - 1, words // 2])
    return hidden_LH.requires_grad_(), weight_VH.requires_grad_(), token_L, ref_hidden_LH, ref_weight_VH


def fused(name, hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, **options):
    """One output by name."""
    if name == "logprob":
        return fused_logprob(hidden_LH, weight_VH, token_L, **options).logprob_L
    if name == "entropy":
        return fused_logprob(hidden_LH, weight_VH, token_L, entropy=True, **options).entropy_L
    if name in ("exact", "reverse"):
        ref = {"ref_hidden_LH": ref_hidden_LH, "ref_weight_VH": ref_weight_VH}
    else:
        ref = {"ref_logprob_L": fused_logprob(ref_hidden_LH, ref_weight_VH, token_L, **options).logprob_L}
    return fused_logprob(hidden_LH, weight_VH, token_L, kl=name, **ref, **options).kl_L


def eager(name, hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, *, temperature=1.0):
    """The same from whole logits."""
    logp_LV = (hidden_LH @ weight_VH.T / temperature).log_softmax(dim=1)
    logq_LV = (ref_hidden_LH @ ref_weight_VH.T / temperature).log_softmax(dim=1)
    logprob_L = logp_LV.gather(1, token_L[:, None])[:, 0]
    d_L = logprob_L - logq_LV.gather(1, token_L[:, None])[:, 0]
    return {
        "logprob": logprob_L,
        "entropy": -(logp_LV.exp() * logp_LV).sum(dim=1),
        "exact": (logp_LV.exp() * (logp_LV - logq_LV)).sum(dim=1),
        "reverse": (logq_LV.exp() * (logq_LV - logp_LV)).sum(dim=1),
        "k1": d_L,
        "k2": d_L ** 2 / 2,
        "k3": (-d_L).exp() - 1 + d_L,
        "k3_unbiased": d_L ** 2 / 2 + ((-d_L).exp() - 1 + d_L - d_L ** 2 / 2).detach(),
    }[name]


def gradients(output_L, *tensors):
    """Gradients of a weighed sum, so that every row has another upstream gradient, one of them 0."""
    weight_L = torch.arange(len(output_L), dtype=output_L.dtype) - 2
    return torch.autograd.grad((output_L * weight_L).sum(), tensors)


class Shapes(TorchDispatchMode):
    """Collects the shape of every tensor an operation makes, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        self.seen |= {tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)}
        return result


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "k3_unbiased"])
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
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln 2 / 2 + ln(2/3) / 2 = 0.143841,
    # KL(q||p) = ln(1/2) / 4 + 3 ln(3/2) / 4 = 0.130812, entropy ln 2, and a token of q at temperature 1/2:
    # (1/16) / (1/16 + 9/16) = 1/10.
    p, q, identity = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log(), torch.eye(2)
    token_L = torch.tensor([0])
    exact = fused_logprob(p, identity, token_L, ref_hidden_LH=q, kl="exact", entropy=True)
    reverse = fused_logprob(p, identity, token_L, ref_hidden_LH=q, kl="reverse")
    cold = fused_logprob(q, identity, token_L, temperature=0.5)
    found = torch.cat([exact.logprob_L, exact.entropy_L, exact.kl_L, reverse.kl_L, cold.logprob_L])
    expected = torch.tensor([-0.693147, 0.693147, 0.143841, 0.130812, -2.302585])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kl", ["exact", "reverse", "k1", "k2", "k3", "k3_unbiased"])
def test_kl_of_a_policy_that_is_its_reference_is_exactly_zero(dtype, kl):
    hidden_LH, weight_VH, token_L, *_ = inputs(dtype=dtype)
    ref_logprob_L = fused_logprob(hidden_LH, weight_VH, token_L).logprob_L
    ref = {"ref_hidden_LH": hidden_LH.detach().clone(), "ref_weight_VH": weight_VH.detach().clone()}
    kl_L = fused_logprob(hidden_LH, weight_VH, token_L, kl=kl, ref_logprob_L=ref_logprob_L, **ref).kl_L
    assert kl_L.tolist() == [0.0] * L
    if kl != "k1":
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
    ({"impl": "triton"}, "^impl='triton' cannot run: .* nearest valid value: reference$"),
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
