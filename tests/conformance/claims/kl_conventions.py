"""Conventions of the KL: which estimator's value, which KL's gradient, and where it is bounded."""

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import claims_of
from tests.conformance.claims.kl import KINDS, SCHULMAN, gradient_kind, kind

claim = claims_of("KL")


@claim(
    "kl", names=True,
    says="Which estimator of the KL it is, by value.",
    equation=KINDS, source=SCHULMAN,
    by_hand="p = 1/2, q = 1/4: k1 0.693, k2 0.240, k3 0.193",
    violation="k1 and k3 have the right mean; k2 and k3 are never negative; k1 and k2 are noisier than k3.")
def estimator(adapter: Adapter, tolerance: float) -> str:
    return kind(adapter)


@claim(
    "kl", tolerance=1e-4, names=True,
    says="Which KL the gradient belongs to, over the policy's own tokens.",
    equation="k1: 0;  k2: KL(policy || reference);  k3: KL(reference || policy)",
    source="arXiv 2510.01555; huggingface/trl pull request 6503; verl's k3+",
    by_hand="p = (.6, .3, .1), q = (.3, .3, .4): 0; (.2495, -.0832, -.1664); (.3, 0, -.3)",
    violation="k1 in a loss only adds noise. k3 covers the reference, k2 seeks its mode; near it they agree.")
def gradient_of(adapter: Adapter, tolerance: float) -> str:
    return gradient_kind(adapter, tolerance)


@claim(
    "kl", names=True,
    says="Where the KL is bounded.",
    equation="exp(clamp(-d)), or clamp(kl)", source="verl and OpenRLHF: 10",
    by_hand="d = -30: exp(30) - 1 - 30 = 1.07e13; with d bounded at 20, 4.9e8; or 10",
    violation="Beyond its bound a token is not pulled back any more. k3 without one overflows: see \"far apart\".")
def bounded_at(adapter: Adapter, tolerance: float) -> str:
    value = adapter.kl(torch.tensor([[-31.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)).item()
    free = {"k1": -30.0, "k2": 450.0, "k3": 1.0686e13}.get(kind(adapter), float("nan"))
    return "not bounded" if abs(value / free - 1) < 1e-3 else f"{value:.3g}"
