"""How near sampling is to the speed at which memory can be read: `python -m benchmarks.rollout.bandwidth`.

A decoding step reads every weight once and every row's own keys and values once, and at small batch does little else.
The time that takes at the measured copy bandwidth is a floor; the share of it in the time of a step says how good the
step is. At large batch the arithmetic of the products takes longer than the reading, so the time that it takes at the
speed of a large product is given too. Also measured: transformers' `generate` on the same
prompts, and a profile.

Models of real shapes with random weights are made on the spot, nothing is downloaded but the prompts' dataset.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.random_model import SHAPES, build, train_tokenizer
from benchmarks.record import RESULTS, commit
from data import load_examples
from grpo.sampler.decoder import Decoder
from grpo.sampler.generate import generate
from grpo.sampler.linear import Branch, JoinedLinear
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


def product_speed(device: torch.device) -> float:
    """Floating-point operations per second of a bfloat16 product of two large squares, the best of 10."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(10))


def branches(model: PreTrainedModel, rank: int) -> dict[str, Branch]:
    """Random LoRA branches for every projection of the model."""
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
    products = sum(_read_bytes(linear) for linear in decoder.linears())
    own = num_slots * float(rollout.length_N.double().mean()) / 2 * decoder.token_bytes()
    return norms + products + head.nbytes + own


def operations_per_step(decoder: Decoder, num_slots: int) -> float:
    """Twice the weights of products and head for each row; attention is not counted."""
    products = sum(linear.num_outputs * linear.num_inputs for linear in decoder.linears())
    return 2 * num_slots * (products + decoder.config.vocab_size * decoder.config.hidden_size)


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


def measure(options: argparse.Namespace, shape: str, tokenizer: PreTrainedTokenizerBase) -> dict:
    """All rows of a model's table, and profiles of the fewest and the most slots."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = {"bytes": copy_bandwidth(device), "operations": product_speed(device)}
    model = build(shape, tokenizer)
    weight, lora = dict(model.named_parameters()), branches(model, options.lora_r)
    examples = load_examples(options.data, "train", num_shots=8, seed=0)[: max(options.slots) // NUM_GENERATIONS]
    prompts = [tokenizer.encode(example.prompt) for example in examples]
    rows, profiles = [], {}
    for form in options.forms:
        decoder = Decoder(model.config, weight, lora, form=form)
        for num_slots in options.slots:
            part = prompts[: num_slots // NUM_GENERATIONS]
            rows.append(once(decoder, form, part, tokenizer, options.num_tokens, speed))
            if form == options.forms[0] and num_slots in options.peer_slots:
                peer = seconds(lambda: theirs(model, part, options.num_tokens), device)
                rows[-1]["generate_tokens_per_s"] = num_slots * options.num_tokens / peer
            print(json.dumps(rows[-1]), flush=True)
            if form == options.forms[0] and num_slots in (min(options.slots), max(options.slots)):
                profiles[num_slots] = where_time_goes(decoder, part, tokenizer)
        del decoder
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"model": shape, "device": where, "commit": commit(), "torch": torch.__version__, "speed": speed,
            "num_tokens": options.num_tokens, "lora_r": options.lora_r, "rows": rows, "profiles": profiles}


def once(
    decoder: Decoder, form: str, prompts: list[list[int]], tokenizer, num_tokens: int, speed: dict[str, float]
) -> dict:
    """One row: a whole phase after one that compiles, and what a step of it takes and must take."""
    ours(decoder, prompts, tokenizer, num_tokens=8)
    taken: list[Rollout] = []
    whole = seconds(lambda: taken.append(ours(decoder, prompts, tokenizer, num_tokens)), decoder.device)
    cost, num_slots = taken[0].cost, len(taken[0].length_N)
    step = (cost.seconds - cost.prefill_s - cost.warmup_s) / cost.num_steps
    floor = bytes_per_step(decoder, taken[0], num_slots) / speed["bytes"]
    arithmetic = operations_per_step(decoder, num_slots) / speed["operations"]
    return {
        "slots": num_slots, "form": form, "seconds": whole, "prefill_s": cost.prefill_s, "warmup_s": cost.warmup_s,
        "step_ms": 1e3 * step, "floor_ms": 1e3 * floor, "arithmetic_ms": 1e3 * arithmetic,
        "share_of_floor": floor / step, "share_of_both": max(floor, arithmetic) / step,
        "tokens_per_s": num_slots * num_tokens / whole, "generate_tokens_per_s": None}


def where_time_goes(decoder: Decoder, prompts: list[list[int]], tokenizer) -> str:
    """A table of the kernels of a phase of 32 tokens."""
    on_gpu = decoder.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as log:
        ours(decoder, prompts, tokenizer, num_tokens=32)
    spent = [(event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
             for event in log.key_averages()]
    total = sum(microseconds for microseconds, _, _ in spent)
    return "\n".join([f"{total / 1e3:9.2f} ms in all", *(
        f"{one / 1e3:9.2f} ms {100 * one / total:5.1f} %  {count:6d} x {one / count:8.1f} us  {name[:75]}"
        for one, count, name in sorted(spent, reverse=True)[:20])])


def markdown(result: dict) -> str:
    """The result as a page."""
    names = list(result["rows"][0])
    cells = [[_cell(row[name]) for name in names] for row in result["rows"]]
    lora_r, num_tokens = result["lora_r"], result["num_tokens"]
    gigabytes, teraflops = result["speed"]["bytes"] / 1e9, result["speed"]["operations"] / 1e12
    return "\n".join([
        f"# Rollout and memory bandwidth: Qwen2.5-{result['model']} on {result['device']}\n",
        f"Commit {result['commit']}, torch {result['torch']}. Random weights in bfloat16, LoRA of rank {lora_r} on",
        f"all projections, 8-shot prompts, {NUM_GENERATIONS} completions of {num_tokens} tokens each. floor_ms: what a",
        f"step must read, at the {gigabytes:,.0f} GB/s that a copy moves. arithmetic_ms: its products, at the",
        f"{teraflops:,.0f} TFLOP/s of a large one. share_of_both: of the longer of the two. generate: transformers',",
        "without LoRA.\n",
        "| " + " | ".join(names) + " |", "|" + "---|" * len(names),
        *("| " + " | ".join(row) + " |" for row in cells),
        *(f"\nWhere the time of 32 tokens goes, prompts included, with {slots} slots:\n\n```\n{table}\n```"
          for slots, table in result["profiles"].items()), ""])


def _cell(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:,.4g}"


def main() -> None:
    """Read the command line, measure, write JSON and Markdown to the folder of results."""
    parser = argparse.ArgumentParser(description="Rollout against the bandwidth of memory.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--data", default="openai/gsm8k", help="dataset of the prompts")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--forms", nargs="+", choices=("lora", "merged"), default=["lora", "merged"], help="of LoRA")
    parser.add_argument("--lora_r", type=int, default=16, help="rank of the branches of all seven projections")
    parser.add_argument("--peer_slots", type=int, nargs="+", default=[64, 256], help="generate runs for these")
    parser.add_argument("--num_tokens", type=int, default=128)
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(options.data)
    for shape in options.shapes:
        torch.compiler.reset()  # what is compiled for one model is compiled for any size at the next, which is slower
        result = measure(options, shape, tokenizer)
        (options.output_dir / f"bandwidth-{shape}.json").write_text(json.dumps(result, indent=2) + "\n")
        (options.output_dir / f"bandwidth-{shape}.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
