"""Reward functions in the shapes that public ones have, for test_trl_calls.py: each line of theirs that matters here.

Written for this project. The shapes are those of TRL's documentation and `trl.rewards`, of open-r1 and of Unsloth's
notebooks.
"""

import asyncio
import functools
import re

from boxed_answers import boxed  # beside this file, as in a project of several files

OPENED = []  # of the event loop in which a client was opened


def solved(completions, solution, **kwargs):
    return [1.0 if boxed(text) == wanted else 0.0 for text, wanted in zip(completions, solution)]


def only_mathematics(prompts, completions, task, **kwargs):
    return [float(len(prompt)) if kind == "math" else None for prompt, kind in zip(prompts, task)]


async def judged(prompts, completions, **kwargs):
    async def ask(text):
        await asyncio.sleep(0)
        return float(len(text))

    OPENED.append(asyncio.get_running_loop())
    assert OPENED[0] is OPENED[-1] and not OPENED[0].is_closed(), "a client lives in the loop that it was opened in"
    return await asyncio.gather(*map(ask, completions))


def asks_by_itself(completions, **kwargs):
    async def ask():
        return [2.0 for _ in completions]

    return asyncio.run(ask())


def later_more(completions, trainer_state, **kwargs):
    progress = trainer_state.global_step / trainer_state.max_steps
    return [progress for _ in completions]


def notes(completions, solution, log_extra=None, log_metric=None, **kwargs):
    found = [boxed(text) for text in completions]
    if log_extra:
        log_extra("found", found)
    if log_metric:
        log_metric("boxed", sum(one is not None for one in found) / len(found))
    return [float(one == wanted) for one, wanted in zip(found, solution)]


class TooLong:
    """As an object rather than a function in a function, so that it can be pickled."""

    __name__ = "too_long"

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, completion_ids, **kwargs):
        return [-1.0 if len(ids) > self.limit else 0.0 for ids in completion_ids]


class AsyncJudge:
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0)
        return [0.25 for _ in completions]


too_long = TooLong(1)
async_judge = AsyncJudge()


def scaled(completions, factor, **kwargs):
    return [factor * len(text) for text in completions]


doubled = functools.partial(scaled, factor=2)


def cosine(longest):
    def cosine_reward(completions, **kwargs):
        return [1 - len(text) / longest for text in completions]

    return cosine_reward


shorter = cosine(longest=8)


def tagged(completions, **kwargs) -> list[float]:
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"<think>.*?</think>", content, re.DOTALL) else 0.0 for content in contents]


def last_question(prompts, completions, answer, **kwargs):
    questions = [prompt[-1]["content"] for prompt in prompts]
    replies = [completion[0]["content"] for completion in completions]
    return [2.0 if wanted in reply and "?" in question else 0.0
            for question, reply, wanted in zip(questions, replies, answer)]


def nothing(completions, **kwargs):
    return [None for _ in completions]


def names_its_prompt(prompt, *, completions):
    return [float(len(text)) for text in prompt]


def passes_the_rest_on(prompts, completions, **kwargs):
    return [float("prompt" in kwargs) + float("completion_ids" in kwargs) for _ in completions]


def needs_an_environment(completions, environments, **kwargs):
    return [0.0 for _ in completions]


def asks_too_much(completions, trainer_state, **kwargs):
    return [float(len(trainer_state.log_history)) for _ in completions]
