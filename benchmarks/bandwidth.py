"""How near the rollout comes to the speed at which memory can be read: `python -m benchmarks.bandwidth --model FOLDER`.

A decoding step reads every weight once and every row's own keys and values once, and at small batch does little else.
The time that takes at the measured copy bandwidth is a floor; the share of it in the time of a step says how good the
step is. Beside it transformers' `generate` on the same prompts, and a profile of where the rest goes.

    python -m benchmarks.random_model --shape 0.5b --data openai/gsm8k --output_dir outputs/random-0.5b
    python -m benchmarks.bandwidth --model outputs/random-0.5b --slots 64 128 256 512 1024
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.toy import RESULTS, commit
from data import load_examples
from grpo.decoder import Decoder
from grpo.linear import Branch, JoinedLinear
from grpo.rollout import generate
from grpo.types import Rollout

NUM_GENERATIONS = 8


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, a GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 1 GiB, the best of 10."""
    source = torch.ones(2**28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(10))


def branches(model: PreTrainedModel, rank: int) -> dict[str, Branch]:
    """Random LoRA branches beside every projection of the model."""
    found = {}
    for name, weight_OI in model.named_parameters():
        if name.endswith("_proj.weight"):
            num_outputs, num_inputs = weight_OI.shape
            A_RI = weight_OI.new_empty(rank, num_inputs).normal_(std=num_inputs ** -0.5)
            found[name.removesuffix(".weight")] = (A_RI, weight_OI.new_empty(num_outputs, rank).normal_(std=0.01), 1.0)
    return found


def bytes_per_step(decoder: Decoder, rollout: Rollout, num_slots: int) -> float:
    """What a step must read: norms, products, head; own keys and values at half their final length."""
    head = decoder.plain[decoder.head_name] if decoder.head is None else decoder.head
    norms = sum(tensor.nbytes for tensor in decoder.plain.values() if tensor.dim() == 1)
    products = sum(_read_bytes(linear) for layer in decoder.layers for linear in layer.linears())
    own = num_slots * float(rollout.length_N.double().mean()) / 2 * decoder.token_bytes()
    return norms + products + head.nbytes + own


def _read_bytes(linear: JoinedLinear) -> int:
    """Everything that a product holds, but where LoRA is merged only the sum and the bias."""
    if linear.merged_IO is None:
        return linear.nbytes()
    return linear.merged_IO.nbytes + (0 if linear.bias_Z is None else linear.bias_Z[: linear.num_outputs].nbytes)


def ours(decoder: Decoder, prompts: list[list[int]], tokenizer, num_tokens: int) -> Rollout:
    """Every prompt continued by as many rows as fit the slots, without stopping."""
    return generate(
        decoder, prompts, tokenizer=tokenizer, num_generations=NUM_GENERATIONS, max_completion_length=num_tokens,
        temperature=1.0, stop_token_ids=set(), stop_strings=[], seed=0, step=0, prompt_index=list(range(len(prompts))))


def theirs(model, prompts: list[list[int]], num_tokens: int) -> None:
    """transformers' generate on the same rows, left-padded."""
    rows = [prompt for prompt in prompts for _ in range(NUM_GENERATIONS)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    model.generate(input_ids=ids, attention_mask=seen, do_sample=True, top_k=0, max_new_tokens=num_tokens,
                   min_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0)


def measure(options: argparse.Namespace) -> dict:
    """All rows of the table, and profiles of the fewest and the most slots."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(device).eval()
    weight, lora = dict(model.named_parameters()), branches(model, options.lora_r)
    decoders = {form: Decoder(model.config, weight, lora, form=form) for form in options.forms}
    examples = load_examples(options.data, "train", num_shots=8, seed=0)
    bandwidth = copy_bandwidth(device)
    rows = []
    for num_slots, (form, decoder) in itertools.product(options.slots, decoders.items()):
        prompts = [tokenizer.encode(example.prompt) for example in examples[: num_slots // NUM_GENERATIONS]]
        ours(decoder, prompts, tokenizer, num_tokens=8)  # compiles
        taken: list[Rollout] = []
        whole = seconds(lambda: taken.append(ours(decoder, prompts, tokenizer, options.num_tokens)), device)
        cost, tokens = taken[0].cost, int(taken[0].length_N.sum())
        step = (cost.seconds - cost.prefill_s - cost.warmup_s) / cost.num_steps
        floor = bytes_per_step(decoder, taken[0], num_slots) / bandwidth
        peer = None
        if form == options.forms[0] and num_slots in options.peer_slots:
            peer = seconds(lambda: theirs(model, prompts, options.num_tokens), device)
        rows.append({
            "slots": num_slots, "form": form, "seconds": whole, "tokens_per_s": tokens / whole,
            "prefill_s": cost.prefill_s, "warmup_s": cost.warmup_s, "step_ms": 1e3 * step, "floor_ms": 1e3 * floor,
            "share_of_floor": floor / step,
            "generate_tokens_per_s": None if peer is None else tokens / peer})
        print(json.dumps(rows[-1]), flush=True)
    tables = {}
    for num_slots in sorted({min(options.slots), max(options.slots)}):
        prompts = [tokenizer.encode(example.prompt) for example in examples[: num_slots // NUM_GENERATIONS]]
        with profile(activities=[getattr(ProfilerActivity, device.type.upper())]) as log:
            ours(decoders[options.forms[0]], prompts, tokenizer, num_tokens=32)
        tables[num_slots] = log.key_averages().table(
            sort_by=f"self_{device.type}_time_total", row_limit=25, max_name_column_width=80)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"model": Path(options.model).name, "device": where, "commit": commit(), "torch": torch.__version__,
            "copy_bandwidth": bandwidth, "num_tokens": options.num_tokens, "rows": rows, "profiles": tables}


def markdown(result: dict) -> str:
    """The result as a page."""
    names = list(result["rows"][0])
    cells = [[_cell(row[name]) for name in names] for row in result["rows"]]
    return "\n".join([
        f"# Rollout and memory bandwidth: {result['model']} on {result['device']}\n",
        f"Commit {result['commit']}, torch {result['torch']}. Random weights in bfloat16, 8-shot prompts,",
        f"{NUM_GENERATIONS} completions of {result['num_tokens']} tokens each. A copy moves",
        f"{result['copy_bandwidth'] / 1e9:,.0f} GB/s; the floor is what a step must read, at that speed.\n",
        "| " + " | ".join(names) + " |", "|" + "---|" * len(names),
        *("| " + " | ".join(row) + " |" for row in cells),
        *(f"\nWhere the time of 32 tokens goes, with {slots} slots:\n\n```\n{table}\n```"
          for slots, table in result["profiles"].items()), ""])


def _cell(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:,.4g}"


def main() -> None:
    """Read the command line, measure, write JSON and Markdown beside the other results."""
    parser = argparse.ArgumentParser(description="Rollout against the bandwidth of memory.")
    parser.add_argument("--model", required=True, help="folder from benchmarks.random_model")
    parser.add_argument("--data", default="openai/gsm8k", help="dataset of the prompts")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--forms", nargs="+", choices=("lora", "merged"), default=["lora", "merged"], help="of LoRA")
    parser.add_argument("--lora_r", type=int, default=16, help="rank of the branches beside all seven projections")
    parser.add_argument("--peer_slots", type=int, nargs="+", default=[64, 256], help="generate runs for these")
    parser.add_argument("--num_tokens", type=int, default=256)
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    name = f"bandwidth-{result['model']}"
    (options.output_dir / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.output_dir / f"{name}.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
