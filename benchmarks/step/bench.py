"""Whole GRPO steps of ours compared with TRL's: `python -m benchmarks.step --data openai/gsm8k --peer-python PATH`.

PATH is a Python that has TRL and what the project needs: a `python -m venv` whose site-packages hold a .pth file
with the path of the project's, and

    pip install --no-deps trl==1.16.0 liger-kernel

Writes step.json, step.md and step.png into benchmarks/results/. `--parts` measures some parts again and keeps what the
file has of the others. Each trainer runs in its own process, on the CPU.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from benchmarks.record import RESULTS, ROOT, commit, versions
from benchmarks.record import machine as processor
from benchmarks.rollout.bench import WORKER_SECONDS
from benchmarks.step.page import draw, growth_table, markdown, step_table, update_table
from benchmarks.step.peers import PROJECTIONS, RANK, TRAINERS
from benchmarks.step.update import UPDATES
from data import load_examples
from grpo.packing import common_prefix_length

COMMAND = "python -m benchmarks.step"
PARTS = ("steps", "update", "growth")
PACKAGES = ("torch", "transformers", "peft", "deepspeed")
PEER_PACKAGES = ("trl", "liger-kernel", "accelerate")
OURS = tuple(name for name in TRAINERS if name.startswith("ours"))
PEERS = tuple(name for name in TRAINERS if not name.startswith("ours"))
LEAN = tuple(name for name in PEERS if "checkpointed" in name)  # for the cases after the first
ASK = """import importlib.metadata, json, sys, trl
found = {one.name.replace("_", "-"): one.version for one in importlib.metadata.distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of everything; the defaults are what the results are for."""

    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    vocab_size: int = 8192
    num_prompts: int = 2
    step_cases: tuple[tuple[int, int], ...] = ((8, 8), (0, 8), (8, 16))  # solved examples, completions of a prompt
    step_tokens: int = 128
    num_steps: int = 4  # the first is not measured
    ours: tuple[str, ...] = OURS
    peers: tuple[str, ...] = PEERS
    peers_of_others: tuple[str, ...] = LEAN
    update_cases: tuple[tuple[int, int], ...] = ((8, 8), (0, 8))
    updates: tuple[str, ...] = tuple(UPDATES)
    growth_shots: tuple[int, ...] = (0, 2, 4, 8)
    growth_generations: tuple[int, ...] = (4, 8, 16)
    growth_tokens: tuple[int, ...] = (64, 128, 256)
    base_case: tuple[int, int] = (8, 8)  # where the lengths are varied
    repeats: int = 3
    enough_s: float = 60


class Bench:
    """A random model and its prompts on disk, and the processes that use them."""

    def __init__(self, folder: Path, data: str, plan: Plan, threads: int, peer_python: str) -> None:
        self.folder, self.plan, self.threads, self.peer_python = folder, plan, threads, peer_python
        texts = [f"{one.question} {one.answer}" for one in load_examples(data, "train", num_shots=0, seed=0)]
        tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=plan.vocab_size)
        shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        tokenizer.add_special_tokens({"eos_token": "<|never|>"})  # a model must have one; `peers` lets no row end by it
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(
            **{name: getattr(plan, name) for name in shape}, vocab_size=len(tokenizer), max_position_embeddings=4096,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32))
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        self.num_parameters = model.num_parameters()
        self.prompts, self.ids = {}, {}
        for shots in sorted({*plan.growth_shots, *(case[0] for case in (*plan.step_cases, *plan.update_cases))}):
            examples = load_examples(data, "train", num_shots=shots, seed=0)[: plan.num_prompts]
            self.prompts[shots] = [example.prompt for example in examples]
            self.ids[shots] = [tokenizer(prompt)["input_ids"] for prompt in self.prompts[shots]]
        if len(self.ids) > 1 and len(set(map(json.dumps, self.ids.values()))) == 1:
            raise ValueError(f"data={data!r}: has ready prompts; must be questions and answers, such as openai/gsm8k")

    def step_case(self, shots: int, num_generations: int) -> dict:
        """A `peers.Case` as JSON, its prompts written to a file, and their lengths."""
        rows = [{"prompt": prompt, "answer": "0", "final_answer": "0"} for prompt in self.prompts[shots]]
        data = self.folder / f"prompts{shots}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {
            "model": str(self.folder / "model"), "data": str(data), "num_prompts": self.plan.num_prompts,
            "num_generations": num_generations, "max_completion_length": self.plan.step_tokens,
            "num_steps": self.plan.num_steps, "output_dir": f"{tempfile.mkdtemp(dir=self.folder)}/out",
            "prompt_lengths": list(map(len, self.ids[shots]))}

    def update_case(self, shots: int, num_generations: int, length: int) -> dict:
        """The completions of an update, as JSON."""
        return {"prompts": self.ids[shots], "num_generations": num_generations, "length": length}

    def prompt_tokens(self, shots: int) -> dict[str, int]:
        """Lengths of the prompts, for the page."""
        lengths = list(map(len, self.ids[shots]))
        return {"min": min(lengths), "max": max(lengths), "shared": common_prefix_length(self.ids[shots])}

    def measure(self, kind: str, engine: str, cases: list[dict]) -> list[dict]:
        """Rows of some cases, measured in turn in a fresh process."""
        job, result = self.folder / "job.json", self.folder / "result.json"
        result.unlink(missing_ok=True)
        spent = {"repeats": self.plan.repeats, "enough_s": self.plan.enough_s, "threads": self.threads}
        job.write_text(json.dumps(
            {"kind": kind, "engine": engine, "model": str(self.folder / "model"), "cases": cases, **spent}))
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads)) | {
            "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        python = self.peer_python if kind == "steps" and not engine.startswith("ours") else sys.executable
        command = [python, "-W", "ignore", "-m", "benchmarks.step.worker", str(job), str(result)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WORKER_SECONDS)
            why, last = f"its process ends with exit code {done.returncode}", done.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired:
            why, last = f"takes more than {WORKER_SECONDS:,} s", []
        rows = json.loads(result.read_text()) if result.exists() else []
        if len(rows) < len(cases):
            print(f"{engine}: {why}", *last, sep="\n", file=sys.stderr)
        return rows + [{"why": why} for _ in cases[len(rows):]]


def _tables(
    bench: Bench, cases: tuple[tuple[int, int], ...], engines: Callable[[int], tuple[str, ...]],
    measure: Callable[[str, int, int], dict], show: Callable[[list[dict]], list[str]],
) -> list[dict]:
    """One table for each case, a row for each engine, shown as it is measured."""
    tables = []
    for index, (shots, count) in enumerate(cases):
        rows: list[dict] = []
        for engine in engines(index):
            rows.append({"engine": engine, **measure(engine, shots, count)})
            print(show(rows)[-1].replace("**", ""), flush=True)
        tables.append({
            "shots": shots, "generations": count, "prompt_tokens": bench.prompt_tokens(shots), "rows": rows})
    return tables


def steps(bench: Bench) -> dict:
    """Whole steps of ours and of TRL's."""
    plan = bench.plan

    def measure(engine: str, shots: int, count: int) -> dict:
        return bench.measure("steps", engine, [bench.step_case(shots, count)])[0]

    def engines(index: int) -> tuple[str, ...]:
        return (*plan.ours, *(plan.peers_of_others if index else plan.peers))

    tables = _tables(bench, plan.step_cases, engines, measure, step_table)
    return {"engines": {name: TRAINERS[name].says for name in (*plan.ours, *plan.peers)}, "tables": tables}


def update(bench: Bench) -> dict:
    """Forward and backward alone, and how far the gradients differ."""
    plan = bench.plan

    def measure(engine: str, shots: int, count: int) -> dict:
        row = bench.measure("update", engine, [bench.update_case(shots, count, plan.step_tokens)])[0]
        if row["why"] is None and (ours := bench.folder / "ours.pt").exists():
            row["difference"] = _difference(bench.folder / f"{engine}.pt", ours)
        return row

    tables = _tables(bench, plan.update_cases, lambda index: plan.updates, measure, update_table)
    return {"engines": {name: UPDATES[name].says for name in plan.updates}, "tables": tables}


def _difference(path: Path, other: Path) -> float:
    """The largest difference of two gradients of a LoRA matrix, relative to the largest entry of the second."""
    found, expected = torch.load(path), torch.load(other)
    if found.keys() != expected.keys():
        raise SystemExit("error: the two models have different LoRA matrices")
    return max(float((found[name] - right).abs().max() / right.abs().max()) for name, right in expected.items())


def growth(bench: Bench) -> dict:
    """What more solved examples, more completions and longer ones cost our update, and its arithmetic."""
    plan = bench.plan
    usual = plan.growth_tokens[len(plan.growth_tokens) // 2]
    sizes = [(shots, count, usual) for shots in plan.growth_shots for count in plan.growth_generations]
    sizes += [(*plan.base_case, length) for length in plan.growth_tokens if (*plan.base_case, length) not in sizes]
    rows = bench.measure("growth", "ours", [bench.update_case(*size) for size in sizes])
    for (shots, count, length), row in zip(sizes, rows):
        row |= {"shots": shots, "generations": count, "length": length, "prompt_tokens": bench.prompt_tokens(shots)}
    print(*growth_table(rows), sep="\n", flush=True)
    return {"rows": rows, "usual": usual, "base": list(plan.base_case)}


def environment(options: argparse.Namespace, peers: dict[str, str]) -> dict:
    """What a part's numbers depend on."""
    data = "FOLDER" if Path(options.data).exists() else options.data
    parts = "" if set(options.parts) == set(PARTS) else f" --parts {' '.join(options.parts)}"
    peer = " --peer-python PATH" if peers else ""
    return {
        "command": f"{COMMAND} --data {data} --threads {options.threads}{peer}{parts}", "commit": commit(),
        "machine": f"{processor()}; {options.threads} thread{'s' if options.threads > 1 else ''}",
        "python": platform.python_version(),
        "versions": versions(PACKAGES) | peers}


def ask_peer(python: str) -> dict[str, str] | None:
    """Versions of the peers that a Python has; None where it cannot import TRL."""
    try:
        asked = subprocess.run([python, "-W", "ignore", "-c", ASK, *PEER_PACKAGES], capture_output=True, text=True)
    except OSError:
        return None
    return json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else None


def main(arguments: list[str] | None = None, plan: Plan = Plan()) -> None:
    """Read the command line, measure, and write the files."""
    parser = argparse.ArgumentParser(description="Compare train.grpo_step with TRL's GRPOTrainer.")
    parser.add_argument("--data", default="openai/gsm8k", help="Hub name or folder of raw GSM8K, or wordproblems")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has TRL; only for the part steps")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; keeps the rest")
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    wanted = plan.peers or plan.peers_of_others
    peers = ask_peer(options.peer_python) if "steps" in options.parts and wanted else {}
    if peers is None:
        parser.error(f"--peer-python {options.peer_python} cannot import TRL; see the top of benchmarks/step/bench.py")
    path = options.output_dir / "step.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench = Bench(Path(folder), options.data, plan, options.threads, options.peer_python)
        except ValueError as error:
            parser.error(str(error))
        about = {"environment": environment(options, peers), "plan": asdict(plan) | {
            "parameters": bench.num_parameters, "projections": len(PROJECTIONS), "rank": RANK}}
        for name in options.parts:
            result["parts"][name] = about | {"steps": steps, "update": update, "growth": growth}[name](bench)
            path.write_text(json.dumps(result, indent=2) + "\n")
            (options.output_dir / "step.md").write_text(markdown(result))
            if name == "growth":
                draw(result["parts"]["growth"], options.output_dir / "step.png")
