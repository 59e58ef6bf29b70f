"""Our own code as the trainer calls it: grpo.advantage, grpo.loss, grpo.update on DeepSpeed, kernels.

`loss` and `batch_loss` go through `grpo.update.gradient`, with an engine in the place of ours that reads
log-probabilities from a table; `rank_gradient` through `prepare`, `gradient` and our engine with DeepSpeed's ZeRO-2.
"""

import torch
from torch import nn

from grpo import distributed
from grpo.advantage import group_advantages, leave_one_out_advantages
from grpo.config import Config
from grpo.loss import kl_divergence, loss_denominator
from grpo.report.measures import Tally
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import PolicyOutput
from grpo.trainer.zero import adamw_settings, zero_config
from grpo.types import Batch, Rollout
from grpo.update import Update, gradient, prepare
from kernels import fused_logprob


class Table:
    """Stands for the engine: the policy's log-probabilities are given, [U, T], and losses are added up."""

    def __init__(self, logprob_UT: torch.Tensor) -> None:
        self.logprob_UT = logprob_UT
        self.loss = torch.zeros(())

    def __call__(self, batch: Batch, **options: object) -> PolicyOutput:
        return PolicyOutput(self.logprob_UT[batch.completion_K, batch.place_K])

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.loss = self.loss + loss


class Words(nn.Module):
    """A policy for the real engine: log_softmax of one weight for each word."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.model = nn.ParameterDict({"weight": nn.Parameter(weight.detach().clone())})

    def forward(self, batch: Batch, **options: object) -> PolicyOutput:
        logprob_K = self.model["weight"].log_softmax(dim=0)[batch.target_K]
        return PolicyOutput(logprob_K, entropy_K=torch.zeros_like(logprob_K).detach())


def packed(rows: list[int], mask_UT: torch.Tensor) -> Batch:
    """A packed batch of all tokens of these completions; what only a model reads is None."""
    place_U = torch.zeros(len(mask_UT), dtype=torch.bool).index_fill(0, torch.tensor(rows), True)
    completion_K, place_K = (place_U[:, None] & torch.ones_like(mask_UT)).nonzero().T
    unused = dict.fromkeys(("token_L", "position_L", "segment_L", "parent_L", "source_K", "target_K"))
    return Batch(**unused, completion_K=completion_K, place_K=place_K, mask_UT=mask_UT & place_U[:, None])


def joined(tensors: list[torch.Tensor], width: int, fill: float) -> torch.Tensor:
    """The rows of all micro-batches, padded to the same width."""
    return torch.cat([nn.functional.pad(one, (0, width - one.shape[1]), value=fill) for one in tensors])


class Ours:
    """The functions of an adapter, under these options of a run."""

    def __init__(self, name: str, conventions: dict[str, str], **options: object) -> None:
        self.config = Config(epsilon=0.2, epsilon_high=0.28, beta=0.04, **options)
        self.NAME = name
        self.CLIP = (self.config.epsilon, self.config.epsilon_high)
        self.BETA = self.config.beta
        self.CONVENTIONS = CONVENTIONS | conventions

    def advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        if self.config.adv_estimator == "rloo":
            return leave_one_out_advantages(rewards)
        return group_advantages(rewards, scale=self.config.scale_rewards)

    def kl(self, logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        return kl_divergence(logprob, ref_logprob, estimator=self.config.kl_estimator)

    def loss(self, *micro_batch: torch.Tensor) -> torch.Tensor:
        return self.batch_loss([micro_batch])

    def batch_loss(self, micro_batches: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        config, width = self.config, max(one[0].shape[1] for one in micro_batches)
        logprob, old, _, mask, ref = ([one[i] for one in micro_batches] for i in range(5))
        advantage_U, mask_UT = torch.cat([one[2] for one in micro_batches]), joined(mask, width, False)
        rows = torch.arange(len(mask_UT)).split([len(one) for one in mask])
        work = Update(
            micro_batches=[packed(some.tolist(), mask_UT) for some in rows], advantage_U=advantage_U,
            sampler_logprob_UT=torch.zeros(mask_UT.shape), ref_logprob_UT=joined(ref, width, 0.0),
            num_tokens=int(mask_UT.sum()), denominator=loss_denominator(
                config.loss_type, num_tokens=int(mask_UT.sum()), num_sequences=len(mask_UT), max_completion_length=8),
            **dict.fromkeys(("rollout", "keep_U", "limit")))
        engine = Table(joined(logprob, width, 0.0))
        gradient(engine, work, config, self.tally(work), joined(old, width, 0.0))
        return engine.loss

    def tally(self, work: Update) -> Tally:
        return Tally(work.advantage_U, work.sampler_logprob_UT, epsilon=self.config.epsilon,
                     epsilon_high=self.config.epsilon_high, num_iterations=1)

    def score(self, logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
        # The kernel takes hidden states and a head: the logits are the hidden states, and the head repeats them. Words
        # that every row excludes are excluded by the head, as in a model, by one more hidden state that is always 1.
        excluded_V = logits.detach().isneginf().all(dim=(0, 1))
        hidden_LV = torch.where(excluded_V, 0.0, logits).flatten(0, 1)
        hidden_LH = torch.cat([hidden_LV, torch.ones_like(hidden_LV[:, :1])], dim=1)
        bias_V1 = torch.where(excluded_V, -torch.inf, 0.0).to(logits)[:, None]
        weight_VH = torch.cat([torch.eye(len(excluded_V)).to(logits), bias_V1], dim=1)
        found = fused_logprob(hidden_LH, weight_VH, tokens.flatten(), temperature=temperature, entropy=True)
        return found.logprob_L.view(tokens.shape), found.entropy_L.view(tokens.shape)

    def rank_gradient(
        self, weight: torch.Tensor, tokens: torch.Tensor, advantage: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        config = Config(loss_type=self.config.loss_type, beta=0.0, zero_stage=2, max_completion_length=8)
        device = distributed.start(60)
        length_N = mask.sum(dim=1)
        rollout = Rollout(
            prompt_ids=[[0]] * len(tokens), token_NT=tokens, length_N=length_N.clamp(min=1), text=[""] * len(tokens),
            sampler_logprob_NT=torch.zeros(tokens.shape), truncated_N=torch.zeros(len(tokens), dtype=torch.bool))
        limit = TokenLimit(8, needed=lambda num_tokens: 0, device=device)
        work = prepare(rollout, advantage, length_N > 0, config, limit)
        engine = Engine(Words(weight), zero_config(config, bf16=False), adamw_settings(config))
        gradient(engine, work, config, self.tally(work), None)
        parameter, = engine.trainable.values()
        return distributed.deepspeed.utils.safe_get_full_grad(parameter)


CONVENTIONS = {
    "standard deviation": "sample, of n - 1",
    "standard deviation of": "the group",
    "eps of the divisor": "1e-04",
    "a completion without reward": "left out",
    "a group of one": "0",
    "estimator": "k3",
    "gradient of": "of KL(policy || reference)",
    "bounded at": "4.85e+08",
    "the ratio": "of each token",
    "dual clip": "none",
    "times the ratio": "no",
    "mean over": "tokens",
}
DEFAULT = Ours("ours", {})
PAPER = Ours(
    "ours, loss_type grpo, kl_estimator k3",
    {"gradient of": "of KL(reference || policy)", "mean over": "completions, then tokens",
     "completions that do not count": "counted"},
    loss_type="grpo", kl_estimator="k3")
DR_GRPO = Ours(
    "ours, loss_type dr_grpo, scale_rewards none, kl_estimator k2",
    {"standard deviation": "none: divided by nothing", "estimator": "k2", "bounded at": "not bounded",
     "mean over": "a constant: 1 / 16 for 2 completions", "completions that do not count": "counted"},
    loss_type="dr_grpo", scale_rewards="none", kl_estimator="k2")
GSPO = Ours(
    "ours, GSPO",
    {"the ratio": "the mean over a completion (GSPO)", "mean over": "completions, then tokens",
     "completions that do not count": "counted"},
    loss_type="grpo", importance_sampling_level="sequence")
RLOO = Ours(
    "ours, RLOO with dual clip",
    {"standard deviation": "none, and the mean is of the others (RLOO)", "dual clip": "at 3"},
    adv_estimator="rloo", delta=3.0)
# A file's functions are those of the default options; `ours.py:PAPER` and so on are the others.
NAME, CLIP, BETA, CONVENTIONS = DEFAULT.NAME, DEFAULT.CLIP, DEFAULT.BETA, DEFAULT.CONVENTIONS
advantages, kl, loss, batch_loss = DEFAULT.advantages, DEFAULT.kl, DEFAULT.loss, DEFAULT.batch_loss
score, rank_gradient = DEFAULT.score, DEFAULT.rank_gradient
