"""Claims about a step over two ranks: both apply one gradient, that of the whole batch."""

import functools

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, Wrong, claims_of
from tests.conformance.claims.causes import DIVISOR
from tests.conformance.pair import Answer, Case, in_processes
from tests.conformance.tools import expect, expect_finite

claim = claims_of("two ranks")
SOURCE = "jingyaogong/minimind issue 853: gradients never reduced"
SUMMED = "grad = sum over all ranks' tokens of grad l / divisor of the whole batch"
WEIGHT = [0.1, -0.4, 0.7, 0.0]
# Completions: tokens, advantage, how many of them count.
LONG, SHORT = ([2, 1, 0, 3, 2], 1.0, 5), ([1, 0, 0, 0, 0], -2.0, 1)
OTHER, MASKED = ([3, 3, 1, 0, 0], 0.5, 3), ([2, 2, 0, 0, 0], 4.0, 0)


def case(*completions: tuple[list[int], float, int]) -> Case:
    """What one rank is given."""
    tokens, advantages, lengths = zip(*completions)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    return Case(torch.tensor(WEIGHT), torch.tensor(tokens), torch.tensor(advantages), mask)


# For each: what the two ranks are given, and what one process is given instead.
CASES = {
    "one each": ([case(LONG), case(SHORT)], [case(LONG, SHORT)]),
    "one without tokens": ([case(LONG), case(MASKED)], [case(LONG, MASKED)]),
    "two and one": ([case(SHORT, OTHER), case(LONG)], [case(SHORT, OTHER, LONG)]),
}


@functools.cache
def answers(adapter: Adapter) -> dict[str, list[Answer]]:
    """For each case what the two ranks said, and what one process did; all in one start."""
    both = in_processes(adapter, [pair for pair, _ in CASES.values()], num_ranks=2)
    alone = in_processes(adapter, [one for _, one in CASES.values()], num_ranks=1)
    return {name: [*both[index], *alone[index]] for index, name in enumerate(CASES)}


def gradients(adapter: Adapter, name: str) -> list[torch.Tensor]:
    """Those of rank 0, of rank 1, and of one process with all completions."""
    found = dict(zip(("rank 0", "rank 1", "one process"), answers(adapter)[name], strict=True))
    for answer in found.values():
        if answer.kind == "not offered":
            raise NotOffered(answer.words)
    wrong = [f"{who}: {answer.words}" for who, answer in found.items() if answer.kind == "error"]
    if wrong:  # what one rank raises ends the other's collective: the first cause is the one that is not of that
        raise Wrong(min(wrong, key=lambda words: "gloo" in words))
    return [answer.gradient for answer in found.values()]


def expect_as_alone(adapter: Adapter, name: str, tolerance: float) -> None:
    *ranks, alone = gradients(adapter, name)
    for number, rank in enumerate(ranks):
        expect(rank, alone.tolist(), tolerance, f"gradient on rank {number}")


@claim(
    "rank_gradient", tolerance=1e-6,
    says="Both ranks apply the same gradient.",
    equation="an all-reduce before the step", source=SOURCE,
    by_hand="word 0, p = 0.2308: advantages of 1 where it stands, 3 in all, 6 tokens: -(1 - 3 * 0.2308) / 6 = "
            "-0.0513 on both",
    violation="The copies drift apart; what is saved has learned from a part of the data.")
def both_apply_the_same(adapter: Adapter, tolerance: float) -> None:
    first, second, _ = gradients(adapter, "one each")
    expect_finite(first, "gradient on rank 0")
    expect(second, first.tolist(), tolerance, "gradient on rank 1, expected that of rank 0")


@claim(
    "rank_gradient", tolerance=1e-5, cause=DIVISOR,
    says="Both ranks apply the gradient that one process has with all completions.",
    equation=SUMMED, source="huggingface/trl issue 3021; ms-swift issue 10117",
    by_hand="5 tokens on one rank, 1 on the other: each weighs 1/6; the mean of the ranks' means has 1/10 and 1/2",
    violation="Tokens of the rank with short completions weigh more; more ranks make another step.")
def it_is_that_of_the_whole_batch(adapter: Adapter, tolerance: float) -> None:
    expect_as_alone(adapter, "one each", tolerance)


@claim(
    "rank_gradient", tolerance=1e-5, cause=DIVISOR,
    says="So do ranks with different numbers of completions.",
    equation=SUMMED, source="verl pull request 5228",
    by_hand="two completions with 4 tokens, one with 5: each token weighs 1/9",
    violation="Filtering, or a last batch that is not full, changes the step.")
def different_numbers_of_completions(adapter: Adapter, tolerance: float) -> None:
    expect_as_alone(adapter, "two and one", tolerance)


@claim(
    "rank_gradient", tolerance=1e-5, cause=DIVISOR,
    says="A rank on which nothing counts takes part, and adds nothing.",
    equation=SUMMED, source="verl pull request 5228: ranks that wait for each other",
    by_hand="5 tokens and none: each weighs 1/5, on both",
    violation="NaN on all ranks, or a run that hangs.")
def a_rank_without_tokens(adapter: Adapter, tolerance: float) -> None:
    expect_as_alone(adapter, "one without tokens", tolerance)
