"""Builds the parts of a run, in the order that a sharded 4-bit model allows.

That order: quantise and add LoRA while every rank still has whole weights, copy them for the sampler, then shard.
"""

import logging
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.example import Example
from data.prompt_ids import end_of_turn
from data.prompts import default_stop_strings
from grpo import distributed
from grpo.config import Config
from grpo.distributed import free_bytes, global_max, world_size
from grpo.loading.adapter import add_adapter, read_adapter_config
from grpo.loading.fingerprint import fingerprint
from grpo.loading.model import build_decoder, dtype_of, load_base, load_tokenizer, sampling_dtype, stop_token_ids
from grpo.loading.model_config import read_config
from grpo.memory.batch_length import Budget, choose_budget
from grpo.memory.concurrency import Lengths, Room, choose_slots
from grpo.memory.ledger import Ledger
from grpo.memory.plan import after_slots, ledger_of
from grpo.options.refusal import refuse, refusing
from grpo.packing import common_prefix_length
from grpo.run.announcement import announce
from grpo.run.examples import check_tokens, fit_context, form_of_prompts, load_problems
from grpo.run.parts import Run
from grpo.run.pass_rates import Judged, PassRates
from grpo.run.scoring import start_rewards, where_programs_run
from grpo.sampler.decoder import Decoder
from grpo.saving import checkpoint, continuation
from grpo.schedule import total_steps
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import Policy, trainable
from grpo.trainer.zero import adamw_settings, zero_config
from rewards.workers.pool import RewardPool


def build(config: Config) -> Run:
    """Build every part; writes nothing to disk. The caller closes the run's `rewards`. Collective: every rank, once.

    Raises:
        ValueError: the data, the rewards, the model or the adapter do not fit the configuration.
    """
    device = distributed.start(config.ddp_timeout)
    quiet()
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    rewards = start_rewards(config)
    try:
        return _build(config, device, rewards)
    except BaseException:
        rewards.close()  # else its process would live on
        raise


def _build(config: Config, device: torch.device, rewards: RewardPool) -> Run:
    """The parts that need the data or the model."""
    train_examples, test_examples = load_problems(config)
    rewards.check_columns(list(train_examples[0].columns))

    hub = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
    dtype = dtype_of(config.torch_dtype, device)
    torch.manual_seed(config.seed)  # the start of the LoRA weights
    # What can be refused without weights comes before they are loaded.
    if config.adapter_name_or_path is not None:
        read_adapter_config(config.adapter_name_or_path)
    model_config = read_config(config.model_name_or_path, load_in_4bit=config.load_in_4bit, **hub)
    tokenizer = load_tokenizer(
        config.tokenizer_name_or_path or config.model_name_or_path, chat_template=config.chat_template, **hub)
    context = model_config.max_position_embeddings
    train_examples, prompts, left_out = fit_context(train_examples, tokenizer, context, config)
    test_examples, test_prompts, _ = fit_context(test_examples, tokenizer, context, config)
    train_path, test_path = config.train_dataset_id_or_path, config.test_dataset_id_or_path
    check_tokens("train_dataset_id_or_path", train_path, train_examples, prompts, tokenizer, model_config.vocab_size)
    check_tokens("test_dataset_id_or_path", test_path or train_path, test_examples, test_prompts, tokenizer,
                 model_config.vocab_size)
    test_examples = test_examples[: config.eval_examples]
    model_files = fingerprint(config.model_name_or_path, revision=config.model_revision)
    sources = continuation.sources(config, train_examples, test_examples, tokenizer, prompts, model_files)
    resume_from, record, passed_over = _find_checkpoint(config, sources)
    model = load_base(config.model_name_or_path, load_in_4bit=config.load_in_4bit, dtype=dtype, device=device, **hub)
    peft_config = add_adapter(model, config, dtype) if config.use_peft else None
    if peft_config is None:
        model.requires_grad_(True)
    rollout_dtype, why = sampling_dtype(model)
    # The sampler's copy is made while every rank still has whole weights: the engine shards them.
    decoder = build_decoder(model, form=config.rollout_weights, dtype=rollout_dtype)
    frozen_copy = peft_config is None and config.beta > 0  # with LoRA the base is the reference, or its start adapter
    policy = Policy(model, temperature=config.temperature, frozen_copy=frozen_copy, impl=config.logprob_impl)
    engine = build_engine(policy, config, dtype)
    copy_line = f"{config.rollout_weights} weights in {str(rollout_dtype).removeprefix('torch.')} ({why})"
    ledger = ledger_of(
        config, model.config, num_ranks=world_size(), dtype=dtype, rollout_dtype=rollout_dtype,
        on_gpu=device.type == "cuda")
    # Measured now, when all that stays between steps has been allocated.
    room, budget = _fit_memory(ledger, decoder, prompts)
    ends, stop_strings, prompts_line = _endings(config, model, tokenizer, train_examples)
    num_steps = total_steps(
        len(train_examples), prompts_per_step=config.prompts_per_step, num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps)
    asked, config = config, replace(
        config, micro_batch_tokens=budget.micro_batch_tokens, gradient_checkpointing=budget.gradient_checkpointing,
        stop_strings=stop_strings)
    if config.gradient_checkpointing == "true":
        model.gradient_checkpointing_enable({"use_reentrant": False, **(config.gradient_checkpointing_kwargs or {})})
    return Run(
        asked=asked, config=config, output_dir=Path(config.output_dir), device=device, engine=engine, decoder=decoder,
        tokenizer=tokenizer, stop_token_ids=ends, train_examples=train_examples, test_examples=test_examples,
        rewards=rewards, peft_config=peft_config, sources=sources, num_steps=num_steps, num_slots=room.num_slots,
        first_step=checkpoint.restore(engine, resume_from) if resume_from else 0,
        coefficients=record.get("coefficients", {}), pass_rates=_pass_rates(config, train_examples, record),
        ledger=ledger, left_out=left_out, limit=TokenLimit(
            config.micro_batch_tokens, device=device,
            needed=partial(ledger.update, checkpointing=config.gradient_checkpointing == "true")),
        announcement=announce(config, device, engine, decoder, ledger, {
            "prompts": [prompts_line], "rollout": [room.words, copy_line], "update": [budget.words],
            "resume": passed_over, "programs": where_programs_run(config)}, left_out, num_steps))


def _pass_rates(config: Config, examples: list[Example], record: dict[str, Any]) -> PassRates:
    """What is known of the training problems: by the `record` of a resumed run's checkpoint, else by an evaluation."""
    rates = PassRates(len(examples), config.problem_filter)
    if record:
        rates.add(Judged(*one) for one in record.get("pass_rates", []))
    elif config.problem_pass_rates is not None:
        rates.read(config.problem_pass_rates, examples)
    return rates


def _endings(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]
) -> tuple[set[int], list[str], str]:
    """The tokens and the texts that end a completion, and the line that says so."""
    prompt, strings = examples[0].prompt, config.stop_strings
    tokens = stop_token_ids(model, tokenizer) | end_of_turn(tokenizer, prompt, config.chat_template_kwargs)
    if strings is None:
        strings = default_stop_strings(example.prompt for example in examples)
    return tokens, strings, form_of_prompts(tokenizer, prompt, tokens, strings)


def build_engine(policy: Policy, config: Config, dtype: torch.dtype) -> Engine:
    """The engine of a run; `dtype` is that of weights and activations. Collective: every rank, once.

    Raises:
        ValueError: DeepSpeed does not take the user's `deepspeed` mapping; or nothing is trained whole that a rate of
            its own is given for.
    """
    whole = config.lora_modules_to_save_learning_rate
    if whole is not None and all(".lora_" in name for name in trainable(policy.model)):
        refuse("lora_modules_to_save_learning_rate", whole, "moves nothing: the adapter trains no module whole", "none")
    # DeepSpeed refuses some settings only when it starts.
    asked = refusing("deepspeed", config.deepspeed, "does not start", "without it")
    with asked if config.deepspeed else nullcontext():
        return Engine(policy, zero_config(config, bf16=dtype == torch.bfloat16), adamw_settings(config),
                      whole_rate=1.0 if whole is None else whole / config.learning_rate)


def quiet() -> None:
    """Silence the libraries; the start-up block says what matters."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="(torch|deepspeed|peft|transformers|bitsandbytes)")


def _find_checkpoint(config: Config, sources: dict[str, Any]) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The checkpoint that a resumed run starts from, its record, and lines on what was found. Collective.

    Raises:
        ValueError: no checkpoint is whole, or the newest whole one is of a run that computes something else.
    """
    if not config.resume:
        return None, {}, []
    folder, lines = checkpoint.find(Path(config.output_dir))
    if folder is None:
        refuse("resume", True, f"needs a whole checkpoint: {'; '.join(lines)}", "False, with a new output_dir")
    record = checkpoint.record(folder)
    continuation.check(folder, record, config, sources)
    return folder, record, [*lines, f"goes on from {folder}", *continuation.edited(record, sources)]


def _fit_memory(ledger: Ledger, decoder: Decoder, prompts: list[list[int]]) -> tuple[Room, Budget]:
    """Completions sampled at the same time, and length of a packed batch. Collective: every rank, once."""
    config = ledger.run
    # The rank with least free memory decides for all.
    free = -int(global_max({"minus_free": -float(free_bytes(decoder.device))})["minus_free"])
    prefix = common_prefix_length(prompts)
    lengths = Lengths(prefix, max(map(len, prompts)) - prefix, config.max_completion_length)
    room = choose_slots(
        config.rollout_slots, decoder, lengths, free=free,
        num_rows=config.prompts_per_step // world_size() * config.num_generations,
        num_generations=config.num_generations)
    return room, choose_budget(ledger, lengths, free=after_slots(free, room, config))
