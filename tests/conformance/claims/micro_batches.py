"""Claims about gradient accumulation: however a batch is split over micro-batches, its gradient is the same."""

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import Wrong, claims_of
from tests.conformance.claims.causes import DIVISOR
from tests.conformance.tools import Part, expect, gradient, needs_penalty, whole_loss

claim = claims_of("micro-batches")
KNOWN = "the divisor is counted over the whole batch, before the first forward"
SOURCE = "huggingface/trl issues 3021 and 5619; allenai/open-instruct pull request 535"
LENGTHS = torch.tensor([4, 1, 3, 2, 2])
MASK = torch.arange(4) < LENGTHS[:, None]
ADVANTAGE = torch.tensor([1.5, -0.5, 0.7, -1.2, 0.4])
OLD = -torch.arange(1.0, 21.0).view(5, 4) / 8
LOGPROB = OLD + torch.tensor([0.04, -0.06, 0.02, 0.05])
# That of the claim about the KL; for the others it is LOGPROB, so that their numbers hold for any beta.
REF = LOGPROB - torch.tensor([[0.1], [-0.2], [0.05], [0.0], [0.3]])


def accumulated(
    adapter: Adapter, pieces: list[list[int]], advantage: torch.Tensor = ADVANTAGE, *, crop: bool = False,
    mask: torch.Tensor = MASK, ref: torch.Tensor = LOGPROB,
) -> Part:
    """The loss over micro-batches, lists of completions, and its gradient; `crop` makes each as wide as it must be."""
    leaf = LOGPROB.clone().requires_grad_()
    micro_batches = []
    for some in pieces:
        width = max(1, int(LENGTHS[some].max())) if crop else 4
        rows = [tensor[some][:, :width] for tensor in (leaf, OLD, mask, ref)]
        micro_batches.append((rows[0], rows[1], advantage[some], rows[2], rows[3]))
    value = adapter.batch_loss(micro_batches)
    if value.shape != ():
        raise Wrong(f"found a loss of shape {tuple(value.shape)}, expected one number")
    return Part(value.detach(), gradient(value, leaf))


ALL = [[0, 1, 2, 3, 4]]


def expect_as_whole(adapter: Adapter, tolerance: float, *splits: list[list[int]], **options: bool) -> None:
    usual = accumulated(adapter, ALL)
    for pieces in splits:
        found = accumulated(adapter, pieces, **options)
        expect(found.grad_NT, usual.grad_NT.tolist(), tolerance, f"gradients of micro-batches {pieces}")


@claim(
    "batch_loss loss", tolerance=1e-6, cause=DIVISOR,
    says="A batch in one micro-batch has the loss of the batch.",
    equation=KNOWN, source=SOURCE,
    by_hand="12 tokens, the first with ratio 1.0408 and A = 1.5, mean over tokens: -1.0408 * 1.5 / 12 = -0.1301",
    violation="What is accumulated is not the loss that was tested.")
def one_micro_batch(adapter: Adapter, tolerance: float) -> None:
    whole, found = whole_loss(adapter, LOGPROB, OLD, ADVANTAGE, MASK, LOGPROB), accumulated(adapter, ALL)
    expect(found.value, whole.value.item(), tolerance, "value")
    expect(found.grad_NT, whole.grad_NT.tolist(), tolerance, "gradients")


@claim(
    "batch_loss", tolerance=1e-6, cause=DIVISOR,
    says="Two micro-batches with different numbers of tokens have the batch's gradient.",
    equation=KNOWN, source=SOURCE,
    by_hand="lengths (4, 1) and (3, 2, 2): weights 1/12, not half of 1/5 and of 1/7",
    violation="Tokens of a micro-batch with short completions weigh more.")
def two_micro_batches(adapter: Adapter, tolerance: float) -> None:
    expect_as_whole(adapter, tolerance, [[0, 1], [2, 3, 4]])


@claim(
    "batch_loss", tolerance=1e-6, cause=DIVISOR,
    says="Every split into consecutive micro-batches has the batch's gradient.",
    equation=KNOWN, source=SOURCE,
    by_hand="five completions have 2^4 = 16 splits",
    violation="The learning rate depends on how much fits into memory.")
def every_split(adapter: Adapter, tolerance: float) -> None:
    for cuts in range(16):
        pieces: list[list[int]] = [[0]]
        for n in range(1, 5):
            pieces = [*pieces, [n]] if cuts >> (n - 1) & 1 else [*pieces[:-1], [*pieces[-1], n]]
        expect_as_whole(adapter, tolerance, pieces)


@claim(
    "batch_loss", tolerance=1e-6, cause=DIVISOR,
    says="Each micro-batch padded only to its own longest completion: the same gradient.",
    equation="no divisor is the padded length", source=SOURCE,
    by_hand="widths 4, 1, 3, 2, 2 instead of 4 five times",
    violation="The step depends on which completions come together.")
def padded_to_its_longest(adapter: Adapter, tolerance: float) -> None:
    expect_as_whole(adapter, tolerance, [[0], [1], [2], [3], [4]], [[0, 1], [2], [3, 4]], crop=True)


@claim(
    "batch_loss", tolerance=1e-6, cause=DIVISOR,
    says="Completions in any order, and micro-batches in any order: the same gradient.",
    equation="the loss is a sum", source=SOURCE,
    by_hand="(4, 0), (3), (2, 1)",
    violation="A batch teaches other things after shuffling.")
def any_order(adapter: Adapter, tolerance: float) -> None:
    expect_as_whole(adapter, tolerance, [[4, 0], [3], [2, 1]], [[2, 1], [4, 0], [3]])


@claim(
    "batch_loss", tolerance=1e-6, cause=DIVISOR,
    says="The value of the loss over micro-batches is the batch's, too.",
    equation=KNOWN, source=SOURCE,
    by_hand="mean over 12 tokens, parts (0, 1) and (2, 3, 4): -5.561 / 12 and -0.516 / 12, together -0.5064",
    violation="The logged loss depends on how much fits into memory.")
def the_value(adapter: Adapter, tolerance: float) -> None:
    usual = accumulated(adapter, ALL).value.item()
    for pieces in ([[0, 1], [2, 3, 4]], [[0], [1], [2], [3], [4]]):
        expect(accumulated(adapter, pieces).value, usual, tolerance, f"value of micro-batches {pieces}")


@claim(
    "batch_loss", tolerance=1e-6, cause=DIVISOR,
    says="A micro-batch in which nothing counts adds nothing.",
    equation="max(1, sum mask)", source="huggingface/trl issue 6369: the divisor counted masked tokens",
    by_hand="completions 2, 3 and 4 masked: as a micro-batch of their own, and in one with the others",
    violation="Truncated completions weaken the step, or make it NaN.")
def a_micro_batch_that_does_not_count(adapter: Adapter, tolerance: float) -> None:
    mask = MASK & (torch.arange(5) < 2)[:, None]
    usual, found = (accumulated(adapter, pieces, mask=mask) for pieces in (ALL, [[0, 1], [2, 3, 4]]))
    expect(usual.grad_NT[2:], [[0.0] * 4] * 3, 0.0, "gradients of those that do not count")
    expect(found.grad_NT, usual.grad_NT.tolist(), tolerance, "gradients")


@claim(
    "batch_loss", tolerance=1e-3, cause=DIVISOR,
    says="The KL is split as the rest is.",
    equation="the same divisor for both terms", source=SOURCE,
    by_hand="all advantages 0; d = 0.1, -0.2, 0.05, 0 and 0.3 for the tokens of the five completions, 12 in all. Mean "
            "over tokens, gradient over beta, at each token of the first: k2 0.1 / 12 = 0.00833, k3 (1 - exp(-0.1)) / "
            "12 = 0.00793, in every split. A mean of means over 5 and 7 tokens has 1/10: k3 0.00952",
    violation="The pull to the reference depends on how much fits into memory.")
def the_penalty_is_split_alike(adapter: Adapter, tolerance: float) -> None:
    needs_penalty(adapter)
    nothing = torch.zeros(5)
    usual = accumulated(adapter, ALL, nothing, ref=REF).grad_NT / adapter.beta
    largest = usual.abs().max().item()
    if not largest > 0:
        raise Wrong("found no gradient at advantages 0, expected that of the KL")
    for pieces in ([[0, 1], [2, 3, 4]], [[0], [1], [2], [3], [4]]):
        found = accumulated(adapter, pieces, nothing, ref=REF).grad_NT / adapter.beta
        expect(found, usual.tolist(), tolerance * min(largest, 1.0), f"gradients over beta of {pieces}")
