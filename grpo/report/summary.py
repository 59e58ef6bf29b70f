"""What a step's rewards, completions and seconds come to over all ranks: the values behind the table of metrics."""

import math
import resource
import time

import torch

from grpo.distributed import global_max, global_sum
from grpo.health.pulse import pulse
from grpo.types import Rollout
from rewards.pool import Scored


class Clock:
    """Seconds of the phases of a step, by name; the heartbeat hears which one it is."""

    def __init__(self, step: int) -> None:
        self.step, self.phase = step, ""
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """End the phase that was, and begin the next."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.phase:
            self.seconds[f"{self.phase}_s"] = now - self.last
        self.phase, self.last = phase, now
        pulse.enter(phase, self.step)


def global_std(value_N: torch.Tensor) -> float:
    """Sample standard deviation over the rows of all ranks, sqrt(sum (x - mean)^2 / (N - 1)). Collective."""
    value_N = value_N.double()
    sums = global_sum({"num": float(len(value_N)), "total": float(value_N.sum())})
    mean = sums["total"] / sums["num"]
    squares = global_sum({"squares": float(((value_N - mean) ** 2).sum())})["squares"]
    return math.sqrt(squares / max(sums["num"] - 1, 1))


def right_rows(reward_BG: torch.Tensor, parts: dict[str, list[float]]) -> torch.Tensor:
    """[B, G] bool, the rows that count as right: correctness > 0, or reward > 0 without such a function.

    Args:
        reward_BG: [B, G] total rewards.
        parts: [N] values by reward function, before their weights; NaN where a function did not apply.
    """
    if "correctness" not in parts:
        return reward_BG > 0
    return (torch.tensor(parts["correctness"], dtype=torch.float64) > 0).view(reward_BG.shape)


def reward_metrics(
    reward_BG: torch.Tensor, scored: Scored, right_BG: torch.Tensor, advantage_BG: torch.Tensor
) -> dict[str, float]:
    """Means over all ranks of the rewards and of what the groups say about them.

    Args:
        reward_BG: [B, G] this rank's total rewards.
        scored: the N rows' parts by reward function, and what failed.
        right_BG: [B, G] bool, `right_rows` of the two.
        advantage_BG: [B, G] as the update gets them, after the gate.

    Returns:
        reward, its two standard deviations, rewards/<name>, reward_failures, accuracy, the shares of groups without
        variance, and the share of the advantages in groups without a right row.

    Collective: every rank, once per step.
    """
    num_groups, num_rows = float(len(reward_BG)), float(reward_BG.numel())
    part = {name: torch.tensor(values, dtype=torch.float64) for name, values in scored.parts.items()}
    flat_B = reward_BG.amax(dim=1) == reward_BG.amin(dim=1)
    mass_B = advantage_BG.abs().sum(dim=1, dtype=torch.float64)
    sums = {"groups": num_groups, "rows": num_rows, "reward": float(reward_BG.sum()), "right": float(right_BG.sum())}
    sums["std"] = float(reward_BG.std(dim=1).sum())
    sums["flat"], sums["flat_right"] = float(flat_B.sum()), float((flat_B & right_BG.all(dim=1)).sum())
    sums["mass"], sums["phantom"] = float(mass_B.sum()), float(mass_B[~right_BG.any(dim=1)].sum())
    for name, value_N in part.items():
        sums[f"sum/{name}"], sums[f"num/{name}"] = float(value_N.nansum()), float((~value_N.isnan()).sum())
        sums[f"failed/{name}"] = float(scored.failures.get(name, (0, ""))[0])
    sums = global_sum(sums)
    return {
        "reward": sums["reward"] / sums["rows"],
        "reward_std_batch": global_std(reward_BG.flatten()),
        "reward_std_within_group": sums["std"] / sums["groups"],
        "reward_failures": max(sums[f"failed/{name}"] for name in part) / sums["rows"],
        "accuracy": sums["right"] / sums["rows"],
        "phantom_advantage_share": sums["phantom"] / (sums["mass"] or 1.0),
        "zero_variance_share": sums["flat"] / sums["groups"],
        "zero_variance_all_right": sums["flat_right"] / sums["groups"],
        "zero_variance_all_wrong": (sums["flat"] - sums["flat_right"]) / sums["groups"],
        **{f"rewards/{name}": sums[f"sum/{name}"] / max(sums[f"num/{name}"], 1.0) for name in part},
    }


def rollout_metrics(rollout: Rollout, clock: Clock) -> dict[str, float]:
    """Lengths over all ranks, and the slowest rank's seconds. Collective: every rank, once per step."""
    cost = rollout.cost
    sums = global_sum(
        {
            "rows": float(len(rollout.length_N)),
            "tokens": float(rollout.length_N.sum()),
            "truncated": float(rollout.truncated_N.sum()),
            "slot_steps": float(cost.num_slots * cost.num_steps),
            "prefill_s": cost.prefill_s,
            "seconds": cost.seconds,
        }
    )
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step_s = time.perf_counter() - clock.start
    slowest = global_max(
        {**clock.seconds, "warmup_s": cost.warmup_s, "step_s": step_s, "peak_memory_bytes": float(peak)})
    return {
        "completion_length": sums["tokens"] / sums["rows"],
        "truncated_share": sums["truncated"] / sums["rows"],
        "tokens_per_s": sums["tokens"] / slowest["step_s"],
        "rollout_tokens_per_s": sums["tokens"] / slowest["rollout_s"],
        "slot_occupancy": sums["tokens"] / sums["slot_steps"],
        "prefill_share": sums["prefill_s"] / sums["seconds"],
        **slowest,
    }
