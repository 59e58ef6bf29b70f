"""Claims about what does not count: padding, truncated completions, and the numbers that such places hold."""

import math

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import claims_of
from tests.conformance.claims.causes import MASKED
from tests.conformance.tools import Part, expect, expect_finite, needs_penalty, whole_loss

claim = claims_of("mask")
WHERE = "l = where(mask, l, 0), with the mask applied before exp"
SOUP = "0 * infinity is NaN"
MASK = torch.tensor([[True, True, False, False], [True, True, True, False]])
OLD = torch.tensor([[-1.0, -0.5, -2.0, -1.0], [-0.7, -1.2, -0.3, -3.0]])
LOGPROB = OLD + torch.tensor([[0.05, -0.1, 0.02, 0.0], [-0.04, 0.08, 0.06, 0.0]])
ADVANTAGE = torch.tensor([1.5, -0.5])
# It agrees with the policy where a token counts: there the KL (k2, k3) is 0, and the numbers hold for any beta.
REF = torch.where(MASK, LOGPROB, LOGPROB - 0.1)
BATCH = ("A = 1.5 and -0.5, ratios e^(0.05, -0.1) and e^(-0.04, 0.08, 0.06), mean over 5 tokens: gradients "
         "-1.5 e^0.05 / 5 = -0.3154, -0.2715; 0.5 e^-0.04 / 5 = 0.0961, 0.1083, 0.1062; their sum, the value, -0.2762")
NAN, INF = math.nan, math.inf


def loss(adapter: Adapter, **held: float) -> Part:
    """The loss of the batch above, with what its masked places hold: `logprob`, `old` and `ref`."""
    tensors = [torch.where(MASK, value, held[name]) if name in held else value
               for name, value in (("logprob", LOGPROB), ("old", OLD), ("ref", REF))]
    return whole_loss(adapter, tensors[0], tensors[1], ADVANTAGE, MASK, tensors[2])


def expect_same(adapter: Adapter, tolerance: float, **held: float) -> None:
    found, usual = loss(adapter, **held), loss(adapter)
    expect_finite(found.value, "value")
    expect(found.value, usual.value.item(), tolerance, "value")
    expect_finite(found.grad_NT[MASK], "gradients of tokens that count")
    expect(found.grad_NT, torch.where(MASK, usual.grad_NT, 0.0).tolist(), tolerance, "gradients")


@claim(
    "loss", tolerance=1e-5, cause=MASKED,
    says="What a masked place holds changes nothing.",
    equation=WHERE, source="huggingface/trl issue 6369",
    by_hand=f"-7 there or not: {BATCH}",
    violation="Padding is trained on.")
def masked_numbers_do_not_matter(adapter: Adapter, tolerance: float) -> None:
    expect_same(adapter, tolerance, logprob=-7.0, old=-7.5, ref=-6.0)


@claim(
    "loss", tolerance=0.0,
    says="A masked token has gradient exactly 0.",
    equation="mask_nt = 0 implies dl / dlogp_nt = 0", source="huggingface/trl issue 6369",
    by_hand="three masked tokens: 0, 0, 0",
    violation="Padding is trained on.")
def masked_tokens_have_no_gradient(adapter: Adapter, tolerance: float) -> None:
    expect(loss(adapter).grad_NT[~MASK], [0.0] * 3, tolerance, "gradients")


@claim(
    "loss", tolerance=1e-5, cause=MASKED,
    says="NaN in the policy's masked places stays there.",
    equation=WHERE, source=SOUP,
    by_hand=f"NaN there or not: {BATCH}",
    violation="A score of padding that is no number ends the run.")
def nan_of_the_policy(adapter: Adapter, tolerance: float) -> None:
    expect_same(adapter, tolerance, logprob=NAN)


@claim(
    "loss", tolerance=1e-5, cause=MASKED,
    says="Minus infinity in the policy's masked places stays there.",
    equation=WHERE, source=SOUP,
    by_hand=f"log 0 there or not: {BATCH}",
    violation="A padding token that the model excludes ends the run.")
def minus_infinity_of_the_policy(adapter: Adapter, tolerance: float) -> None:
    expect_same(adapter, tolerance, logprob=-INF)


@claim(
    "loss", tolerance=1e-5, cause=MASKED,
    says="NaN or infinity in masked places of the old policy stays there.",
    equation=WHERE, source=SOUP,
    by_hand=f"NaN or -infinity there or not: {BATCH}",
    violation="What the sampler left in padding ends the run.")
def nan_of_the_old_policy(adapter: Adapter, tolerance: float) -> None:
    for value in (NAN, -INF):
        expect_same(adapter, tolerance, old=value)


@claim(
    "loss", tolerance=1e-5, cause=MASKED,
    says="A huge ratio in a masked place stays there: the mask comes before exp.",
    equation=WHERE, source="a public issue of 2026: exp of padding's log-ratio, then 0 * infinity",
    by_hand="0 padded by the sampler, -1000 scored: exp(1000) * 0 is NaN",
    violation="Padding that both policies score differently ends the run.")
def huge_ratio_of_padding(adapter: Adapter, tolerance: float) -> None:
    expect_same(adapter, tolerance, logprob=0.0, old=-1000.0, ref=0.0)


@claim(
    "loss", tolerance=1e-5, cause=MASKED,
    says="NaN or infinity in the reference's masked places stays there.",
    equation=WHERE, source=SOUP,
    by_hand=f"NaN or -infinity there or not: {BATCH}",
    violation="The KL of padding ends the run.")
def nan_of_the_reference(adapter: Adapter, tolerance: float) -> None:
    needs_penalty(adapter)
    for value in (NAN, -INF):
        expect_same(adapter, tolerance, ref=value)


@claim(
    "loss", tolerance=1e-5,
    says="A completion that does not count at all leaves the others their directions.",
    equation="sum_t mask_nt = 0 implies no gradient, no 0 / 0",
    source="DAPO, arXiv 2503.14476, section 3.4: overlong filtering",
    by_hand="the second row masked: gradients of the first 1.0513 to 0.9048, as alone, and 0 in the second",
    violation="One truncated completion makes the batch NaN.")
def a_completion_that_does_not_count(adapter: Adapter, tolerance: float) -> None:
    mask = MASK & torch.tensor([[True], [False]])
    apart = REF - torch.tensor([[0.0], [0.1]])  # the second has a KL
    found, alone = (whole_loss(adapter, LOGPROB[:rows], OLD[:rows], ADVANTAGE[:rows], mask[:rows], apart[:rows])
                    for rows in (2, 1))
    expect_finite(found.value, "value")
    expect(found.grad_NT[1], [0.0] * 4, 0.0, "gradients of the one that does not count")
    expect(found.grad_NT[0] / found.grad_NT[0, 0], (alone.grad_NT[0] / alone.grad_NT[0, 0]).tolist(), tolerance,
           "gradients of the other over its first")


@claim(
    "loss", tolerance=0.0,
    says="A batch in which nothing counts has loss 0 and gradient 0.",
    equation="divisor max(1, sum mask)", source="huggingface/trl: mask_truncated_completions with all truncated",
    by_hand="0 / max(1, 0) = 0",
    violation="When every completion is too long, NaN goes into all weights.")
def nothing_counts(adapter: Adapter, tolerance: float) -> None:
    found = whole_loss(adapter, LOGPROB, OLD, ADVANTAGE, torch.zeros_like(MASK), LOGPROB - 0.1)
    expect(found.value, 0.0, tolerance, "value")
    expect(found.grad_NT, [[0.0] * 4] * 2, tolerance, "gradients")


@claim(
    "loss", tolerance=1e-5,
    says="More padding changes nothing.",
    equation="no divisor is the padded length", source="huggingface/trl issue 3021",
    by_hand=f"with 3 more columns or not: {BATCH}",
    violation="What a completion teaches depends on the longest one beside it.")
def more_padding(adapter: Adapter, tolerance: float) -> None:
    pad, usual = torch.nn.functional.pad, loss(adapter)
    found = whole_loss(adapter, pad(LOGPROB, (0, 3)), pad(OLD, (0, 3)), ADVANTAGE, pad(MASK, (0, 3)),
                       pad(REF, (0, 3)))
    expect(found.value, usual.value.item(), tolerance, "value")
    expect(found.grad_NT, pad(usual.grad_NT, (0, 3)).tolist(), tolerance, "gradients")


@claim(
    "loss", tolerance=1e-5,
    says="Where in its row a token stands changes nothing: padding on the left, gaps, packing.",
    equation="the loss is a sum over tokens", source="sum over t in arXiv 2402.03300, equation 3",
    by_hand=f"columns in the order 4, 2, 1, 3 or not: {BATCH}",
    violation="Left padding, packed rows and tool calls train something else.")
def places_in_the_row(adapter: Adapter, tolerance: float) -> None:
    order, usual = [3, 1, 0, 2], loss(adapter)
    found = whole_loss(adapter, LOGPROB[:, order], OLD[:, order], ADVANTAGE, MASK[:, order], REF[:, order])
    expect(found.value, usual.value.item(), tolerance, "value")
    expect(found.grad_NT, usual.grad_NT[:, order].tolist(), tolerance, "gradients")


@claim(
    "loss", tolerance=1e-5,
    says="The order of the completions changes nothing.",
    equation="the loss is a sum over n", source="sum over i in arXiv 2402.03300, equation 3",
    by_hand=f"the second row first or not: {BATCH}",
    violation="A batch teaches other things after shuffling.")
def order_in_the_batch(adapter: Adapter, tolerance: float) -> None:
    usual = loss(adapter)
    found = whole_loss(adapter, LOGPROB.flip(0), OLD.flip(0), ADVANTAGE.flip(0), MASK.flip(0), REF.flip(0))
    expect(found.value, usual.value.item(), tolerance, "value")
    expect(found.grad_NT, usual.grad_NT.flip(0).tolist(), tolerance, "gradients")
