"""Public mistakes, made again from their descriptions: `bugs.py:NAME`. repaired.py has the right form of each.

Our words and our code. CAUGHT_BY says which claims fail, the one that is meant for the mistake first: the others are
its consequences.
"""

import torch
import torch.distributed as dist

EPSILON = 0.2


class ClipOfWholeCompletions:
    """rasbt/reasoning-from-scratch issue 243: one ratio for a completion, of the product of its probabilities."""

    CAUGHT_BY = ("what the ratio is of", "a long completion", "value and gradient agree")

    @staticmethod
    def loss(
        logprob: torch.Tensor, old_logprob: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor,
        ref_logprob: torch.Tensor,
    ) -> torch.Tensor:
        log_ratio = torch.where(mask, logprob - old_logprob, 0.0).sum(dim=1)
        ratio = log_ratio.clamp(-20, 20).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage)
        counts = mask.any(dim=1)
        return -torch.where(counts, gain, 0.0).sum() / counts.sum().clamp(min=1)


class NegatedTwice:
    """fla-org/flash-linear-attention issue 1073: the tokens' losses are negated, and their sum again."""

    CAUGHT_BY = ("the sign", "value on policy", "inside above", "inside below", "clipped above", "clipped below",
                 "a good token that lost", "a bad token that gained", "far above and good", "far below")

    @staticmethod
    def loss(
        logprob: torch.Tensor, old_logprob: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor,
        ref_logprob: torch.Tensor,
    ) -> torch.Tensor:
        ratio = torch.where(mask, logprob - old_logprob, 0.0).clamp(-20, 20).exp()
        gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage[:, None])
        token_loss = -torch.where(mask, gain, 0.0)
        return -token_loss.sum() / mask.sum().clamp(min=1)


class ComparedAcrossPrompts:
    """The same issue, further down: rewards are reshaped to one row, so mean and std are those of the whole batch."""

    CAUGHT_BY = ("prompts are kept apart", "a group adds up to 0", "equal rewards", "equal rewards of hundreds",
                 "a flat group beside another", "not a number stays in its group")

    @staticmethod
    def advantages(rewards: torch.Tensor) -> torch.Tensor:
        row = rewards.reshape(1, -1)
        std = row.std(dim=1, keepdim=True, correction=0)
        return ((row - row.mean(dim=1, keepdim=True)) / (std + 1e-4)).view(rewards.shape)


class NeverReduced:
    """jingyaogong/minimind issue 853: the forward goes round DistributedDataParallel, so its backward sends nothing."""

    CAUGHT_BY = ("both apply the same", "it is that of the whole batch", "a rank without tokens",
                 "different numbers of completions")

    @staticmethod
    def rank_gradient(
        weight: torch.Tensor, tokens: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        num_tokens = mask.sum()
        dist.all_reduce(num_tokens)
        gain = weight.log_softmax(dim=0)[tokens] * advantage[:, None]
        (-torch.where(mask, gain, 0.0).sum() / num_tokens).backward()
        return weight.grad


class StdOfTheOthers:
    """NVIDIA-NeMo/RL pull request 4158: where the others are all equal, their std is a rounding error, and divides."""

    CAUGHT_BY = ("one odd reward", "one right of four", "a group adds up to 0", "prompts are kept apart",
                 "negative rewards", "huge rewards", "a flat group beside another", "one completion",
                 "not a number stays in its group")

    @staticmethod
    def advantages(rewards: torch.Tensor) -> torch.Tensor:
        num_others = rewards.shape[1] - 1
        mean = (rewards.sum(dim=1, keepdim=True) - rewards) / num_others
        square = (rewards.square().sum(dim=1, keepdim=True) - rewards.square()) / num_others
        std = (square - mean.square()).clamp(min=0).sqrt()
        return torch.where(std > 0, (rewards - mean) / (std + 1e-6), rewards - mean)


class NegativeKL:
    """unslothai/unsloth-zoo pull request 1240: exp(-d) - 1 + d loses its digits where d is small."""

    CAUGHT_BY = ("never negative in float32", "never negative in bfloat16", "small differences are exact")

    @staticmethod
    def kl(logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        d = (logprob - ref_logprob).clamp(-20, 20)
        return torch.exp(-d) - 1 + d


class AnotherDivergence:
    """natolambert/rlhf-book, its k3 in 2026: expm1(d) - d, whose mean is chi-square - KL, not KL."""

    CAUGHT_BY = ("mean over the vocabulary", "a known estimator", "the other side", "gradient over the vocabulary")

    @staticmethod
    def kl(logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        d = (logprob - ref_logprob).clamp(-20, 20)
        return torch.expm1(d) - d
