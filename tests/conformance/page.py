"""What came of the claims: lines for a terminal, a table in Markdown, one self-contained HTML page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from grpo.report.markup import escaped, page, pairs, paragraph
from tests.conformance.claim import FAILED, NAMED, NOT_OFFERED, PASSED, STATUSES, Cause, Claim, Outcome

COLORS = {PASSED: "--c2", FAILED: "--c1", NAMED: "--c0", NOT_OFFERED: "--soft"}  # of grpo.report.markup
STYLE = "".join(f".{name.replace(' ', '-')} {{ color: var({color}); }}\n" for name, color in COLORS.items())
STYLE = f"<style>details {{ margin: .25em 0; }} b {{ font-weight: 600; }}\n{STYLE}</style>"


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many there are of each status, in words."""
    number = Counter(one.status for one in outcomes)
    words = {PASSED: "passed", FAILED: "failed", NAMED: "conventions named", NOT_OFFERED: "not offered"}
    return ", ".join(f"{number[status]} {words[status]}" for status in STATUSES)


def terminal(name: str, outcomes: Sequence[Outcome]) -> str:
    """A line for each claim under its subject; below, what failed claims are about, once for those of one cause."""
    lines = [f"{name}: {len(outcomes)} claims, {counts(outcomes)}"]
    for subject, some in groupby(outcomes, key=lambda one: one.claim.subject):
        lines += ["", subject]
        for claim, status, found in some:
            word = status.upper() if status == FAILED else status
            lines.append(f"  {word:<11}  {claim.name}" + (f": {found}" if found else ""))
    for first, *others in by_cause(outcomes):
        claim, cause = first.claim, first.claim.cause
        if others:
            lines += ["", f"{1 + len(others)} claims fail that most likely have one cause: {cause.words}. The first:"]
        lines += ["", f"FAILED {claim.name}: {claim.says}", *(f"  {label:<9} {text}" for label, text in (
            ("found", first.found), *about(claim)))]
        if others:
            lines.append(f"  {'as well':<9} {', '.join(other.claim.name for other in others)}")
    return "\n".join(lines)


def by_cause(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """The failed ones, those of one cause together, in the place of the first."""
    groups: dict[Claim | Cause, list[Outcome]] = {}
    for one in outcomes:
        if one.status == FAILED:
            groups.setdefault(one.claim.cause or one.claim, []).append(one)
    return list(groups.values())


def about(claim: Claim) -> list[tuple[str, str]]:
    """What a reader needs to judge a claim, by label."""
    remedy = [("remedy", claim.cause.remedy)] if claim.cause else []
    return [("equation", claim.equation), ("by hand", claim.by_hand), ("source", claim.source),
            ("if not" if not claim.names else "effect", claim.violation), *remedy]


def html(name: str, outcomes: Sequence[Outcome]) -> str:
    """A whole page; each claim is folded, the failed ones open."""
    failed = [one for one in outcomes if one.status == FAILED]
    body = [STYLE, paragraph(f"{len(outcomes)} claims about GRPO: {counts(outcomes)}.", "headline"), paragraph(
        "A claim passes or fails. Where code may differ, a claim names the convention that it found. What an adapter "
        "does not have is not offered. Click on a claim for its equation, its source and a number worked by hand.")]
    if failed:
        body.append("<h2>Failed</h2>")
    for group in by_cause(outcomes):
        if len(group) > 1:
            cause = group[0].claim.cause.words
            body.append(paragraph(f"{len(group)} claims that most likely have one cause: {cause}."))
        body += map(_folded, group)
    for subject, some in groupby(outcomes, key=lambda one: one.claim.subject):
        body += [f"<h2>{escaped(subject[:1].upper() + subject[1:])}</h2>", *map(_folded, some)]
    return page(f"Conformance of {name}", body)


def _folded(one: Outcome) -> str:
    claim, status, found = one
    rows = [("found", found)] if found else []
    rows += [*about(claim), ("tolerance", f"{claim.tolerance:g}"), ("function", ", ".join(claim.needs))]
    summary = f'<b class="{status.replace(" ", "-")}">{status}</b> <b>{escaped(claim.name)}</b>: {escaped(claim.says)}'
    summary += f' <span class="soft">{escaped(found)}</span>' if claim.names else ""
    return f"<details{' open' if status == FAILED else ''}><summary>{summary}</summary>{pairs(rows)}</details>"


def cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return text.replace("|", "\\|")


def markdown(outcomes_of: Mapping[str, Sequence[Outcome]]) -> str:
    """Claims x implementations, a table for each subject; they must have the same claims."""
    names = list(outcomes_of)
    lines = ["| | " + " | ".join(STATUSES) + " |", "|---|" + "---|" * len(STATUSES)]
    for name, outcomes in outcomes_of.items():
        number = Counter(one.status for one in outcomes)
        lines.append(f"| {name} | " + " | ".join(str(number[status]) for status in STATUSES) + " |")
    rows = zip(*outcomes_of.values(), strict=True)
    for subject, some in groupby(rows, key=lambda row: row[0].claim.subject):
        lines += ["", f"## {subject[:1].upper() + subject[1:]}", "", f"| claim | {' | '.join(names)} |",
                  "|---|" + "---|" * len(names)]
        for row in some:
            claim = row[0].claim
            lines.append(f"| **{claim.name}**: {cell(claim.says)} | " + " | ".join(map(_verdict, row)) + " |")
    return "\n".join(lines) + "\n"


def _verdict(one: Outcome) -> str:
    if one.status == NAMED:
        return cell(one.found)
    return {FAILED: "**failed**"}.get(one.status, one.status)
