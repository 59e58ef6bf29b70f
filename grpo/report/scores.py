"""The results of eval.py as tables and as a page; a record is one model with one number of shots."""

from pathlib import Path
from typing import Any

from grpo.evaluation.answers import Answer
from grpo.evaluation.record import NOTE, percent
from grpo.evaluation.statistics import SCORES
from grpo.report import headline
from grpo.report.chart import Line, chart
from grpo.report.history import date, facts
from grpo.report.markup import options_table, page, pairs, paragraph, table

HEADER = ("model", "shots", "problems", "strict", "lenient", "format", "truncated", "p, paired")
NUM_SHOWN = 6  # problems shown with their completions


def write_scores(path: Path, settings: dict[str, Any], defaults: dict[str, Any], made: dict[str, Any],
                 records: list[dict[str, Any]], answers: dict[tuple[str, int], list[Answer]]) -> None:
    """Write the page.

    Args:
        made: when, where and with which code, as `provenance` found it.
        records: of eval.json, in the order of `answers`, which are by model and number of shots.
    """
    header, *rows = several_rows(records) or [()]
    run = [("date", date(made["began"])), *facts(made), ("model", settings["model"]),
           ("adapter", settings["adapter"]), ("data", f"{settings['data']}, {settings['split']}")]
    body = [paragraph(headline.of_evaluation(records, settings["split"]), "headline"), pairs(run), "<h2>Accuracy</h2>",
            table(HEADER, table_rows(records)), paragraph(NOTE), *([table(header, rows)] if rows else []),
            accuracy_chart(records), "<h2>Answers</h2>", *_answers(answers),
            "<h2>Options</h2>", options_table(settings, defaults)]
    path.write_text(page(f"Accuracy of {settings['model']}", body), encoding="utf-8")


def table_rows(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The records as text under HEADER."""
    return [(record["model"], str(record["num_shots"]), f"{record['num_problems']} x {record['num_samples']}",
             *(percent(record, name) for name in SCORES), f"{record['p_value']:.2g}" if "p_value" in record else "")
            for record in records]


def several_rows(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """pass@k and maj@k of the records that have several samples, under a header of their own; empty if none has."""
    records = [record for record in records if "several" in record]
    if not records:
        return []
    rows = [(record["model"], str(record["num_shots"]), *(
        f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})" for mean, low, high in record["several"].values()))
        for record in records]
    return [("model", "shots", *records[0]["several"]), *rows]


def accuracy_chart(records: list[dict[str, Any]]) -> str:
    """Strict and lenient accuracy over the number of shots, with their intervals."""
    lines = []
    labels = list(dict.fromkeys(record["model"] for record in records))  # in order, each once
    for color, label in enumerate(labels):
        group = sorted((record for record in records if record["model"] == label), key=lambda one: one["num_shots"])
        for name, style in (("strict", ""), ("lenient", "dashed")):
            shots = [record["num_shots"] for record in group]
            lines.append(Line([(place, record[name]) for place, record in zip(shots, group)],
                              intervals=[record[f"{name}_interval"] for record in group], color=color, style=style,
                              label=f"{label}, {name}"))
    return chart("accuracy, 95 % interval", lines, x_label="shots", top=1.0)


def _answers(answers: dict[tuple[str, int], list[Answer]]) -> list[str]:
    """The first problems with one answer of each model and number of shots."""
    by_problem = [{answer.index: answer for answer in reversed(group)} for group in answers.values()]
    rows = []
    for index in sorted(by_problem[0])[:NUM_SHOWN]:
        first = by_problem[0][index]
        for (label, num_shots), group in zip(answers, by_problem):
            right = "yes" if group[index].strict else "no"
            rows.append((first.question, first.final_answer, label, num_shots,
                         group[index].completion, right))
    return [paragraph(f"The first {min(NUM_SHOWN, len(by_problem[0]))} problems, not selected; the answers are in "
                      "answers_*.jsonl."),
            table(("problem", "gold answer", "model", "shots", "answer", "right"), rows, verbatim=("answer",))]
