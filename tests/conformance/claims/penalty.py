"""Claims about the KL inside the loss; not offered where BETA is 0."""

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import Wrong, claims_of
from tests.conformance.tools import Part, expect, needs_penalty, unit, whole_loss

claim = claims_of("KL in the loss")
PAPER = "DeepSeekMath, arXiv 2402.03300, equation 3"
ADDED = "l = policy part + beta kl"


def at(adapter: Adapter, p: float, q: float, advantage: float = 0.0, ratio: float = 1.0) -> Part:
    """One token of probability p under the policy and q under the reference, in units of its weight."""
    needs_penalty(adapter)
    logprob = torch.tensor([[p]]).log()
    part = whole_loss(adapter, logprob, logprob - torch.tensor(ratio).log(), torch.tensor([advantage]),
                      ref_NT=torch.tensor([[q]]).log())
    return Part(part.value / unit(adapter), part.grad_NT[0, 0] / unit(adapter))


@claim(
    "loss kl", tolerance=1e-4,
    says="The loss contains beta times the KL, also where the advantage is 0.",
    equation=ADDED, source=PAPER,
    by_hand="p = 1/2, q = 1/4, k3: 0.193 beta",
    violation="Another strength than the one asked for.")
def beta_times_the_kl(adapter: Adapter, tolerance: float) -> None:
    kl = adapter.kl(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()).item()
    expect(at(adapter, 0.5, 0.25).value / adapter.beta, kl, 10 * tolerance, "value over beta")


@claim(
    "loss", tolerance=1e-6,
    says="The KL adds nothing where policy and reference agree.",
    equation="kl(p, p) = 0", source=PAPER,
    by_hand="p = q = 1/2, A = 0: 0",
    violation="The loss of step 0 is not that of the rewards.")
def no_penalty_at_the_reference(adapter: Adapter, tolerance: float) -> None:
    expect(at(adapter, 0.5, 0.5).value, 0.0, tolerance, "value")


@claim(
    "loss",
    says="The KL in the loss pulls back to the reference.",
    equation="sign(dl / dlogp) = sign(logp - logq)",
    source="allenai/open-instruct pull request 535: k1 as a loss ignores the reference",
    by_hand="p = 1/2, q = 1/4: gradient above 0; p = 1/4, q = 1/2: below 0",
    violation="With the wrong sign the policy runs away; k1's gradient is 1 for both, pure noise.")
def the_penalty_pulls_back(adapter: Adapter, tolerance: float) -> None:
    above, below = at(adapter, 0.5, 0.25).grad_NT.item(), at(adapter, 0.25, 0.5).grad_NT.item()
    if not (above > 0 > below):
        raise Wrong(f"found gradients {above:.4g} and {below:.4g}, expected one above and one below 0")


@claim(
    "loss", tolerance=1e-4,
    says="The advantage does not scale the KL.",
    equation=ADDED, source=PAPER,
    by_hand="p = 1/2, q = 1/4: what the reference adds is the same with A = 0 and A = 5",
    violation="Good completions are pulled back harder than bad ones.")
def the_advantage_does_not_scale_it(adapter: Adapter, tolerance: float) -> None:
    for which in range(2):
        without, scaled = (at(adapter, 0.5, 0.25, A)[which] - at(adapter, 0.5, 0.5, A)[which] for A in (0.0, 5.0))
        expect(scaled, without.item(), tolerance, ("value", "gradient")[which])


@claim(
    "loss", tolerance=1e-4,
    says="The KL acts on tokens that the clip has stopped.",
    equation=ADDED, source=PAPER,
    by_hand="ratio 2, A = 1, p = 1/2, q = 1/4: the policy part has gradient 0, the KL has not",
    violation="What has moved furthest is not pulled back.")
def the_clip_does_not_stop_it(adapter: Adapter, tolerance: float) -> None:
    grad = at(adapter, 0.5, 0.25, 1.0, ratio=2.0).grad_NT.item()
    if not grad > 1e-3 * adapter.beta:
        raise Wrong(f"found gradient {grad:.4g}, expected more than 0")


@claim(
    "loss kl", tolerance=1e-2, names=True,
    says="Whether the KL is multiplied by the ratio.",
    equation="beta kl, or beta ratio kl", source="huggingface/trl: use_bias_correction_kl",
    by_hand="ratio 2, A = 0: beta kl, or 2 beta kl",
    violation="With the ratio, later updates of a batch have the mean of the current policy, not of the old one.")
def times_the_ratio(adapter: Adapter, tolerance: float) -> str:
    times = (at(adapter, 0.5, 0.25, ratio=2.0).value / at(adapter, 0.5, 0.25).value).item()
    return {1.0: "no", 2.0: "yes"}.get(round(times, 2), f"another: {times:.3g} times at ratio 2")
