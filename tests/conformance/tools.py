"""What claims are checked with: comparisons that say what was found, and the loss of a few tokens taken apart.

The loss of GRPO is a weighted sum over tokens. How it is weighted (mean over tokens, over completions, a constant) is a
convention, so claims about ratio and clip are in units of a token's weight, which is measured: on policy, with
advantage 1, the gradient of a token's log-probability is minus its weight.
"""

import functools
from typing import NamedTuple

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, Wrong


def words(tensor: torch.Tensor) -> str:
    """Numbers in four digits, at most eight of them."""
    values = [f"{value:.4g}" for value in tensor.detach().double().flatten()[:8].tolist()]
    more = ", ..." if tensor.numel() > 8 else ""
    return values[0] if tensor.numel() == 1 else f"({', '.join(values)}{more})"


def expect(found: torch.Tensor, expected: torch.Tensor | list | float, tolerance: float, what: str = "") -> None:
    """Refuse what is further from `expected` than the tolerance, absolute and relative to 1, or not finite."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    what = what and f"{what}: "
    if found.shape != expected.shape:
        raise Wrong(f"{what}found shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    apart = (found.detach().double() - expected).abs()
    if not bool((apart <= tolerance * expected.abs().clamp(min=1)).all()):  # False for NaN
        raise Wrong(f"{what}found {words(found)}, expected {words(expected)}")


def expect_finite(found: torch.Tensor, what: str) -> None:
    if not found.isfinite().all():
        raise Wrong(f"{what}: found {words(found)}, expected finite numbers")


class Part(NamedTuple):
    """A loss, 0-d, and its gradient to the log-probabilities, [N, T]."""

    value: torch.Tensor
    grad_NT: torch.Tensor


def whole_loss(
    adapter: Adapter, logprob_NT: torch.Tensor, old_NT: torch.Tensor, advantage_N: torch.Tensor,
    mask_NT: torch.Tensor | None = None, ref_NT: torch.Tensor | None = None,
) -> Part:
    """The adapter's loss and its gradient; without a reference of its own it is the policy, so that the KL is 0."""
    logprob_NT = logprob_NT.detach().clone().requires_grad_()
    mask_NT = torch.ones_like(logprob_NT, dtype=torch.bool) if mask_NT is None else mask_NT
    ref_NT = logprob_NT.detach().clone() if ref_NT is None else ref_NT
    loss = adapter.loss(logprob_NT, old_NT.clone(), advantage_N.clone(), mask_NT.clone(), ref_NT)
    if loss.shape != ():
        raise Wrong(f"found a loss of shape {tuple(loss.shape)}, expected one number")
    return Part(loss.detach(), gradient(loss, logprob_NT))


def gradient(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """d value / d leaf, zeros where there is no path."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    grad, = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad


def policy_part(
    adapter: Adapter, log_ratio_NT: torch.Tensor, advantage_N: torch.Tensor, mask_NT: torch.Tensor | None = None
) -> Part:
    """What the advantages contribute: the loss less the loss at advantages 0, in which only a KL is left."""
    old_NT = torch.full_like(log_ratio_NT, -1.0)
    one, zero = (whole_loss(adapter, old_NT + log_ratio_NT, old_NT, advantage, mask_NT)
                 for advantage in (advantage_N, torch.zeros_like(advantage_N)))
    return Part(one.value - zero.value, one.grad_NT - zero.grad_NT)


@functools.cache
def unit(adapter: Adapter) -> float:
    """The weight of the only token of a batch."""
    weight = abs(policy_part(adapter, torch.zeros(1, 1), torch.ones(1)).grad_NT.item())
    if not 1e-9 < weight < 1e9:
        raise Wrong(f"on policy, with advantage 1: found gradient {weight:.4g} for the only token, expected one")
    return weight


def one_token(adapter: Adapter, ratio: float, advantage: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient of a batch of one token with this ratio of new to old probability, in units of its weight."""
    part = policy_part(adapter, torch.tensor([[ratio]]).log(), torch.tensor([advantage]))
    return part.value / unit(adapter), part.grad_NT[0, 0] / unit(adapter)


def weights(adapter: Adapter, mask_NT: torch.Tensor, advantage_N: torch.Tensor | None = None) -> torch.Tensor:
    """[N, T] the weight of each token: minus the gradient on policy, over the advantage."""
    advantage_N = torch.ones(len(mask_NT)) if advantage_N is None else advantage_N
    part = policy_part(adapter, torch.zeros(mask_NT.shape), advantage_N, mask_NT)
    return -part.grad_NT / advantage_N[:, None]


@functools.cache
def ratio_kind(adapter: Adapter) -> str:
    """What is clipped: the ratio of a token, the geometric mean of a completion's, their product, or something else."""
    log_ratio = torch.tensor([[1.15, 0.9]]).log()
    part, on_policy = (policy_part(adapter, one, torch.ones(1)) for one in (log_ratio, torch.zeros(1, 2)))
    relative = (part.grad_NT / on_policy.grad_NT)[0]
    if torch.allclose(relative, log_ratio[0].exp(), atol=1e-3):
        return "of each token"
    ratio = (part.value / on_policy.value).item()
    for name, log in (("the mean over a completion (GSPO)", log_ratio.mean()), ("the product over a completion",
                                                                                log_ratio.sum())):
        if abs(ratio - log.exp().item()) < 1e-3:
            return name
    return f"another: gradients {words(relative)} of those on policy"


def needs_ratio_of_tokens(adapter: Adapter) -> None:
    if (kind := ratio_kind(adapter)) != "of each token":
        raise NotOffered(f"the ratio is not that of a token but {kind}")


def needs_penalty(adapter: Adapter) -> None:
    if not adapter.beta:
        raise NotOffered("BETA is 0: the loss has no KL")
