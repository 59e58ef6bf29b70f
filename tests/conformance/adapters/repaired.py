"""The repaired forms of the mistakes in bugs.py: `repaired.py:NAME` is `bugs.py:NAME` without the mistake.

Our words and our code. Each is as small as its mistake needs, so most claims are not offered.
"""

import torch
import torch.distributed as dist

EPSILON = 0.2


class ClipOfWholeCompletions:
    """The ratio of each token is clipped, as in equation 3 of arXiv 2402.03300."""

    @staticmethod
    def loss(
        logprob: torch.Tensor, old_logprob: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor,
        ref_logprob: torch.Tensor,
    ) -> torch.Tensor:
        ratio = torch.where(mask, logprob - old_logprob, 0.0).clamp(-20, 20).exp()
        gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage[:, None])
        return -torch.where(mask, gain, 0.0).sum() / mask.sum().clamp(min=1)


class NegatedTwice(ClipOfWholeCompletions):
    """The loss is negated once."""


class ComparedAcrossPrompts:
    """Mean and standard deviation are those of a prompt's completions."""

    @staticmethod
    def advantages(rewards: torch.Tensor) -> torch.Tensor:
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        flat = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
        std = centred.square().mean(dim=1, keepdim=True).sqrt()
        return torch.where(flat, 0.0, centred / (std + 1e-4)).nan_to_num()


class NeverReduced:
    """Each process adds up its part of the sum, over the tokens of all; then gradients are added up over processes."""

    @staticmethod
    def rank_gradient(
        weight: torch.Tensor, tokens: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        num_tokens = mask.sum()
        dist.all_reduce(num_tokens)
        gain = weight.log_softmax(dim=0)[tokens] * advantage[:, None]  # the gradient on policy
        (-torch.where(mask, gain, 0.0).sum() / num_tokens).backward()
        dist.all_reduce(weight.grad)
        return weight.grad


class StdOfTheOthers:
    """Each reward against the mean of the others, over the standard deviation of the whole group.

    NeMo-RL's own repair divides by that of the others, and not where they are all equal. Its advantages are bounded,
    too, but do not add up to 0.
    """

    @staticmethod
    def advantages(rewards: torch.Tensor) -> torch.Tensor:
        num_others = max(rewards.shape[1] - 1, 1)
        centred = rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / num_others
        flat = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
        std = (rewards - rewards.mean(dim=1, keepdim=True)).square().mean(dim=1, keepdim=True).sqrt()
        return torch.where(flat, 0.0, centred / (std + 1e-6))


class NegativeKL:
    """k3 with expm1, which keeps the digits of small differences."""

    @staticmethod
    def kl(logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        d = (logprob - ref_logprob).clamp(-20, 20)
        return torch.expm1(-d) + d


class AnotherDivergence(NegativeKL):
    """k3 of Schulman: the inverse ratio, exp(-d), in the first term."""
