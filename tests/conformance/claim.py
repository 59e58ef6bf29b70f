"""A claim: one thing that GRPO code must get right, or one convention that it may choose, and what a reader needs.

A claim that judges passes or fails. One that names a convention says what it found; it fails only where the adapter
declares something else. Claims are functions in `claims/`, in the order of their files.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tests.conformance.adapter import Adapter

PASSED, FAILED, NAMED, NOT_OFFERED = STATUSES = ("passed", "failed", "convention", "not offered")
Check = Callable[[Adapter, float], str | None]


class Cause(NamedTuple):
    """What several failed claims most likely have in common, and what to do."""

    words: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim; its texts are plain, and numbers in `by_hand` can be worked out with a pencil.

    `check` raises `Wrong` or `NotOffered`. One that names a convention returns what it found.
    """

    name: str
    subject: str  # what it is about, the heading of its part of the table
    needs: tuple[str, ...]  # functions of the adapter
    says: str
    equation: str
    source: str
    by_hand: str
    violation: str  # what a violation, or the choice, does to training
    tolerance: float
    check: Check
    names: bool  # a convention
    cause: Cause | None


class Outcome(NamedTuple):
    """What came of a claim: one of STATUSES, and what was found in words."""

    claim: Claim
    status: str
    found: str


class Wrong(AssertionError):
    """The claim does not hold; the message says what was found and what was expected."""


class NotOffered(Exception):
    """The claim does not apply to this code; the message says why."""


CLAIMS: list[Claim] = []


def claims_of(subject: str) -> Callable[..., Callable[[Check], Check]]:
    """A decorator for claims about a subject: `needs` and the texts of Claim; the function's name is the claim's."""

    def claim(
        needs: str, *, tolerance: float = 1e-5, names: bool = False, cause: Cause | None = None, **texts: str
    ) -> Callable[[Check], Check]:
        def register(check: Check) -> Check:
            CLAIMS.append(Claim(
                name=check.__name__.replace("_", " "), subject=subject, needs=tuple(needs.split()), check=check,
                tolerance=tolerance, names=names, cause=cause, **texts))
            return check

        return register

    return claim


def outcome(claim: Claim, adapter: Adapter) -> Outcome:
    """Try one claim. Never raises for what the adapter does."""
    missing = [name for name in claim.needs if name not in adapter.functions]
    if missing:
        return Outcome(claim, NOT_OFFERED, f"no function {missing[0]}")
    try:
        # Whatever an implementation draws, the next claim finds it as before; and its warnings are not about claims.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            found = claim.check(adapter, claim.tolerance)
    except (NotOffered, NotImplementedError) as reason:
        return Outcome(claim, NOT_OFFERED, str(reason))
    except Wrong as wrong:
        return Outcome(claim, FAILED, str(wrong))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())
        return Outcome(claim, FAILED, f"{type(error).__name__}: {words} ({frame.name}, line {frame.lineno})")
    if not claim.names:
        return Outcome(claim, PASSED, "")
    declared = adapter.conventions.get(claim.name, found)
    if declared != found:
        return Outcome(claim, FAILED, f"found {found}, declared {declared}")
    return Outcome(claim, NAMED, found)


def outcomes(adapter: Adapter, claims: Sequence[Claim] = CLAIMS) -> Iterator[Outcome]:
    """Try all claims, one after the other."""
    for claim in claims:
        yield outcome(claim, adapter)
