"""A run as one self-contained HTML page, made only from the files in its output folder.

So the page of a resumed run shows the whole run, and `python -m grpo.report.page OUTPUT_DIR` makes it at any time.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from grpo.config import Config
from grpo.evaluation.answers import Answer, answers_path, load_answers
from grpo.evaluation.record import ACCURACY, NOTE, PREFIX, numbers, percent
from grpo.evaluation.statistics import SCORES, num_right, paired_test, summarize
from grpo.report import headline
from grpo.report.chart import MOST_POINTS, Line, chart
from grpo.report.history import read_history
from grpo.report.json_lines import read, read_newest
from grpo.report.markup import escaped, folded, options_table, page, pairs, paragraph, shortened, table
from grpo.report.metrics import COLUMNS, METRICS, metric
from grpo.report.metrics import PREFIX as REWARD
from grpo.report.tokens.page import kept_steps, write_page
from grpo.report.watch import warnings

CURVES = ("reward", "accuracy", "entropy", "grad_norm", "kl", "completion_length", "truncated_share",
          "zero_variance_share", "step_s")
MOST_REWARDS = 4  # reward functions with a curve of their own
NUM_SHOWN = 6  # held-out problems shown with their completions
NUM_PROMPTS, NUM_COMPLETIONS = 3, 8  # of the last step: so many prompts, each with so many completions
WINDOW = 5  # the other curves average this many steps on either side, or one in SMOOTH of all if that is more
SMOOTH = 80

Evaluations = dict[str, tuple[list[Answer], list[Answer]]]


def write_report(output_dir: Path) -> Path:
    """Write `report.html` into the output folder of a run, and return its path."""
    config = yaml.safe_load((output_dir / "config.yaml").read_text(encoding="utf-8"))
    records = read(output_dir / "metrics.jsonl")
    history = read_history(output_dir, len(records))
    heldout, evaluations = _read_evaluations(output_dir, len(records))
    after = history.summary.get("exported_step", heldout[-1]["step"] if heldout else 0)
    main = next(((mode, *evaluations[mode]) for mode in ("sampled", "greedy") if mode in evaluations), None)
    reason = history.starts[-1].get("reason", "") if history.starts else ""
    body = [paragraph(headline.of_run(history, records, main, after), "headline")]
    body += [f"<pre>{escaped(reason)}</pre>"] if reason else []
    body += [pairs([*history.facts(), *(
        (name, config[option]) for name, option in (("model", "model_name_or_path"),
                                                    ("data", "train_dataset_id_or_path"))),
        ("a step", f"{config['prompts_per_step']} prompts x {config['num_generations']} completions")])]
    if evaluations:
        body += ["<h2>Held-out accuracy</h2>", comparison_table(evaluations)]
    if lines := _first_warnings(warnings(config, records)):
        body += ["<h2>Warnings</h2>", "<pre>" + "\n".join(map(escaped, lines)) + "</pre>"]
    body += ["<h2>Curves</h2>", *curves(records, heldout)] if records else []
    if evaluations:
        body += ["<h2>Held-out problems before and after</h2>", *_answers(evaluations, after)]
    completions = output_dir / "completions.jsonl"
    if completions.exists() and (rows := read_newest(completions)):
        body += [f"<h2>Completions of step {rows[0]['step']}, the last</h2>", *_completions(rows)]
    if steps := kept_steps(output_dir):
        body += ["<h2>Tokens</h2>", *_token_pages(output_dir, steps)]
    body += ["<h2>Options</h2>", options_table(config, vars(Config()))]
    meanings = table(COLUMNS, [(name, *row.cells) for name, row in METRICS.items()])
    body += ["<h2>Metrics</h2>", folded("What each number of metrics.jsonl means", meanings)]
    path = output_dir / "report.html"
    partial = path.with_suffix(".tmp")  # a process that ends here leaves no half page
    partial.write_text(page(f"GRPO run {output_dir.resolve().name}", body), encoding="utf-8")
    return partial.replace(path)


def _first_warnings(lines: list[str]) -> list[str]:
    """The first warning of each metric, and how often others followed: a long run may have thousands."""
    of_metric: dict[str, list[str]] = {}
    for line in lines:  # "warning [step 7] kl is ..."
        of_metric.setdefault(line.split()[3], []).append(line)
    return [first + (f" (again {len(others)} times, last in {' '.join(others[-1].split()[1:3])})" if others else "")
            for first, *others in of_metric.values()]


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
    return table(header, rows) + paragraph(NOTE)


def curves(records: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> list[str]:
    """A chart of each of CURVES and of the reward functions over the steps, with the accuracy of the evaluations."""
    rewards = sorted({name for record in records for name in record if name.startswith(REWARD)})
    names = [*CURVES, *(rewards[:MOST_REWARDS] if len(rewards) > 1 else [])]  # one alone is the reward
    charts, empty, window = [], [], max(WINDOW, len(records) // SMOOTH)
    if len(records) > MOST_POINTS:
        charts.append(paragraph(f"A long run: of {len(records)} steps at most {MOST_POINTS} are drawn, of each stretch "
                                "the lowest and the highest."))
    for name in names:
        points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
        steps, values = [step for step, _ in points], [value for _, value in points]
        lines = [Line(points, "each step", style="faint"),
                 Line(list(zip(steps, running_mean(values, window))), f"mean of {2 * window + 1} steps")]
        if name == "accuracy":
            lines += [_heldout_line(heldout, mode, color) for color, mode in enumerate(ACCURACY, start=1)
                      if any(ACCURACY[mode] in record for record in heldout)]
        if points:
            charts.append(chart(f"{name} [{metric(name).unit}]", lines, x_label="step",
                                top=1.0 if name == "accuracy" else None))
        else:
            empty.append(name)
    return [*charts, *([paragraph(f"Not measured in this run: {', '.join(empty)}.")] if empty else [])]


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Mean of each value and so many values on either side; fewer at the ends."""
    parts = [values[max(0, middle - window):middle + window + 1] for middle in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _read_evaluations(output_dir: Path, done: int) -> tuple[list[dict[str, Any]], Evaluations]:
    """The record of each evaluation; and by mode the answers before the training, and the newest ones after it."""
    path = output_dir / "evaluation" / "metrics.jsonl"
    heldout = read(path) if path.is_file() else []
    found: Evaluations = {}
    for mode in PREFIX:
        before = answers_path(output_dir, mode, "before")
        names = ["after", *(f"step-{record['step']}" for record in reversed(heldout))]
        newest = next((one for one in (answers_path(output_dir, mode, name) for name in names) if one.exists()), None)
        if before.exists() and newest:
            found[mode] = load_answers(before), load_answers(newest)
    if not path.is_file():  # of a run from before there was this file
        heldout = [{"step": step, **{
            name: value for mode, answers in found.items()
            for name, value in numbers(mode, answers[index]).items()}} for index, step in enumerate((0, done)) if found]
    return heldout, found


def _heldout_line(heldout: list[dict[str, Any]], mode: str, color: int) -> Line:
    name = ACCURACY[mode]
    return Line([(record["step"], record[name]) for record in heldout],
                intervals=[record[f"{name}_interval"] for record in heldout], label=f"held-out {mode}", color=color,
                style="dashed")


def _answers(evaluations: Evaluations, after: int) -> list[str]:
    """Some held-out problems, each with an answer before the training and one after so many steps."""
    mode, (before, newest) = next(iter(evaluations.items()))
    rows = []
    for index in sorted({answer.index for answer in before})[:NUM_SHOWN]:
        pair = [next(answer for answer in answers if answer.index == index) for answers in (before, newest)]
        shown = [cell for one in pair for cell in (one.completion, "yes" if one.strict else "no")]
        rows.append((pair[0].question, pair[0].final_answer, *shown))
    answers = f"before ({mode})", f"after {after} steps ({mode})"
    header = ("problem", "gold answer", answers[0], "right", answers[1], "right")
    return [paragraph(f"The first {len(rows)}, not selected."), table(header, rows, verbatim=answers)]


def _completions(rows: list[dict[str, Any]]) -> list[str]:
    """Some completions of a step with what they are worth, below each prompt."""
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["question"])]
    parts = [paragraph(f"The first {min(NUM_PROMPTS, len(groups))} of {len(groups)} prompts, not selected, each with "
                       f"its first {NUM_COMPLETIONS} completions at most; completions.jsonl has all.")]
    for group in groups[:NUM_PROMPTS]:
        names = list(group[0].get("rewards", {}))
        cells = [(row["completion"], *(_short(row["rewards"].get(name)) for name in names),
                  _short(row["reward"]), _short(row.get("advantage")),
                  f"{row.get('length', '')}{', truncated' if row.get('truncated') else ''}")
                 for row in group[:NUM_COMPLETIONS]]
        parts += [f"<h3>{escaped(shortened(group[0]['question']))}</h3>",
                  table(("completion", *names, "reward", "advantage", "tokens"), cells, verbatim=("completion",))]
    return parts


def _token_pages(output_dir: Path, steps: list[int]) -> list[str]:
    """Links to the pages of the first and the last step whose tokens are kept, which are written here."""
    pages = [write_page(output_dir, step) for step in sorted({steps[0], steps[-1]})]
    links = " and ".join(f'<a href="{path.name}">{escaped(path.stem.replace("-", " of step "))}</a>' for path in pages)
    return [f"<p>Some groups token by token, as the update saw them: {links}.</p>",
            paragraph(f"python -m grpo.report.tokens {output_dir.name} --step N writes the page of another step; "
                      f"{len(steps)} are kept.")]


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    folder = Path(*sys.argv[1:2])
    if not (folder / "metrics.jsonl").is_file():
        sys.exit(f"error: OUTPUT_DIR={str(folder)!r} must be the folder of a run, such as outputs/toy")
    print(write_report(folder))
