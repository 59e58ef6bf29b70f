"""Score a model, or an adapter on it, on held-out problems: one table, and a report where --output is given.

    python eval.py --model Qwen/Qwen2.5-0.5B --adapter outputs/run/adapter --data openai/gsm8k --num_shots 0 2 4 8

Prompt, stop strings and parser are those of the training. An accuracy depends on the number of examples in the prompt,
so the table has one row for each number, and a 95 % interval behind every accuracy.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from data import load_examples
from data.example import Example
from data.prompts import STOP_STRINGS
from grpo.distributed import free_bytes
from grpo.evaluation.answers import Answer, evaluate, save_answers
from grpo.evaluation.statistics import SCORES, compare, summarize
from grpo.loading.model import dtype_of, load_decoder
from grpo.memory.concurrency import choose_slots
from grpo.options.command_line import command_line
from grpo.options.option import check, convert, option, options
from grpo.options.refusal import refuse, spelled_out
from grpo.options.surroundings import check_writable
from grpo.report.page import NOTE, draw_shares, image, page, percent, table
from grpo.sampler.decoder import Decoder

MOST_SLOTS = 256  # more make a step no faster per completion
HEADER = ("model", "shots", "problems", "strict", "lenient", "format", "truncated", "p, paired")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of eval.py."""

    model: str = option("data/tiny_qwen2", "Model folder or Hub name.")
    adapter: str | None = option(None, "Folder of a PEFT adapter to put on the model.")
    compare_base: bool = option(False, "Also score the model without the adapter, and test the difference.")
    data: str = option("wordproblems", "wordproblems, a dataset file or folder, or a Hub name.")
    split: str = option("test", "Split of the dataset.")
    num_shots: list[int] = option([0], "Worked examples in the prompt, one evaluation for each.", within="[0, 8]")
    limit: int | None = option(None, "Score only the first problems, this many.", unit="problems", within="[1, inf)")
    max_completion_length: int = option(256, "Longer completions are truncated.", unit="tokens", within="[1, inf)")
    temperature: float = option(0.0, "Of sampling; 0 decodes greedily.", within="[0, inf)")
    top_p: float = option(1.0, "Sample from the fewest tokens that have this probability.", within="(0, 1]")
    num_samples: int = option(1, "Completions per problem.", within="[1, inf)")
    rollout_slots: int | None = option(
        None, f"Completions decoded at once; none: as many as half of the free memory allows, at most {MOST_SLOTS}.",
        within="[1, inf)")
    load_in_4bit: bool = option(False, "Quantise the model to NF4, as in training.")
    torch_dtype: str = option(
        "auto", "Type of weights and activations; auto: bfloat16 on a GPU, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"))
    model_revision: str = option("main", "Revision on the Hub.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")
    seed: int = option(42, "Of the sampling and of the order of the data.", within="[0, inf)")
    output: str | None = option(None, "Folder for eval.json, eval.html, accuracy.png and the answers; none: no files.")


def parse(argv: Sequence[str]) -> Settings:
    """The settings of a command line.

    Raises:
        ValueError: an unknown option, a value outside its range, or options that contradict each other.
    """
    known = options(Settings)
    given = command_line(Settings, usage="python eval.py [--option value ...]").parse_args(list(argv))
    settings = Settings(**{name: convert(known[name], value) for name, value in given.items()})
    for name, one in known.items():
        check(one, getattr(settings, name))
    if settings.num_samples > 1 and settings.temperature == 0:
        refuse("num_samples", settings.num_samples, "greedy samples are all the same: needs temperature > 0", 1)
    if settings.compare_base and settings.adapter is None:
        refuse("compare_base", True, "needs an adapter to compare the model with", False)
    if settings.output is not None and (Path(settings.output) / "eval.json").exists():
        refuse("output", settings.output, "holds another evaluation, which is not written over", f"{settings.output}-2")
    if settings.output is not None:
        check_writable("output", Path(settings.output))
    if not settings.num_shots:
        refuse("num_shots", [], "needs at least one number", 0)
    return settings


def score(settings: Settings) -> dict[tuple[str, int], list[Answer]]:
    """The answers of the adapter, of the model without it, or of both, at each number of shots.

    Raises:
        ValueError: the model, the adapter or the dataset is missing, or they do not fit together.
    """
    examples = {
        shots: load_examples(settings.data, settings.split, num_shots=shots, seed=settings.seed)[:settings.limit]
        for shots in settings.num_shots
    }
    if not all(example.final_answer for group in examples.values() for example in group):
        refuse("data", settings.data, "needs a final answer to every problem", "a dataset with a column final_answer")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_of(settings.torch_dtype, device)
    answers = {}
    for adapter in [settings.adapter, None] if settings.compare_base else [settings.adapter]:  # one model at a time
        decoder, tokenizer, stop_token_ids = load_decoder(
            settings.model, adapter=adapter, load_in_4bit=settings.load_in_4bit, dtype=dtype, device=device,
            revision=settings.model_revision, trust_remote_code=settings.trust_remote_code)
        for num_shots in settings.num_shots:
            label = "model" if adapter is None else "adapter"
            answers[label, num_shots] = evaluate(
                decoder, tokenizer, examples[num_shots], num_samples=settings.num_samples,
                temperature=settings.temperature, top_p=settings.top_p, seed=settings.seed,
                max_completion_length=settings.max_completion_length, stop_token_ids=stop_token_ids,
                stop_strings=STOP_STRINGS, num_slots=slots(settings, decoder, tokenizer, examples[num_shots]),
                progress=f"{label}, {num_shots} shots")
    return answers


def slots(
    settings: Settings, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, examples: list[Example]
) -> int:
    """How many completions to decode at the same time: as asked for, or as memory allows.

    Raises:
        ValueError: the number asked for does not fit into memory.
    """
    most = settings.rollout_slots or MOST_SLOTS
    return choose_slots(
        settings.rollout_slots, decoder, [tokenizer.encode(example.prompt) for example in examples],
        free=free_bytes(decoder.device), num_rows=min(most, len(examples) * settings.num_samples),
        num_generations=settings.num_samples, max_completion_length=settings.max_completion_length).num_slots


def records_of(answers: dict[tuple[str, int], list[Answer]]) -> list[dict[str, Any]]:
    """One record per model and number of shots; the adapter's has the p value against the model without it."""
    records = []
    for (label, num_shots), group in answers.items():
        records.append({"model": label, "num_shots": num_shots, **summarize(group)})
        if label == "adapter" and ("model", num_shots) in answers:
            records[-1]["p_value"] = compare(answers["model", num_shots], group)["p_value"]
    return records


def table_rows(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The records as text under HEADER."""
    return [
        (record["model"], str(record["num_shots"]), f"{record['num_problems']} x {record['num_samples']}",
         *(percent(record, name) for name in SCORES),
         f"{record['p_value']:.2g}" if "p_value" in record else "")
        for record in records
    ]


def chart(records: list[dict[str, Any]]) -> Figure:
    """Strict and lenient accuracy over the number of shots, with their intervals."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    labels = list(dict.fromkeys(record["model"] for record in records))  # in order, each once
    for color, label in zip(("C0", "C7"), labels):
        group = sorted((record for record in records if record["model"] == label), key=lambda one: one["num_shots"])
        for name, line in (("strict", "-"), ("lenient", ":")):
            shots = [record["num_shots"] for record in group]
            draw_shares(axes, shots, group, name, color=color, linestyle=line, label=f"{label}, {name}")
    axes.set(xlabel="worked examples in the prompt", ylabel="accuracy, 95 % interval", ylim=(0, 1),
             xticks=sorted({record["num_shots"] for record in records}))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write(settings: Settings, answers: dict[tuple[str, int], list[Answer]], records: list[dict[str, Any]]) -> None:
    """Write `eval.json`, `eval.html`, `accuracy.png` and the answers to the output folder."""
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    for (label, num_shots), group in answers.items():
        save_answers(group, folder / f"answers_{label}_{num_shots}_shots.jsonl")
    picture = folder / "accuracy.png"
    chart(records).savefig(picture, dpi=110)
    settings_table = table(("option", "value"), list(asdict(settings).items()))
    body = [table(HEADER, table_rows(records)), f"<p>{NOTE}</p>", image(picture), "<h2>Settings</h2>", settings_table]
    (folder / "eval.html").write_text(page(f"Accuracy of {settings.model}", body), encoding="utf-8")
    content = json.dumps({"settings": asdict(settings), "results": records}, indent=1)
    (folder / "eval.json").write_text(content + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Print the table and return the exit code."""
    try:
        settings = parse(argv)
        answers = score(settings)
    except ValueError as error:
        print(f"error: {spelled_out(str(error))}", file=sys.stderr)
        return 2
    records = records_of(answers)
    lines = [HEADER, *table_rows(records)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if settings.output is not None:
        write(settings, answers, records)
        print(f"wrote {Path(settings.output) / 'eval.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
