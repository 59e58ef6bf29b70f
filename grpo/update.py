"""From scored completions to a gradient: the reference pass, then the clipped policy loss over packed micro-batches.

The loss of a micro-batch is a sum over its tokens divided by a count of the whole global batch, so how the batch is
split over micro-batches and ranks changes no gradient. The masks of the micro-batches are disjoint parts of mask_NT.
"""

from dataclasses import dataclass, field

import torch

from grpo.config import Config
from grpo.distributed import global_max, global_sum
from grpo.engine import Engine
from grpo.loss import kl_divergence, loss_denominator, policy_loss, ratio_stats
from grpo.packing import filler, pack
from grpo.policy import Scores
from grpo.types import Batch, Rollout


@dataclass(kw_only=True)
class Update:
    """What a step's update needs, all on the engine's device.

    Args:
        micro_batches: this rank's packed rows, as many as every other rank has.
        advantage_N: [N] float32.
        mask_NT: [N, T] bool, tokens of this rank that count.
        sampler_logprob_NT: [N, T] float32, nats, what the sampler reported.
        denominator: what the global sum is divided by; the same on every rank.
        num_tokens: counted tokens of all ranks.
        ref_logprob_NT: [N, T] float32, nats, 0.0 where not scored; None when beta is 0.
        ref_hidden: per micro-batch [K, H], only for the exact KL.
    """

    micro_batches: list[Batch]
    advantage_N: torch.Tensor
    mask_NT: torch.Tensor
    sampler_logprob_NT: torch.Tensor
    denominator: float
    num_tokens: float
    ref_logprob_NT: torch.Tensor | None = None
    ref_hidden: list[torch.Tensor] = field(default_factory=list)


def prepare(rollout: Rollout, advantage_N: torch.Tensor, config: Config, device: torch.device) -> Update:
    """Pack the rank's completions and agree with the other ranks on the denominator and the number of micro-batches.

    Collective: every rank, once per step.
    """
    keep_N = ~rollout.truncated_N if config.mask_truncated_completions else torch.ones_like(rollout.truncated_N)
    column_T = torch.arange(rollout.token_NT.shape[1])
    mask_NT = (column_T < rollout.length_N[:, None]) & keep_N[:, None]
    counts = global_sum({"tokens": float(mask_NT.sum()), "sequences": float(len(keep_N))})
    micro_batches = pack(rollout, keep_N, max_tokens=config.micro_batch_tokens)
    most = int(global_max({"micro_batches": float(len(micro_batches))})["micro_batches"])
    micro_batches += [filler(rollout)] * (max(most, 1) - len(micro_batches))
    return Update(
        micro_batches=[batch.to(device) for batch in micro_batches],
        advantage_N=advantage_N.to(device),
        mask_NT=mask_NT.to(device),
        sampler_logprob_NT=rollout.sampler_logprob_NT.to(device),
        denominator=loss_denominator(
            config.loss_type,
            num_tokens=int(counts["tokens"]),
            num_sequences=int(counts["sequences"]),
            max_completion_length=config.max_completion_length,
        ),
        num_tokens=counts["tokens"],
    )


def score_reference(engine: Engine, update: Update, config: Config) -> None:
    """Fill in the reference's log-probabilities, from the same packed rows that the update will use.

    Collective: every rank, once per step, before the first gradient.
    """
    update.ref_logprob_NT = torch.zeros_like(update.sampler_logprob_NT)
    for batch in update.micro_batches:
        scores = engine(batch, reference=True)
        update.ref_logprob_NT += batch.scatter(scores.logprob_K) * batch.mask_NT  # a filler's token counts nowhere
        if config.kl_estimator == "exact":
            update.ref_hidden.append(scores.hidden_KH)


def apply(engine: Engine, update: Update, config: Config, learning_rate: float) -> dict[str, float]:
    """`num_iterations` optimizer steps on the batch.

    In the first iteration the old policy is the policy itself: ratio = exp(logprob - stopgrad(logprob)), whose value is
    1 and whose gradient is right. Later iterations compare with those first log-probabilities, which were scored in
    the same micro-batches, because in bfloat16 the score of a token depends on the shape of the batch it is in.

    Returns:
        The update's metrics over all ranks: kl, entropy, surrogate and the sampler gap of the first iteration, where
        the policy is still the one that sampled; loss, grad_norm and clip shares as means over iterations.

    Collective: every rank, once per step.
    """
    old_logprob_NT: torch.Tensor | None = None
    first, every = Tally(), Tally()
    grad_norm = 0.0
    for iteration in range(config.num_iterations):
        logprob_NT = torch.zeros_like(update.sampler_logprob_NT)
        for index, batch in enumerate(update.micro_batches):
            ref_hidden_KH = update.ref_hidden[index] if update.ref_hidden else None
            scores = engine(batch, ref_hidden_KH=ref_hidden_KH, entropy=iteration == 0)
            current_NT = batch.scatter(scores.logprob_K)
            kl_NT = _kl(update, config, batch, scores, current_NT)
            loss = policy_loss(
                current_NT,
                old_logprob_NT,
                update.advantage_N,
                batch.mask_NT,
                loss_type=config.loss_type,
                epsilon=config.epsilon,
                epsilon_high=config.epsilon_high,
                denominator=update.denominator,
                kl_NT=kl_NT,
                beta=config.beta,
            )
            engine.backward(loss, last=index == len(update.micro_batches) - 1)
            current_NT = current_NT.detach()
            logprob_NT += current_NT * batch.mask_NT
            every.add("loss", loss)
            _tally_ratio(every, update, config, batch, current_NT, old_logprob_NT)
            if iteration == 0:
                _tally_sampled(first, update, batch, scores, current_NT, kl_NT)
        grad_norm += engine.step(learning_rate) / config.num_iterations
        if iteration == 0:
            old_logprob_NT = logprob_NT
    return _metrics(first, every, update, config) | {"grad_norm": grad_norm}


def _kl(
    update: Update, config: Config, batch: Batch, scores: Scores, logprob_NT: torch.Tensor
) -> torch.Tensor | None:
    if config.beta == 0:
        return None
    if config.kl_estimator == "exact":
        return batch.scatter(scores.kl_K)
    return kl_divergence(logprob_NT, update.ref_logprob_NT, estimator=config.kl_estimator)


class Tally:
    """Sums and maxima by name, kept on the device until the end of the update: no host sync per micro-batch."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.maxima: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add to a sum."""
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def peak(self, name: str, value: torch.Tensor) -> None:
        """Raise a maximum."""
        value = value.detach().double()
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value


def _tally_sampled(
    tally: Tally, update: Update, batch: Batch, scores: Scores, logprob_NT: torch.Tensor, kl_NT: torch.Tensor | None
) -> None:
    """Sums over tokens that describe the policy which sampled them."""
    mask_NT = batch.mask_NT
    gap_NT = torch.where(mask_NT, (update.sampler_logprob_NT - logprob_NT).abs(), 0.0)
    advantage_NT = torch.where(mask_NT, update.advantage_N[:, None], 0.0)
    tally.add("kl", torch.zeros(()) if kl_NT is None else kl_NT[mask_NT].sum())
    tally.add("entropy", batch.scatter(scores.entropy_K)[mask_NT].sum())
    tally.add("sampler_gap_mean", gap_NT.sum())
    tally.peak("sampler_gap_max", gap_NT.max())
    tally.add("surrogate", (advantage_NT * logprob_NT).sum())
    tally.add("advantage_mass", advantage_NT.abs().sum())


def _tally_ratio(
    tally: Tally,
    update: Update,
    config: Config,
    batch: Batch,
    logprob_NT: torch.Tensor,
    old_logprob_NT: torch.Tensor | None,
) -> None:
    """How far the policy has moved from the old one, over tokens and iterations."""
    stats = ratio_stats(
        logprob_NT,
        old_logprob_NT,
        update.advantage_N,
        batch.mask_NT,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
    )
    tally.add("clip_share_low", stats.num_clipped_low)
    tally.add("clip_share_high", stats.num_clipped_high)
    tally.peak("ratio_max", stats.ratio_max)


def _metrics(first: Tally, every: Tally, update: Update, config: Config) -> dict[str, float]:
    tokens = max(update.num_tokens, 1.0)
    sums = global_sum({name: float(value) for name, value in (first.sums | every.sums).items()})
    metrics = {name: sums[name] / tokens for name in ("kl", "entropy", "sampler_gap_mean")}
    metrics["surrogate"] = sums["surrogate"] / sums["advantage_mass"] if sums["advantage_mass"] else 0.0
    for name in ("clip_share_low", "clip_share_high"):
        metrics[name] = sums[name] / tokens / config.num_iterations
    metrics["loss"] = sums["loss"] / config.num_iterations
    metrics |= global_max({name: float(value) for name, value in (first.maxima | every.maxima).items()})
    return metrics | {"num_tokens": update.num_tokens, "micro_batches": len(update.micro_batches)}
