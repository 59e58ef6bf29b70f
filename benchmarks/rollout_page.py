"""The page and the picture of `benchmarks.rollout`: every number on them is one of rollout.json's."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.kernel import number

OURS = "ours"
HEADS = ("engine", "seconds", "runs", "s / ours", "tokens/s", "MiB", "MiB / ours", "prefill s", "occupancy %")
NO_GPU = """**GPU: not measured.** The same command on a machine with one measures it, in bfloat16, with the memory of
the CUDA allocator.
"""
HOW = """The model is random: a tied Qwen2 of {parameters:,} parameters, hidden size {hidden_size}, intermediate
{intermediate_size}, {num_hidden_layers} layers, {num_attention_heads} heads, {num_key_value_heads} key/value heads,
vocabulary {vocab_size:,}; float32 on a CPU. The prompts are the data's first training questions behind {num_shots}
solved examples, in tokens of a byte-level BPE trained on the data. Sampling is plain, at temperature 1. A random
model's texts say nothing, and nothing is said about them here; a row's length is set, or drawn by stop tokens.

Every engine runs in a process of its own. It loads the model, continues two prompts of 8 tokens by 2, and is then
timed on the whole phase, reading of the prompts included: up to {repeats} runs, no further one begun after
{enough_s:g} s, the fastest counts. Every row's length is checked. MiB is the most resident memory in these runs beyond
that of the process before the first, model loaded and warmed up, freed memory given back; ours has dropped the
transformers model by then. Occupancy: sampled tokens per row and step the decoder went over, whether the row had ended
or not; empty where the engine does not say. "s / ours" and "MiB / ours" above 1 mean that ours needs less. **Bold**: the
fastest peer.
"""
PEERS = """## Peers

{generations} completions for each prompt, {tokens} tokens each, none stops.
"""
FORMS = """### LoRA in our rollout, {prompts} prompts

What the branches cost: merged, they are added into a second copy of the weights, which the loaded model's memory
includes.
"""
REFILL = """## Rows of different lengths

{prompts} prompts x {generations}, at most {tokens} tokens; {stop_ids} stop tokens drawn at random, which a uniform
model samples with probability 1/{mean:.0f} a token. "ours" refills {slots} slots in one call; the batches are {batch}
prompts ({slots} rows) a call, the next one when the last row has ended. Continuous batching refills by itself. Both of
ours sampled the same completions, token for token; the peers' noise is another, so compare tokens/s.
"""
GROWTH = """## What more examples and more completions cost us

{prompts} prompts, {tokens} tokens a completion, none stops: seconds of the phase, tokens/s in brackets. "Prompt tokens"
is the longest, of which "shared" are the same in all.
"""
LIMITS = """## What this does not say

- Nothing about engines made for serving (vLLM, SGLang, TensorRT-LLM): they need a GPU.
- transformers' continuous batching is made for GPUs with a flash attention kernel. Without one it takes one masked
  attention of all rows' tokens over all rows' keys, so its cost grows with the square of the rows at once: hence the
  rows with 8 and 16. With its own default of 8,192 tokens a forward and a cache sized from free memory it would take
  many GiB here; the sizes above bound both.
- `generate` reads a prompt once for each completion, which is what it does when asked for several; "prompts read once"
  is the strongest form that we could give it with its public functions.
- A small model, where the time goes into attention and many small operations; in a big one the matrix products, which
  are the same for all, weigh more. Logits are nearly uniform, so sampling is as expensive as it gets.
"""


def engine_table(rows: list[dict]) -> list[str]:
    """Rows of engines beside the first of them, in Markdown."""
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
    if not parts:
        return ""
    first = next(iter(parts.values()))
    lines = ["# The rollout beside transformers' generation\n"]
    if any(part["environment"]["device"] == "cpu" for part in parts.values()):
        lines.append(NO_GPU)
    lines.append(HOW.format(**first["model"]))
    for name, section in (("peers", _peers), ("refill", _refill), ("growth", _growth)):
        if name in parts:
            lines += section(parts[name])
    return "\n".join([*lines, LIMITS])


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
    lines = [PEERS.format(**part), _about(part)]
    lines += [f"- {name}: {says}" for name, says in part["engines"].items()]
    for table in part["tables"]:
        lines += [f"\n### {table['prompts']} prompts x {part['generations']}: {_length(table)}\n"]
        lines += engine_table(table["rows"])
        lines += [f"\nCompiling and the first run of \"{row['engine']}\": {number(row['first_s'])} s, not counted."
                  for row in table["rows"] if "first_s" in row]
    return [*lines, "", FORMS.format(prompts=part["tables"][-1]["prompts"]), *engine_table(part["forms"]), ""]


def _refill(part: dict) -> list[str]:
    lines = [REFILL.format(**part, mean=1 / part["stop_probability"]), _about(part), f"{_length(part).capitalize()}.\n"]
    lines += engine_table(part["rows"])
    lengths = [f"{row['engine']} {row['mean_length']:.1f}" for row in part["rows"] if row["why"] is None]
    return [*lines, f"\nMean tokens of a row: {', '.join(lengths)}.\n"]


def _growth(part: dict) -> list[str]:
    return [GROWTH.format(**part), _about(part), *growth_table(part["rows"]), "\n![seconds over shots](rollout.png)\n"]


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
