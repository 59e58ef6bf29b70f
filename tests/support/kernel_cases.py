"""Inputs and right answers for the tests of `kernels.fused_logprob`: 7 tokens, 13 words, 5 hidden units."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import fused_logprob

L, V, H = 7, 13, 5
OUTPUTS = ["logprob", "entropy", "exact"]


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
    ref = {"ref_hidden_LH": ref_hidden_LH, "ref_weight_VH": ref_weight_VH}
    return fused_logprob(hidden_LH, weight_VH, token_L, kl=name, **ref, **options).kl_L


def eager(name, hidden_LH, weight_VH, token_L, ref_hidden_LH, ref_weight_VH, *, temperature=1.0):
    """The same from whole logits."""
    logp_LV = (hidden_LH @ weight_VH.T / temperature).log_softmax(dim=1)
    logq_LV = (ref_hidden_LH @ ref_weight_VH.T / temperature).log_softmax(dim=1)
    return {
        "logprob": logp_LV.gather(1, token_L[:, None])[:, 0],
        "entropy": -(logp_LV.exp() * logp_LV).sum(dim=1),
        "exact": (logp_LV.exp() * (logp_LV - logq_LV)).sum(dim=1),
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
