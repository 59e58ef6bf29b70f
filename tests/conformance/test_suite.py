"""The conformance suite itself: it fails what is wrong, for the reason that is meant, and passes what is right. 6 s."""

import importlib
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from ranks import ROOT

from tests.conformance import __main__ as command
from tests.conformance import page
from tests.conformance.adapter import FUNCTIONS, Adapter, load
from tests.conformance.adapters import bugs
from tests.conformance.claim import CLAIMS, FAILED, NAMED, NOT_OFFERED, PASSED, outcome, outcomes

HERE = Path(__file__).parent
ADAPTERS, EXAMPLES = HERE / "adapters", HERE / "examples"
PAGE = (ROOT / "docs" / "conformance.md").read_text()
MISTAKES = [name for name, value in vars(bugs).items() if hasattr(value, "CAUGHT_BY")]
ALONE = [claim for claim in CLAIMS if claim.subject != "two ranks"]


def adapter(**functions) -> Adapter:
    return Adapter("one", functions)


def of(name: str, subject: Adapter):
    return outcome(next(claim for claim in CLAIMS if claim.name == name), subject)[1:]


def failed(found) -> list[str]:
    return [one.claim.name for one in found if one.status == FAILED]


def test_there_are_at_least_sixty_claims_that_judge_and_each_says_all_that_a_reader_needs() -> None:
    assert sum(not claim.names for claim in CLAIMS) >= 60 and len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        texts = (claim.says, claim.equation, claim.source, claim.by_hand, claim.violation)
        assert all(len(text) > 3 for text in texts) and set(claim.needs) <= set(FUNCTIONS), claim.name
        assert re.search(r"\d", claim.by_hand) or claim.names, claim.name


@pytest.mark.parametrize(("settings", "convention", "named"), [
    ("PAPER", "mean over", "completions, then tokens"),
    ("DR_GRPO", "mean over", "a constant: 1 / 16 for 2 completions"),
    ("GSPO", "the ratio", "the mean over a completion (GSPO)"), ("RLOO", "dual clip", "at 3"),
])
def test_our_other_losses_hold_too_and_only_their_conventions_differ(settings, convention, named) -> None:
    found = list(outcomes(load(f"{ADAPTERS / 'ours.py'}:{settings}"), ALONE))
    assert failed(found) == []
    assert {one.claim.name: one.found for one in found}[convention] == named


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_public_mistake_is_caught_by_the_claim_that_is_meant_for_it_and_its_repaired_form_holds(mistake) -> None:
    wrong, right = (load(f"{ADAPTERS / file}:{mistake}") for file in ("bugs.py", "repaired.py"))
    assert sorted(failed(outcomes(wrong))) == sorted(getattr(bugs, mistake).CAUGHT_BY)
    found = list(outcomes(right))
    assert failed(found) == [] and any(one.status == PASSED for one in found)


def test_what_an_adapter_lacks_is_not_offered_and_never_passed() -> None:
    found = list(outcomes(adapter(kl=lambda logprob, ref: logprob - ref)))
    assert {one.status for one in found if one.claim.needs != ("kl",)} == {NOT_OFFERED}
    # k1 may be negative: what holds only for the others does not apply to it.
    assert {one.claim.name for one in found if one.claim.needs == ("kl",) and one.status == NOT_OFFERED} == {
        "no pull where they agree", "it pulls back", "never negative in float32", "never negative in bfloat16",
        "small differences are exact"}


def test_an_error_fails_a_claim_and_a_refusal_does_not() -> None:
    def raises(rewards):
        raise KeyError("rewards")

    def refuses(rewards):
        raise NotImplementedError("only for two prompts")

    status, found = of("equal rewards", adapter(advantages=raises))
    assert status == FAILED and found.startswith("KeyError: 'rewards' (raises, line ")
    assert of("equal rewards", adapter(advantages=refuses)) == (NOT_OFFERED, "only for two prompts")


def test_a_convention_is_named_and_fails_only_where_another_is_declared() -> None:
    def divided(rewards):
        return (rewards - rewards.mean(dim=1, keepdim=True)) / rewards.std(dim=1, keepdim=True, correction=0)

    named = adapter(advantages=divided)
    assert of("standard deviation", named) == (NAMED, "population, of n")
    declared = Adapter("one", {"advantages": divided}, conventions={"standard deviation": "sample, of n - 1"})
    assert of("standard deviation", declared) == (FAILED, "found population, of n, declared sample, of n - 1")


def test_a_rank_that_raises_or_ends_fails_its_claims_and_says_why() -> None:
    def raises(weight, tokens, advantage, mask):
        if dist.get_rank() == 1:
            raise ValueError("on rank 1")
        dist.all_reduce(weight.detach())
        return weight

    def ends(weight, tokens, advantage, mask):
        os._exit(3)

    for name in ("both apply the same", "a rank without tokens"):  # of the first case, which ends it, and the second
        status, found = of(name, adapter(rank_gradient=raises))
        assert status == FAILED and found.startswith("rank 1: ValueError: on rank 1 (raises, line")
    assert of("a rank without tokens", adapter(rank_gradient=ends)) == (FAILED, "rank 0: its process ended")


def test_the_command_prints_a_line_for_each_claim_and_writes_pages(tmp_path: Path, capsys) -> None:
    html, tables = tmp_path / "page.html", tmp_path / "page.md"
    where = f"{ADAPTERS / 'bugs.py'}:NegativeKL"
    assert command.main([where, "--html", str(html), "--markdown", str(tables)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"NegativeKL: {len(CLAIMS)} claims, 9 passed, 3 failed, 3 conventions named, ")
    assert "\n  FAILED       never negative in float32: 5 of 200" in printed
    assert all(f"  {claim.name}" in printed for claim in CLAIMS)
    text = html.read_text()
    # Readable in the dark and on a phone, and nothing is loaded from elsewhere.
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert not re.search(r"(src|href)=|url\(|@import", text)
    assert text.count("<details") == len(CLAIMS) + 3 and text.count("<details open") == 6
    rows = re.findall(r"^\| \*\*.*", tables.read_text(), re.M)
    assert len(rows) == len(CLAIMS) and sum("| **failed** |" in row for row in rows) == 3
    assert command.main([f"{ADAPTERS / 'repaired.py'}:NegativeKL"]) == 0


@pytest.mark.parametrize(("where", "line"), [
    ("nothing.py", "must be a Python file, or FILE.py:NAME; there is no file"),
    (f"{HERE / 'conftest.py'}", "must have at least one of the functions advantages, kl, loss"),
    (f"{ADAPTERS / 'bugs.py'}:Negated", "must name an object in the file; it has AnotherDivergence, Clip"),
], ids=["no file", "no functions", "no object"])
def test_an_adapter_that_cannot_be_used_is_refused_in_one_line(where: str, line: str, capsys) -> None:
    assert command.main([where]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: adapter=") and line in said and said.count("\n") == 1


def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(ValueError, match="must be importable: ZeroDivisionError: division by zero$"):
        load(str(tmp_path / "broken.py"))


def test_the_tables_have_a_column_for_each_implementation() -> None:
    one, other = (list(outcomes(load(f"{ADAPTERS / file}:NegativeKL"))) for file in ("bugs.py", "repaired.py"))
    text = page.markdown({"wrong": one, "right": other})
    assert "| wrong | 9 | 3 | 3 | 90 |" in text and "| right | 12 | 0 | 3 | 90 |" in text
    assert "\n## KL\n\n| claim | wrong | right |\n" in text
    row, = re.findall(r"^\| \*\*never negative in float32\*\*: .*", text, re.M)
    assert row.endswith(" | **failed** | passed |")


def student(source: str, folder: Path) -> SimpleNamespace:
    """A student's code in a folder with the adapter; what the suite says, and the module."""
    (folder / "student.py").write_text(source)
    (folder / "student_adapter.py").write_text((EXAMPLES / "student_adapter.py").read_text())
    sys.modules.pop("student", None)  # an adapter imports what lies beside it
    found = list(outcomes(load(str(folder / "student_adapter.py"))))
    return SimpleNamespace(found=found, module=sys.modules.pop("student"))


def test_the_page_shows_the_student_s_files_and_what_the_suite_says_of_them(tmp_path: Path) -> None:
    source, small = ((EXAMPLES / name).read_text() for name in ("student.py", "student_adapter.py"))
    assert f"```python\n{source}```" in PAGE and f"```python\n{small}```" in PAGE
    assert source.count("\n") <= 60 and small.count("\n") < 40
    one = student(source, tmp_path)
    said = page.terminal("student_adapter", one.found).splitlines()
    lines = [said[0], *(line for line in said if line.startswith("FAILED "))]
    assert "```text\n" + "\n".join(lines) + "\n```" in PAGE
    assert f"The {len(lines) - 1} claims fail for six reasons" in PAGE
    torch.manual_seed(0)
    assert one.module.train(100) > 0.75


def test_with_the_lines_on_the_page_all_that_the_student_offers_holds(tmp_path: Path) -> None:
    diff, = re.findall(r"```diff\n(.*?)```", PAGE, re.S)
    source = (EXAMPLES / "student.py").read_text()
    changes = re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.M)
    for old, new in changes:
        old, new = (re.sub(r"^[-+]", "", text, flags=re.M) for text in (old, new))
        assert source.count(old) == 1
        source = source.replace(old, new)
    one = student(source, tmp_path)
    assert len(changes) == 6 and failed(one.found) == []


def test_the_docstring_and_the_page_name_every_function() -> None:
    docstring = importlib.import_module("tests.conformance.adapter").__doc__
    assert re.findall(r"^    def (\w+)\(", docstring, re.M) == list(FUNCTIONS)
    assert re.findall(r"^\| `(\w+)\(", PAGE, re.M) == list(FUNCTIONS)
