"""The parts of a run, built once and in the order that a sharded 4-bit model allows.

That order: quantise and inject LoRA while every rank still holds whole weights, copy them for the rollout, then shard.
"""

import logging
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

import kernels
from data import load_examples
from data.example import Example
from grpo import distributed
from grpo.advantage import group_advantages
from grpo.config import Config
from grpo.distributed import free_bytes, global_max, world_size
from grpo.loading.adapter import add_adapter
from grpo.loading.model import (
    build_decoder,
    dtype_of,
    load_base,
    load_tokenizer,
    read_config,
    sampling_dtype,
    stop_token_ids,
)
from grpo.memory.batch_length import Budget, Lengths, choose_budget
from grpo.memory.concurrency import Room, choose_slots
from grpo.memory.ledger import Ledger, size
from grpo.memory.plan import after_slots, ledger_of, of_a_row
from grpo.options.refusal import refuse
from grpo.packing import common_prefix_length
from grpo.sampler.decoder import Decoder
from grpo.saving import checkpoint, continuation
from grpo.schedule import total_steps
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import Policy
from rewards.math import gold_number
from rewards.pool import RewardPool


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run.

    `asked` is its configuration as the user gave it, `config` with what was derived from it; `start_adapter` the
    fingerprint of the adapter's files.
    """

    asked: Config
    config: Config
    output_dir: Path
    device: torch.device
    engine: Engine
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: set[int]
    train_examples: list[Example]
    test_examples: list[Example]
    rewards: RewardPool
    peft_config: PeftConfig | None
    start_adapter: str | None
    first_step: int
    num_steps: int
    num_slots: int
    limit: TokenLimit
    ledger: Ledger
    left_out: int
    announcement: list[str]

    def sync(self) -> None:
        """Bring the policy's weights, as they are, to the sampler. Collective: every rank, once per sampling phase."""
        self.decoder.move(self.device)
        self.engine.copy_to(self.decoder.tensors())
        self.decoder.merge()


def build(config: Config) -> Run:
    """Build every part; nothing is written to disk. Whoever has the run closes its `rewards` in the end.

    Raises:
        ValueError: the data, the rewards, the model or the adapter do not fit the configuration.

    Collective: every rank, once.
    """
    device = distributed.start(config.ddp_timeout)
    _quiet()
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    rewards = RewardPool(
        config.reward_funcs, config.reward_weights, timeout_s=config.reward_timeout,
        memory_bytes=int(config.reward_memory * 2**30))
    try:
        return _build(config, device, rewards)
    except BaseException:
        rewards.close()
        raise


def _build(config: Config, device: torch.device, rewards: RewardPool) -> Run:
    """The parts that need the data or the model."""
    train_examples, test_examples = _load_data(config)
    rewards.check_columns(list(train_examples[0].columns))

    hub = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
    dtype = dtype_of(config.torch_dtype, device)
    torch.manual_seed(config.seed)  # the start of the LoRA weights
    # The quick refusals come before the weights.
    model_config = read_config(config.model_name_or_path, load_in_4bit=config.load_in_4bit, **hub)
    tokenizer = load_tokenizer(config.tokenizer_name_or_path or config.model_name_or_path, **hub)
    context = model_config.max_position_embeddings
    train_examples, prompts, left_out = _fit_context(train_examples, tokenizer, context, config)
    test_examples, *_ = _fit_context(test_examples, tokenizer, context, config)
    resume_from, passed_over = _find_checkpoint(config, train_examples)
    model = load_base(config.model_name_or_path, load_in_4bit=config.load_in_4bit, dtype=dtype, device=device, **hub)
    peft_config = add_adapter(model, config, dtype) if config.use_peft else None
    if peft_config is None:
        model.requires_grad_(True)
    rollout_dtype, why = sampling_dtype(model)
    decoder = build_decoder(model, form=config.rollout_weights, dtype=rollout_dtype)
    frozen_copy = peft_config is None and config.beta > 0
    policy = Policy(model, temperature=config.temperature, frozen_copy=frozen_copy, impl=config.logprob_impl)
    engine = Engine(policy, config, dtype)
    copy_line = f"{config.rollout_weights} weights in {str(rollout_dtype).removeprefix('torch.')} ({why})"
    ledger = ledger_of(
        config, model.config, num_ranks=world_size(), dtype=dtype, rollout_dtype=rollout_dtype,
        on_gpu=device.type == "cuda")
    room, budget = _fit_memory(ledger, decoder, prompts)
    asked, config = config, replace(
        config, micro_batch_tokens=budget.micro_batch_tokens, gradient_checkpointing=budget.gradient_checkpointing)
    if config.gradient_checkpointing == "true":
        model.gradient_checkpointing_enable({"use_reentrant": False, **(config.gradient_checkpointing_kwargs or {})})
    return Run(
        asked=asked,
        config=config,
        output_dir=Path(config.output_dir),
        device=device,
        engine=engine,
        decoder=decoder,
        tokenizer=tokenizer,
        stop_token_ids=stop_token_ids(model, tokenizer),
        train_examples=train_examples,
        test_examples=test_examples[: config.eval_examples],
        rewards=rewards,
        peft_config=peft_config,
        start_adapter=continuation.adapter_fingerprint(config.adapter_name_or_path),
        first_step=checkpoint.restore(engine, resume_from) if resume_from else 0,
        num_steps=total_steps(
            len(train_examples), prompts_per_step=config.prompts_per_step, num_train_epochs=config.num_train_epochs,
            max_steps=config.max_steps),
        num_slots=room.num_slots,
        limit=TokenLimit(
            config.micro_batch_tokens, device=device,
            needed=partial(ledger.update, checkpointing=config.gradient_checkpointing == "true")),
        ledger=ledger,
        left_out=left_out,
        announcement=_announce(config, device, engine, decoder, ledger, {
            "rollout": [room.words, copy_line], "update": [budget.words], "resume": passed_over}, left_out),
    )


def _quiet() -> None:
    """Silence what the libraries say about themselves; our own start-up block says what matters."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="(torch|deepspeed|peft|transformers|bitsandbytes)")


def _load_data(config: Config) -> tuple[list[Example], list[Example]]:
    """The training problems, and held-out ones when an evaluation wants them: never rows of the training split."""
    options: dict = {"num_shots": config.num_shots, "seed": config.seed, "prompt_column": config.prompt_column}
    train = load_examples(config.train_dataset_id_or_path, config.dataset_splits, **options)
    for number, example in enumerate(train if "correctness" in config.reward_funcs else [], start=1):
        if "final_answer" in example.columns and gold_number(example.columns["final_answer"]) is None:
            refuse("train_dataset_id_or_path", config.train_dataset_id_or_path, f"row {number} has the final_answer "
                   f"{example.columns['final_answer']!r:.40}, which no completion can match: the reward correctness "
                   "needs a number", "a number in each row, or reward_funcs without correctness")
    if config.eval_examples == 0:
        return train, []
    if config.test_dataset_id_or_path is None:
        test = load_examples(config.train_dataset_id_or_path, "validation", **options)
    else:
        test = load_examples(config.test_dataset_id_or_path, "test", **options)
    if not all(example.final_answer for example in test):
        refuse("eval_examples", config.eval_examples, "needs a final_answer to every held-out problem", 0)
    return train, test


def _find_checkpoint(config: Config, train_examples: list[Example]) -> tuple[Path | None, list[str]]:
    """Where a resumed run goes on from, and one line for each damaged one passed over and for that one.

    `train_examples` are those trained on, as a checkpoint records them: without those left out for their length.

    Raises:
        ValueError: no checkpoint is whole, or the newest whole one is of a run that computes something else.

    Collective: every rank, once.
    """
    if not config.resume:
        return None, []
    folder, lines = checkpoint.find(Path(config.output_dir))
    if folder is None:
        refuse("resume", True, f"needs a whole checkpoint: {'; '.join(lines)}", "False, with a new output_dir")
    continuation.check(folder, checkpoint.record(folder), config, train_examples)
    return folder, [*lines, f"goes on from {folder}"]


def _fit_context(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, context: int, config: Config
) -> tuple[list[Example], list[list[int]], int]:
    """Examples whose prompt leaves room for a completion, these prompts, and how many `max_prompt_length` left out.

    Raises:
        ValueError: no prompt is short enough, or one is too long for the model and no limit says to leave it out.
    """
    room = context - config.max_completion_length
    limit = min(config.max_prompt_length or room, room)
    encoded = [tokenizer.encode(example.prompt) for example in examples]
    length = [len(prompt) for prompt in encoded]
    kept = [example for example, tokens in zip(examples, length) if tokens <= limit]
    if examples and (not kept or len(kept) < len(examples) and config.max_prompt_length is None):
        raise ValueError(
            f"max_completion_length={config.max_completion_length} with a prompt of {max(length)} tokens: together "
            f"they must fit in {limit + config.max_completion_length} tokens (the model's context is {context}); "
            f"nearest valid: max_completion_length={max(context - max(length), 1)}, fewer num_shots, "
            f"or max_prompt_length={max(room, 1)} to leave such problems out"
        )
    return kept, [prompt for prompt in encoded if len(prompt) <= limit], len(examples) - len(kept)


def _fit_memory(ledger: Ledger, decoder: Decoder, prompts: list[list[int]]) -> tuple[Room, Budget]:
    """Rows of a rollout and of an update, by the rank that has least memory free.

    Collective: every rank, once, when it holds all that it will hold between steps.
    """
    config = ledger.run
    free = -int(global_max({"minus_free": -float(free_bytes(decoder.device))})["minus_free"])
    room = choose_slots(
        config.rollout_slots, decoder, prompts, free=free,
        num_rows=config.prompts_per_step // world_size() * config.num_generations,
        num_generations=config.num_generations, max_completion_length=config.max_completion_length)
    prefix = common_prefix_length(prompts)
    lengths = Lengths(prefix, max(map(len, prompts)) - prefix, config.max_completion_length)
    return room, choose_budget(ledger, lengths, free=after_slots(free, room, config))


def _announce(
    config: Config, device: torch.device, engine: Engine, decoder: Decoder, ledger: Ledger,
    chosen: dict[str, list[str]], left_out: int,
) -> list[str]:
    """The start-up block: what runs here, why, and what it costs in memory."""
    dtype = ledger.dtype
    hidden_size, num_tokens = decoder.config.hidden_size, config.micro_batch_tokens
    implementation, reason = kernels.choose(
        config.logprob_impl, device, dtype=dtype, hidden_size=hidden_size, num_tokens=num_tokens
    )
    synced = engine.num_trained() * dtype.itemsize
    quantised = "NF4 with double quantisation" if config.load_in_4bit else "not quantised"
    example_BG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale=config.scale_rewards, batch_std=0.5)
    advantages = ", ".join(f"{advantage:.3f}" for advantage in example_BG[0].tolist())
    lines = [
        f"ranks      {world_size()} x {device.type} over {dist.get_backend()}, ZeRO stage {config.zero_stage}",
        f"model      {config.model_name_or_path}, {str(dtype).removeprefix('torch.')}, {quantised}",
        f"trained    {engine.num_trained():,} parameters",
        f"log-probs  {implementation}: {reason}",
        f"attention  {'FlexAttention over blocks' if device.type == 'cuda' else 'in parts'} of a packed row's tree; "
        "no mask is held",
        *(f"{what:<11}{line}" for what, lines in chosen.items() for line in lines),
        *_memory(config, engine, decoder, ledger),
        f"sync       {synced / 2**20:,.1f} MiB of trained weights are gathered and copied each step",
        f"group      rewards (1, 0, 0, 0) become the advantages ({advantages})",
        "loss       expect a value near 0: on policy the advantages of a group sum to 0; read reward, kl, grad_norm",
    ]
    if not config.rollout_keep and device.type == "cpu":
        lines.append("note       rollout_keep=False has no effect: the rollout copy is in CPU memory anyway")
    if left_out:
        lines.append(f"data       {left_out} problems left out: their prompt is longer than max_prompt_length")
    return lines + [f"note       {note}" for note in config.notes]


def _memory(config: Config, engine: Engine, decoder: Decoder, ledger: Ledger) -> list[str]:
    """The ledger in brief, formula / measured where it can be measured before the first step."""
    row = of_a_row(ledger, config.micro_batch_tokens, checkpointing=config.gradient_checkpointing == "true")
    return [
        f"memory     formula / measured on rank 0: weights {size(ledger.weights())} / {size(engine.held_bytes())}, "
        f"rollout copy {size(ledger.rollout_copy())} / {size(decoder.nbytes())}",
        f"memory     formula: gradients {size(ledger.gradients())}, optimizer {size(ledger.optimizer())}, "
        f"bucket {size(ledger.bucket())}; a row: " + ", ".join(f"{item.name} {size(item.num_bytes)}" for item in row),
    ]
