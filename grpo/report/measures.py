"""The values behind the table in metrics.py: what a step is measured by, over all ranks. No part of the gradient."""

import math
import resource
import time

import torch

from grpo.advantage import group_statistics
from grpo.distributed import gather_objects, global_max, global_sum
from grpo.health.pulse import pulse
from grpo.ratio import correction_weight, ratio_stats
from grpo.types import Batch, Rollout
from rewards.workers.pool import Scored

# A completion is right from this value of the outcome on, before its weight: full marks. With "above 0" a program that
# passes one test of ten would be right, and a partial reward would open the gate. The largest value seen depends on the
# batch. More than 1 is right too, as many functions give 2.0 for a right answer; a share of tests stays a share.
RIGHT = 1.0


class Clock:
    """Seconds of each phase of a step, by the metric's name; the heartbeat is told which phase it is."""

    def __init__(self, step: int) -> None:
        self.step, self.phase = step, ""
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """End the phase before this one, and begin this one."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a phase ends when the GPU has finished its work
        now = time.perf_counter()
        if self.phase:
            # A phase may come several times: groups without differences are sampled and scored again.
            self.seconds[f"{self.phase}_s"] = self.seconds.get(f"{self.phase}_s", 0.0) + now - self.last
        self.phase, self.last = phase, now
        pulse.enter(phase, self.step)


def global_std(value_N: torch.Tensor) -> float:
    """Sample standard deviation over the values of all ranks, sqrt(sum (x - mean)^2 / (N - 1)). Collective."""
    return global_moments(value_N, torch.ones_like(value_N))[1]


def global_moments(value_N: torch.Tensor, num_N: torch.Tensor) -> tuple[float, float]:
    """Mean and sample std of the values of all ranks, value n counted num_N[n] times. Collective: every rank."""
    value_N, num_N = value_N.double(), num_N.double()
    sums = global_sum({"num": float(num_N.sum()), "total": float((num_N * value_N).sum())})
    mean = sums["total"] / max(sums["num"], 1)  # first: a difference of sums of squares would lose digits
    squares = global_sum({"squares": float((num_N * (value_N - mean) ** 2).sum())})["squares"]
    return mean, math.sqrt(squares / max(sums["num"] - 1, 1))


def is_right(reward_BG: torch.Tensor, parts: dict[str, list[float]], outcome_reward: str | None) -> torch.Tensor:
    """[B, G] bool, which scored completions are right: outcome >= RIGHT, or without an outcome reward > 0.

    Args:
        parts: [N] values by reward function, before their weights; NaN where a function did not apply.
        outcome_reward: the function that says so; None: correctness, if it is there.
    """
    outcome = outcome_reward or "correctness"
    if outcome not in parts:
        return reward_BG > 0
    right_BG = (torch.tensor(parts[outcome], dtype=torch.float64) >= RIGHT).view(reward_BG.shape)
    return right_BG & ~reward_BG.isnan()


def pulls(term_FBG: torch.Tensor) -> torch.Tensor:
    """[F, B], the share of each reward function in what makes the completions of a group differ; 0 where nothing does.

        p_fb = sum_g |t_fbg - mean_g t_fbg| / sum_fg |t_fbg - mean_g t_fbg|
    """
    pull_FB = (term_FBG - term_FBG.nanmean(dim=2, keepdim=True)).abs().nansum(dim=2)
    return pull_FB / torch.where(pull_FB.any(dim=0), pull_FB.sum(dim=0), 1.0)


def reward_metrics(reward_BG: torch.Tensor, scored: Scored, right_BG: torch.Tensor, *, term_FBG: torch.Tensor,
                   compared_BG: torch.Tensor, advantage_BG: torch.Tensor, num_sampled: int) -> dict[str, float]:
    """The metrics of the total rewards and of the groups, over all ranks. A mean over nothing is NaN.

    Args:
        term_FBG: what each function of `scored.parts` adds to `compared_BG`, which advantages were computed from.
        advantage_BG: after the gate.
        num_sampled: completions of this rank that reward functions may have failed on; those of groups that gave way
            to others count here alone.

    Collective: every rank, once per step.
    """
    part = {name: torch.tensor(values, dtype=torch.float64) for name, values in scored.parts.items()}
    scored_BG = ~reward_BG.isnan()
    compared_B = scored_BG.sum(dim=1) > 1  # the others have no std, and are neither right nor wrong
    std_B1, flat_B1 = group_statistics(reward_BG).std_B1, group_statistics(compared_BG).flat_B1
    flat_B, all_right_B = flat_B1[:, 0] & compared_B, (right_BG | ~scored_BG).all(dim=1)
    mass_B = advantage_BG.abs().sum(dim=1, dtype=torch.float64)
    phantom_B = torch.where(right_BG.any(dim=1), 0.0, mass_B)
    sums = {
        "groups": float(compared_B.sum()), "sampled": float(num_sampled),
        "completions": float(reward_BG.numel()), "scored": float(scored_BG.sum()),
        "reward": float(reward_BG[scored_BG].sum()), "right": float(right_BG.sum()),
        "std": float(std_B1[compared_B, 0].sum()), "flat": float(flat_B.sum()),
        "flat_right": float((flat_B & all_right_B).sum()), "flat_wrong": float((flat_B & ~all_right_B).sum()),
        "mass": float(mass_B.sum()),
        "phantom": float(phantom_B.sum())}
    for (name, value_N), pull_B in zip(part.items(), pulls(term_FBG)):  # NaN where a function did not apply
        sums[f"phantom/{name}"] = float((phantom_B * pull_B).sum())
        sums[f"sum/{name}"], sums[f"num/{name}"] = float(value_N.nansum()), float((~value_N.isnan()).sum())
        sums[f"failed/{name}"] = float(scored.failures.get(name, (0, ""))[0])
    sums = global_sum(sums)  # sums, not means: ranks may differ in how many values they have

    def mean(total: str, number: str) -> float:
        return sums[total] / sums[number] if sums[number] else math.nan

    return {
        "reward": mean("reward", "scored"),
        "reward_std_batch": global_std(reward_BG[scored_BG]),
        "reward_std_within_group": mean("std", "groups"),
        "reward_failures": max(sums[f"failed/{name}"] for name in part) / sums["sampled"],
        "unscored_share": (sums["completions"] - sums["scored"]) / sums["completions"],
        "accuracy": mean("right", "scored"),
        "phantom_advantage_share": sums["phantom"] / (sums["mass"] or 1.0),
        **{f"phantom_advantage_share/{name}": sums[f"phantom/{name}"] / (sums["mass"] or 1.0) for name in part},
        "zero_variance_share": mean("flat", "groups"),
        "zero_variance_all_right": mean("flat_right", "groups"),
        "zero_variance_all_wrong": mean("flat_wrong", "groups"),
        **{f"rewards/{name}": mean(f"sum/{name}", f"num/{name}") for name in part},
    }


def logged_metrics(logged: dict[str, list[float]]) -> dict[str, float]:
    """The mean over calls and ranks of what reward functions gave to log_metric, by name. Collective: every rank."""
    everyone = gather_objects(logged)
    names = dict.fromkeys(name for part in everyone for name in part)
    values = {name: [value for part in everyone for value in part.get(name, [])] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


class Tally:
    """The metrics of an update, added up over its micro-batches and iterations.

    The sums stay on the device until `metrics`, so that no micro-batch waits for the host.

    Args:
        advantage_U: of all ranks' completions; the masks of the micro-batches say which of them this rank counts.
        sampler_logprob_UT: nats, what the sampler reported.
        level, correction: `importance_sampling_level` and `rollout_correction`.
    """

    def __init__(self, advantage_U: torch.Tensor, sampler_logprob_UT: torch.Tensor, *, epsilon: float,
                 epsilon_high: float, num_iterations: int, level: str = "token", correction: str = "none") -> None:
        self.advantage_U, self.sampler_logprob_UT = advantage_U, sampler_logprob_UT
        self.epsilon, self.epsilon_high, self.num_iterations = epsilon, epsilon_high, num_iterations
        self.level, self.correction = level, correction
        self.sums: dict[str, torch.Tensor] = {}
        self.maxima: dict[str, torch.Tensor] = {}

    def copy(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What has been added so far, for `restore`."""
        return dict(self.sums), dict(self.maxima)

    def restore(self, copy: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
        """Forget what was added since that copy."""
        self.sums, self.maxima = map(dict, copy)  # the copy may be wanted again

    def add(self, batch: Batch, loss: torch.Tensor, logprob_UT: torch.Tensor, old_logprob_UT: torch.Tensor | None, *,
            entropy_K: torch.Tensor | None, kl_UT: torch.Tensor | None, weight_UT: torch.Tensor | None,
            first: bool) -> None:
        """Measure one micro-batch of one iteration; the last three tensors are read in the first iteration only."""
        stats = ratio_stats(logprob_UT, old_logprob_UT, self.advantage_U, batch.mask_UT, epsilon=self.epsilon,
                            epsilon_high=self.epsilon_high, level=self.level)
        self._add("loss", loss)
        self._add("clip_share_low", stats.num_clipped_low)
        self._add("clip_share_high", stats.num_clipped_high)
        self._raise("ratio_max", stats.ratio_max)
        if not first:
            return

        # The rest describes the policy that sampled the tokens, which the first optimizer step will move.
        def counted(value_UT: torch.Tensor) -> torch.Tensor:
            return torch.where(batch.mask_UT, value_UT, 0.0)

        gap_UT = counted((self.sampler_logprob_UT - logprob_UT).abs())
        if kl_UT is not None:
            self._add("kl", counted(kl_UT).sum())
            # Near the reference the KL is d^2 / 2, whatever the estimator, and its gradient's weight is beta d.
            self._add("kl_distance", counted((2 * kl_UT.detach().abs()).sqrt()).sum())
        self._add("entropy", counted(batch.scatter(entropy_K)).sum())
        self._add("surrogate", counted(self.advantage_U[:, None] * logprob_UT).sum())
        self._add("advantage_mass", counted(self.advantage_U.abs()[:, None]).sum())
        self._add("sampler_gap_mean", gap_UT.sum())
        self._raise("sampler_gap_max", gap_UT.max())
        if weight_UT is not None:  # another weight than the unbounded one has met a bound
            unbounded_UT = correction_weight(
                logprob_UT, self.sampler_logprob_UT, batch.mask_UT, correction=self.correction, cap=math.inf)
            bounded_UT = (weight_UT < unbounded_UT) | (weight_UT > unbounded_UT)
            self._add("correction_weight_mean", counted(weight_UT).sum())
            self._add("correction_capped_share", (batch.mask_UT & bounded_UT).sum())

    def metrics(self, num_tokens: float, *, beta: float) -> dict[str, float]:
        """The update's metrics over all ranks: kl is NaN without a reference, a correction's two need a correction.

        Args:
            num_tokens: counted tokens of all ranks.
            beta: of this step.

        Collective: every rank, once per update.
        """
        sums = global_sum({name: float(value) for name, value in self.sums.items()})
        mass, iterations = sums.pop("advantage_mass"), self.num_iterations
        pull = beta * sums.pop("kl_distance", math.nan)
        divisor = dict.fromkeys(sums, max(num_tokens, 1.0))
        divisor |= {"surrogate": mass or 1.0, "loss": iterations}  # the loss is divided by its denominator already
        divisor |= {name: divisor[name] * iterations for name in ("clip_share_low", "clip_share_high")}
        means = {name: sums[name] / divisor[name] for name in sums}
        if not num_tokens:  # a mean over nothing; what moves beta and entropy_coef takes 0 for a measurement
            means |= {name: math.nan for name in ("kl", "entropy") if name in means}
        means |= {"kl_pull_share": pull / ((pull + mass) or 1.0)}
        return {"kl": math.nan} | means | global_max({name: float(value) for name, value in self.maxima.items()})

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _raise(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().double()
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value


def rollout_metrics(rollouts: list[Rollout], clock: Clock) -> dict[str, float]:
    """Lengths over all ranks, and the seconds of the slowest rank. Collective: every rank, once per step.

    `rollouts` are all that this rank sampled in the step, with their cost.
    """
    costs = [one.cost for one in rollouts]
    sums = global_sum({
        "completions": float(sum(len(one.length_N) for one in rollouts)),
        "tokens": float(sum(one.length_N.sum() for one in rollouts)),
        "truncated": float(sum(one.truncated_N.sum() for one in rollouts)),
        "slot_steps": float(sum(cost.num_slots * cost.num_steps for cost in costs)),
        "prefill_s": sum(cost.prefill_s for cost in costs), "seconds": sum(cost.seconds for cost in costs)})
    on_gpu = torch.cuda.is_available()  # else the process's own memory, which Linux counts in KiB
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step_s = time.perf_counter() - clock.start
    slowest = global_max({
        **clock.seconds, "warmup_s": sum(cost.warmup_s for cost in costs), "step_s": step_s,
        "peak_memory_bytes": float(peak)})
    return {
        "completion_length": sums["tokens"] / sums["completions"],
        "truncated_share": sums["truncated"] / sums["completions"],
        "tokens_per_s": sums["tokens"] / slowest["step_s"],
        "rollout_tokens_per_s": sums["tokens"] / slowest["rollout_s"],
        "slot_occupancy": sums["tokens"] / sums["slot_steps"],
        "prefill_share": sums["prefill_s"] / sums["seconds"],
        **slowest,
    }
