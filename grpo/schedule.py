"""Which prompts and which learning rate belong to a step: functions of its number alone, so resuming needs no state.

Coefficients that follow a metric are the exception: each is a function of the one before, and a checkpoint has it.
"""

import math

import torch


def prompts_of_step(num_examples: int, step: int, *, prompts_per_step: int, seed: int) -> list[int]:
    """Indices into the dataset of a step's prompts of all ranks, in the order that every rank agrees on.

    Steps count from 0. Each epoch is a new permutation; a step may begin in one epoch and end in the next.
    """
    positions = range(step * prompts_per_step, (step + 1) * prompts_per_step)
    order = {epoch: _permutation(num_examples, seed, epoch) for epoch in {p // num_examples for p in positions}}
    return [order[position // num_examples][position % num_examples] for position in positions]


def refills_of_step(num_examples: int, step: int, *, prompts_per_step: int, seed: int) -> list[list[int]]:
    """For each place of a step the problems that can stand in for its own, in order: all that the step does not have.

    No problem is at two places. What the data's order is meant to show, each problem once an epoch, stays as it is:
    stand-ins come besides it. A cursor into the order would make the length of an epoch depend on what was sampled.
    """
    own = set(prompts_of_step(num_examples, step, prompts_per_step=prompts_per_step, seed=seed))
    others = [index for index in _permutation(num_examples, seed, -1 - step) if index not in own]  # of no epoch
    return [others[place::prompts_per_step] for place in range(prompts_per_step)]


def _permutation(num_examples: int, seed: int, epoch: int) -> list[int]:
    # The factor keeps seeds apart: with seed + epoch, seed 1 would begin with the second epoch of seed 0.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_examples, generator=generator).tolist()


def total_steps(num_examples: int, *, prompts_per_step: int, num_train_epochs: float, max_steps: int) -> int:
    """Steps of the whole run: `max_steps` where positive, else enough to see the data `num_train_epochs` times."""
    return max_steps if max_steps > 0 else math.ceil(num_train_epochs * num_examples / prompts_per_step)


def learning_rate(step: int, *, peak: float, scheduler: str, warmup_ratio: float, warmup_steps: float = 0.0,
                  min_lr: float | None = None, total: int) -> float:
    """The step's learning rate: a linear warm-up to the peak, then the named decay.

        warm-up               peak * (step + 1) / W             for step < W
        constant              peak
        linear                peak * (1 - x)                    x = (step - W) / (total - W)
        cosine                peak * (1 + cos(pi * x)) / 2
        cosine_with_min_lr    min_lr + (peak - min_lr) * (1 + cos(pi * x)) / 2

    W is warmup_steps; below 1 that is a share of `total`, and where it is 0, warmup_ratio is the share, rounded up.
    Steps count from 0, `total` is those of the whole run. The decays are those of transformers.
    """
    warmup = int(warmup_steps) if warmup_steps >= 1 else math.ceil((warmup_steps or warmup_ratio) * total)
    if step < warmup:
        return peak * (step + 1) / warmup  # transformers has peak * step / W, whose first step learns nothing
    x = (step - warmup) / max(total - warmup, 1)
    cosine = (1 + math.cos(math.pi * x)) / 2
    if scheduler == "cosine_with_min_lr":
        return min_lr + (peak - min_lr) * cosine
    return peak * {"constant": 1.0, "linear": 1 - x, "cosine": cosine}[scheduler]


def next_beta(beta: float, kl: float, *, target: float, horizon: float, num_completions: int) -> float:
    """The KL's coefficient after a step whose mean KL was `kl` nats a token: arXiv 1909.08593 section 2.2, as in verl.

        beta' = beta (1 + clip(kl / target - 1, -0.2, 0.2) min(num_completions / horizon, 1))

    It stays where kl is not finite, as in a step without tokens. Without the bound by 1, which is not in the paper, a
    short horizon would make beta negative.
    """
    if not math.isfinite(kl):
        return beta
    return beta * (1 + min(max(kl / target - 1, -0.2), 0.2) * min(num_completions / horizon, 1))


def next_entropy_coef(coef: float, entropy: float, *, target: float, delta: float, low: float, high: float) -> float:
    """The entropy bonus's coefficient after a step of mean entropy `entropy`, nats: Skywork-OR1, arXiv 2505.22312.

        c' = min(c + delta, high) where entropy <= target, else max(c - delta, low)

    As in TRL; the bonus acts only in a step after one with entropy <= target. It stays where entropy is not finite.
    """
    if not math.isfinite(entropy):
        return coef
    return min(coef + delta, high) if entropy <= target else max(coef - delta, low)
