"""From advantages to a gradient: ask the reference, then move the policy by the clipped loss over packed batches.

The loss of a packed batch is a sum over its tokens divided by a number that belongs to the whole global batch, and
`engine.backward` adds the gradients of all ranks up, where others average them. So how completions are split over
packed batches and ranks changes no gradient.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch

from grpo.config import Config
from grpo.distributed import gather_objects, global_max, rank, world_size
from grpo.loss import kl_divergence, loss_denominator, mean_entropy, policy_loss, top_entropy_mask
from grpo.packing import merge, pack
from grpo.ratio import correction_weight
from grpo.report.measures import Tally
from grpo.report.tokens.record import TokenRecord, chosen
from grpo.schedule import next_beta, next_entropy_coef
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit, retry
from grpo.types import Batch, Rollout

# What policy_loss takes under the same names as the run's options.
LOSS_OPTIONS = ("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "sapo_temperature_pos",
                "sapo_temperature_neg")


@dataclass(kw_only=True)
class Update:
    """What a step's update needs; log-probabilities are float32, in nats, on the engine's device."""

    rollout: Rollout  # the completions of all ranks, on the CPU
    keep_U: torch.Tensor  # bool, completions that count in the loss, on the CPU
    limit: TokenLimit
    advantage_U: torch.Tensor  # float32
    sampler_logprob_UT: torch.Tensor  # under the distribution that the tokens were drawn from
    denominator: float  # what the sum over all ranks is divided by; the same on every rank
    num_tokens: int  # that count in the loss, of all ranks
    micro_batches: list[Batch] = field(default_factory=list)  # this rank's; every rank has the same number
    ref_logprob_UT: torch.Tensor | None = None  # 0.0 outside this rank's batches; None if beta is 0
    ref_hidden: list[torch.Tensor] = field(default_factory=list)  # [K, H] for each packed batch, for the exact KL
    tokens: TokenRecord = field(default_factory=TokenRecord)  # what the token page shows; no part of the gradient
    learns_UT: torch.Tensor | None = None  # bool, of all ranks, tokens with a policy loss; None: all that count
    entropy: float | None = None  # mean over these tokens; None: over all, which is a metric
    coefficients: dict[str, float] = field(default_factory=dict)  # beta and entropy_coef where they change by step

    def evidence(self) -> tuple[dict[str, torch.Tensor], dict[str, list]]:
        """What the gradient was computed from, by name: the tensors, and the rest."""
        rollout = self.rollout
        tensors = {  # the N of a file is U here
            "token_NT": rollout.token_NT, "length_N": rollout.length_N, "truncated_N": rollout.truncated_N,
            "sampler_logprob_NT": rollout.sampler_logprob_NT, "advantage_N": self.advantage_U, "keep_N": self.keep_U}
        if self.ref_logprob_UT is not None:
            tensors["ref_logprob_NT"] = self.ref_logprob_UT  # of this rank's completions, 0 elsewhere
        return tensors, {"prompt_ids": rollout.prompt_ids, "completion": rollout.text}


def prepare(
    rollout: Rollout, advantage_N: torch.Tensor, scored_N: torch.Tensor, config: Config, limit: TokenLimit
) -> Update:
    """Gather the completions of all ranks, deal them out again by their cost, and pack this rank's part.

    A completion that is not scored (False in `scored_N`), or truncated where `mask_truncated_completions` asks for it,
    is masked from the loss and the KL: a sequence without tokens, which `loss_denominator` still counts as a sequence.

    Collective: every rank, once per step.
    """
    rollouts, advantages, scored = zip(*gather_objects((rollout, advantage_N, scored_N)))
    merged, advantage_U, keep_U = merge(rollouts), torch.cat(advantages), torch.cat(scored)  # the N of `merged` is U
    if config.mask_truncated_completions:
        keep_U = keep_U & ~merged.truncated_N
    num_tokens = int(merged.length_N[keep_U].sum())
    denominator = loss_denominator(config.loss_type, num_tokens=num_tokens, num_sequences=len(keep_U),
                                   max_completion_length=config.max_completion_length)
    num_generations = len(merged.text) // len(merged.prompt_ids)
    work = Update(
        rollout=merged, keep_U=keep_U, limit=limit, advantage_U=advantage_U.to(limit.device),
        sampler_logprob_UT=merged.sampler_logprob_NT.to(limit.device), denominator=denominator, num_tokens=num_tokens,
        tokens=TokenRecord(chosen(advantage_U, config.keep_tokens, num_generations).to(limit.device)))
    fill(work)
    return work


def fill(work: Update) -> None:
    """Pack the completions into batches that fit into the memory of every rank. Collective: every rank."""
    while True:
        micro_batches = pack(
            work.rollout, work.keep_U, max_tokens=work.limit.max_tokens, rank=rank(), num_ranks=world_size())
        work.micro_batches = [batch.to(work.limit.device) for batch in micro_batches]
        longest = max(len(batch.token_L) for batch in micro_batches)
        agreed = global_max({
            "no_room": float(not work.limit.has_room_for(longest)), "longest": longest,
            "most_completions": max(len(batch.completion_K.unique()) for batch in micro_batches)})
        if not agreed["no_room"] or agreed["most_completions"] == 1:  # a completion is never split
            return
        work.limit.halve(int(agreed["longest"]))


def ask_reference(engine: Engine, work: Update, config: Config) -> None:
    """Fill in what the reference, the policy of step 0, says of this rank's packed batches. Collective: every rank."""
    # In the batches of the update: in bfloat16 a log-probability depends on the shape of its batch, by rounding, and
    # the KL at step 0 is to be exactly 0.
    work.ref_logprob_UT, work.ref_hidden = torch.zeros_like(work.sampler_logprob_UT), []
    for batch in work.micro_batches:
        output = engine(batch, reference=True)
        # where(), not a product: a filler's token, which counts nowhere, stands at the place of one that may count.
        work.ref_logprob_UT += torch.where(batch.mask_UT, batch.scatter(output.logprob_K), 0.0)
        if config.kl_estimator == "exact":
            work.ref_hidden.append(output.hidden_KH)


def choose_tokens(engine: Engine, work: Update, share: float) -> None:
    """Give a policy loss only to the tokens of highest entropy, this share of the step's; the KL is of all.

    Collective: every rank, before the first gradient of a step.
    """
    # A forward pass of its own: the threshold is over all micro-batches of all ranks, or it would depend on the split.
    entropy_UT = torch.zeros_like(work.sampler_logprob_UT)
    for batch in work.micro_batches:
        with torch.no_grad():
            output = engine(batch, entropy=True)
        entropy_UT += torch.where(batch.mask_UT, batch.scatter(output.entropy_K), 0.0)
    entropy_UT = sum(gather_objects(entropy_UT.cpu()))  # a token is in a batch of one rank, and 0 on the others
    place_T = torch.arange(entropy_UT.shape[1])
    counts_UT = (place_T < work.rollout.length_N[:, None]) & work.keep_U[:, None]
    work.learns_UT = top_entropy_mask(entropy_UT, counts_UT, share=share).to(work.limit.device)
    work.entropy = float(entropy_UT[work.learns_UT.cpu()].mean())


def move(engine: Engine, work: Update, config: Config, learning_rate: float) -> dict[str, float]:
    """Take `num_iterations` optimizer steps on the batch. Returns the metrics over all ranks.

    In the first iteration the old policy is the policy itself: ratio = exp(logprob - stopgrad(logprob)), whose value is
    1 and whose gradient is that of logprob. Later iterations compare with those first log-probabilities.

    Collective: every rank, once per step.
    """
    old_logprob_UT: torch.Tensor | None = None
    high = config.epsilon_high - 1 if config.loss_type == "cispo" else config.epsilon_high  # cispo's is the bound
    tally = Tally(work.advantage_U, work.sampler_logprob_UT, epsilon=config.epsilon, epsilon_high=high,
                  num_iterations=config.num_iterations, level=config.importance_sampling_level,
                  correction=config.rollout_correction)
    grad_norm = 0.0
    for _ in range(config.num_iterations):
        work.tokens.begin()
        # logprob_UT = gradient(engine, work, config, tally, old_logprob_UT); without other ranks it is tried again when
        # memory runs out.
        logprob_UT = retry(
            partial(gradient, engine, work, config, tally, old_logprob_UT),
            shorten=partial(start_again, engine, work, config, tally, tally.copy()), batches=work.micro_batches,
            can_undo=engine.can_discard)
        grad_norm += engine.step(learning_rate) / config.num_iterations
        if old_logprob_UT is None:
            # Ours, not the sampler's: from the same packed batches, so on policy every ratio is exactly 1.
            old_logprob_UT = logprob_UT
    counts = {"num_tokens": work.num_tokens, "micro_batches": len(work.micro_batches)}
    beta = work.coefficients.get("beta", config.beta)
    return tally.metrics(work.num_tokens, beta=beta) | counts | {"grad_norm": grad_norm}


def gradient(
    engine: Engine, work: Update, config: Config, tally: Tally, old_logprob_UT: torch.Tensor | None
) -> torch.Tensor:
    """Add up the gradient of this rank's packed batches.

    Returns their tokens' log-probabilities under the current policy, [U, T], 0 elsewhere. `old_logprob_UT` is what the
    first iteration returned, None in the first.
    """
    first = old_logprob_UT is None
    options = {name: getattr(config, name) for name in LOSS_OPTIONS}
    beta, entropy_coef = (work.coefficients.get(name, getattr(config, name)) for name in ("beta", "entropy_coef"))
    logprob_UT = torch.zeros_like(work.sampler_logprob_UT)
    for index, batch in enumerate(work.micro_batches):
        ref_hidden_KH = work.ref_hidden[index] if work.ref_hidden else None
        output = engine(batch, ref_hidden_KH=ref_hidden_KH, entropy=first or entropy_coef > 0)
        current_UT = batch.scatter(output.logprob_K)  # from the K completion tokens of the batch to [U, T]
        kl_UT = weight_UT = None
        if config.beta > 0 and config.kl_estimator == "exact":
            kl_UT = batch.scatter(output.kl_K)
        elif config.beta > 0:
            # Masked before k2's square, in whose gradient 0 * NaN of a token that does not count would be NaN.
            both_UT = (torch.where(batch.mask_UT, one, 0.0) for one in (current_UT, work.ref_logprob_UT))
            kl_UT = kl_divergence(*both_UT, estimator=config.kl_estimator)
        if config.rollout_correction != "none":
            weight_UT = correction_weight(
                current_UT if first else old_logprob_UT,  # of the policy that sampled, in every iteration
                work.sampler_logprob_UT, batch.mask_UT, correction=config.rollout_correction,
                cap=config.rollout_correction_cap, floor=config.rollout_correction_floor)
        loss = policy_loss(
            current_UT, old_logprob_UT, work.advantage_U, batch.mask_UT, denominator=work.denominator, kl_NT=kl_UT,
            beta=beta, weight_NT=only_learning(weight_UT, work.learns_UT), **options)
        if entropy_coef > 0:
            entropy_UT, learns_UT = batch.scatter(output.entropy_K), batch.mask_UT
            num_learning: float | torch.Tensor = work.num_tokens
            if work.learns_UT is not None:
                learns_UT, num_learning = learns_UT & work.learns_UT, work.learns_UT.sum()
            loss = loss - entropy_coef * mean_entropy(entropy_UT, learns_UT, num_learning)
        work.tokens.add(batch, loss, current_UT, kl_UT=kl_UT, entropy_K=output.entropy_K, weight_UT=weight_UT)
        engine.backward(loss, last=index == len(work.micro_batches) - 1)
        tally.add(batch, loss.detach(), current_UT.detach(), old_logprob_UT, entropy_K=output.entropy_K, kl_UT=kl_UT,
                  weight_UT=weight_UT, first=first)
        # The masks of two batches have no token in common.
        logprob_UT += torch.where(batch.mask_UT, current_UT.detach(), 0.0)
    return logprob_UT


def coefficients_of(config: Config, state: dict[str, float]) -> dict[str, float]:
    """beta and entropy_coef of a step, where an option makes them move; `state` is what `state_after` returned last."""
    now = {}
    if config.target_kl is not None:
        now["beta"] = state.get("beta", config.beta)
    if config.use_adaptive_entropy:
        low = state.get("entropy", math.inf) <= config.entropy_target
        now["entropy_coef"] = state.get("entropy_coef", config.entropy_coef) if low else 0.0
    return now


def state_after(config: Config, state: dict[str, float], *, kl: float, entropy: float) -> dict[str, float]:
    """What the coefficients of later steps depend on, after a step with these means over its tokens, in nats."""
    after = {}
    if config.target_kl is not None:
        after["beta"] = next_beta(
            state.get("beta", config.beta), kl, target=config.target_kl, horizon=config.kl_horizon,
            num_completions=config.prompts_per_step * config.num_generations)
    if config.use_adaptive_entropy:
        after["entropy"] = entropy
        after["entropy_coef"] = next_entropy_coef(
            state.get("entropy_coef", config.entropy_coef), entropy, target=config.entropy_target,
            delta=config.entropy_coef_delta, low=config.entropy_coef_min, high=config.entropy_coef_max)
    return after


def only_learning(weight_UT: torch.Tensor | None, learns_UT: torch.Tensor | None) -> torch.Tensor | None:
    """The weights of tokens, 0 where one does not learn; None for all 1."""
    if learns_UT is None:
        return weight_UT
    return learns_UT.float() if weight_UT is None else torch.where(learns_UT, weight_UT, 0.0)


def start_again(
    engine: Engine, work: Update, config: Config, tally: Tally, before: tuple, longest: int
) -> list[Batch]:
    """After running out of memory: drop the partial gradient and pack batches shorter than the `longest`.

    On a run of one rank only (`retry` ends one of several): every completion stays on this rank, so what is stored by
    completion and token, as ref_logprob_UT and the first log-probabilities are, stays complete.
    """
    tally.restore(before)
    work.tokens.start_again()
    engine.discard()
    work.limit.halve(longest)
    fill(work)
    if work.ref_hidden:  # stored by batch
        ask_reference(engine, work, config)
    return work.micro_batches
