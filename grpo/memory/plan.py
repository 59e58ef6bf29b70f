"""The ledger as a page: what a run on so many GPUs needs, in memory and in time, from config.json alone.

`train.py --plan 8` prints it; a run's start-up block sets the same formulas beside what it measures.
"""

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING

from grpo.config import Config
from grpo.loading.model_config import read_sizes
from grpo.memory.batch_length import Budget, choose_budget
from grpo.memory.concurrency import Lengths, Room, choose_slots
from grpo.memory.ledger import Item, Ledger, NumberType, size
from grpo.options.recipe import PROJECTIONS
from grpo.options.refusal import refuse

if TYPE_CHECKING:  # `--plan` answers before anything imports these
    import torch
    from transformers import PretrainedConfig

GPU_BYTES = 80 * 10**9  # where no GPU is to be seen
PROMPT_TOKENS = 1024  # where max_prompt_length is not set: without a tokenizer nothing better is known
PEAK_FLOPS, PEAK_BYTES = 989e12, 3.35e12  # of an H100 SXM in one second: dense bfloat16, memory (NVIDIA's data sheet)


def ledger_of(
    run: Config, config: "PretrainedConfig", *, num_ranks: int, dtype: "torch.dtype | NumberType",
    rollout_dtype: "torch.dtype | NumberType", on_gpu: bool,
) -> Ledger:
    """The ledger of a run; the shape of an adapter that it starts from is read from the adapter."""
    if run.adapter_name_or_path is not None:
        from grpo.loading.adapter import read_adapter_config  # here, because peft takes 10 s

        kind = read_adapter_config(run.adapter_name_or_path)
        targets = PROJECTIONS if isinstance(kind.target_modules, str) else sorted(kind.target_modules)
        run = replace(run, lora_r=kind.r, lora_alpha=kind.lora_alpha, lora_dropout=kind.lora_dropout,
                      lora_target_modules=targets, lora_modules_to_save=list(kind.modules_to_save or []))
    return Ledger(run=run, config=config, num_ranks=num_ranks, dtype=dtype, rollout_dtype=rollout_dtype, on_gpu=on_gpu)


def held(ledger: Ledger) -> list[Item]:
    """What a rank holds between two steps."""
    run = ledger.run
    cut = f"1/{ledger.num_ranks} of it here" if run.zero_stage == 3 and ledger.num_ranks > 1 else "whole on every rank"
    name = str(ledger.dtype).removeprefix("torch.")
    base = f"projections in half a byte a weight, the rest in {name}" if run.load_in_4bit else name
    where = "" if run.rollout_keep else f"; {size(ledger.rollout_copy())} while sampling, in CPU memory else"
    items = [
        Item("base", ledger.kept(ledger.base()), f"{base}; {cut}"),
        Item("scales", ledger.scales(), "of NF4: a byte for 64 weights, 4 bytes for 16,384; whole on every rank"),
        Item("trained", ledger.kept(ledger.trained()) if run.use_peft else 0,
             f"{ledger.num_trained():,} numbers in {name}" + ("" if run.use_peft else ", which are the base")),
        Item("reference", ledger.kept(ledger.reference()), "the frozen copy of what trains, where the base is not it"),
        Item("gradients", ledger.gradients(), "float32 sums of what trains, cut from ZeRO stage 2 on"),
        Item("optimizer", ledger.optimizer(), "float32 master and two moments of it, cut from stage 1 on"),
        Item("bucket", ledger.bucket(), "DeepSpeed's reduce_bucket_size, whatever it holds"),
        Item("rollout copy", ledger.rollout_copy() if run.rollout_keep else 0,
             f"{run.rollout_weights} weights, whole on every rank" + where),
    ]
    return [item for item in items if item.num_bytes or item.name == "rollout copy"]


def of_a_row(ledger: Ledger, num_tokens: int, *, checkpointing: bool) -> list[Item]:
    """What a micro-batch needs beside that."""
    layers = ledger.config.num_hidden_layers
    saved = (f"the inputs of {layers} layers, and {ledger.layer_token():,} bytes a token in one of them"
             if checkpointing else f"{ledger.layer_token():,} bytes a token in each of {layers} layers")
    return [
        Item("activations", ledger.activations(num_tokens, checkpointing=checkpointing), saved),
        Item("passing", ledger.passing(num_tokens), "gradients inside an MLP, and a weight unpacked"),
        Item("head", ledger.head(num_tokens), "hidden states, what the log-prob kernel needs; never the logits"),
        Item("gathered", ledger.gathered(), "whole weights that ZeRO-3 may hold at a time"),
    ]


def after_slots(free: int, room: Room, run: Config) -> int:
    """What an update may count on: the memory of the slots stays with the rollout where its copy does."""
    return free - room.num_bytes if run.rollout_keep else free


def page(run: Config) -> list[str]:
    """What `--plan` prints.

    Raises:
        ValueError: the model is none, or the run does not fit.
    """
    config = read_sizes(run.model_name_or_path, load_in_4bit=run.load_in_4bit, revision=run.model_revision,
                        trust_remote_code=run.trust_remote_code)
    dtype = NumberType("float32", 4) if run.torch_dtype == "float32" else NumberType("bfloat16", 2)
    ledger = ledger_of(run, config, num_ranks=run.plan, dtype=dtype, rollout_dtype=dtype, on_gpu=True)
    seen = gpu_bytes()
    gpu = seen or GPU_BYTES
    lengths = Lengths(0, run.max_prompt_length or PROMPT_TOKENS, run.max_completion_length)
    known = "max_prompt_length" if run.max_prompt_length else "assumed: max_prompt_length is not set"
    lines, budget, num_slots = memory_lines(ledger, lengths, gpu)
    return [
        f"plan       {run.model_name_or_path} on {run.plan} GPU{'s' * (run.plan > 1)} of {size(gpu)} "
        f"({'seen here' if seen else 'assumed'}), ZeRO stage {run.zero_stage}",
        f"prompts    {lengths.rest:,} tokens ({known}), of which none are shared",
        *lines,
        f"update     {budget.words}",
        *time_lines(ledger, lengths, budget, num_slots),
        *(f"note       {note}" for note in run.notes),
    ]


def gpu_bytes() -> int | None:
    """Memory of the first GPU, asked of its driver, because torch takes 3 s to import; None without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, total = ctypes.c_int(), ctypes.c_size_t()
    failed = (driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
              or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    return None if failed else total.value


def memory_lines(ledger: Ledger, lengths: Lengths, gpu: int) -> tuple[list[str], Budget, int]:
    """The table of a rank on a GPU of so many bytes, and what was chosen for it: rows of an update, rollout slots.

    Raises:
        ValueError: the weights, one completion, or a row with it do not fit.
    """
    run, always = ledger.run, held(ledger)
    free = gpu - sum(item.num_bytes for item in always)
    sampling = free if run.rollout_keep else free - ledger.rollout_copy()
    if sampling <= 0:
        packs = run.load_in_4bit and run.rollout_weights != "nf4"
        refuse("plan", run.plan, f"leaves no room: a rank holds {size(gpu - sampling)} while it samples, "
               f"{size(ledger.rollout_copy())} of them its rollout copy, and a GPU has {size(gpu)}",
               "rollout_weights=nf4" if packs else "a smaller model")
    room = choose_slots(
        run.rollout_slots, ledger, lengths, free=sampling,
        num_rows=-(-run.prompts_per_step // ledger.num_ranks) * run.num_generations,
        num_generations=run.num_generations)
    budget = choose_budget(ledger, lengths, free=after_slots(free, room, run))
    slots = Item("rollout slots", room.num_bytes if run.rollout_keep else 0,
                 f"{room.num_slots} rows of keys, values and logits, and their prompts: {size(room.num_bytes)}")
    items = [*always, slots, *of_a_row(
        ledger, budget.micro_batch_tokens, checkpointing=budget.gradient_checkpointing == "true")]
    total = sum(item.num_bytes for item in items)
    return [
        "memory     bytes of a rank:",
        *(f"  {item.name:<14}{size(item.num_bytes):>12}  {item.words}" for item in items),
        f"  {'total':<14}{size(total):>12}  {100 * total / gpu:.0f} % of the GPU",
    ], budget, room.num_slots


def time_lines(ledger: Ledger, lengths: Lengths, budget: Budget, num_slots: int) -> list[str]:
    """The least that a step can take, every completion at its longest: operations of an update, bytes of a rollout.

    Of n tokens a product with a weight of m numbers is 2 n m operations. A frozen weight needs a second one in the
    backward pass, a trained one a third; the reference pass and checkpointing are one more each. Attention multiplies
    each token's query with the keys that it sees, and as often with their values: 4 Q operations a pair, and 2.5 times
    that backward. A decoding step reads every weight, and the keys and values of its rows, here at half their length.
    """
    run, config = ledger.run, ledger.config
    groups = -(-run.prompts_per_step // ledger.num_ranks)
    rows = groups * run.num_generations
    prompt, longest = lengths.prefix + lengths.rest, lengths.completion
    pairs = groups * prompt**2 / 2 + rows * longest * (prompt + longest / 2)
    query, _, head = ledger.heads
    frozen = config.num_hidden_layers * sum(outputs * inputs for outputs, inputs in ledger.projections().values())
    branches = sum(one.numel * one.count for one in ledger.branches())
    table = config.vocab_size * config.hidden_size
    tokens = lengths.row(run.num_generations, groups)
    once = 2 * tokens * (frozen + branches) + 4 * query * head * config.num_hidden_layers * pairs
    backward = 2 * tokens * (frozen * (1 if run.use_peft else 2) + 2 * branches) + 10 * query * head * (
        config.num_hidden_layers * pairs)
    iteration = once * (2 if budget.gradient_checkpointing == "true" else 1) + backward
    iteration += 2 * rows * longest * table * (4 if ledger.trains_head() else 2)
    reference = once + 2 * rows * longest * table if run.beta > 0 else 0
    flops = run.num_iterations * iteration + reference

    steps = longest * -(-rows // num_slots)
    weights = frozen / 2 if run.rollout_weights == "nf4" else frozen * ledger.rollout_dtype.itemsize
    read = weights + table * ledger.rollout_dtype.itemsize
    read += num_slots * (prompt + longest / 2) * ledger.token_bytes()
    return [
        f"time       update: {flops / 1e12:,.1f} TFLOP a rank and step for {tokens:,} tokens; at least "
        f"{flops / PEAK_FLOPS:,.2f} s at an H100's {PEAK_FLOPS / 1e12:,.0f} TFLOP/s",
        f"           rollout: {steps:,} decoding steps that read {size(read)} each; at least "
        f"{steps * read / PEAK_BYTES:,.2f} s at its {PEAK_BYTES / 1e12:.2f} TB/s",
    ]
