"""Claims about the KL: value and gradient by hand and by enumeration over three words, zero, sign, and its limits."""

import math

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, Wrong, claims_of
from tests.conformance.claims import causes
from tests.conformance.tools import expect, expect_finite, gradient, words

claim = claims_of("KL")
SCHULMAN = "Schulman 2020, joschu.net/blog/kl-approx.html"
PAPER = "DeepSeekMath, arXiv 2402.03300, equation 4"
KINDS = "d = log p - log q;  k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) - 1 + d"
# Of d = ln 2 and of d = -ln 2.
BY_HAND = {"k1": (0.6931, -0.6931), "k2": (0.2402, 0.2402), "k3": (0.1931, 0.3069)}
SLOPES = {"k1": (1.0, 1.0), "k2": (0.6931, -0.6931), "k3": (0.5, -1.0)}
POLICY, REF = (0.6, 0.3, 0.1), (0.3, 0.3, 0.4)


def of(adapter: Adapter, p: float, q: float) -> tuple[float, float]:
    """Value and gradient for one token of these probabilities."""
    logprob = torch.tensor([[p]]).log().requires_grad_()
    value = adapter.kl(logprob, torch.tensor([[q]]).log())
    return value.sum().item(), gradient(value.sum(), logprob).item()


def kind(adapter: Adapter, numbers: dict[str, tuple[float, float]] = BY_HAND) -> str:
    """k1, k2 or k3, by the value at d = ln 2; or what it is there."""
    value = of(adapter, 0.5, 0.25)[0]
    return next((name for name, (there, _) in numbers.items() if abs(value - there) < 1e-3), f"{value:.4g}")


def needs_sign(adapter: Adapter) -> None:
    if kind(adapter) == "k1":
        raise NotOffered("k1 may be negative, and its gradient is 1 everywhere")


@claim(
    "kl", tolerance=1e-3,
    says="Where the policy holds a token for twice as likely as the reference, the KL is that of k1, k2 or k3.",
    equation=KINDS, source=SCHULMAN,
    by_hand="p = 1/2, q = 1/4: 0.693, 0.693^2 / 2 = 0.240, 1/2 - 1 + 0.693 = 0.193",
    violation="Whatever is penalised, it is not the distance to the reference.")
def a_known_estimator(adapter: Adapter, tolerance: float) -> None:
    if (found := kind(adapter)) not in BY_HAND:
        raise Wrong(f"found {found}, expected 0.693, 0.240 or 0.193")


@claim(
    "kl", tolerance=1e-3,
    says="Where the reference holds a token for twice as likely, the KL is the same estimator's.",
    equation=KINDS, source=SCHULMAN,
    by_hand="p = 1/4, q = 1/2: -0.693, 0.240, or 2 - 1 - 0.693 = 0.307",
    violation="The two log-probabilities are the wrong way round: tokens that the policy gives up cost too little.")
def the_other_side(adapter: Adapter, tolerance: float) -> None:
    value = of(adapter, 0.25, 0.5)[0]
    expected = BY_HAND.get(kind(adapter), (0, math.nan))[1]
    if not abs(value - expected) < tolerance:
        raise Wrong(f"found {value:.4g}, expected {'that of an estimator' if math.isnan(expected) else expected}")


@claim(
    "kl", tolerance=1e-4,
    says="Averaged over the policy's own tokens the estimate is the KL (k1, k3), or half the mean square (k2).",
    equation="sum_v p_v kl_v = sum_v p_v log(p_v / q_v)", source=SCHULMAN,
    by_hand="p = (.6, .3, .1), q = (.3, .3, .4): .6 ln 2 + .3 ln 1 + .1 ln 1/4 = 0.4159 - 0.1386 = 0.2773; k2: 0.2402",
    violation="The penalty and the number in the log belong to another divergence.")
def mean_over_the_vocabulary(adapter: Adapter, tolerance: float) -> None:
    p = torch.tensor(POLICY, dtype=torch.float64)
    mean = p @ adapter.kl(p.log()[None], torch.tensor(REF, dtype=torch.float64).log()[None])[0].detach().double()
    expect(mean, 0.24019 if kind(adapter) == "k2" else 0.27726, tolerance)


def mean_gradient(adapter: Adapter) -> torch.Tensor:
    """The gradient to logits of the mean over the policy's tokens, as a loss has it: the tokens are drawn, so fixed."""
    logits = torch.tensor(POLICY, dtype=torch.float64).log().requires_grad_()
    logp = logits.log_softmax(dim=0)
    kl_V = adapter.kl(logp[None], torch.tensor(REF, dtype=torch.float64).log()[None])[0]
    return gradient((logp.exp().detach() * kl_V).sum(), logits)


def expected_gradients() -> dict[str, torch.Tensor]:
    p, q = (torch.tensor(row, dtype=torch.float64) for row in (POLICY, REF))
    forward = p * (p / q).log()
    return {"of KL(policy || reference)": forward - p * forward.sum(), "of KL(reference || policy)": p - q,
            "none: it does not pull": torch.zeros(3, dtype=torch.float64)}


def gradient_kind(adapter: Adapter, tolerance: float) -> str:
    found = mean_gradient(adapter)
    names = (name for name, expected in expected_gradients().items() if (found - expected).abs().max() < tolerance)
    return next(names, f"another: {words(found)}")


@claim(
    "kl", tolerance=1e-4,
    says="Averaged over the policy's own tokens the gradient is that of a KL, one way or the other, or 0 (k1).",
    equation="sum_v p_v grad kl_v, to the logits of p", source="arXiv 2510.01555",
    by_hand="p = (.6, .3, .1), q = (.3, .3, .4). KL(p || q): p (log p/q - 0.2773) = (.2495, -.0832, -.1664). KL(q || "
            "p): p - q = (.3, 0, -.3)",
    violation="The penalty pulls towards another policy than the reference.")
def gradient_over_the_vocabulary(adapter: Adapter, tolerance: float) -> None:
    if (found := gradient_kind(adapter, tolerance)).startswith("another"):
        raise Wrong(f"found {found}, expected (0.2495, -0.0832, -0.1664), (0.3, 0, -0.3) or 0")


@claim(
    "kl", tolerance=0.0,
    says="Where policy and reference agree, the KL is exactly 0.",
    equation="d = 0 implies kl = 0", source=PAPER,
    by_hand="p = q = 0.3: 1 - 1 + 0 = 0",
    violation="The KL of step 0, the reference itself, is not 0.")
def zero_where_they_agree(adapter: Adapter, tolerance: float) -> None:
    logprob = torch.tensor([[0.3, 0.9, 1e-4]]).log()
    expect(adapter.kl(logprob, logprob.clone()), [[0.0] * 3], tolerance)


@claim(
    "kl", tolerance=1e-6,
    says="Where policy and reference agree, nothing pulls.",
    equation="d = 0 implies grad kl = 0 (k2, k3)", source=SCHULMAN,
    by_hand="p = q: k2 has slope d = 0, k3 1 - exp(-0) = 0",
    violation="The policy is pushed away from where it should stay.")
def no_pull_where_they_agree(adapter: Adapter, tolerance: float) -> None:
    needs_sign(adapter)
    expect(torch.tensor(of(adapter, 0.3, 0.3)[1]), 0.0, tolerance, "gradient")


@claim(
    "kl", tolerance=1e-3,
    says="The KL pulls back: a token that has become likelier than in the reference is made less likely, and the "
         "other way round.",
    equation="sign(grad kl) = sign(d) (k2, k3)", source=SCHULMAN,
    by_hand="d = ln 2: k2 0.693, k3 1 - 1/2. d = -ln 2: k2 -0.693, k3 1 - 2 = -1",
    violation="The KL is maximised: the policy runs away from the reference.")
def it_pulls_back(adapter: Adapter, tolerance: float) -> None:
    needs_sign(adapter)
    above, below = of(adapter, 0.5, 0.25)[1], of(adapter, 0.25, 0.5)[1]
    if not (above > tolerance and below < -tolerance):
        raise Wrong(f"found gradients {above:.4g} and {below:.4g}, expected one above and one below 0")


def small_differences(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities that differ by as little as their type can tell, and by up to 1."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (-8 * torch.rand(1, 200, generator=generator))
    ref = -3 * torch.rand(1, 200, generator=generator)
    return (ref + size * torch.randn(1, 200, generator=generator).sign()).to(dtype), ref.to(dtype)


def expect_no_negative(adapter: Adapter, dtype: torch.dtype) -> None:
    needs_sign(adapter)
    found = adapter.kl(*small_differences(dtype)).detach()
    expect_finite(found, "KL of small differences")
    if (found < 0).any():
        raise Wrong(f"{int((found < 0).sum())} of 200 are negative, the lowest {found.min().item():.3g}")


@claim(
    "kl", tolerance=0.0, cause=causes.DIGITS,
    says="In float32 the KL is never negative.",
    equation="k3 = expm1(-d) + d >= 0", source="unslothai/unsloth-zoo pull request 1240",
    by_hand="d = -1e-6: exp(1e-6) is 1.00000095 in float32; less 1e-6 and 1 that is -6e-8; right is 5e-13",
    violation="Near the reference the logged KL is noise, and below 0. The gradient is right.")
def never_negative_in_float32(adapter: Adapter, tolerance: float) -> None:
    expect_no_negative(adapter, torch.float32)


@claim(
    "kl", tolerance=0.0, cause=causes.DIGITS,
    says="In bfloat16 the KL is never negative.",
    equation="k3 = expm1(-d) + d >= 0", source="unslothai/unsloth-zoo pull request 1240",
    by_hand="d = -0.011: exp(0.011) = 1.0111 rounds to 1.0078 in bfloat16; less 1 and 0.011: -0.003; right is 6e-5",
    violation="A KL computed in bfloat16 is noise at differences that every policy has after a step, and below 0.")
def never_negative_in_bfloat16(adapter: Adapter, tolerance: float) -> None:
    expect_no_negative(adapter, torch.bfloat16)


@claim(
    "kl", tolerance=0.01, cause=causes.DIGITS,
    says="A small difference has the right KL, to 1 %.",
    equation="k2, k3 = d^2 / 2 for small d", source="unslothai/unsloth-zoo pull request 1240",
    by_hand="d = 2^-10: d^2 / 2 = 4.77e-7; exp(-d) - 1 + d has an error of up to 6e-8, that is 12 %",
    violation="A KL that is watched from the first step on is noise there.")
def small_differences_are_exact(adapter: Adapter, tolerance: float) -> None:
    needs_sign(adapter)
    for d in (2.0**-10, -(2.0**-10), 3 * 2.0**-12):
        value = adapter.kl(torch.tensor([[-1.0]]), torch.tensor([[-1.0 - d]])).item()
        expect(torch.tensor(value / (d * d / 2)), 1.0, tolerance, f"d = {d:.3g}, over d^2 / 2")


@claim(
    "kl", cause=causes.OVERFLOW,
    says="However far apart policy and reference are, value and gradient of the KL are finite.",
    equation="exp(-clamp(d, -20, 20)); any bound below 88 is finite in float32",
    source="meta-pytorch/torchforge issue 664: a KL of 7e9",
    by_hand="d = -100: exp(100) = 2.7e43 is infinite in float32",
    violation="One token that the policy has given up ends the run with NaN.")
def far_apart(adapter: Adapter, tolerance: float) -> None:
    logprob = torch.tensor([[-101.0, -1.0, -201.0]], requires_grad=True)
    value = adapter.kl(logprob, torch.tensor([[-1.0, -101.0, -1.0]]))
    expect_finite(value, "values at d = -100, 100, -200")
    expect_finite(gradient(value.sum(), logprob), "gradients at d = -100, 100, -200")


@claim(
    "kl", tolerance=0.0, cause=causes.HALF_BOUND,
    says="However far a token is from the reference, the KL never pushes it further away.",
    equation="d * dkl / dlogp >= 0: back towards the reference, or 0 beyond a bound (k2, k3)", source=SCHULMAN,
    by_hand="d = -30: k3's gradient is 1 - exp(30) = -1.07e13, k2's -30; 0 with d bounded at 20. With the bound in the "
            "exponential alone, expm1(clamp(-d)) + d, it is 0 + 1 = +1: less likely still",
    violation="Tokens that the policy has all but given up are driven to probability 0: what the KL is there to stop.")
def it_never_pushes_away(adapter: Adapter, tolerance: float) -> None:
    needs_sign(adapter)
    for d in (-30.0, -22.0, 22.0, 30.0):
        logprob = torch.tensor([[-40.0 + d]], requires_grad=True)
        grad = gradient(adapter.kl(logprob, torch.tensor([[-40.0]])).sum(), logprob).item()
        if grad * d < -tolerance:
            raise Wrong(f"d = {d:g}: found gradient {grad:.4g}, expected {'none above' if d < 0 else 'none below'} 0")


@claim(
    "kl", tolerance=1e-6,
    says="Each token has a KL of its own.",
    equation="kl_nt depends on token nt alone", source=PAPER,
    by_hand="a table of 2 x 3 tokens: the values that each token has alone",
    violation="The KL of padding, or of other completions, gets into a token's.")
def each_token_has_its_own(adapter: Adapter, tolerance: float) -> None:
    p, q = torch.tensor([[0.5, 0.2, 0.9], [0.25, 0.6, 0.4]]), torch.tensor([[0.25, 0.3, 0.7], [0.5, 0.6, 0.1]])
    alone = [[of(adapter, a, b)[0] for a, b in zip(*rows)] for rows in zip(p.tolist(), q.tolist())]
    expect(adapter.kl(p.log(), q.log()), alone, tolerance)
