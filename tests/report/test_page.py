"""The report is rebuilt from a run's files alone, shows its numbers, and lets no model text act as HTML. Needs 5 s."""

import html
import json
import re

import pytest

from grpo.config import Config
from grpo.evaluation.answers import Answer, answers_path, save_answers
from grpo.evaluation.record import numbers
from grpo.report.page import CURVES, comparison_table, curves, page, running_mean, write_report

HOSTILE = "<script>alert('&')</script>\n#### The final answer is 1"


def answers(right, *, completion="4 + 5 = 9"):
    return [
        Answer(index=index, question=f"problem <{index}>", final_answer="9", completion=completion, strict=is_right,
               lenient=True, format=True, truncated=False)
        for index, is_right in enumerate(right)
    ]


@pytest.fixture
def run(tmp_path):
    """A finished run of 30 steps whose greedy accuracy rose from 1 to 9 of 10."""
    Config(model_name_or_path="a<b", seed=0, torch_dtype="float32").save(tmp_path / "config.yaml")
    records = [{"step": step, **{name: step / 30 for name in CURVES}} for step in range(30)]
    records[5]["kl"] = None  # was not finite
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    before = answers([True] + [False] * 9, completion=HOSTILE)
    save_answers(before, answers_path(tmp_path, "greedy", "before"))
    save_answers(answers([True] * 9 + [False]), answers_path(tmp_path, "greedy", "after"))
    return tmp_path


def test_the_page_holds_the_table_the_picture_the_settings_and_the_metrics(run):
    text = write_report(run).read_text()
    # 8 of 10 problems gained, none lost: p = 2 / 2^8 = 0.0078
    row = ("greedy", "10 x 1", "strict", "10.0 % (1.8 to 40.4)", "90.0 % (59.6 to 98.2)", "+80.0", "0.0078")
    assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert text.count("<svg") == len(CURVES)
    assert "<td>seed</td><td>0</td>" in text
    assert "<td>zero_variance_share</td>" in text


def test_the_page_lists_the_warnings_that_the_records_give(run):
    # Every curve is step / 30. truncated_share is above 0.2 from step 7 on, its fifth step there is 11; four times the
    # mean of the first five completion_length is 8 / 30, above from step 9 on.
    warned = re.findall(r"warning \[step (\d+)\] (\w+)", write_report(run).read_text())
    assert warned == [("11", "truncated_share"), ("13", "completion_length")]


def test_the_page_needs_no_other_file_and_no_network(run):
    text = write_report(run).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?:|@import|<script|<link""", text)


def test_model_text_and_settings_are_escaped(run):
    text = write_report(run).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in text
    assert "a&lt;b" in text and "problem &lt;0&gt;" in text
    assert page("a<b", []).count("a&lt;b") == 2


def test_completions_before_and_after_answer_the_same_problem_with_their_verdicts(run):
    text = write_report(run).read_text()
    row = text.split("<td>problem &lt;1&gt;</td>")[1].split("</tr>")[0]
    cells = re.findall(r"<td>(?:<pre>)?(.*?)(?:</pre>)?</td>", row, re.DOTALL)
    assert cells == ["9", html.escape(HOSTILE), "no", "4 + 5 = 9", "yes"]


def test_the_first_six_problems_are_shown_whatever_their_outcome(run):
    shown = re.findall(r"<td>problem &lt;(\d)&gt;</td>", write_report(run).read_text())
    assert shown == ["0", "1", "2", "3", "4", "5"]


def test_a_run_without_held_out_problems_has_a_report_without_that_table(run):
    for when in ("before", "after"):
        answers_path(run, "greedy", when).unlink()
    text = write_report(run).read_text()
    assert "Held-out" not in text and text.count("<svg") == len(CURVES)


def test_a_run_that_ended_before_its_first_step_still_has_a_report(run):
    (run / "metrics.jsonl").write_text("")
    text = write_report(run).read_text()
    assert "0 steps" in text and "Warnings" not in text


def circles(svg: str) -> list[str]:
    return re.findall(r"<circle[^>]*><title>(.*?)</title>", svg)


def test_curves_leave_out_steps_without_a_value_and_label_their_units():
    records = [{"step": 0, "kl": 1.0}, {"step": 1, "kl": None}, {"step": 2, "kl": 3.0}]
    svg = curves(records, []).split("\n")[CURVES.index("kl")]
    assert circles(svg) == ["step 0: 1", "step 2: 3"]
    assert ">kl [nats]</text>" in svg and 'aria-label="kl [nats]: 1 at step 0, 3 at step 2"' in svg


def test_held_out_accuracy_is_drawn_at_the_steps_of_its_evaluations():
    records = [{"step": step, "accuracy": 0.5} for step in (3, 9)]
    heldout = [{"step": step, **numbers("greedy", answers(right))}
               for step, right in ((3, [True, False]), (9, [True, True]))]
    svg = curves(records, heldout).split("\n")[CURVES.index("accuracy")]
    # 1 of 2 and 2 of 2 right; the plot is from 44 to 328 and, of accuracies 1 to 0, from 24 to 166
    assert re.findall(r"<rect x=\"([\d.]+)\" y=\"([\d.]+)\".*?<title>(.*?)</title>", svg) == [
        ("41.0", "92.0", "held-out greedy: 0.5 (0.09453 to 0.9055)"),
        ("325.0", "21.0", "held-out greedy: 1 (0.3424 to 1)")]


def test_running_mean_covers_five_values_to_either_side_and_fewer_at_the_ends():
    # values 0 .. 19: mean of 0..5 is 2.5, of 0..6 is 3, of 5..15 is 10, of 14..19 is 16.5
    means = running_mean(range(20))
    assert (means[0], means[1], means[10], means[19]) == (2.5, 3, 10, 16.5)


def test_every_decoding_mode_has_its_own_rows():
    pair = (answers([True, False]), answers([True, True]))
    table = comparison_table({"greedy": pair, "sampled": pair})
    assert table.count("<td>greedy</td>") == table.count("<td>sampled</td>") == 4
