"""Which prompts and which learning rate belong to a step.

Both are functions of the step number alone, so resuming needs no state.
"""

import math

import torch


def prompts_of_step(num_examples: int, step: int, *, prompts_per_step: int, seed: int) -> list[int]:
    """Places in the dataset of a step's prompts: each epoch a fresh permutation, read off without gaps.

    Args:
        num_examples: size of the dataset.
        step: from 0.
        prompts_per_step: prompts of all ranks together.
        seed: of the permutations.

    Returns:
        prompts_per_step indices, in the order that every rank agrees on.
    """
    positions = range(step * prompts_per_step, (step + 1) * prompts_per_step)
    order = {epoch: _permutation(num_examples, seed, epoch) for epoch in {p // num_examples for p in positions}}
    return [order[position // num_examples][position % num_examples] for position in positions]


def _permutation(num_examples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_examples, generator=generator).tolist()


def total_steps(num_examples: int, *, prompts_per_step: int, num_train_epochs: float, max_steps: int) -> int:
    """Steps of the whole run: `max_steps` where positive, else enough to see the data `num_train_epochs` times."""
    return max_steps if max_steps > 0 else math.ceil(num_train_epochs * num_examples / prompts_per_step)


def learning_rate(step: int, *, peak: float, scheduler: str, warmup_ratio: float, total: int) -> float:
    """The step's learning rate: a linear warm-up to the peak, then the named decay.

        warm-up    peak * (step + 1) / W                    for step < W = ceil(warmup_ratio * total)
        constant   peak
        linear     peak * (1 - x)                           x = (step - W) / (total - W)
        cosine     peak * (1 + cos(pi * x)) / 2

    The warm-up is one step ahead of transformers', peak * step / W, whose first step learns nothing; the decays agree.

    Args:
        step: from 0.
        peak: the largest rate.
        scheduler: constant, linear or cosine.
        warmup_ratio: share of the run that warms up.
        total: steps of the whole run.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    x = (step - warmup) / max(total - warmup, 1)
    return peak * {"constant": 1.0, "linear": 1 - x, "cosine": (1 + math.cos(math.pi * x)) / 2}[scheduler]
