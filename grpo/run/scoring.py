"""The reward functions of a run: started with their options, asked about completions of a step or an evaluation."""

import sys
from collections.abc import Callable
from typing import Any

from data.conversation import for_rewards
from data.example import Example
from grpo.config import Config
from grpo.distributed import rank
from grpo.evaluation.answers import Judged
from grpo.options.refusal import spelled_out
from grpo.report.measures import RIGHT
from grpo.report.metrics import METRICS
from grpo.run.parts import Run
from grpo.types import Rollout
from rewards.workers.pool import RewardPool, Scored

RUN_PROGRAMS = ("code_runs", "code_tests")
WHERE = {
    "full": "in a sandbox: no network, no files but a read-only Python, no other processes, limits",
    "process": "in processes with all of this user's rights, under limits alone (code_sandbox=process)",
}


def start_rewards(config: Config) -> RewardPool:
    """The process that calls the reward functions; ValueError where one cannot be loaded."""
    there = {name: {"code_sandbox": config.code_sandbox} for name in RUN_PROGRAMS if name in config.reward_funcs}
    given: dict[str, dict[str, Any]] = config.reward_options or {}
    options = {**given, **{name: {**sandbox, **given.get(name, {})} for name, sandbox in there.items()}}
    return RewardPool(
        config.reward_funcs, config.reward_weights, reward_options=options, timeout_s=config.reward_timeout,
        memory_bytes=int(config.reward_memory * 2**30), failure=config.reward_failure, taken=METRICS)


def where_programs_run(config: Config) -> list[str]:
    """The line of the start-up block, if programs run."""
    return [f"they run {WHERE[config.code_sandbox]}"] if {*RUN_PROGRAMS} & {*config.reward_funcs} else []


def rewards_of(run: Run, asked: list[Example], rollout: Rollout, step: int, *, seed: str,
               on_wait: Callable[[], None]) -> Scored:
    """The rewards of completions, and a warning that names functions that failed; `asked` has each one's problem."""
    columns = {name: [one.columns[name] for one in asked] for name in asked[0].columns if name != "prompt"}
    pairs = [for_rewards(one.prompt, text) for one, text in zip(asked, rollout.text, strict=True)]
    completion_ids = [ids_T[:length].tolist() for ids_T, length in zip(rollout.token_NT, rollout.length_N)]
    scored = run.rewards.score(
        prompts=[prompt for prompt, _ in pairs], completions=[text for _, text in pairs],
        completion_ids=completion_ids, columns=columns, trainer_state=run.trainer_state(step), seed=seed,
        on_wait=on_wait)
    fate = "they get 0" if run.config.reward_failure == "zero" else "they are left out"
    for name, (count, reason) in scored.failures.items():
        # On a new line: the progress bar is on the current one.
        print(f"\n[rank {rank()} step {step}] warning: reward function {name!r} failed on {count} of {len(asked)} "
              f"completions ({spelled_out(reason)})" + (f": {fate}" if count else ""), file=sys.stderr, flush=True)
    return scored


def judges_by_reward(config: Config) -> bool:
    """Whether the outcome is another reward function's word than the comparison of numbers."""
    return config.outcome_reward not in (None, "correctness")


def judged(run: Run, asked: list[Example], rollout: Rollout, step: int, on_wait: Callable[[], None]) -> list[Judged]:
    """Held-out completions as outcome_reward judges them, RIGHT or not; of a format, where a reward has that name."""
    scored = rewards_of(run, asked, rollout, step, seed=f"{run.config.seed}/evaluation/{rank()}", on_wait=on_wait)
    right_N = [value >= RIGHT for value in scored.parts[run.config.outcome_reward]]
    form = next((name for name in scored.parts if "format" in name), run.config.outcome_reward)
    return [Judged(right, right, value > 0) for right, value in zip(right_N, scored.parts[form], strict=True)]
