"""Each claim about GRPO on our own code, or on another's: `pytest tests/conformance --against FILE.py`. 3 seconds."""

import pytest

from tests.conformance.adapter import Adapter
from tests.conformance.claim import FAILED, NOT_OFFERED, Claim, outcome
from tests.conformance.claims import CLAIMS
from tests.conformance.page import about


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name.replace(" ", "_"))
def test_claim(claim: Claim, adapter: Adapter) -> None:
    _, status, found = outcome(claim, adapter)
    if status == NOT_OFFERED:
        pytest.skip(f"not offered: {found}")
    reasons = "\n".join(f"  {label:<9} {text}" for label, text in about(claim))
    assert status != FAILED, f"{claim.says}\n  found     {found}\n{reasons}"
