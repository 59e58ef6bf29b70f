"""From advantages to a gradient: ask the reference, then move the policy by the clipped loss over packed batches.

The loss of a packed batch is a sum over its tokens divided by a count of the whole global batch, so how the batch is
split over packed batches and ranks changes no gradient. The masks of the packed batches are disjoint parts of mask_UT.
"""

from dataclasses import dataclass, field
from functools import partial

import torch

from grpo.config import Config
from grpo.distributed import gather_objects, global_max, rank, world_size
from grpo.loss import correction_weight, kl_divergence, loss_denominator, policy_loss
from grpo.packing import merge, pack
from grpo.report.measures import Tally
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit, retry
from grpo.types import Batch, Rollout


@dataclass(kw_only=True)
class Update:
    """What a step's update needs, all on the engine's device.

    Args:
        rollout: the completions of all ranks.
        keep_U: [U] bool, completions that count in the loss.
        limit: of a packed batch's tokens.
        device: of the engine.
        advantage_U: [U] float32.
        sampler_logprob_UT: [U, T] float32, nats, what the sampler reported.
        denominator: what the global sum is divided by; the same on every rank.
        num_tokens: counted tokens of all ranks.
        micro_batches: this rank's packed batches, as many as every other rank has.
        ref_logprob_UT: [U, T] float32, nats, 0.0 where not scored; None when beta is 0.
        ref_hidden: per packed batch [K, H], only for the exact KL.
    """

    rollout: Rollout
    keep_U: torch.Tensor
    limit: TokenLimit
    device: torch.device
    advantage_U: torch.Tensor
    sampler_logprob_UT: torch.Tensor
    denominator: float
    num_tokens: int
    micro_batches: list[Batch] = field(default_factory=list)
    ref_logprob_UT: torch.Tensor | None = None
    ref_hidden: list[torch.Tensor] = field(default_factory=list)

    def evidence(self) -> tuple[dict[str, torch.Tensor], dict[str, list]]:
        """What the gradient was computed from, by name: the tensors, and what is text or of many lengths."""
        rollout = self.rollout
        tensors = {
            "token_NT": rollout.token_NT, "length_N": rollout.length_N, "truncated_N": rollout.truncated_N,
            "sampler_logprob_NT": rollout.sampler_logprob_NT, "advantage_N": self.advantage_U,
        }
        if self.ref_logprob_UT is not None:
            tensors["ref_logprob_NT"] = self.ref_logprob_UT  # of this rank's completions, 0 elsewhere
        return tensors, {"prompt_ids": rollout.prompt_ids, "completion": rollout.text}


def prepare(
    rollout: Rollout, advantage_N: torch.Tensor, config: Config, limit: TokenLimit, device: torch.device
) -> Update:
    """Gather the completions of all ranks, deal them out again by what they cost, and pack this rank's part.

    Collective: every rank, once per step.
    """
    everyone = gather_objects((rollout, advantage_N))
    rollout, advantage_U = merge([one for one, _ in everyone]), torch.cat([advantage_N for _, advantage_N in everyone])
    keep_U = ~rollout.truncated_N if config.mask_truncated_completions else torch.ones_like(rollout.truncated_N)
    num_tokens = int(rollout.length_N[keep_U].sum())
    work = Update(
        rollout=rollout,
        keep_U=keep_U,
        limit=limit,
        device=device,
        advantage_U=advantage_U.to(device),
        sampler_logprob_UT=rollout.sampler_logprob_NT.to(device),
        denominator=loss_denominator(
            config.loss_type, num_tokens=num_tokens, num_sequences=len(keep_U),
            max_completion_length=config.max_completion_length,
        ),
        num_tokens=num_tokens,
    )
    fill(work)
    return work


def fill(work: Update) -> None:
    """Pack the completions into batches that fit into the memory of every rank.

    Collective: every rank, once for each time they are packed.
    """
    while True:
        micro_batches = pack(
            work.rollout, work.keep_U, max_tokens=work.limit.max_tokens, rank=rank(), num_ranks=world_size())
        work.micro_batches = [batch.to(work.device) for batch in micro_batches]
        longest = max(len(batch.token_L) for batch in micro_batches)
        agreed = global_max({
            "short": float(not work.limit.rehearse(longest)), "longest": longest,
            "most_completions": max(len(batch.completion_K.unique()) for batch in micro_batches)})
        if not agreed["short"] or agreed["most_completions"] == 1:  # a completion is never split
            return
        work.limit.halve(int(agreed["longest"]))


def ask_reference(engine: Engine, work: Update, config: Config) -> None:
    """Fill in the reference's log-probabilities, from the packed batches that the update will use.

    Collective: every rank, once per step, before the first gradient.
    """
    work.ref_logprob_UT, work.ref_hidden = torch.zeros_like(work.sampler_logprob_UT), []
    for batch in work.micro_batches:
        scores = engine(batch, reference=True)
        work.ref_logprob_UT += batch.scatter(scores.logprob_K) * batch.mask_UT  # a filler's token counts nowhere
        if config.kl_estimator == "exact":
            work.ref_hidden.append(scores.hidden_KH)


def move(engine: Engine, work: Update, config: Config, learning_rate: float) -> dict[str, float]:
    """`num_iterations` optimizer steps on the batch.

    In the first iteration the old policy is the policy itself: ratio = exp(logprob - stopgrad(logprob)), whose value is
    1 and whose gradient is right. Later iterations compare with those first log-probabilities.

    Returns:
        The update's metrics over all ranks: kl, entropy, surrogate, the sampler gap and its correction of the first
        iteration, where the policy is still the one that sampled; loss, grad_norm and clip shares as means over
        iterations.

    Collective: every rank, once per step.
    """
    old_logprob_UT: torch.Tensor | None = None
    tally = Tally(work.advantage_U, work.sampler_logprob_UT, epsilon=config.epsilon,
                  epsilon_high=config.epsilon_high, num_iterations=config.num_iterations)
    grad_norm = 0.0
    for _ in range(config.num_iterations):
        logprob_UT = retry(
            partial(gradient, engine, work, config, tally, old_logprob_UT),
            shorten=partial(start_again, engine, work, config, tally, tally.copy()), batches=work.micro_batches)
        grad_norm += engine.step(learning_rate) / config.num_iterations
        if old_logprob_UT is None:
            # Scored in the same packed batches: in bfloat16 a token's score depends on the shape of its batch.
            old_logprob_UT = logprob_UT
    counts = {"num_tokens": work.num_tokens, "micro_batches": len(work.micro_batches)}
    return tally.metrics(work.num_tokens) | counts | {"grad_norm": grad_norm}


def gradient(
    engine: Engine, work: Update, config: Config, tally: Tally, old_logprob_UT: torch.Tensor | None
) -> torch.Tensor:
    """Add up the gradient of this rank's packed batches: one iteration.

    Args:
        old_logprob_UT: [U, T] float32, nats, of the first iteration; None in the first.

    Returns:
        logprob_UT, [U, T] float32, nats, of this rank's tokens under the policy as it is.
    """
    first = old_logprob_UT is None
    logprob_UT = torch.zeros_like(work.sampler_logprob_UT)
    for index, batch in enumerate(work.micro_batches):
        ref_hidden_KH = work.ref_hidden[index] if work.ref_hidden else None
        scores = engine(batch, ref_hidden_KH=ref_hidden_KH, entropy=first)
        current_UT = batch.scatter(scores.logprob_K)
        kl_UT = weight_UT = None
        if config.beta > 0 and config.kl_estimator == "exact":
            kl_UT = batch.scatter(scores.kl_K)
        elif config.beta > 0:
            kl_UT = kl_divergence(current_UT, work.ref_logprob_UT, estimator=config.kl_estimator)
        if config.rollout_correction != "none":
            weight_UT = correction_weight(
                current_UT if first else old_logprob_UT,  # of the policy that sampled, in every iteration
                work.sampler_logprob_UT,
                batch.mask_UT,
                correction=config.rollout_correction,
                cap=config.rollout_correction_cap,
            )
        loss = policy_loss(
            current_UT,
            old_logprob_UT,
            work.advantage_U,
            batch.mask_UT,
            loss_type=config.loss_type,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            denominator=work.denominator,
            kl_NT=kl_UT,
            beta=config.beta,
            weight_NT=weight_UT,
        )
        engine.backward(loss, last=index == len(work.micro_batches) - 1)
        tally.add(batch, loss.detach(), current_UT.detach(), old_logprob_UT, entropy_K=scores.entropy_K, kl_UT=kl_UT,
                  weight_UT=weight_UT, first=first)
        logprob_UT += current_UT.detach() * batch.mask_UT
    return logprob_UT


def start_again(
    engine: Engine, work: Update, config: Config, tally: Tally, before: tuple, longest: int
) -> list[Batch]:
    """Forget what an attempt that ran out of memory has added, and pack shorter batches than its `longest`."""
    tally.restore(before)
    engine.discard()
    work.limit.halve(longest)
    fill(work)
    if work.ref_hidden:
        ask_reference(engine, work, config)
    return work.micro_batches
