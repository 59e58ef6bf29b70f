"""Mistakes planted in the conformance suite, and one that it found in the update."""

UPDATE = [
    ("the KL of what does not count is squared", "both_UT = (torch.where(batch.mask_UT, one, 0.0) for one in",
     "both_UT = (one for one in"),
]

CLAIM = [
    ("what is missing passes", 'NOT_OFFERED, f"no function {missing[0]}"', 'PASSED, f"no function {missing[0]}"'),
    ("a refusal fails", "return Outcome(claim, NOT_OFFERED, str(reason))",
     "return Outcome(claim, FAILED, str(reason))"),
    ("an error is a refusal", 'return Outcome(claim, FAILED, f"{type(error)',
     'return Outcome(claim, NOT_OFFERED, f"{type(error)'),
    ("a declared convention is not compared", "if declared != found:", "if False:"),
]

TOOLS = [
    ("what is no number is right", "if not bool((apart <= tolerance * expected.abs().clamp(min=1)).all()):",
     "if bool((apart > tolerance * expected.abs().clamp(min=1)).any()):"),
    ("any ratio is that of a token", "if torch.allclose(relative, log_ratio[0].exp(), atol=1e-3):", "if True:"),
]

ADAPTER = [
    ("CLIP is not read", 'clip=getattr(found, "CLIP", Adapter.clip)', "clip=Adapter.clip"),
    ("BETA is not read", 'beta=getattr(found, "BETA", Adapter.beta)', "beta=Adapter.beta"),
]

PAIR = [
    ("why a rank ended is forgotten", 'return before if before.kind == "error" else ENDED', "return ENDED"),
    ("ranks are in groups of their own", "rank=rank, world_size=num_ranks)", "rank=0, world_size=1)"),
]

PAGE = [
    ("failed claims are folded, too", "{' open' if status == FAILED else ''}", ""),
]

COMMAND = [
    ("a failed claim is a success", "return int(any(one.status == FAILED for one in found))", "return 0"),
]

_SUITE = "tests/conformance"
CONFORMANCE_GROUPS = [
    ("grpo/update.py", ("test_claims.py",), UPDATE),
    *((f"{_SUITE}/{file}", ("test_suite.py",), rows) for file, rows in (
        ("claim.py", CLAIM), ("tools.py", TOOLS), ("adapter.py", ADAPTER), ("pair.py", PAIR), ("page.py", PAGE),
        ("__main__.py", COMMAND))),
]
