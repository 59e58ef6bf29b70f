"""A program of a user's own that hands its reward functions to grpo.train; tests/support/warm.py starts it.

What comes of it is in tests/whole_runs/test_own_rewards.py.
"""

import dataclasses
import functools


async def vowels(completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    """None for the first completion of every call, and in the second step for all but one."""
    log_metric("lengths/tokens", sum(map(len, completion_ids)) / len(completion_ids))
    log_metric("lengths/tokens", float(trainer_state.global_step))
    log_extra("tokens", [len(ids) for ids in completion_ids])
    last = trainer_state.global_step == trainer_state.max_steps - 1
    return [None if index == 0 or last and index > 1 else sum(letter in "aeiou" for letter in text) / (len(text) + 1)
            for index, text in enumerate(completions)]


def constant(completions, final_answer, value, **columns):
    """None where the other function has None too."""
    return [None for _ in completions] if value is None else [value for _ in completions]


nothing = functools.partial(constant, value=None)


def main(argv: list[str]) -> int:
    import grpo  # here: the process that scores imports this file as well
    from grpo.run.command import load

    summary = grpo.train(dataclasses.replace(load(argv), reward_funcs=[vowels, nothing]))
    return 0 if isinstance(summary, grpo.Summary) and summary.ranks == 2 and summary.steps == 2 else 1
