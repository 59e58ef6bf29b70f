"""Claims about tokens whose probability has changed beyond all measure: nothing infinite, nothing that is no number."""

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import claims_of
from tests.conformance.claims import causes
from tests.conformance.tools import Part, expect, expect_finite, unit, whole_loss

claim = claims_of("ratio and clip")
CLAMP = "ratio = exp(clamp(logp - logp_old, -20, 20))"
SOURCE = "verl, OpenRLHF and NeMo-RL bound the log-ratio at 20"


def far(adapter: Adapter, log_ratio: float, advantage: float) -> Part:
    """One token's loss, less what is left on policy with advantage 0, which is that of a KL."""
    old = torch.tensor([[-1.0]])
    part = whole_loss(adapter, old + log_ratio, old, torch.tensor([advantage]))
    rest = whole_loss(adapter, old, old, torch.zeros(1))
    return Part(part.value - rest.value, part.grad_NT - rest.grad_NT)


@claim(
    "loss", tolerance=1e-4, cause=causes.OVERFLOW,
    says="A good token that has become e^100 times likelier is clipped: gradient 0, not NaN.",
    equation=CLAMP, source=SOURCE,
    by_hand="exp(100) is infinite in float32; min chooses the bound, and backward is 0 * infinity",
    violation="One token's NaN goes into all weights.")
def far_above_and_good(adapter: Adapter, tolerance: float) -> None:
    part = far(adapter, 100.0, 1.0)
    expect(part.value / unit(adapter), -(1 + adapter.clip[1]), tolerance, "value")
    expect(part.grad_NT, [[0.0]], tolerance, "gradient")


@claim(
    "loss", cause=causes.OVERFLOW,
    says="A bad token that has become e^100 times likelier has a finite loss.",
    equation=CLAMP, source=SOURCE,
    by_hand="ratio |A| with ratio at most exp(20) = 4.9e8, or c |A| with dual clip",
    violation="The loss is infinite, and the step is lost or ruins the weights.")
def far_above_and_bad(adapter: Adapter, tolerance: float) -> None:
    part = far(adapter, 100.0, -1.0)
    expect_finite(part.value, "value")
    expect_finite(part.grad_NT, "gradient")


@claim(
    "loss", tolerance=1e-4,
    says="A token that has become e^100 times less likely has a ratio of 0.",
    equation=CLAMP, source=SOURCE,
    by_hand="exp(-100) = 0: value 0 for A = 1; for A = -1 the bound, 0.8, and gradient 0",
    violation="NaN, or a gradient that grows with the distance.")
def far_below(adapter: Adapter, tolerance: float) -> None:
    good, bad = far(adapter, -100.0, 1.0), far(adapter, -100.0, -1.0)
    expect(torch.stack([good.value, bad.value]) / unit(adapter), [0.0, 1 - adapter.clip[0]], tolerance, "values")
    expect(torch.cat([good.grad_NT, bad.grad_NT]), [[0.0], [0.0]], tolerance, "gradients")
