"""Claims about how tokens are weighed within a batch, and the convention that this is."""

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, claims_of
from tests.conformance.tools import expect, policy_part, weights, words

claim = claims_of("weights of tokens")
PAPERS = "mean over tokens: DAPO, arXiv 2503.14476; over completions: arXiv 2402.03300; constant: Dr. GRPO, 2503.20783"
SUM = "loss = sum_nt w_nt l_nt"
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])  # of 3 tokens and of 1


@claim(
    "loss", tolerance=1e-5,
    says="The tokens of a completion weigh the same.",
    equation="w_nt = w_n", source=PAPERS,
    by_hand="3 tokens of one completion and 1 of another, A = 1, mean over tokens: -1/4 for each of the 3",
    violation="The beginning or the end of an answer is taught more than the rest.")
def tokens_of_a_completion(adapter: Adapter, tolerance: float) -> None:
    weight_T = weights(adapter, MASK)[0]
    expect(weight_T / weight_T[0], [1.0, 1.0, 1.0, 0.0], tolerance, "weights over the first")


@claim(
    "loss", tolerance=1e-5,
    says="A token's weight does not depend on the advantages.",
    equation=SUM, source=PAPERS,
    by_hand="A = (1, 1) and A = (3, -2): the same gradient over the advantage",
    violation="Good and bad completions are weighed by different rules.")
def advantages_do_not_change_weights(adapter: Adapter, tolerance: float) -> None:
    expect(weights(adapter, MASK, torch.tensor([3.0, -2.0])), weights(adapter, MASK).tolist(), tolerance, "weights")


@claim(
    "loss", tolerance=1e-5,
    says="The value of the loss is the sum that its gradient belongs to.",
    equation=SUM, source=PAPERS,
    by_hand="lengths 3 and 1, A = (1, -1), mean over tokens: -(3 - 1) / 4 = -0.5; over completions: 0",
    violation="The logged loss is not the one that is minimised.")
def value_and_gradient_agree(adapter: Adapter, tolerance: float) -> None:
    advantage_N = torch.tensor([1.0, -1.0])
    expected = -(weights(adapter, MASK) * advantage_N[:, None]).sum()
    expect(policy_part(adapter, torch.zeros(2, 4), advantage_N, MASK).value, expected.item(), tolerance, "value")


@claim(
    "loss", tolerance=1e-4, names=True,
    says="What the loss is a mean over.",
    equation="w_nt = 1 / sum_m T_m, 1 / (N T_n), or 1 / constant", source=PAPERS,
    by_hand="lengths 3 and 1: 1/4 and 1/4; 1/6 and 1/2; or equal and another",
    violation="Over completions, a token of a long answer counts less: long wrong answers are hardly punished.")
def mean_over(adapter: Adapter, tolerance: float) -> str:
    long, short = weights(adapter, MASK)[:, 0].tolist()
    kinds = {"tokens": (1 / 4, 1 / 4), "completions, then tokens": (1 / 6, 1 / 2), "nothing: a sum": (1.0, 1.0),
             "completions, tokens added up": (1 / 2, 1 / 2)}
    for name, numbers in kinds.items():
        if abs(long - numbers[0]) < tolerance and abs(short - numbers[1]) < tolerance:
            return name
    if abs(long - short) < tolerance:
        return f"a constant: 1 / {1 / long:.4g} for 2 completions"
    return f"another: {words(torch.tensor([long, short]))}"


@claim(
    "loss", tolerance=1e-4, names=True,
    says="Whether a completion that does not count is still counted as one.",
    equation="N, or the number of completions with a token that counts", source="verl leaves it out, TRL counts it",
    by_hand="two completions, one masked, mean over completions: a token of the other weighs 1/(2 T), or 1/T",
    violation="Counted, a batch of truncated completions makes a smaller step.")
def completions_that_do_not_count(adapter: Adapter, tolerance: float) -> str:
    if mean_over(adapter, tolerance) in ("tokens", "nothing: a sum"):
        raise NotOffered("the loss is no mean over completions")
    alone = weights(adapter, MASK[:1])[0, 0]
    beside = weights(adapter, MASK & torch.tensor([[True], [False]]))[0, 0]
    return {1.0: "not counted", 0.5: "counted"}.get(round((beside / alone).item(), 3), f"another: {beside / alone:.3g}")
