"""A run as one self-contained HTML page, made only from the files in its output folder.

So the page of a resumed run shows the whole run, and `python -m grpo.report.page OUTPUT_DIR` makes it at any time.
"""

import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo.evaluation.answers import Answer, answers_path, load_answers
from grpo.evaluation.record import ACCURACY, numbers
from grpo.evaluation.statistics import SCORES, num_right, paired_test, summarize
from grpo.options.refusal import spelled_out
from grpo.report.chart import STYLE as CHART_STYLE
from grpo.report.chart import Line, chart
from grpo.report.json_lines import read
from grpo.report.metrics import COLUMNS, METRICS, metric
from grpo.report.watch import warnings

CURVES = ("reward", "accuracy", "kl", "truncated_share", "completion_length", "step_s")
NUM_SHOWN = 6  # problems shown with their completions
WINDOW = 5  # the other curves average this many steps on either side
NOTE = (
    "Strict: right number in the asked format. Lenient: strict, or the last number is right. Format: the answer line "
    "is there. Truncated: cut off by max_completion_length. In brackets the 95 % confidence interval; p is the chance "
    "of a difference at least as large if both were equally good (exact sign-flip test on the same problems)."
)
STYLE = """
:root { color-scheme: light dark; } th { background: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #8886; padding: .3em .6em; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 13px; }
""" + CHART_STYLE

Evaluations = dict[str, tuple[list[Answer], list[Answer]]]


def write_report(output_dir: Path) -> Path:
    """Write `report.html` into the output folder of a run, and return its path."""
    config = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
    records = read(output_dir / "metrics.jsonl")
    evaluations = _read_evaluations(output_dir)
    model, data = config["model_name_or_path"], config["train_dataset_id_or_path"]
    body = [f"<p>{len(records)} steps of GRPO: {html.escape(str(model))} on {html.escape(str(data))}.</p>"]
    if evaluations:
        body += ["<h2>Held-out accuracy</h2>", comparison_table(evaluations)]
    if lines := warnings(config, records):
        body += ["<h2>Warnings</h2>", "<pre>" + "\n".join(map(html.escape, lines)) + "</pre>"]
    body += ["<h2>Curves</h2>", curves(records, _read_heldout(output_dir, evaluations, len(records)))]
    if evaluations:
        body += ["<h2>Completions before and after</h2>", _completions_table(evaluations)]
    body += ["<h2>Settings</h2>", table(("option", "value"), list(config.items()))]
    body += ["<h2>What the metrics mean</h2>", table(COLUMNS, [(name, *row.cells) for name, row in METRICS.items()])]
    path = output_dir / "report.html"
    path.write_text(page(f"GRPO run {output_dir.resolve().name}", body), encoding="utf-8")
    return path


def comparison_table(evaluations: Evaluations) -> str:
    """Shares before and after training for each decoding mode, with 95 % intervals and the paired test."""
    rows = []
    for mode, (before, after) in evaluations.items():
        old, new = summarize(before), summarize(after)
        for score in SCORES:
            gain = f"{100 * (new[score] - old[score]):+.1f}"
            p_value = paired_test(num_right(before, score), num_right(after, score))
            size = f"{old['num_problems']} x {old['num_samples']}"
            rows.append((mode, size, score, percent(old, score), percent(new, score), gain, f"{p_value:.2g}"))
    header = ("decoding", "problems x samples", "share", "before", "after", "points", "p, paired")
    return table(header, rows) + f"<p>{NOTE}</p>"


def curves(records: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> str:
    """A chart of each of CURVES over the steps, with the accuracy of the evaluations."""
    charts = []
    for name in CURVES:
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        steps, values = [step for step, _ in points], [value for _, value in points]
        lines = [Line(points, "each step", style="faint"),
                 Line(list(zip(steps, running_mean(values))), f"mean of {2 * WINDOW + 1} steps")]
        if name == "accuracy":
            lines += [_heldout_line(heldout, mode, color) for color, mode in enumerate(ACCURACY, start=1)
                      if any(ACCURACY[mode] in record for record in heldout)]
        title = f"{name} [{metric(name).unit}]"
        charts.append(chart(title, lines, x_label="step", top=1.0 if name == "accuracy" else None))
    return "\n".join(charts)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value and the WINDOW values on either side; fewer at the ends."""
    parts = [values[max(0, middle - WINDOW):middle + WINDOW + 1] for middle in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def shares(x: Sequence[int], summaries: list[dict[str, Any]], score: str, **look: Any) -> Line:
    """One share of several evaluations at the places x, with its 95 % intervals as bars."""
    return Line([(place, summary[score]) for place, summary in zip(x, summaries, strict=True)],
                intervals=[summary[f"{score}_interval"] for summary in summaries], **look)


def percent(summary: dict[str, Any], score: str) -> str:
    """A share and its 95 % interval, in percent."""
    low, high = summary[f"{score}_interval"]
    return f"{100 * summary[score]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table of plain values, which are escaped; the lines of a text stay lines."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML page; the parts of the body are HTML already."""
    title = html.escape(title)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f'<title>{title}</title><style>{STYLE}</style>'
    content = "\n".join([f"<h1>{title}</h1>", *body])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{content}</body></html>\n'


def _cell(value: Any) -> str:
    text = html.escape(spelled_out(str(value), keep="\n\t"))  # a completion may hold any character
    return f"<pre>{text}</pre>" if "\n" in text else text


def _read_evaluations(output_dir: Path) -> Evaluations:
    paths = {mode: [answers_path(output_dir, mode, when) for when in ("before", "after")] for mode in ACCURACY}
    return {mode: (load_answers(before), load_answers(after))
            for mode, (before, after) in paths.items() if before.exists() and after.exists()}


def _read_heldout(output_dir: Path, evaluations: Evaluations, num_steps: int) -> list[dict[str, Any]]:
    """The record of each evaluation."""
    path = output_dir / "evaluation" / "metrics.jsonl"
    if path.is_file():
        return read(path)
    return [{"step": step, **{  # of a run from before there was this file
        name: value for mode, answers in evaluations.items()
        for name, value in numbers(mode, answers[index]).items()}} for index, step in enumerate((0, num_steps))]


def _heldout_line(heldout: list[dict[str, Any]], mode: str, color: int) -> Line:
    name = ACCURACY[mode]
    return Line([(record["step"], record[name]) for record in heldout],
                intervals=[record[f"{name}_interval"] for record in heldout], label=f"held-out {mode}", color=color,
                style="dashed")


def _completions_table(evaluations: Evaluations) -> str:
    mode, (before, after) = next(iter(evaluations.items()))
    rows = []
    for index in sorted({answer.index for answer in before})[:NUM_SHOWN]:
        pair = [next(answer for answer in answers if answer.index == index) for answers in (before, after)]
        shown = [cell for one in pair for cell in (one.completion, "yes" if one.strict else "no")]
        rows.append((pair[0].question, pair[0].final_answer, *shown))
    header = ("problem", "gold answer", f"before ({mode})", "right", f"after ({mode})", "right")
    return f"<p>The first {len(rows)} held-out problems, not selected.</p>" + table(header, rows)


if __name__ == "__main__":
    folder = Path(*sys.argv[1:2])
    if not (folder / "metrics.jsonl").is_file():
        sys.exit(f"error: OUTPUT_DIR={str(folder)!r} must be the folder of a run, such as outputs/toy")
    print(write_report(folder))
