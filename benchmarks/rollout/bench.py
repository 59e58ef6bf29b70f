"""Our sampler compared with transformers' own generation: `python -m benchmarks.rollout --data openai/gsm8k`.

Writes rollout.json, rollout.md and rollout.png into benchmarks/results/. `--parts` measures some parts again and keeps
what the file has of the others. Each engine runs in its own process.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from benchmarks.record import RESULTS, ROOT, commit, versions
from benchmarks.record import machine as processor
from benchmarks.rollout.page import draw, engine_table, growth_table, markdown, real_table
from benchmarks.rollout.peers import ENGINES, PAD
from data import load_examples
from grpo.packing import common_prefix_length

COMMAND = "python -m benchmarks.rollout"
PARTS = ("peers", "refill", "growth")
REAL = "real"  # a part that needs the folder of a model
PACKAGES = ("torch", "transformers", "tokenizers")
PEERS = tuple(name for name in ENGINES if not name.startswith("ours"))
FORMS = ("ours", "ours, LoRA merged", "ours, LoRA beside")
BATCHED = "ours, in batches"  # of the refill part: `ours` again
DYNAMIC, ONCE = "dynamic cache", "dynamic cache, prompts read once"
MANY = (DYNAMIC, ONCE, "static cache", "continuous batching, 8 at once")  # the others take a quarter of an hour
WORKER_SECONDS = 3600  # after which an engine is given up


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of everything; the defaults are what the results are for."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    vocab_size: int = 8192
    num_shots: int = 8
    num_generations: int = 8
    peers: tuple[str, ...] = PEERS
    peers_of_many: tuple[str, ...] = MANY  # of more prompts than the first number
    peer_prompts: tuple[int, ...] = (2, 16)
    peer_tokens: int = 128
    refill_prompts: int = 32
    refill_batch: int = 8  # prompts; times `num_generations` the slots
    refill_tokens: int = 256
    stop_probability: float = 1 / 90
    growth_shots: tuple[int, ...] = (0, 2, 4, 8)
    growth_generations: tuple[int, ...] = (4, 8, 16)
    growth_prompts: int = 4
    growth_tokens: int = 128
    wide_hidden_size: int = 896  # a layer of Qwen2.5-0.5B
    wide_intermediate_size: int = 4864
    wide_num_attention_heads: int = 14
    wide_num_hidden_layers: int = 2
    real_shots: tuple[int, ...] = (0, 8)
    real_rows: tuple[int, ...] = (1, 8, 32, 64)
    real_tokens: int = 16
    repeats: int = 5
    enough_s: float = 30


class Bench:
    """A random model and its prompts on disk, and the processes that use them."""

    def __init__(self, folder: Path, data: str, plan: Plan, threads: int, model: str | None = None) -> None:
        self.folder, self.plan, self.threads, self.model = folder, plan, threads, model
        examples = load_examples(data, "train", num_shots=0, seed=0)
        texts = [f"{example.question} {example.answer}" for example in examples]
        tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=plan.vocab_size)
        self.num_parameters = {}
        for name in ("small", "wide"):
            torch.manual_seed(0)
            model = Qwen2ForCausalLM(_config(plan, wide=name == "wide"))
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            self.num_parameters[name] = model.num_parameters()
        most = max(*plan.peer_prompts, plan.refill_prompts, plan.growth_prompts)
        self.prompts = {}
        self.examples = {}
        for shots in sorted({*plan.growth_shots, *plan.real_shots, plan.num_shots}):
            self.examples[shots] = load_examples(data, "train", num_shots=shots, seed=0)[:most]
            self.prompts[shots] = [tokenizer(example.prompt)["input_ids"] for example in self.examples[shots]]
        if len(self.prompts) > 1 and len(set(map(json.dumps, self.prompts.values()))) == 1:
            raise ValueError(f"data={data!r}: has ready prompts; must be questions and answers, such as openai/gsm8k")
        words = [token for token in range(plan.vocab_size) if token != PAD]
        self.stop_ids = sorted(random.Random(0).sample(words, round(plan.stop_probability * plan.vocab_size)))

    def case(self, num_prompts: int, num_generations: int, max_new_tokens: int, **more: Any) -> dict:
        """A `Case` as JSON; also takes `shots`, `stop` and `batch`."""
        prompts = self.prompts[more.pop("shots", self.plan.num_shots)][:num_prompts]
        return {
            "prompts": prompts, "prompt_index": list(range(num_prompts)), "num_generations": num_generations,
            "max_new_tokens": max_new_tokens, "stop_ids": self.stop_ids if more.pop("stop", False) else [], **more}

    def measure(
        self, engine: str, cases: list[dict], model: str = "small", repeats: int | None = None
    ) -> list[dict]:
        """Rows of some cases, measured in turn in a fresh process; `repeats` in place of the plan's."""
        job, result = self.folder / "job.json", self.folder / "result.json"
        result.unlink(missing_ok=True)
        spent = {"repeats": repeats or self.plan.repeats, "enough_s": self.plan.enough_s, "threads": self.threads}
        job.write_text(json.dumps({"folder": str(self.folder / model), "engine": engine, "cases": cases, **spent}))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.rollout.worker", str(job), str(result)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WORKER_SECONDS)
            why = f"its process ends with exit code {done.returncode}"
            last = done.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired:
            why, last = f"takes more than {WORKER_SECONDS:,} s", []
        rows = json.loads(result.read_text()) if result.exists() else []
        if len(rows) < len(cases):
            print(f"{engine}: {why}", *last, sep="\n", file=sys.stderr)
        return rows + [{"why": why} for _ in cases[len(rows):]]


def _config(plan: Plan, *, wide: bool) -> Qwen2Config:
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    prefix = "wide_" if wide else ""
    return Qwen2Config(
        **{name: getattr(plan, prefix + name) for name in shape}, vocab_size=plan.vocab_size,
        num_key_value_heads=plan.num_key_value_heads, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=PAD, dtype=torch.float32)


def _prompt_tokens(prompts: list[list[int]]) -> dict[str, int]:
    lengths = list(map(len, prompts))
    return {"min": min(lengths), "max": max(lengths), "shared": common_prefix_length(prompts)}


def _show(rows: list[dict]) -> None:
    """The last row, while the others are being measured; which peer is the fastest is not known yet."""
    print(engine_table(rows)[-1].replace("**", ""), flush=True)


def peers(bench: Bench) -> dict:
    """Every engine on few prompts and on many, then ours with and without LoRA."""
    plan, tables = bench.plan, []
    for num_prompts in plan.peer_prompts:
        case = bench.case(num_prompts, plan.num_generations, plan.peer_tokens)
        rows = []
        for engine in ("ours", *(plan.peers if num_prompts == plan.peer_prompts[0] else plan.peers_of_many)):
            rows.append({"engine": engine, **bench.measure(engine, [case])[0]})
            _show(rows)
        tables.append({"prompts": num_prompts, "prompt_tokens": _prompt_tokens(case["prompts"]), "rows": rows})
    forms = []
    for engine in FORMS:
        forms.append({"engine": engine, **bench.measure(engine, [case])[0]})
        _show(forms)
    return {
        "engines": {name: ENGINES[name].says for name in (*FORMS, *plan.peers)}, "tables": tables, "forms": forms,
        "generations": plan.num_generations, "tokens": plan.peer_tokens}


def refill(bench: Bench) -> dict:
    """Rows of different lengths: with refilled slots, in batches, and what transformers has for it."""
    plan, rows = bench.plan, []
    slots = plan.refill_batch * plan.num_generations
    turns = [
        ("ours", "ours", {"at_once": slots}), (BATCHED, "ours", {"batch": plan.refill_batch}),
        (ONCE, ONCE, {"batch": plan.refill_batch})]
    for name, engine, how in turns:
        case = bench.case(plan.refill_prompts, plan.num_generations, plan.refill_tokens, stop=True, **how)
        rows.append({"engine": name, **bench.measure(engine, [case])[0]})
        _show(rows)
    if rows[0].get("digest") != rows[1].get("digest"):
        raise SystemExit("error: refilled slots and batches gave different completions")
    return {
        "rows": rows, "prompts": plan.refill_prompts, "batch": plan.refill_batch, "slots": slots,
        "generations": plan.num_generations, "tokens": plan.refill_tokens, "stop_ids": len(bench.stop_ids),
        "stop_probability": plan.stop_probability, "prompt_tokens": _prompt_tokens(case["prompts"])}


def growth(bench: Bench) -> dict:
    """What more solved examples and more completions cost us."""
    plan = bench.plan
    sizes = [(shots, count) for shots in plan.growth_shots for count in plan.growth_generations]
    cases = [bench.case(plan.growth_prompts, count, plan.growth_tokens, shots=shots) for shots, count in sizes]
    tables = {}
    for model in ("wide", "small"):
        # One run of each case after the other, and all again: a machine's slow minutes fall on all of them.
        rounds = [bench.measure("ours", cases, model, repeats=1) for _ in range(plan.repeats)]
        rows = tables[model] = [together(runs) for runs in zip(*rounds)]
        for (shots, count), case, row in zip(sizes, cases, rows):
            row |= {"shots": shots, "generations": count, "prompt_tokens": _prompt_tokens(case["prompts"])}
        print(*growth_table(rows), sep="\n", flush=True)
    return {"rows": tables["wide"], "small_rows": tables["small"], "prompts": plan.growth_prompts,
            "tokens": plan.growth_tokens}


def real(bench: Bench) -> dict:
    """A decoding step of a real model: rows that continue one prompt, without and behind solved examples."""
    plan, tokenizer, rows = bench.plan, AutoTokenizer.from_pretrained(bench.model), []
    for shots in plan.real_shots:
        prompt = tokenizer(bench.examples[shots][0].prompt)["input_ids"]
        for count in plan.real_rows:
            case = {"prompts": [prompt], "prompt_index": [0], "num_generations": count,
                    "max_new_tokens": plan.real_tokens, "stop_ids": []}
            row = {"shots": shots, "prompt_tokens": len(prompt), "rows": count}
            for name, engine in (("ours", "ours"), ("peer", ONCE)):
                measured = bench.measure(engine, [dict(case)], bench.model)[0]
                row[name] = measured | step_seconds(measured, plan.real_tokens)
            rows.append(row)
            print(real_table(rows)[-1], flush=True)
    config = AutoConfig.from_pretrained(bench.model)
    return {"rows": rows, "tokens": plan.real_tokens, "name": Path(bench.model).name, "config": {
        name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}}


def step_seconds(row: dict, num_steps: int) -> dict:
    """Seconds of a decoding step in the fastest run, and of reading the prompt."""
    if row["why"]:
        return {}
    return {"step_s": min(whole - read for whole, read in zip(row["seconds"], row["prefills"])) / num_steps,
            "read_s": min(row["prefills"])}


def together(runs: tuple[dict, ...]) -> dict:
    """One row from the rows of several rounds: their seconds side by side, the fastest run's speed, the most memory."""
    if failed := [row for row in runs if row["why"]]:
        return failed[0]
    fastest = min(runs, key=lambda row: min(row["seconds"]))
    return fastest | {
        "seconds": [second for row in runs for second in row["seconds"]],
        "peak_bytes": max(row["peak_bytes"] for row in runs)}


def environment(options: argparse.Namespace) -> dict:
    """What a part's numbers depend on."""
    cuda = torch.cuda.is_available()
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    data = "FOLDER" if Path(options.data).exists() else options.data
    parts = "" if set(options.parts) == set(PARTS) else f" --parts {' '.join(options.parts)}"
    parts += " --model MODEL" if options.model else ""
    return {
        "command": f"{COMMAND} --data {data} --threads {options.threads}{parts}",
        "commit": commit(),
        "device": "cuda" if cuda else "cpu",
        "machine": torch.cuda.get_device_name() if cuda else f"{processor()}; {threads}",
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }


def main(arguments: list[str] | None = None, plan: Plan = Plan()) -> None:
    """Read the command line, measure, and write the files."""
    parser = argparse.ArgumentParser(description="Compare this sampler with transformers' generation.")
    parser.add_argument("--data", default="openai/gsm8k", help="Hub name or folder of raw GSM8K, or wordproblems")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, on a CPU")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, REAL), default=PARTS,
                        help="what to measure; keeps the rest")
    parser.add_argument("--model", type=os.path.abspath, help=f"folder of a Qwen2 model, for the part {REAL}")
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if REAL in options.parts and options.model is None:
        parser.error(f"--parts {REAL}: needs --model FOLDER")
    path = options.output_dir / "rollout.json"
    result = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = Bench(Path(folder), options.data, plan, options.threads, options.model)
        except ValueError as error:
            parser.error(str(error))
        count = {"parameters": bench.num_parameters["small"], "wide_parameters": bench.num_parameters["wide"]}
        about = {"environment": environment(options), "plan": asdict(plan) | count}
        for name in options.parts:
            measure = {"peers": peers, "refill": refill, "growth": growth, REAL: real}[name]
            result["parts"][name] = about | measure(bench)
            path.write_text(json.dumps(result, indent=2) + "\n")
            (options.output_dir / "rollout.md").write_text(markdown(result))
            if name == "growth":
                draw(result["parts"]["growth"], options.output_dir / "rollout.png")
