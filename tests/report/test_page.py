"""The report is rebuilt from a run's files alone, shows its numbers, and lets no model text act as HTML. Needs 6 s."""

import html
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from grpo.config import Config
from grpo.evaluation.answers import Answer, answers_path, save_answers
from grpo.evaluation.record import numbers
from grpo.report.chart import MOST_POINTS
from grpo.report.json_lines import read_newest
from grpo.report.markup import MOST
from grpo.report.page import CURVES, comparison_table, curves, running_mean, write_report

HOSTILE = "<script>alert('&')</script>\n#### The final answer is 1"
START = {"first_step": 0, "num_steps": 30, "began": "2025-03-01T10:00:00+00:00", "ended": "2025-03-01T11:30:20+00:00",
         "ending": "finished", "reason": "", "machine": "8 x H100", "ranks": 8,
         "code": "commit abc1234, with uncommitted changes", "versions": {"python": "3.11.7", "torch": "2.11.0"}}


def answers(right: list[bool], *, completion: str = "4 + 5 = 9") -> list[Answer]:
    return [
        Answer(index=index, question=f"problem <{index}>", final_answer="9", completion=completion, strict=is_right,
               lenient=True, format=True, truncated=False)
        for index, is_right in enumerate(right)
    ]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def completion(step: int, question: str, text: str, **changed: object) -> dict:
    return {"step": step, "question": question, "completion": text, "reward": 1.5,
            "rewards": {"format": 0.5, "correctness": 1.0}, "advantage": -0.75, "length": 7, "truncated": False,
            **changed}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 30 steps whose greedy accuracy rose from 1 to 9 of 10."""
    Config(model_name_or_path="a<b", seed=0, torch_dtype="float32", beta=0.25).save(tmp_path / "config.yaml")
    records = [{"step": step, **{name: step / 30 for name in CURVES}} for step in range(30)]
    records[5]["kl"] = None  # was not finite
    write_lines(tmp_path / "metrics.jsonl", records)
    write_lines(tmp_path / "completions.jsonl", [completion(28, "old", "old"), completion(29, "new?", HOSTILE)])
    (tmp_path / "run.json").write_text(json.dumps([START]))
    before = answers([True] + [False] * 9, completion=HOSTILE)
    save_answers(before, answers_path(tmp_path, "greedy", "before"))
    save_answers(answers([True] * 9 + [False]), answers_path(tmp_path, "greedy", "after"))
    return tmp_path


def cells(text: str) -> list[list[str]]:
    """The cells of each row of each table, as text."""
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)
            for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    return [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in row] for row in rows]


def figures(text: str) -> dict[str, ElementTree.Element]:
    """The charts of a page, by the metric's name."""
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    return {svg.get("aria-label").split(" [")[0]: svg for svg in found}


def hovered(svg: ElementTree.Element) -> list[str]:
    """What is shown where the mouse is, from left to right."""
    return [group.find("title").text for group in svg.iter("g")]


def test_the_page_holds_the_table_the_curves_the_options_and_the_metrics(run: Path) -> None:
    text = write_report(run).read_text()
    # 8 of 10 problems gained, none lost: p = 2 / 2^8 = 0.0078
    row = ["greedy", "10 x 1", "strict", "10.0 % (1.8 to 40.4)", "90.0 % (59.6 to 98.2)", "+80.0", "0.0078"]
    assert row in cells(text)
    assert list(figures(text)) == list(CURVES)
    assert any(row[0] == "zero_variance_share" and len(row) == 5 for row in cells(text))


def test_the_table_of_the_run_says_when_where_how_long_and_from_which_code(run: Path) -> None:
    rows = dict(row for row in cells(write_report(run).read_text()) if len(row) == 2)
    assert rows["began"] == "2025-03-01 10:00 UTC" and rows["duration"] == "1 h 30 min" and rows["done"] == "30 steps"
    assert rows["hardware"] == "8 x H100" and rows["ranks"] == "8" and rows["model"] == "a<b"
    assert rows["code"] == "commit abc1234, with uncommitted changes"
    assert rows["versions"] == "python 3.11.7, torch 2.11.0"


def test_a_resumed_run_says_when_it_went_on_and_takes_its_starts_together(run: Path) -> None:
    first = START | {"ending": "stopped", "ended": "2025-03-01T10:00:30+00:00"}
    second = START | {"first_step": 12, "began": "2025-03-02T10:00:00+00:00", "ended": "2025-03-02T10:01:00+00:00"}
    (run / "run.json").write_text(json.dumps([first, second]))
    rows = [row for row in cells(write_report(run).read_text()) if len(row) == 2][:3]
    assert rows == [["began", "2025-03-01 10:00 UTC"], ["went on", "2025-03-02 10:00 UTC, at step 12"],
                    ["duration", "1 min 30 s"]]
    (run / "run.json").write_text(json.dumps([second]))  # the start before was that of a version without this file
    rows = [row for row in cells(write_report(run).read_text()) if len(row) == 2][:2]
    assert rows == [["went on", "2025-03-02 10:00 UTC, at step 12"], ["done", "30 steps"]]


def test_a_folder_from_before_there_was_run_json_has_a_report_without_what_is_missing(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "completions.jsonl").unlink()
    (run / "summary.json").write_text(json.dumps({"steps": 30, "ranks": 2, "seconds": 75.2}))
    text = write_report(run).read_text()
    rows = dict(row for row in cells(text) if len(row) == 2)
    assert rows["duration"] == "1 min 15 s" and rows["ranks"] == "2"
    assert not {"began", "hardware", "code", "versions"} & rows.keys() and "Completions of step" not in text


def test_the_page_lists_the_warnings_that_the_records_give(run: Path) -> None:
    # Every curve is step / 30. truncated_share is above 0.2 from step 7 on, its fifth step there is 11; four times the
    # mean of the first five completion_length is 8 / 30, above from step 9 on.
    warned = re.findall(r"warning \[step (\d+)\] (\w+)", write_report(run).read_text())
    assert warned == [("11", "truncated_share"), ("13", "completion_length")]


def test_a_warning_that_comes_again_is_one_line(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"step": step, "truncated_share": 0.9} for step in range(160)])
    text = write_report(run).read_text()
    # the fifth step outside is 4, then every 50 steps: 54, 104, 154
    assert text.count("warning [step ") == 1 and "warning [step 4] truncated_share is 0.9" in text
    assert "(again 3 times, last in [step 154])" in text


def test_the_page_needs_no_other_file_and_no_network(run: Path) -> None:
    text = write_report(run).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?:|url\(|@import|<script|<link""", text)


def test_the_page_has_dark_colors_and_a_form_for_phones(run: Path) -> None:
    text = write_report(run).read_text()
    assert "color-scheme: light dark" in text and "@media (prefers-color-scheme: dark)" in text
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text and "@media (max-width: " in text
    # On a phone a row is a block, and each of its cells has its column's name.
    wide = re.findall(r'<table class="wide">.*?</table>', text, re.DOTALL)
    assert wide and all(one.count("<td") == one.count('<td data-label="') for one in wide)


def test_model_text_and_settings_are_escaped(run: Path) -> None:
    text = write_report(run).read_text()
    assert "<script>" not in text
    assert text.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") == 7, "of 6 problems and a step"
    assert "a&lt;b" in text and "problem &lt;0&gt;" in text


def test_completions_before_and_after_answer_the_same_problem_with_their_verdicts(run: Path) -> None:
    rows = [row for row in cells(write_report(run).read_text()) if row and row[0].startswith("problem <")]
    assert rows[1] == ["problem <1>", "9", HOSTILE, "no", "4 + 5 = 9", "yes"]
    assert [row[0] for row in rows] == [f"problem <{index}>" for index in range(6)], "whatever their outcome"


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_completions_of_the_last_step_have_their_reward_parts_and_advantage(run: Path, evaluated: bool) -> None:
    if not evaluated:
        for when in ("before", "after"):
            answers_path(run, "greedy", when).unlink()
    rows = [completion(29, f"q{index // 9}", f"text {index}") for index in range(36)]
    rows[1] |= {"reward": None, "rewards": {"format": 0.5, "correctness": None}, "truncated": True}
    write_lines(run / "completions.jsonl", [completion(28, "old", "old"), *rows])
    text = write_report(run).read_text()
    shown = [row for row in cells(text) if len(row) == 6 and row[0].startswith("text ")]
    assert "Completions of step 29, the last" in text and ("Held-out accuracy" in text) == evaluated
    assert ["completion", "format", "correctness", "reward", "advantage", "tokens"] in cells(text)
    assert shown[:2] == [["text 0", "0.5", "1", "1.5", "-0.75", "7"],
                         ["text 1", "0.5", "none", "none", "-0.75", "7, truncated"]]
    # of 9 completions to each of 4 prompts the first 8 of the first 3
    assert [int(row[0].split()[1]) for row in shown] == [*range(8), *range(9, 17), *range(18, 26)]


def test_only_the_end_of_a_long_file_is_read_for_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "c.jsonl", [{"step": step, "n": n} for step in range(5) for n in range(step + 1)])
    for block in (8, 25, 10**6):
        monkeypatch.setattr("grpo.report.json_lines.BLOCK", block)
        assert [row["n"] for row in read_newest(tmp_path / "c.jsonl")] == [0, 1, 2, 3, 4]
    (tmp_path / "c.jsonl").write_text("")
    assert read_newest(tmp_path / "c.jsonl") == []


def test_options_that_differ_from_their_defaults_come_first_and_the_others_are_folded(run: Path) -> None:
    text = write_report(run).read_text().split("<h2>Options</h2>")[1].split("<h2>")[0]
    changed, rest = text.split("<details>")
    assert cells(changed)[1:] == [["model_name_or_path", "a<b", "data/tiny_qwen2"], ["torch_dtype", "float32", "auto"],
                                  ["beta", "0.25", "0.04"], ["seed", "0", "42"]]
    assert ["learning_rate", "1e-05"] in cells(rest) and ["beta", "0.25"] not in cells(rest)
    names = re.findall(r"^\w+:", (run / "config.yaml").read_text(), re.MULTILINE)
    assert len(cells(changed)) + len(cells(rest)) - 2 == len(names)


def test_a_run_that_ended_before_its_first_step_still_has_a_report(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    text = write_report(run).read_text()
    assert "0 of 30 steps" in text and "Warnings" not in text and "<svg" not in text


def test_values_on_hover_are_those_of_metrics_jsonl_and_ends_and_extremes_are_told_in_words(run: Path) -> None:
    draw = random.Random(0)
    values = [draw.gauss(0.5, 0.3) for _ in range(30)]
    write_lines(run / "metrics.jsonl", [{"step": step, "reward": value} for step, value in enumerate(values)])
    text = write_report(run).read_text()
    svg = figures(text)["reward"]
    assert hovered(svg) == [f"step {step}: {value:.6g}" for step, value in enumerate(values)]
    low, high = min(values), max(values)
    assert svg.get("role") == "img" and svg.get("aria-label") == (
        f"reward [points]: first {values[0]:.4g} at step 0, last {values[-1]:.4g} at step 29, "
        f"lowest {low:.4g} at step {values.index(low)}, highest {high:.4g} at step {values.index(high)}")
    assert "Not measured in this run: accuracy, entropy, grad_norm" in text and "A long run" not in text


def test_curves_leave_out_steps_without_a_value_and_label_their_units() -> None:
    records = [{"step": 0, "kl": 1.0}, {"step": 1, "kl": None}, {"step": 2, "kl": 3.0}]
    svg = figures("\n".join(curves(records, [])))["kl"]
    assert hovered(svg) == ["step 0: 1", "step 2: 3"] and "kl [nats]" in [text.text for text in svg.iter("text")]


def test_several_reward_functions_have_curves_of_their_own_and_one_alone_has_none() -> None:
    def names(**rewards: float) -> list[str]:
        return list(figures("\n".join(curves([{"step": 0, "reward": 1.0, **rewards}], []))))

    assert names(**{"rewards/a": 1.0}) == ["reward"]
    assert names(**{f"rewards/{name}": 1.0 for name in "edcba"}) == ["reward", *(f"rewards/{name}" for name in "abcd")]


def test_held_out_accuracy_is_drawn_at_the_steps_of_its_evaluations() -> None:
    records = [{"step": step, "accuracy": 0.5} for step in (3, 9)]
    heldout = [{"step": step, **numbers("greedy", answers(right))}
               for step, right in ((3, [True, False]), (9, [True, True]))]
    svg = figures("\n".join(curves(records, heldout)))["accuracy"]
    # 1 of 2 and 2 of 2 right; the plot is from 50 to 328 and, of accuracies 1 to 0, from 24 to 166
    assert [(mark.get("x"), mark.get("y"), mark.find("title").text) for mark in svg.iter("rect") if len(mark)] == [
        ("47.0", "92.0", "step 3, held-out greedy: 0.5 (0.09453 to 0.9055)"),
        ("325.0", "21.0", "step 9, held-out greedy: 1 (0.3424 to 1)")]
    assert svg.get("aria-label").endswith(
        "; held-out greedy: first 0.5 at step 3, last 1 at step 9, lowest 0.5 at step 3, highest 1 at step 9")


def test_running_mean_covers_five_values_to_either_side_and_fewer_at_the_ends() -> None:
    # values 0 .. 19: mean of 0..5 is 2.5, of 0..6 is 3, of 5..15 is 10, of 14..19 is 16.5
    means = running_mean(range(20))
    assert (means[0], means[1], means[10], means[19]) == (2.5, 3, 10, 16.5)
    assert running_mean([1.0, 2.0, 6.0], 1) == [1.5, 3, 4]


def test_every_decoding_mode_has_its_own_rows() -> None:
    pair = (answers([True, False]), answers([True, True]))
    table = comparison_table({"greedy": pair, "sampled": pair})
    assert [row[0] for row in cells(table)[1:]] == ["greedy"] * 4 + ["sampled"] * 4


def test_a_page_that_is_not_finished_does_not_get_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(run).read_text()

    def write_half(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:99])
        raise OSError

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError):
        write_report(run)
    assert (run / "report.html").read_text() == before


def test_the_page_of_thousands_of_steps_and_of_endless_completions_is_small(run: Path) -> None:
    draw = random.Random(0)
    names = (*CURVES, *(f"rewards/{name}" for name in "abcdef"))
    records = [{"step": step, **{name: draw.gauss(1000, 1) for name in names}} for step in range(2000)]
    records[777]["grad_norm"] = 98765.0
    write_lines(run / "metrics.jsonl", records)
    write_lines(run / "completions.jsonl", [
        completion(1999, f"q{index // 16}" + "x" * 9000, "<'&>" * 9000) for index in range(128)])
    (run / "evaluation").mkdir(exist_ok=True)
    record = numbers("greedy", answers([True, False])) | numbers("sampled", answers([True, False]))
    write_lines(run / "evaluation" / "metrics.jsonl", [{"step": step, **record} for step in range(0, 2000, 10)])
    report = write_report(run)
    assert report.stat().st_size <= 400_000
    text = report.read_text()
    assert "of 2000 steps at most" in text and ">mean of 51 steps</text>" in text
    shown = hovered(figures(text)["grad_norm"])
    assert len(shown) <= MOST_POINTS and "step 777: 98765" in shown, "a spike of one step is still there"
    assert f"... ({4 * 9000:,} characters)" in text and html.escape(("<'&>" * MOST)[:MOST]) + " ..." in text


@pytest.mark.parametrize(("change", "words"), [
    (lambda start: None, "The accuracy of greedy answers to 10 held-out problems rose from 10.0 %"),
    (lambda start: start.update(ending="failed", reason="error: [rank 0 step 9] <b> broke"),
     "The run failed after 30 of 40 steps: the accuracy of greedy answers"),
], ids=["finished", "failed"])
def test_the_page_begins_with_its_headline_and_the_reason_of_a_failure(
    run: Path, change: Callable[[dict], None], words: str
) -> None:
    start = START | {"num_steps": 40 if "failed" in words else 30}
    change(start)
    (run / "run.json").write_text(json.dumps([start]))
    text = write_report(run).read_text()
    (headline,) = re.findall(r'<p class="headline">(.*?)</p>', text)
    assert headline.replace("\N{NO-BREAK SPACE}", " ").startswith(words)
    assert ("<pre>error: [rank 0 step 9] &lt;b&gt; broke</pre>" in text) == ("failed" in words)
