"""The page and the picture of `benchmarks.step`: every number on them is one of step.json's."""

import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.record import number

OURS = "ours"
MIB = 2**20
PARTS = ("rollout_s", "reference_s", "update_s", "sync_s")
STEP_HEADS = (
    "trainer", "seconds", "slowest", "time / ours", "rollout s", "reference s", "update s", "sync s", "MiB total",
    "MiB held", "MiB a step", "MiB a step / ours", "ended early")
UPDATE_HEADS = ("rows", "seconds", "runs", "time / ours", "tokens", "MiB", "MiB / ours", "gradient difference")
GROWTH_HEADS = (
    "shots", "G", "tokens", "packed", "padded", "linear GFLOP", "pairs, millions", "attention GFLOP", "reference s",
    "forward s", "backward s", "seconds", "MiB")
NO_GPU = "**GPU: not measured.** Every part runs on the CPU, in float32."
HOW = """The model is random: a tied Qwen2 of {parameters:,} parameters, hidden size {hidden_size}, intermediate
{intermediate_size}, {num_hidden_layers} layers, {num_attention_heads} heads, {num_key_value_heads} key/value heads,
vocabulary {vocab_size:,}; LoRA of rank {rank} on all {projections} projections. The prompts are the data's first
{num_prompts} training questions behind solved examples, in tokens of a byte-level BPE trained on the data; every
measurement uses these. What the texts say means nothing."""
STEPS = """## Whole steps

A step samples {num_prompts} prompts x G completions of {step_tokens} tokens at temperature 1, scores them with one
cheap program, scores the reference, and takes one optimizer step: `beta` 0.04, loss type dapo, one iteration. Nothing
the model can sample is an end token; ours also looks for its stop strings, and rows that these end early are counted.
Checked of every step: the number of rows, the tokens of prompts and completions, different rewards in every group; of
the last one, that the gradient and the KL are not 0.

Every trainer runs in a process of its own and takes {num_steps} steps, of which the first is not measured. Columns:

- seconds: the median step, beside the slowest; parts are medians too. TRL's rollout is its `generate`; its reference
  is all else before the update, scoring, tokenizing and padding included.
- time / ours, MiB a step / ours: above 1, ours needs less.
- MiB total: the most resident memory of the whole process, libraries included, in the measured steps. MiB held: what
  it holds between two steps, freed memory given back: libraries, model, optimizer, and ours the rollout's copy of the
  weights. MiB a step: the difference, what a step takes on top.
- **bold**: of the peers the fastest, and the one that takes the least memory on top.
"""
UPDATE = """## The update alone: packed rows beside padded ones

Forward and backward of one step over the same drawn completions of {step_tokens} tokens and the same LoRA weights,
without reference and optimizer: up to {repeats} runs, no further one begun after {enough_s:g} s, the fastest counts.
MiB is the most resident memory beyond what the process held before, model loaded and warmed up. Tokens are those that
go through the layers. The gradient difference is the largest of any entry of a LoRA gradient from ours, relative to
the largest entry of its matrix, in float32.
"""
GROWTH = """## What more solved examples, more and longer completions cost our update

Reference, forward and backward of our packed row, {num_prompts} prompts; the fastest of up to {repeats} runs; MiB as
above. Beside the seconds the arithmetic of one forward: tokens of the packed row (padded rows would have as many as
"padded" says), operations of its linear layers, LoRA and head, pairs of a token and one it attends to, and operations
of these pairs. Reference and forward do this once each; the backward does the layers' linear part once more, since
frozen weights need no gradient of their own, and the attention two and a half times. The head's gradient is formed in
the forward already, by one more product of its size.
"""
LIMITS = """## What this does not say

- Nothing about vLLM, which TRL can sample with on a GPU, nor about 4-bit weights or several processes.
- A small model: in a big one the matrix products weigh more beside attention and beside the work for each operation.
- TRL's log-probabilities are computed in chunks of the vocabulary too, so it holds no whole logits either.
"""


def _markdown_table(heads: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _mib(size: int) -> str:
    return number(size / MIB)


def _ratio(row: dict, base: dict, value: Callable[[dict], float]) -> str:
    return number(value(row) / max(1e-9, value(base))) if base["why"] is None else ""


def median_s(row: dict) -> float:
    """Seconds of a step."""
    return statistics.median(row["seconds"])


def fastest_s(row: dict) -> float:
    """Seconds of an update."""
    return min(row["seconds"])


def peak_bytes(row: dict) -> float:
    """What a step or an update takes on top of what is held."""
    return row["peak_bytes"]


def best(rows: list[dict], value: Callable[[dict], float]) -> dict | None:
    """Of the peers that ran, the one with the least."""
    ran = [row for row in rows if row["why"] is None and not row["engine"].startswith(OURS)]
    return min(ran, key=value, default=None)


def _bold(text: str, chosen: bool) -> str:
    return f"**{text}**" if chosen and text else text


def step_table(rows: list[dict]) -> list[str]:
    """Rows of trainers compared with the first, in Markdown."""
    base, lines = rows[0], []
    fastest, smallest = best(rows, median_s), best(rows, peak_bytes)
    for row in rows:
        cells = [row["engine"], row["why"]] + [""] * (len(STEP_HEADS) - 2)
        if row["why"] is None:
            parts = [number(row["parts"][name]) if name in row["parts"] else "" for name in PARTS]
            cells = [
                row["engine"], _bold(number(median_s(row)), row is fastest), number(max(row["seconds"])),
                _bold(_ratio(row, base, median_s), row is fastest), *parts, _mib(row["total_bytes"]),
                _mib(row["held_bytes"]), _bold(_mib(row["peak_bytes"]), row is smallest),
                _bold(_ratio(row, base, peak_bytes), row is smallest), str(row["early"])]
        lines.append(cells)
    return _markdown_table(STEP_HEADS, lines)


def update_table(rows: list[dict]) -> list[str]:
    """Rows of updates compared with the first, in Markdown."""
    base, lines = rows[0], []
    fastest, smallest = best(rows, fastest_s), best(rows, peak_bytes)
    for row in rows:
        cells = [row["engine"], row["why"]] + [""] * (len(UPDATE_HEADS) - 2)
        if row["why"] is None:
            tokens = row["packed_tokens" if row["engine"].startswith(OURS) else "padded_tokens"]
            cells = [
                row["engine"], _bold(number(fastest_s(row)), row is fastest), str(len(row["seconds"])),
                _bold(_ratio(row, base, fastest_s), row is fastest), f"{tokens:,}",
                _bold(_mib(row["peak_bytes"]), row is smallest),
                _bold(_ratio(row, base, peak_bytes), row is smallest),
                f"{row['difference']:.1e}" if "difference" in row else ""]
        lines.append(cells)
    return _markdown_table(UPDATE_HEADS, lines)


def growth_table(rows: list[dict]) -> list[str]:
    """Arithmetic, seconds and memory of each case, in Markdown."""
    lines = []
    for row in rows:
        cells = [str(row[name]) for name in ("shots", "generations", "length")]
        if row["why"] is not None:
            lines.append([*cells, row["why"]] + [""] * (len(GROWTH_HEADS) - 4))
            continue
        cells += [f"{row['packed_tokens']:,}", f"{row['padded_tokens']:,}", number(row["linear_flops"] / 1e9)]
        cells += [number(row["attention_pairs"] / 1e6), number(row["attention_flops"] / 1e9)]
        cells += [number(row["parts"][name]) for name in ("reference_s", "forward_s", "backward_s")]
        lines.append([*cells, number(fastest_s(row)), _mib(row["peak_bytes"])])
    return _markdown_table(GROWTH_HEADS, lines)


def markdown(result: dict) -> str:
    """The result as a page."""
    parts = result["parts"]
    first = next(iter(parts.values()))
    same = all(part["environment"] == first["environment"] for part in parts.values())
    lines = ["# Whole GRPO steps beside TRL's\n", NO_GPU + "\n", *([_about(first)] if same else [])]
    lines.append(_wrapped(HOW.format(**first["plan"])))
    for name, section in (("steps", _steps), ("update", _update), ("growth", _growth)):
        if name in parts:
            title, *rest = section(parts[name])
            lines += [_wrapped(title), *([] if same else [_about(parts[name])]), *rest]
        else:
            lines.append(f"**The part \"{name}\": not measured.** `python -m benchmarks.step --parts {name}`\n")
    return "\n".join([*lines, LIMITS])


def _wrapped(text: str) -> str:
    """Paragraphs wrapped again once their numbers are in; lists stay as they are."""
    paragraphs = text.strip().split("\n\n")
    filled = [one if one[:2] == "- " else textwrap.fill(one, 120, break_on_hyphens=False) for one in paragraphs]
    return "\n\n".join(filled) + "\n"


def _about(part: dict) -> str:
    """Which command measured it, on what."""
    about = part["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (f"`{about['command']}`, commit {about['commit']}.\n{about['machine']}; Python {about['python']}, "
            f"{versions}.\n")


def _title(table: dict, plan: dict) -> str:
    tokens = table["prompt_tokens"]
    return (f"\n### {table['shots']} solved examples, {plan['num_prompts']} prompts x {table['generations']}: prompts "
            f"of {tokens['min']:,} to {tokens['max']:,} tokens, {tokens['shared']:,} of them shared\n")


def _steps(part: dict) -> list[str]:
    lines = [STEPS.format(**part["plan"]), *(f"- {name}: {says}" for name, says in part["engines"].items())]
    for table in part["tables"]:
        lines += [_title(table, part["plan"]), *step_table(table["rows"]), "", *_verdict(table["rows"])]
    return [*lines, ""]


def _verdict(rows: list[dict]) -> list[str]:
    """The best peer's time and the best peer's memory over ours."""
    base, fastest, smallest = rows[0], best(rows, median_s), best(rows, peak_bytes)
    if fastest is None or base["why"] is not None:
        return []
    return [f"The fastest peer ({fastest['engine']}) takes {_ratio(fastest, base, median_s)} times our seconds, the "
            f"smallest ({smallest['engine']}) {_ratio(smallest, base, peak_bytes)} times our memory."]


def _update(part: dict) -> list[str]:
    lines = [UPDATE.format(**part["plan"]), *(f"- {name}: {says}" for name, says in part["engines"].items())]
    for table in part["tables"]:
        lines += [_title(table, part["plan"]), *update_table(table["rows"])]
    return [*lines, ""]


def _growth(part: dict) -> list[str]:
    return [GROWTH.format(**part["plan"]), *growth_table(part["rows"]), "\n![seconds and memory](step.png)\n"]


def draw(part: dict, path: Path) -> None:
    """Seconds and memory of the update over the solved examples, one line for each G, and over the packed tokens."""
    ran = [row for row in part["rows"] if row["why"] is None]
    panels: list[tuple[str, Callable[[dict], float]]] = [
        ("seconds of the update", fastest_s), ("MiB", lambda row: row["peak_bytes"] / MIB)]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    *over_shots, over_tokens = figure.subplots(1, 3)
    for axes, (title, value) in zip(over_shots, panels, strict=True):
        for count in sorted({row["generations"] for row in ran}):
            rows = [row for row in ran if row["generations"] == count and row["length"] == part["usual"]]
            axes.plot([row["shots"] for row in rows], list(map(value, rows)), marker="o", label=f"G = {count}")
        axes.set_title(title)
        axes.set_xlabel("solved examples in the prompt")
        axes.legend()
    for name, value in (("linear", "linear_flops"), ("attention", "attention_flops")):
        rows = sorted(ran, key=lambda row: row["packed_tokens"])
        over_tokens.plot(
            [row["packed_tokens"] for row in rows], [row[value] / 1e9 for row in rows], "o", label=f"{name} GFLOP")
    over_tokens.set_title("arithmetic of one forward")
    over_tokens.set_xlabel("packed tokens")
    over_tokens.legend()
    for axes in (*over_shots, over_tokens):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
