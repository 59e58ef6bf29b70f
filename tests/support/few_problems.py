"""Word problems for runs that are tests: a tenth of them, and each list generated once."""

from functools import cache, partial

from data import wordproblems

FEW = 400


@cache
def _few(load, split: str, *, num_examples: int, seed: int) -> list:
    return load(split, num_examples=min(num_examples, FEW), seed=seed)


load = partial(_few, wordproblems.load)
