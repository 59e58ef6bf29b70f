"""What programs say of a step's completions, and what is kept of each."""

import sys

import torch

from data.example import Example
from grpo.distributed import gather_objects, rank
from grpo.health.pulse import pulse
from grpo.health.stop_request import stop_request
from grpo.options.refusal import spelled_out
from grpo.run.build import Run
from grpo.types import Rollout
from rewards.pool import Scored


def score_completions(
    run: Run, examples: list[Example], rollout: Rollout, step: int
) -> tuple[torch.Tensor, Scored]:
    """[N] float32 total reward of each completion, and what it is made of; functions that failed are named.

    Raises:
        Stopped: this process was asked to stop.
    """
    def wait() -> None:
        pulse.progress()
        stop_request.leave()

    rows = [example for example in examples for _ in range(run.config.num_generations)]
    columns = {name: [row.columns[name] for row in rows] for name in rows[0].columns if name != "prompt"}
    prompts = [row.prompt for row in rows]
    scored = run.rewards.score(
        prompts=prompts, completions=rollout.text, columns=columns, seed=f"{run.config.seed}/{step}/{rank()}",
        on_wait=wait)
    for name, (count, reason) in scored.failures.items():
        # On a line of its own: the progress bar holds the current one.
        print(f"\n[rank {rank()} step {step}] warning: reward function {name!r} failed on {count} of {len(rows)} "
              f"completions ({spelled_out(reason)})" + (": they get 0" if count else ""), file=sys.stderr, flush=True)
    return torch.tensor(scored.total), scored


def end_if_rewards_fail(limit: float, share: float, failures: dict[str, tuple[int, str]], step: int) -> None:
    """End the run when a function failed on more than `limit` of all ranks' completions.

    Raises:
        SystemExit: where and why, the same on every rank.

    Collective: every rank, with the same `limit` and `share`.
    """
    if share <= limit:
        return
    everyone = gather_objects(failures)
    counts = {name: sum(part.get(name, (0, ""))[0] for part in everyone) for part in everyone for name in part}
    worst = max(counts, key=counts.get)
    where, reason = next((index, part[worst][1]) for index, part in enumerate(everyone) if part.get(worst, (0,))[0])
    raise SystemExit(
        f"error: [rank {where} step {step}] reward function {worst!r} failed on {share:.1%} of the completions "
        f"({reason}), more than max_reward_failures={limit:g}")


def completion_columns(
    examples: list[Example], rollout: Rollout, reward_N: torch.Tensor, parts: dict[str, list],
    advantage_BG: torch.Tensor,
) -> dict[str, list]:
    """What completions.jsonl says of each row, by column."""
    num_generations = len(rollout.text) // len(examples)
    return {
        # Not the whole prompt: with eight examples in front the file would be mostly those.
        "question": [example.question or example.prompt for example in examples for _ in range(num_generations)],
        "completion": rollout.text,
        "reward": reward_N.tolist(),
        "rewards": [dict(zip(parts, values)) for values in zip(*parts.values())],
        "advantage": advantage_BG.flatten().tolist(),
        "length": rollout.length_N.tolist(),
        "truncated": rollout.truncated_N.tolist(),
    }
