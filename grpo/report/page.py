"""A run as one self-contained HTML page, made from the files of its output folder and nothing else.

So the page of a resumed run covers all of it, and `python -m grpo.report.page OUTPUT_DIR` makes it again at any time.
"""

import base64
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from grpo.evaluation.answers import Answer, answers_path, load_answers
from grpo.evaluation.statistics import SCORES, num_right, paired_test, summarize
from grpo.options.refusal import spelled_out
from grpo.report.json_lines import read
from grpo.report.metrics import COLUMNS, METRICS, metric
from grpo.report.watch import warnings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODES = ("greedy", "sampled")
CURVES = ("reward", "accuracy", "kl", "truncated_share", "completion_length", "step_s")
NUM_SHOWN = 6  # problems shown with their completions
DPI = 110
WINDOW = 5  # steps to either side that the thick curves average
NOTE = (
    "Strict: right number in the asked format. Lenient: strict, or the last number is right. Format: the answer line "
    "is there. Truncated: cut off by max_completion_length. In brackets the 95 % confidence interval; p is the chance "
    "of a difference at least as large if both were equally good (exact sign-flip test on the same problems)."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th { background: #f3f3f3; }
th, td { border: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: 13px; } img { max-width: 100%; }
"""

Evaluations = dict[str, tuple[list[Answer], list[Answer]]]


def write_report(output_dir: str | Path) -> Path:
    """Write `report.html` and `curves.png` from what the run has written so far.

    Args:
        output_dir: holds `config.yaml`, `metrics.jsonl` and, where held-out problems were scored, `evaluation/`.

    Returns:
        The path of `report.html`.
    """
    output_dir = Path(output_dir)
    config = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
    records = read(output_dir / "metrics.jsonl")
    evaluations = _read_evaluations(output_dir)
    curves(records, evaluations).savefig(output_dir / "curves.png", dpi=DPI)

    model, data = config["model_name_or_path"], config["train_dataset_id_or_path"]
    body = [f"<p>{len(records)} steps of GRPO: {html.escape(str(model))} on {html.escape(str(data))}.</p>"]
    if evaluations:
        body += ["<h2>Held-out accuracy</h2>", comparison_table(evaluations)]
    if lines := warnings(config, records):
        body += ["<h2>Warnings</h2>", "<pre>" + "\n".join(map(html.escape, lines)) + "</pre>"]
    body += ["<h2>Curves</h2>", image(output_dir / "curves.png")]
    if evaluations:
        body += ["<h2>Completions before and after</h2>", _completions_table(evaluations)]
    body += ["<h2>Settings</h2>", table(("option", "value"), list(config.items()))]
    rows = [(name, *row.cells) for name, row in METRICS.items()]
    body += ["<h2>What the metrics mean</h2>", table(COLUMNS, rows)]
    path = output_dir / "report.html"
    path.write_text(page(f"GRPO run {output_dir.resolve().name}", body), encoding="utf-8")
    return path


def comparison_table(evaluations: Evaluations) -> str:
    """Before and after side by side for each decoding mode, with 95 % intervals and the paired test."""
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


def curves(records: list[dict[str, Any]], evaluations: Evaluations) -> "Figure":
    """One picture of the run: small multiples over the steps, with the held-out accuracy before and after."""
    from matplotlib.figure import Figure  # here, because it takes a second, and a run draws when it has ended

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, color="C0", alpha=0.35, linewidth=1, label="each step")
        axes.plot(steps, running_mean(values), color="C0", linewidth=2, label=f"mean of {2 * WINDOW + 1} steps")
        axes.set_title(f"{name} [{metric(name).unit}]")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=min(0, *values, 0))
        if name == "accuracy":
            for color, (mode, answers) in zip(("C2", "C1"), evaluations.items()):
                ends = (min(steps, default=0), max(steps, default=1))
                summaries = [summarize(part) for part in answers]
                draw_shares(axes, ends, summaries, "strict", color=color, linestyle=":", label=f"held-out {mode}")
            axes.set_ylim(0, 1)
            axes.legend(fontsize="small")
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value with the WINDOW before and after it, of fewer at either end."""
    parts = [values[max(0, middle - WINDOW):middle + WINDOW + 1] for middle in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw_shares(axes: "Axes", x: Sequence[int], summaries: list[dict[str, Any]], score: str, **style: str) -> None:
    """Draw one share of some evaluations at the places x, with its 95 % intervals as error bars."""
    share = [summary[score] for summary in summaries]
    low, high = zip(*(summary[f"{score}_interval"] for summary in summaries), strict=True)
    error = [[middle - end for middle, end in zip(share, low)], [end - middle for middle, end in zip(share, high)]]
    axes.errorbar(x, share, yerr=error, marker="o", capsize=4, **style)


def percent(summary: dict[str, Any], score: str) -> str:
    """A share of an evaluation and its 95 % interval, in percent."""
    low, high = summary[f"{score}_interval"]
    return f"{100 * summary[score]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table of plain values, escaped; text of several lines keeps them."""
    cells = ["".join(f"<td>{_cell(value)}</td>" for value in row) for row in rows]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>\n" for row in cells) + "</table>"


def image(path: Path) -> str:
    """A PNG file as an image inside the page."""
    return f'<img alt="chart" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML page; the parts of the body are HTML already."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    content = "\n".join([f"<h1>{html.escape(title)}</h1>", *body])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{content}</body></html>\n'


def _cell(value: Any) -> str:
    text = html.escape(spelled_out(str(value), keep="\n\t"))
    return f"<pre>{text}</pre>" if "\n" in text else text


def _read_evaluations(output_dir: Path) -> Evaluations:
    """The modes that were scored before the training and after it, those that were not left out."""
    paths = {mode: [answers_path(output_dir, mode, when) for when in ("before", "after")] for mode in MODES}
    return {
        mode: (load_answers(before), load_answers(after))
        for mode, (before, after) in paths.items() if before.exists() and after.exists()
    }


def _completions_table(evaluations: Evaluations) -> str:
    """The first problems as they come, not picked, with the first completion of each."""
    mode, (before, after) = next(iter(evaluations.items()))
    rows = []
    for index in sorted({answer.index for answer in before})[:NUM_SHOWN]:
        old, new = (next(answer for answer in answers if answer.index == index) for answers in (before, after))
        verdicts = ["yes" if answer.strict else "no" for answer in (old, new)]
        rows.append((old.question, old.final_answer, old.completion, verdicts[0], new.completion, verdicts[1]))
    header = ("problem", "gold answer", f"before ({mode})", "right", f"after ({mode})", "right")
    return f"<p>The first {len(rows)} held-out problems, not picked.</p>" + table(header, rows)


if __name__ == "__main__":
    folder = Path(*sys.argv[1:2])
    if not (folder / "metrics.jsonl").is_file():
        sys.exit(f"error: OUTPUT_DIR={str(folder)!r} must be the folder of a run, such as outputs/toy")
    print(write_report(folder))
