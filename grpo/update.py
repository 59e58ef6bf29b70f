"""From scored completions to a gradient: the reference pass, then the clipped policy loss over packed micro-batches.

The loss of a micro-batch is a sum over its tokens divided by a count of the whole global batch, so how the batch is
split over micro-batches and ranks changes no gradient. The masks of the micro-batches are disjoint parts of mask_NT.
"""

from dataclasses import dataclass, field

import torch

from grpo.config import Config
from grpo.distributed import gather_objects, global_max, rank, world_size
from grpo.loss import correction_weight, kl_divergence, loss_denominator, policy_loss
from grpo.packing import merge, pack
from grpo.report.measures import Tally
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit, is_out_of_memory
from grpo.trainer.policy import Scores
from grpo.types import Batch, Rollout


@dataclass(kw_only=True)
class Update:
    """What a step's update needs, all on the engine's device.

    Args:
        rollout: the completions of all ranks.
        keep_N: [N] bool, rows that count in the loss.
        limit: of a packed row's tokens.
        device: of the engine.
        advantage_N: [N] float32, N counting the completions of all ranks.
        sampler_logprob_NT: [N, T] float32, nats, what the sampler reported.
        denominator: what the global sum is divided by; the same on every rank.
        num_tokens: counted tokens of all ranks.
        micro_batches: this rank's packed rows, as many as every other rank has.
        ref_logprob_NT: [N, T] float32, nats, 0.0 where not scored; None when beta is 0.
        ref_hidden: per micro-batch [K, H], only for the exact KL.
    """

    rollout: Rollout
    keep_N: torch.Tensor
    limit: TokenLimit
    device: torch.device
    advantage_N: torch.Tensor
    sampler_logprob_NT: torch.Tensor
    denominator: float
    num_tokens: int
    micro_batches: list[Batch] = field(default_factory=list)
    ref_logprob_NT: torch.Tensor | None = None
    ref_hidden: list[torch.Tensor] = field(default_factory=list)

    def evidence(self) -> tuple[dict[str, torch.Tensor], dict[str, list]]:
        """What the gradient was computed from, by name: the tensors, and what is text or of many lengths."""
        rollout = self.rollout
        tensors = {
            "token_NT": rollout.token_NT, "length_N": rollout.length_N, "truncated_N": rollout.truncated_N,
            "sampler_logprob_NT": rollout.sampler_logprob_NT, "advantage_N": self.advantage_N,
        }
        if self.ref_logprob_NT is not None:
            tensors["ref_logprob_NT"] = self.ref_logprob_NT  # of this rank's completions, 0 elsewhere
        return tensors, {"prompt_ids": rollout.prompt_ids, "completion": rollout.text}


def prepare(
    rollout: Rollout, advantage_N: torch.Tensor, config: Config, limit: TokenLimit, device: torch.device
) -> Update:
    """Share all ranks' completions among the ranks anew, by what they cost, and pack this rank's part.

    Collective: every rank, once per step.
    """
    everyone = gather_objects((rollout, advantage_N))
    rollout, advantage_N = merge([one for one, _ in everyone]), torch.cat([advantage_N for _, advantage_N in everyone])
    keep_N = ~rollout.truncated_N if config.mask_truncated_completions else torch.ones_like(rollout.truncated_N)
    num_tokens = int(rollout.length_N[keep_N].sum())
    update = Update(
        rollout=rollout,
        keep_N=keep_N,
        limit=limit,
        device=device,
        advantage_N=advantage_N.to(device),
        sampler_logprob_NT=rollout.sampler_logprob_NT.to(device),
        denominator=loss_denominator(
            config.loss_type, num_tokens=num_tokens, num_sequences=len(keep_N),
            max_completion_length=config.max_completion_length,
        ),
        num_tokens=num_tokens,
    )
    _pack(update)
    return update


def _pack(update: Update) -> None:
    """Fill in the micro-batches, within a limit that every rank's memory holds.

    Collective: every rank, once for each time it is packed.
    """
    while True:
        micro_batches = pack(
            update.rollout, update.keep_N, max_tokens=update.limit.max_tokens, rank=rank(), num_ranks=world_size())
        update.micro_batches = [batch.to(update.device) for batch in micro_batches]
        longest = max(len(batch.token_L) for batch in micro_batches)
        agreed = global_max({
            "short": float(not update.limit.rehearse(longest)), "longest": longest,
            "most_rows": max(len(batch.row_K.unique()) for batch in micro_batches)})
        if not agreed["short"] or agreed["most_rows"] == 1:  # a completion is never cut
            return
        update.limit.halve(int(agreed["longest"]))


def score_reference(engine: Engine, update: Update, config: Config) -> None:
    """Fill in the reference's log-probabilities, from the same packed rows that the update will use.

    Collective: every rank, once per step, before the first gradient.
    """
    update.ref_logprob_NT, update.ref_hidden = torch.zeros_like(update.sampler_logprob_NT), []
    for batch in update.micro_batches:
        scores = engine(batch, reference=True)
        update.ref_logprob_NT += batch.scatter(scores.logprob_K) * batch.mask_NT  # a filler's token counts nowhere
        if config.kl_estimator == "exact":
            update.ref_hidden.append(scores.hidden_KH)


def apply(engine: Engine, update: Update, config: Config, learning_rate: float) -> dict[str, float]:
    """`num_iterations` optimizer steps on the batch.

    In the first iteration the old policy is the policy itself: ratio = exp(logprob - stopgrad(logprob)), whose value is
    1 and whose gradient is right. Later iterations compare with those first log-probabilities, which were scored in
    the same micro-batches, because in bfloat16 the score of a token depends on the shape of the batch it is in. The
    weights of rollout_correction compare those first log-probabilities with the sampler's, in every iteration.

    Returns:
        The update's metrics over all ranks: kl, entropy, surrogate, the sampler gap and its correction of the first
        iteration, where the policy is still the one that sampled; loss, grad_norm and clip shares as means over
        iterations.

    Collective: every rank, once per step.
    """
    old_logprob_NT: torch.Tensor | None = None
    tally = Tally(update.advantage_N, update.sampler_logprob_NT, epsilon=config.epsilon,
                  epsilon_high=config.epsilon_high, num_iterations=config.num_iterations)
    grad_norm = 0.0
    for _ in range(config.num_iterations):
        logprob_NT = None
        while logprob_NT is None:
            logprob_NT = _attempt(engine, update, config, tally, old_logprob_NT)
        grad_norm += engine.step(learning_rate) / config.num_iterations
        if old_logprob_NT is None:
            old_logprob_NT = logprob_NT
    counts = {"num_tokens": update.num_tokens, "micro_batches": len(update.micro_batches)}
    return tally.metrics(update.num_tokens) | counts | {"grad_norm": grad_norm}


def _attempt(
    engine: Engine, update: Update, config: Config, tally: Tally, old_logprob_NT: torch.Tensor | None
) -> torch.Tensor | None:
    """One iteration's gradient; None where memory ended: then nothing of it is left, and the rows are shorter.

    Raises:
        SystemExit: memory ended where no shorter row helps, or under the eyes of other ranks, which wait for this one.
    """
    before = tally.copy()
    try:
        return _gradient(engine, update, config, tally, old_logprob_NT)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        longest = max(len(batch.token_L) for batch in update.micro_batches)
        if world_size() > 1 or all(len(batch.row_K.unique()) == 1 for batch in update.micro_batches):
            raise SystemExit(
                f"\nerror: [rank {rank()}] out of memory with a row of {longest:,} tokens; nearest valid: "
                f"micro_batch_tokens={longest // 2}, or gradient_checkpointing=true") from error
    tally.restore(before)
    engine.discard()
    update.limit.halve(longest)
    _pack(update)
    if update.ref_hidden:
        score_reference(engine, update, config)
    return None


def _gradient(
    engine: Engine, update: Update, config: Config, tally: Tally, old_logprob_NT: torch.Tensor | None
) -> torch.Tensor:
    """Add up the gradient of all micro-batches.

    Returns:
        logprob_NT, [N, T] float32, nats, of this rank's tokens under the policy as it is.
    """
    logprob_NT = torch.zeros_like(update.sampler_logprob_NT)
    for index, batch in enumerate(update.micro_batches):
        ref_hidden_KH = update.ref_hidden[index] if update.ref_hidden else None
        scores = engine(batch, ref_hidden_KH=ref_hidden_KH, entropy=old_logprob_NT is None)
        current_NT = batch.scatter(scores.logprob_K)
        kl_NT = _kl(update, config, batch, scores, current_NT)
        weight_NT = _weight(update, config, batch, current_NT if old_logprob_NT is None else old_logprob_NT)
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
            weight_NT=weight_NT,
        )
        engine.backward(loss, last=index == len(update.micro_batches) - 1)
        tally.add(batch, loss.detach(), current_NT.detach(), old_logprob_NT, entropy_K=scores.entropy_K, kl_NT=kl_NT,
                  weight_NT=weight_NT, first=old_logprob_NT is None)
        logprob_NT += current_NT.detach() * batch.mask_NT
    return logprob_NT


def _kl(
    update: Update, config: Config, batch: Batch, scores: Scores, logprob_NT: torch.Tensor
) -> torch.Tensor | None:
    if config.beta == 0:
        return None
    if config.kl_estimator == "exact":
        return batch.scatter(scores.kl_K)
    return kl_divergence(logprob_NT, update.ref_logprob_NT, estimator=config.kl_estimator)


def _weight(update: Update, config: Config, batch: Batch, first_logprob_NT: torch.Tensor) -> torch.Tensor | None:
    if config.rollout_correction == "none":
        return None
    return correction_weight(
        first_logprob_NT,
        update.sampler_logprob_NT,
        batch.mask_NT,
        correction=config.rollout_correction,
        cap=config.rollout_correction_cap,
    )
