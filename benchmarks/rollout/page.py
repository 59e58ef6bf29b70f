"""The page and the picture of `benchmarks.rollout`: every number on them is one of rollout.json's."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.record import number

OURS = "ours"
HEADS = ("engine", "seconds", "runs", "time / ours", "tokens/s", "MiB", "MiB / ours", "prefill s", "occupancy %")
NO_GPU = """**GPU: not measured.** The same command on a machine with one measures it, in bfloat16, with the memory of
the CUDA allocator."""
HOW = """The model is random: a tied Qwen2 of {parameters:,} parameters, hidden size {hidden_size}, intermediate
{intermediate_size}, {num_hidden_layers} layers, {num_attention_heads} heads, {num_key_value_heads} key/value heads,
vocabulary {vocab_size:,}; float32 on a CPU. The prompts are the data's first training questions behind {num_shots}
solved examples, in tokens of a byte-level BPE trained on the data. Sampling is plain, at temperature 1. What the texts
say means nothing; how long they are is set, or drawn by stop tokens.

Every engine runs in a process of its own. It loads the model, continues two prompts of 8 tokens by 2 tokens, and is
then timed on the whole phase, reading of the prompts included: up to {repeats} runs, no further one begun after
{enough_s:g} s, the fastest counts. The length of every row is checked. Columns:

- time / ours: seconds for each sampled token, over ours; MiB / ours likewise. Above 1, ours needs less.
- MiB: the most resident memory in these runs beyond what the process held before the first, model loaded and warmed up,
  freed memory given back. Ours has dropped the transformers model by then, so that all hold one model.
- occupancy: sampled tokens over rows the decoder went over, ended rows included; empty where the engine does not say.
- **bold**: the fastest peer."""
PEERS = """## Peers

{generations} completions for each prompt, {tokens} tokens each, none stops.
"""
FORMS = """### LoRA in our rollout, {prompts} prompts x {generations}

Merged, the branches are added into a second copy of the weights, which counts as loaded model; beside, they are two
more products for each joined projection.
"""
REFILL = """## Rows of different lengths

{prompts} prompts x {generations}, at most {tokens} tokens; {stop_ids} stop tokens drawn at random, which a uniform
model would sample with probability 1/{mean:.0f} a token. "ours" refills {slots} slots in one call. "In batches" are
calls with {batch} prompts ({slots} rows) each, the next one when the last row has ended. Continuous batching refills by
itself. Both of ours sampled the same completions, token for token. The peers have other noise, so other lengths:
compare tokens/s.
"""
GROWTH = """## What more solved examples and more completions cost us

{prompts} prompts, {tokens} tokens a completion, none stops: seconds of the phase, tokens/s in brackets. Prompt tokens
are the longest prompt's, of which "shared" are the same in all. First two layers of the shape of Qwen2.5-0.5B (hidden
size {wide_hidden_size}, {wide_parameters:,} parameters with the same small vocabulary), then the small model. All sizes
are measured in turn, and that {repeats} times over, so that slow minutes of the machine fall on all of them; the
fastest run of each counts.

What grows with the shots: the shared tokens are read once a phase, and each sampled token attends to them, 4 · shared ·
H operations a layer beside the 2 · parameters of its products. For {shared} tokens that is {wide_share:.0%} of a
layer's products in the shape of the 0.5B and {small_share:.0%} in the small model, whose layers are narrow; a phase can
be no flatter than that.
"""
REAL = """## A decoding step of a real model

{name}: hidden size {hidden_size}, {num_hidden_layers} layers, vocabulary {vocab_size:,}; its own weights and tokenizer,
float32 on a CPU, no LoRA. Rows that continue one prompt by {tokens} tokens. Milliseconds of a step are those of the run
without the reading of the prompt, over the tokens, in the fastest run. The peer is `generate` with the prompt read
once.
"""
LIMITS = """## What this does not say

- Nothing about engines made for serving, such as vLLM and SGLang: not measured.
- transformers' continuous batching is made for a GPU with a flash attention kernel. Without one it computes one masked
  attention of all rows' tokens over all rows' keys, which grows with the square of the rows at once; hence the rows
  with 16 and 8. Left to itself it plans for 60 % of a CPU machine's memory.
- `generate` reads a prompt once for each of its completions. "Prompts read once" is the strongest form that we could
  give it with public functions; it still copies the prompt's keys and values for each row.
- The first parts are of a small model: in a big one the matrix products weigh more; see the real model.
"""


def engine_table(rows: list[dict]) -> list[str]:
    """Rows of engines compared with the first, in Markdown."""
    base = rows[0]
    timed = [row for row in rows if row["why"] is None and not row["engine"].startswith(OURS)]
    best = min(timed, key=_seconds_per_token, default=None)
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for row in rows:
        cells = [row["why"]] + [""] * (len(HEADS) - 2)
        if row["why"] is None:
            per_token, memory = 1.0, 1.0
            if base["why"] is None:
                per_token = _seconds_per_token(row) / _seconds_per_token(base)
                memory = row["peak_bytes"] / max(1, base["peak_bytes"])
            cells = [number(min(row["seconds"])), str(len(row["seconds"])), number(per_token)]
            cells += [number(row["tokens_per_s"]), number(row["peak_bytes"] / 2**20), number(memory)]
            cells.append("" if row["prefill_s"] is None else number(row["prefill_s"]))
            cells.append("" if row["occupancy"] is None else f"{100 * row['occupancy']:.1f}")
        name = f"**{row['engine']}**" if row is best else row["engine"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _seconds_per_token(row: dict) -> float:
    """Equal to the ratio of seconds where engines sample equally many tokens."""
    return 1 / row["tokens_per_s"]


def growth_table(rows: list[dict]) -> list[str]:
    """Seconds by shots and completions, and the last line over the first."""
    shots, counts = (sorted({row[name] for row in rows}) for name in ("shots", "generations"))
    at = {(row["shots"], row["generations"]): row for row in rows}
    heads = ["shots", "prompt tokens", "shared", *(f"G = {count}" for count in counts)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shot in shots:
        length = at[shot, counts[0]]["prompt_tokens"]
        cells = [str(shot), str(length["max"]), str(length["shared"])]
        for row in (at[shot, count] for count in counts):
            cells.append(row["why"] or f"{number(min(row['seconds']))} ({number(row['tokens_per_s'])})")
        lines.append(f"| {' | '.join(cells)} |")
    cells = [f"{shots[-1]} / {shots[0]}", "", ""]
    for count in counts:
        first, last = at[shots[0], count], at[shots[-1], count]
        known = first["why"] is None and last["why"] is None
        cells.append(f"{min(last['seconds']) / min(first['seconds']):.2f}" if known else "")
    return [*lines, f"| {' | '.join(cells)} |"]


def markdown(result: dict) -> str:
    """The result as a page."""
    parts = result["parts"]
    first = next(iter(parts.values()))
    lines = ["# The rollout beside transformers' generation\n"]
    if any(part["environment"]["device"] == "cpu" for part in parts.values()):
        lines.append(NO_GPU + "\n")
    same = all(part["environment"] == first["environment"] for part in parts.values())
    lines += [_about(first)] if same else []
    lines.append(_wrapped(HOW.format(**first["plan"])))
    for name, section in (("peers", _peers), ("refill", _refill), ("growth", _growth), ("real", _real)):
        if name in parts:
            title, *rest = section(parts[name])
            lines += [_wrapped(title), *([] if same else [_about(parts[name])]), *rest]
        else:
            lines.append(f"**The part \"{name}\": not measured.** `python -m benchmarks.rollout --parts {name}`\n")
    return "\n".join([*lines, LIMITS])


def _wrapped(text: str) -> str:
    """Paragraphs wrapped again once their numbers are in; lists stay as they are."""
    paragraphs = text.split("\n\n")
    filled = [one if one[:2] == "- " else textwrap.fill(one, 120, break_on_hyphens=False) for one in paragraphs]
    return "\n\n".join(filled) + "\n"


def _about(part: dict) -> str:
    """Which command measured it, on what."""
    about = part["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (f"`{about['command']}`, commit {about['commit']}.\n{about['machine']}; Python {about['python']}, "
            f"{versions}.\n")


def _length(part: dict) -> str:
    tokens = part["prompt_tokens"]
    return f"prompts of {tokens['min']:,} to {tokens['max']:,} tokens, {tokens['shared']:,} of them shared"


def _peers(part: dict) -> list[str]:
    lines = [PEERS.format(**part)]
    lines += [f"- {name}: {says}" for name, says in part["engines"].items()]
    for table in part["tables"]:
        lines += [f"\n### {table['prompts']} prompts x {part['generations']}: {_length(table)}\n"]
        lines += engine_table(table["rows"])
        lines += [f"\nCompiling and the first run of \"{row['engine']}\": {number(row['first_s'])} s, not counted."
                  for row in table["rows"] if "first_s" in row]
    return [*lines, "", FORMS.format(prompts=part["tables"][-1]["prompts"], **part), *engine_table(part["forms"]), ""]


def _refill(part: dict) -> list[str]:
    lines = [REFILL.format(**part, mean=1 / part["stop_probability"]), f"{_length(part).capitalize()}.\n"]
    lines += engine_table(part["rows"])
    lengths = [f"{row['engine']} {row['mean_length']:.1f}" for row in part["rows"] if row["why"] is None]
    return [*lines, f"\nMean tokens of a row: {', '.join(lengths)}.\n"]


def _growth(part: dict) -> list[str]:
    plan, shared = part["plan"], max(row["prompt_tokens"]["shared"] for row in part["rows"])
    prefixes = {"wide_share": "wide_", "small_share": ""}
    shares = {name: _attention_share(plan, shared, prefix) for name, prefix in prefixes.items()}
    return [GROWTH.format(**part, **plan, **shares, shared=shared), *growth_table(part["rows"]),
            "\nThe small model:\n", *growth_table(part["small_rows"]), "\n![seconds over shots](rollout.png)\n"]


def real_table(rows: list[dict]) -> list[str]:
    """Milliseconds of a step and seconds of reading the prompt, ours and the peer's."""
    heads = ["shots", "prompt tokens", "rows", "ours ms", "transformers ms", "transformers / ours", "ours reads in s",
             "transformers reads in s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        ours, peer = row["ours"], row["peer"]
        cells = [str(row["shots"]), f"{row['prompt_tokens']:,}", str(row["rows"])]
        cells += [one["why"] or number(1e3 * one["step_s"]) for one in (ours, peer)]
        cells.append("" if ours["why"] or peer["why"] else number(peer["step_s"] / ours["step_s"]))
        cells += ["" if one["why"] else number(one["read_s"]) for one in (ours, peer)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _real(part: dict) -> list[str]:
    return [REAL.format(**part, **part["config"]), *real_table(part["rows"]), ""]


def _attention_share(plan: dict, shared: int, prefix: str) -> float:
    """Operations of a token's attention to the shared tokens over those of a layer's products."""
    hidden, inner = plan[f"{prefix}hidden_size"], plan[f"{prefix}intermediate_size"]
    heads = hidden // plan[f"{prefix}num_attention_heads"] * plan["num_key_value_heads"]
    return 4 * shared * hidden / (2 * (2 * hidden**2 + 2 * hidden * heads + 3 * hidden * inner))


def draw(part: dict, path: Path) -> None:
    """Seconds and tokens a second over the solved examples, one line for each number of completions."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = zip(figure.subplots(1, 2), ("seconds of the phase", "tokens a second"), strict=True)
    for index, (axes, title) in enumerate(panels):
        for count in sorted({row["generations"] for row in part["rows"]}):
            rows = [row for row in part["rows"] if row["generations"] == count and row["why"] is None]
            values = [row["tokens_per_s"] if index else min(row["seconds"]) for row in rows]
            axes.plot([row["shots"] for row in rows], values, marker="o", label=f"G = {count}")
        axes.set_title(title)
        axes.set_xlabel("solved examples in the prompt")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
