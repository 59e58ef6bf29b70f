"""The reward functions of a run: started with their options, and where they run programs."""

from typing import Any

from grpo.config import Config
from grpo.report.metrics import METRICS
from rewards.workers.pool import RewardPool

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
