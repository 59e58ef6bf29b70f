"""The conformance suite: it fails what is wrong, for the reason that is meant, and passes what is right. 10 s."""

import difflib
import importlib
import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import ROOT

from grpo.report.tokens.worked import EXAMPLE, worked
from tests.conformance import __main__ as command
from tests.conformance import page
from tests.conformance.adapter import CONVENTIONS, FUNCTIONS, Adapter, load
from tests.conformance.adapters import bugs, repaired
from tests.conformance.claim import CLAIMS, FAILED, NAMED, NOT_OFFERED, PASSED, outcome, outcomes
from tests.conformance.claims import mask, micro_batches

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
        "small differences are exact", "it never pushes away"}


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


def test_an_adapter_in_a_group_of_its_own_is_not_asked_on_two_ranks_and_the_claim_says_why() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        status, found = of("a rank without tokens", adapter(rank_gradient=lambda weight, *_: weight))
    finally:
        dist.destroy_process_group()
    assert status == NOT_OFFERED and found.startswith("the adapter has joined a process group of its own")


def test_the_command_prints_a_line_for_each_claim_and_writes_pages(tmp_path: Path, capsys) -> None:
    html, tables = tmp_path / "page.html", tmp_path / "page.md"
    where = f"{ADAPTERS / 'bugs.py'}:NegativeKL"
    assert command.main([where, "--html", str(html), "--markdown", str(tables)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"NegativeKL: {len(CLAIMS)} claims, 10 passed, 3 failed, 3 conventions named, ")
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
    assert "| wrong | 10 | 3 | 3 | 92 |" in text and "| right | 13 | 0 | 3 | 92 |" in text
    assert "\n## KL\n\n| claim | wrong | right |\n" in text
    row, = re.findall(r"^\| \*\*never negative in float32\*\*: .*", text, re.M)
    assert row.endswith(" | **failed** | passed |")


@pytest.mark.parametrize(("constant", "line"), [
    ("CLIP = 0.2", "CLIP=0.2 must be two numbers from 0, (low, high), low at most 1; nearest valid value: (0.2, 0.2)"),
    ("CLIP = (0.8, 'high')", "CLIP=(0.8, 'high') must be two numbers from 0, (low, high), low at most 1; nearest valid "
     "value: (0.2, 0.2)"),
    ("CLIP = (1.2, 1.2)", "CLIP=(1.2, 1.2) must be two numbers from 0, (low, high), low at most 1; nearest valid "
     "value: (0.2, 0.2)"),
    ("BETA = '0.04'", "BETA='0.04' must be a number from 0; nearest valid value: 0.0"),
    ("CONVENTIONS = {'dual-clip': 'none'}", "CONVENTIONS='dual-clip' is a name that no claim about a convention has; "
     f"their names: {', '.join(CONVENTIONS)}; nearest valid value: dual clip"),
    ("CONVENTIONS = {'bounded at': 20}", "CONVENTIONS['bounded at']=20 must be a text, what the table prints; nearest "
     'valid value: "20"'),
    ("CONVENTIONS = ['dual clip']", "CONVENTIONS=['dual clip'] must be a dict from names of claims to what they find; "
     "nearest valid value: {}"),
], ids=["one bound", "no number", "low above 1", "beta a text", "misspelt", "value", "list"])
def test_a_constant_that_claims_cannot_be_tried_with_is_refused_in_one_line(constant, line, tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(f"{constant}\ndef kl(logprob, ref_logprob):\n    return logprob - ref_logprob\n")
    assert command.main([str(tmp_path / "mine.py")]) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_the_names_of_conventions_are_those_of_the_claims_and_the_docstring_lists_them() -> None:
    assert list(CONVENTIONS) == [claim.name for claim in CLAIMS if claim.names]
    docstring = importlib.import_module("tests.conformance.adapter").__doc__
    assert re.findall(r'^    "([^"]+)"  ', docstring, re.M) == list(CONVENTIONS)


def over_a_tiny_eps(rewards):
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-4)


def bounded_in_one_term(logprob, ref_logprob):
    d = ref_logprob - logprob
    return torch.expm1(d.clamp(-20, 20)) - d


def selected_too_late(logits, tokens, temperature):
    logp = (logits.float() / temperature).log_softmax(dim=-1)
    entropy = -torch.where(logp.exp() > 0, logp.exp() * logp, 0.0).sum(dim=-1)
    return logp.gather(2, tokens[..., None])[..., 0], entropy


@pytest.mark.parametrize(("functions", "caught_by", "found"), [
    ({"advantages": over_a_tiny_eps}, "equal rewards of hundreds", "seven times 95.3: found (0.07049, "),
    ({"kl": bounded_in_one_term}, "it never pushes away", "d = -30: found gradient 1, expected none above 0"),
    ({"score": selected_too_late}, "gradient of the entropy with an excluded word", "gradient: found (nan, nan, nan)"),
], ids=["advantages", "kl", "entropy"])
def test_half_a_mend_is_caught_by_one_claim_alone(functions, caught_by: str, found: str) -> None:
    wrong = [one for one in outcomes(adapter(**functions), ALONE) if one.status == FAILED]
    assert [one.claim.name for one in wrong] == [caught_by, *(["one completion"] if "advantages" in functions else [])]
    assert wrong[0].found.startswith(found)


def test_an_entropy_that_is_only_logged_has_no_gradient_to_judge() -> None:
    def logged(*given):
        logprob, entropy = selected_too_late(*given)
        return logprob, entropy.detach()

    name = "gradient of the entropy with an excluded word"
    assert of(name, adapter(score=logged)) == (NOT_OFFERED, "its entropy has no gradient")


def test_claims_of_one_cause_stand_together_and_only_the_first_is_explained() -> None:
    swapped = Adapter("one", {"loss": repaired.NegatedTwice.loss}, clip=(0.2, 0.28))  # its upper bound is 0.2
    found = list(outcomes(swapped, ALONE))
    assert failed(found) == ["clipped above", "the upper bound", "a clipped token beside another", "far above and good"]
    assert [[one.claim.name for one in group] for group in page.by_cause(found)] == [
        ["clipped above", "the upper bound"], ["a clipped token beside another"], ["far above and good"]]
    text = page.terminal("one", found)
    assert ("\n2 claims fail that most likely have one cause: other bounds of the clip than the adapter says. The "
            "first:\n\nFAILED clipped above: ") in text and "\n  as well   the upper bound\n" in text
    assert "\n  remedy    clamp(ratio, 1 - low, 1 + high). If that is what it does: CLIP in the adapter" in text
    assert [line for line in text.splitlines() if line.startswith("FAILED the upper bound")] == []
    assert page.html("one", found).count("2 claims that most likely have one cause: other bounds") == 1


def test_numbers_worked_by_hand_are_those_that_a_claim_finds() -> None:
    ours = load(str(ADAPTERS / "ours.py"))  # a mean over tokens
    grad = mask.loss(ours).grad_NT
    assert mask.loss(ours).value.item() == pytest.approx(-0.2762, abs=6e-5)
    assert [f"{value:.4f}" for value in grad[mask.MASK].tolist()] == re.findall(r"-?0\.\d{4}", mask.BATCH)[:-1]
    penalty = next(claim for claim in CLAIMS if claim.name == "the penalty is split alike")
    k3 = load(f"{EXAMPLES / 'student_adapter.py'}")
    for one, number in ((ours, "k2 0.1 / 12 = 0.00833"), (k3, "k3 (1 - exp(-0.1)) / 12 = 0.00793")):
        pull_NT = micro_batches.accumulated(one, micro_batches.ALL, torch.zeros(5), ref=micro_batches.REF).grad_NT
        assert number in penalty.by_hand and f"{pull_NT[0, 0].item() / one.beta:.5f}" == number[-7:]


def test_the_first_claim_has_the_numbers_of_the_worked_example() -> None:
    first = CLAIMS[0]
    assert first.name == "one right of four" and first.by_hand.startswith(worked(EXAMPLE).text)
    given: list[torch.Tensor] = []

    def kept(rewards):
        given.append(rewards.clone())
        return torch.tensor([worked(row).advantages for row in rewards.tolist()])

    assert of(first.name, adapter(advantages=kept)) == (PASSED, "")
    assert [rewards.tolist() for rewards in given] == [[list(EXAMPLE)]]


def test_the_page_shows_the_student_s_first_version_and_what_the_suite_says_of_it() -> None:
    source, small = ((EXAMPLES / name).read_text() for name in ("student_first.py", "student_first_adapter.py"))
    assert f"```python\n{source}```" in PAGE and f"```python\n{small}```" in PAGE and small.count("\n") < 40
    found = list(outcomes(load(str(EXAMPLES / "student_first_adapter.py"))))
    said = page.terminal("student GRPO", found).splitlines()
    lines = [said[0], *(line for line in said if line.startswith("FAILED ") or " claims fail " in line)]
    assert "```text\n" + "\n".join(lines) + "\n```" in PAGE
    rows = re.findall(r"^\| [\w ]+ \| (\d+) \| .* \|$", PAGE, re.M)
    assert sorted(map(int, rows)) == sorted(map(len, page.by_cause(found))) and len(rows) == 9
    assert f"{len(failed(found))} claims, nine\ncauses:" in PAGE


def test_with_the_lines_on_the_page_all_that_the_student_offers_holds() -> None:
    shown = re.findall(r"```diff\n(.*?)\n```", PAGE, re.S)
    for name, block in zip(("", "_adapter"), shown, strict=True):
        first, last = ((EXAMPLES / f"{one}{name}.py").read_text().splitlines() for one in ("student_first", "student"))
        lines = list(difflib.unified_diff(first, last, n=0, lineterm=""))[2:]
        assert block.splitlines() == [line for line in lines if len(line) > 1 and not line.startswith("@@")]
    found = list(outcomes(load(str(EXAMPLES / "student_adapter.py"))))
    assert failed(found) == [] and page.terminal("student GRPO", found).splitlines()[0] in PAGE


def test_the_docstring_and_the_page_name_every_function() -> None:
    docstring = importlib.import_module("tests.conformance.adapter").__doc__
    assert re.findall(r"^    def (\w+)\(", docstring, re.M) == list(FUNCTIONS)
    assert re.findall(r"^\| `(\w+)\(", PAGE, re.M) == list(FUNCTIONS)
