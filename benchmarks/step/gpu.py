"""Whole GRPO steps of a real Qwen2.5 shape on one GPU, ours compared with TRL's.

    python -m benchmarks.random_model --shape 0.5b --data openai/gsm8k --output_dir outputs/random-0.5b
    python -m benchmarks.step.gpu --model outputs/random-0.5b --data openai/gsm8k

Needs TRL in addition to the project's packages. Writes `step-<model>.json` and `.md` into benchmarks/results/. Each
trainer runs in its own process; the last step of ours is profiled and not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from benchmarks.record import RESULTS, ROOT, commit, versions
from benchmarks.step.peers import ON_A_GPU, RANK
from data import load_examples
from grpo.packing import common_prefix_length

PEAK_FLOPS = 989e12  # dense bfloat16 products of an H100 or H200 by their datasheet
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "trl")


def arithmetic(config, prompts: list[list[int]], num_generations: int, length: int) -> dict[str, float]:
    """What an update has to compute where each shared token is computed once, and where rows are padded instead.

        flops per token = 2 · (parameters of the linear layers) · 3,    head: 2 H V · 3 for each scored token

    three times, because the reference, the policy and the gradient of its inputs are one forward each; attention and
    what is recomputed count nowhere.
    """
    head_size = config.hidden_size // config.num_attention_heads
    layer = config.hidden_size * head_size * 2 * (config.num_attention_heads + config.num_key_value_heads)
    linear = config.num_hidden_layers * (layer + 3 * config.hidden_size * config.intermediate_size)
    shared, count = common_prefix_length(prompts), len(prompts) * num_generations
    packed = shared + sum(len(prompt) - shared for prompt in prompts) + count * length
    padded = count * (max(map(len, prompts)) + length)
    head = 2 * config.hidden_size * config.vocab_size * count * length
    return {"packed_tokens": packed, "padded_tokens": padded, "packed_flops": 3 * (2 * linear * packed + head),
            "padded_flops": 3 * (2 * linear * padded + head)}


def measure(options: argparse.Namespace, engine: str, case: dict, folder: Path) -> dict:
    """The row of one trainer, measured in a process of its own."""
    job, result = folder / f"{engine}.job.json", folder / f"{engine}.json"
    steps = options.steps if engine == "ours" else options.peer_steps
    job.write_text(json.dumps({
        "kind": "steps", "engine": engine, "device": "cuda", "threads": 8, "profile": engine == "ours",
        "cases": [case | {"num_steps": steps, "output_dir": str(folder / engine)}]}))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.step.worker", str(job), str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.timeout)
    if not result.exists():
        return {"engine": engine, "why": f"its process ends with exit code {done.returncode}: {done.stderr[-2000:]}"}
    return {"engine": engine, **json.loads(result.read_text())[0]}


def derive(row: dict, work: dict, num_tokens: int) -> dict:
    """Tokens per second of a step, and the share of the card's arithmetic that its passes over the rows use."""
    if row["why"] is not None:
        return row
    seconds = statistics.median(row["seconds"])
    passes = row["parts"]["reference_s"] + row["parts"]["update_s"]
    own = work["packed_flops" if row["engine"] == "ours" else "padded_flops"]
    return row | {"step_s": seconds, "tokens_per_s": num_tokens / seconds, "mfu": own / passes / PEAK_FLOPS,
                  "useful_mfu": work["packed_flops"] / passes / PEAK_FLOPS}


def markdown(result: dict) -> str:
    """The result as a page."""
    rows, work = [], result["arithmetic"]
    for row in result["rows"]:
        if row["why"] is not None:
            rows.append(f"| {row['engine']} | {row['why'][:200]} | | | | | | |")
            continue
        parts, peak = row["parts"], row["total_bytes"] / 2**30
        cells = [f"{row['step_s']:.2f}", f"{parts['rollout_s']:.2f}", f"{parts['reference_s']:.2f}",
                 f"{parts['update_s']:.2f}", f"{row['tokens_per_s']:,.0f}", f"{100 * row['mfu']:.0f} %", f"{peak:.1f}"]
        rows.append(f"| {row['engine']} | " + " | ".join(cells) + " |")
    lengths = result["prompt_tokens"]
    return "\n".join([
        f"# Whole GRPO steps on a GPU: {result['model']} on {result['device']}\n",
        f"Commit {result['commit']}; {', '.join(f'{name} {one}' for name, one in result['versions'].items())}.",
        f"Random weights, NF4 with LoRA r {RANK} in bfloat16, {result['num_prompts']} prompts behind 8 examples",
        f"({lengths['min']:,} to {lengths['max']:,} tokens, the first {lengths['shared']:,} shared),",
        f"{result['num_generations']} completions of {result['length']} tokens each, beta 0.04. Median of the steps",
        "after the first.\n",
        "| | seconds of a step | rollout | reference | update | completion tokens/s | MFU | peak GiB |",
        "|---|---|---|---|---|---|---|---|", *rows, "",
        *(f"- {name}: {trainer.says}" for name, trainer in ON_A_GPU.items()), "",
        f"MFU: {work['packed_tokens']:,} tokens of ours, {work['padded_tokens']:,} of padded rows, twice the",
        "parameters of the linear layers for each of three passes (reference, policy, gradient of the inputs), and the",
        "head of the scored tokens, over reference and update seconds, as a share of",
        f"{PEAK_FLOPS / 1e12:,.0f} TFLOP/s. What TRL computes again for each row counts as its work.", "",
        "Where the time of one step of ours goes:\n", "```", next(
            (row["profile"] for row in result["rows"] if row.get("profile")), "not measured"), "```", ""])


def main() -> None:
    """Read the command line, measure, write JSON and Markdown to the folder of results."""
    parser = argparse.ArgumentParser(description="Compare grpo_step with TRL's GRPOTrainer on one GPU.")
    parser.add_argument("--model", required=True, help="folder from benchmarks.random_model")
    parser.add_argument("--data", default="openai/gsm8k", help="dataset of the prompts")
    parser.add_argument("--engines", nargs="+", choices=ON_A_GPU, default=list(ON_A_GPU))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="of ours, the first not measured")
    parser.add_argument("--peer_steps", type=int, default=3, help="of TRL, the first not measured")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds of a trainer")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    examples = load_examples(options.data, "train", num_shots=8, seed=0)[: options.prompts]
    tokenizer, config = AutoTokenizer.from_pretrained(options.model), AutoConfig.from_pretrained(options.model)
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    lengths = list(map(len, prompts))
    work = arithmetic(config, prompts, options.generations, options.length)
    result = {
        "model": Path(options.model).name, "device": torch.cuda.get_device_name(), "commit": commit(),
        "versions": versions(PACKAGES), "num_prompts": options.prompts,
        "num_generations": options.generations, "length": options.length, "arithmetic": work, "rows": [],
        "prompt_tokens": {"min": min(lengths), "max": max(lengths), "shared": common_prefix_length(prompts)}}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        data.write_text("".join(
            json.dumps({"prompt": one.prompt, "answer": "0", "final_answer": "0"}) + "\n" for one in examples))
        case = {"model": options.model, "data": str(data), "num_prompts": options.prompts,
                "num_generations": options.generations, "max_completion_length": options.length,
                "prompt_lengths": lengths}
        for engine in options.engines:
            row = measure(options, engine, case, Path(folder))
            result["rows"].append(derive(row, work, options.prompts * options.generations * options.length))
            print(json.dumps(result["rows"][-1] | {"profile": None}), flush=True)
            path = options.output_dir / f"step-{result['model']}"
            Path(f"{path}.json").write_text(json.dumps(result, indent=2) + "\n")
            Path(f"{path}.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
