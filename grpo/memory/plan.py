"""The page that `train.py --plan 8` prints: memory and time that a run on 8 GPUs needs, from config.json alone."""

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING

from grpo.config import Config
from grpo.loading.model_config import read_sizes
from grpo.memory import shapes
from grpo.memory.batch_length import Budget, choose_budget
from grpo.memory.concurrency import Lengths, Room, choose_slots
from grpo.memory.ledger import Item, Ledger, NumberType, size
from grpo.options.refusal import refuse

if TYPE_CHECKING:  # `--plan` answers before anything imports these
    import torch
    from transformers import PretrainedConfig

GPU_BYTES = 80 * 10**9  # if this machine has no GPU
PROMPT_TOKENS = 1024  # if max_prompt_length is not set: without a tokenizer nothing better is known
PEAK_FLOPS, PEAK_BYTES = 989e12, 3.35e12  # an H100 SXM per second: dense bfloat16, memory traffic (NVIDIA data sheet)


def ledger_of(
    run: Config, config: "PretrainedConfig", *, num_ranks: int, dtype: "torch.dtype | NumberType",
    rollout_dtype: "torch.dtype | NumberType", on_gpu: bool,
) -> Ledger:
    """The ledger of a run; if it starts from an adapter, what trains and its dropout are the adapter's."""
    if not run.use_peft:
        added = shapes.Added({}, own_head=not config.tie_word_embeddings)
    elif run.adapter_name_or_path is None:
        added = shapes.of_fresh_adapter(run, config)
    else:
        from grpo.loading.adapter import read_adapter_config  # here, because peft takes 10 s

        kind = read_adapter_config(run.adapter_name_or_path)
        run = replace(run, lora_dropout=kind.lora_dropout)
        added = shapes.of_saved_adapter(
            run.adapter_name_or_path, list(kind.modules_to_save or []), config, ties=kind.ensure_weight_tying)
    return Ledger(run=run, config=config, num_ranks=num_ranks, dtype=dtype, rollout_dtype=rollout_dtype, on_gpu=on_gpu,
                  added=added)


def between_steps(ledger: Ledger) -> list[Item]:
    """What a rank stores between two steps."""
    run = ledger.run
    shard = f"1/{ledger.num_ranks} of it" if run.zero_stage == 3 and ledger.num_ranks > 1 else "whole on every rank"
    name = str(ledger.dtype).removeprefix("torch.")
    base = f"half a byte for a weight of a projection, the rest in {name}" if run.load_in_4bit else name
    where = "" if run.rollout_keep else f"; {size(ledger.rollout_copy())} while sampling, otherwise in CPU memory"
    items = [
        Item("base", ledger.kept(ledger.base()), f"{base}; {shard}"),
        Item("scales", ledger.scales(), "of NF4: a byte for 64 weights, 4 bytes for 16,384; whole on every rank"),
        Item("trained", ledger.kept(ledger.trained()) if run.use_peft else 0,
             f"{ledger.num_trained():,} parameters in {name}" + ("" if run.use_peft else ", which are the base")),
        Item("reference", ledger.kept(ledger.reference()), "a frozen copy of what trains"),
        Item("gradients", ledger.gradients(), "float32 sums of what trains, sharded from ZeRO stage 2 on"),
        Item("optimizer", ledger.optimizer(), "float32 master and two moments of it, sharded from stage 1 on"),
        Item("bucket", ledger.bucket(), "DeepSpeed's buffers, reduce_bucket_size each"),
        Item("sampler", ledger.rollout_copy() if run.rollout_keep else 0,
             f"{run.rollout_weights} weights, whole on every rank" + where),
    ]
    return [item for item in items if item.num_bytes or item.name == "sampler"]


def of_a_row(ledger: Ledger, num_tokens: int, *, checkpointing: bool) -> list[Item]:
    """What a micro-batch needs in addition."""
    layers = ledger.config.num_hidden_layers
    saved = (f"the inputs of {layers} layers, and {ledger.layer_token():,} bytes a token in one of them"
             if checkpointing else f"{ledger.layer_token():,} bytes a token in each of {layers} layers")
    return [
        Item("activations", ledger.activations(num_tokens, checkpointing=checkpointing), saved),
        Item("temporary", ledger.temporary(num_tokens), "gradients inside an MLP, and an unpacked weight"),
        Item("head", ledger.head(num_tokens), "hidden states, and what the log-prob kernel needs; never the logits"),
        Item("gathered", ledger.gathered(), "whole weights that ZeRO-3 may have at the same time"),
    ]


def after_slots(free: int, room: Room, run: Config) -> int:
    """Free bytes in an update; the slots keep theirs if the sampler stays on the GPU."""
    return free - room.num_bytes if run.rollout_keep else free


def page(run: Config) -> list[str]:
    """What `--plan` prints.

    Raises:
        ValueError: as `read_config`, or the run does not fit.
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
    """The table of a rank on a GPU of `gpu` bytes, the packed batches chosen for it, and its number of slots.

    Raises:
        ValueError: the weights or one completion do not fit.
    """
    run, always = ledger.run, between_steps(ledger)
    free = gpu - sum(item.num_bytes for item in always)
    sampling = free if run.rollout_keep else free - ledger.rollout_copy()
    if sampling <= 0:
        packs = run.load_in_4bit and run.rollout_weights != "nf4"
        refuse("plan", run.plan, f"leaves no room: a rank needs {size(gpu - sampling)} while it samples, "
               f"{size(ledger.rollout_copy())} of it for the sampler, and a GPU has {size(gpu)}",
               "rollout_weights=nf4" if packs else "a smaller model")
    room = choose_slots(
        run.rollout_slots, ledger, lengths, free=sampling,
        num_rows=-(-run.prompts_per_step // ledger.num_ranks) * run.num_generations,
        num_generations=run.num_generations)
    budget = choose_budget(ledger, lengths, free=after_slots(free, room, run))
    slots = Item("rollout slots", room.num_bytes if run.rollout_keep else 0,
                 f"keys, values and logits of {room.num_slots} completions, and prompts: {size(room.num_bytes)}")
    items = [*always, slots, *of_a_row(
        ledger, budget.micro_batch_tokens, checkpointing=budget.gradient_checkpointing == "true")]
    total = sum(item.num_bytes for item in items)
    return [
        "memory     bytes of a rank:",
        *(f"  {item.name:<14}{size(item.num_bytes):>12}  {item.words}" for item in items),
        f"  {'total':<14}{size(total):>12}  {100 * total / gpu:.0f} % of the GPU"], budget, room.num_slots


def time_lines(ledger: Ledger, lengths: Lengths, budget: Budget, num_slots: int) -> list[str]:
    """The shortest time of a step with every completion at its longest: operations of an update, bytes of a rollout."""
    run, config = ledger.run, ledger.config
    groups = -(-run.prompts_per_step // ledger.num_ranks)
    completions = groups * run.num_generations
    prompt, longest = lengths.prefix + lengths.rest, lengths.completion
    pairs = groups * prompt**2 / 2 + completions * longest * (prompt + longest / 2)  # of a query and a key it sees
    query, _, head = ledger.heads
    frozen = config.num_hidden_layers * sum(outputs * inputs for outputs, inputs in ledger.projections().values())
    branches = ledger.num_branches()
    table = config.vocab_size * config.hidden_size
    tokens = lengths.packed(run.num_generations, groups)
    # n tokens times a weight of m numbers are 2 n m operations; a pair costs 2 Q for its score and 2 Q for its value,
    # Q the size of all query heads together.
    once = 2 * tokens * (frozen + branches) + 4 * query * head * config.num_hidden_layers * pairs
    # Backward, a frozen weight needs one more product, a trained one two, and attention 2.5 times its forward.
    backward = 2 * tokens * (frozen * (1 if run.use_peft else 2) + 2 * branches) + 10 * query * head * (
        config.num_hidden_layers * pairs)
    iteration = once * (2 if budget.gradient_checkpointing == "true" else 1) + backward
    iteration += 2 * completions * longest * table * (4 if ledger.trains_head() else 2)
    reference = once + 2 * completions * longest * table if run.beta > 0 else 0
    flops = run.num_iterations * iteration + reference

    # A decoding step reads every weight, and the keys and values of its completions, at half their length on average.
    steps = longest * -(-completions // num_slots)
    weights = frozen / 2 if run.rollout_weights == "nf4" else frozen * ledger.rollout_dtype.itemsize
    read = weights + table * ledger.rollout_dtype.itemsize
    read += num_slots * (prompt + longest / 2) * ledger.token_bytes()
    return [
        f"time       update: {flops / 1e12:,.1f} TFLOP for a rank and step of {tokens:,} tokens; at least "
        f"{flops / PEAK_FLOPS:,.2f} s at an H100's {PEAK_FLOPS / 1e12:,.0f} TFLOP/s",
        f"           rollout: {steps:,} decoding steps that read {size(read)} each; at least "
        f"{steps * read / PEAK_BYTES:,.2f} s at its {PEAK_BYTES / 1e12:.2f} TB/s",
    ]
