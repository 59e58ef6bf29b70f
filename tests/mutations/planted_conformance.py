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
    ("any CLIP will do", "if not (isinstance(clip, tuple | list) and len(clip) == 2 and all(map(_bound, clip)) and "
     "clip[0] <= 1):", "if False:"),
    ("the lower bound of CLIP may be above 1", "and clip[0] <= 1):", "):"),
    ("any BETA will do", "if not _bound(beta):", "if False:"),
    ("a misspelt convention is ignored", "if name not in CONVENTIONS:", "if False:"),
    ("a convention may be a number", "if not isinstance(value, str):", "if False:"),
    ("the nearest name is not given", "nearest(str(name), CONVENTIONS))", "None)"),
    ("BETA is not read", 'beta=getattr(found, "BETA", Adapter.beta)', "beta=Adapter.beta"),
]

PAIR = [
    ("why a rank ended is forgotten", 'return before if before.kind == "error" else ENDED', "return ENDED"),
    ("ranks are in groups of their own", "rank=rank, world_size=num_ranks)", "rank=0, world_size=1)"),
    ("ranks are forked from a process in a group", "if dist.is_initialized():", "if False:"),
]

PAGE = [
    ("claims of one cause stand alone", "groups.setdefault(one.claim.cause or one.claim, [])",
     "groups.setdefault(one.claim, [])"),
    ("claims without a cause stand together", "groups.setdefault(one.claim.cause or one.claim, [])",
     "groups.setdefault(one.claim.cause, [])"),
    ("the remedy is not shown", 'if claim.cause else []', "if False else []"),
    ("the other claims of a cause are not named", "        if others:\n            lines.append(f",
     "        if False:\n            lines.append(f"),
    ("failed claims are folded, too", "{' open' if status == FAILED else ''}", ""),
]

COMMAND = [
    ("a failed claim is a success", "return int(any(one.status == FAILED for one in found))", "return 0"),
]

MASK = [
    ("the worked batch has a KL", "REF = torch.where(MASK, LOGPROB, LOGPROB - 0.1)", "REF = LOGPROB - 0.1"),
]

MICRO_BATCHES = [
    ("the penalty's batch has no KL", "    usual = accumulated(adapter, ALL, nothing, ref=REF).grad_NT / adapter.beta",
     "    usual = accumulated(adapter, ALL, nothing, ref=LOGPROB).grad_NT / adapter.beta"),
    ("another reference", "torch.tensor([[0.1], [-0.2]", "torch.tensor([[0.2], [-0.2]"),
]

FIRST = [
    ("the first claim has an example of its own", 'by_hand=f"{worked(WORKED).text} Whatever',
     'by_hand=f"rewards (1, 0, 0, 0). Whatever'),
]

KL = [
    ("any push is a pull", "if grad * d < -tolerance:", "if False:"),
]

SCORE = [
    ("an entropy without a gradient fails", "    if not found.requires_grad:\n", "    if False:\n"),
]

_SUITE = "tests/conformance"
CONFORMANCE_GROUPS = [
    ("grpo/update.py", ("test_claims.py",), UPDATE),
    *((f"{_SUITE}/{file}", ("test_suite.py",), rows) for file, rows in (
        ("claims/mask.py", MASK), ("claims/micro_batches.py", MICRO_BATCHES), ("claims/advantages.py", FIRST),
        ("claims/kl.py", KL), ("claims/score.py", SCORE), ("claim.py", CLAIM), ("tools.py", TOOLS),
        ("adapter.py", ADAPTER), ("pair.py", PAIR), ("page.py", PAGE),
        ("__main__.py", COMMAND))),
]
