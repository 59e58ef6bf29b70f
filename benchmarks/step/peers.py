"""The trainers that `benchmarks.step` measures whole steps of: ours and TRL's `GRPOTrainer`, one small adapter each.

An adapter is given a `Case`, takes its optimizer steps and tells an observer of each. Every one runs in a process of
its own, see worker.py. TRL is imported only where it runs: ours needs none of it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig, Qwen2ForCausalLM

from benchmarks.step.reward import vowel_reward

REWARD = f"{Path(vowel_reward.__code__.co_filename)}:{vowel_reward.__name__}"
RANK, BETA, RATE, ROWS = 16, 0.04, 1e-4, 4  # LoRA's rank; the KL's coefficient; learning rate; rows of a micro-batch
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Case(NamedTuple):
    """The steps that a trainer is asked for.

    Args:
        model: folder of model and tokenizer.
        data: .jsonl file with the `num_prompts` prompts that every step uses.
        num_prompts: B prompts of a step.
        num_generations: G completions of each.
        max_completion_length: tokens of a completion; none stops, as nothing the model can sample is an end token.
        num_steps: optimizer steps; the first is not measured.
        output_dir: a folder that does not exist.
    """

    model: str
    data: str
    num_prompts: int
    num_generations: int
    max_completion_length: int
    num_steps: int
    output_dir: str


class Step(NamedTuple):
    """What one step was.

    Args:
        seconds: of the whole step.
        parts: seconds of its parts by name.
        prompt_lengths: tokens of the prompt of each of the N rows, in any order.
        lengths: sampled tokens of each row.
        rewards: of the rows, group after group.
    """

    seconds: float
    parts: dict[str, float]
    prompt_lengths: list[int]
    lengths: list[int]
    rewards: list[float]


class Trainer(NamedTuple):
    """One way to take the steps.

    Args:
        says: what it is, in one clause.
        libraries: imports all it needs.
        run: takes the steps; returns grad_norm and kl of the last one.
    """

    says: str
    libraries: Callable[[], Any]
    run: Callable[[Case, Callable[[Step], None]], dict[str, float]]


def import_ours() -> tuple[Any, Any, Any]:
    """What `ours` calls."""
    from grpo.run.build import build
    from grpo.run.command import load
    from grpo.step import grpo_step

    return load, build, grpo_step


def ours(case: Case, observe: Callable[[Step], None], **options: Any) -> dict[str, float]:
    """`grpo.step.grpo_step`, built as `train.py` builds its run; `options` are those of its command line."""
    load, build, grpo_step = import_ours()
    given = {
        "model_name_or_path": case.model, "load_in_4bit": False, "torch_dtype": "float32", "lora_r": RANK,
        "lora_alpha": RANK, "train_dataset_id_or_path": case.data, "reward_funcs": REWARD,
        "prompts_per_step": case.num_prompts, "num_generations": case.num_generations,
        "max_completion_length": case.max_completion_length, "max_steps": case.num_steps, "num_iterations": 1,
        "beta": BETA, "loss_type": "dapo", "learning_rate": RATE, "lr_scheduler_type": "constant", "warmup_ratio": 0,
        "micro_batch_tokens": 8192, "gradient_checkpointing": False, "eval_examples": 0, "save_strategy": "no",
        "output_dir": case.output_dir} | options
    asked = {name: value for name, value in given.items() if value is not None}
    run = build(load([word for name, value in asked.items() for word in (f"--{name}", str(value))]))
    run = dataclasses.replace(run, stop_token_ids=set())  # every row has its full length
    prompt_lengths = [len(run.tokenizer.encode(example.prompt)) for example in run.train_examples]
    for step in range(case.num_steps):
        start = time.perf_counter()
        taken = grpo_step(run, step)
        seconds = time.perf_counter() - start
        metrics, columns = taken.metrics, taken.collected.columns()
        parts = {name: metrics[name] for name in ("sync_s", "rollout_s", "reference_s", "update_s")}
        parts["reference_s"] += metrics["advantage_s"]  # a peer's has its advantages and its padding in it too
        observe(Step(seconds, parts, prompt_lengths * case.num_generations, columns["length"], columns["reward"]))
    run.rewards.close()
    return {name: metrics[name] for name in ("grad_norm", "kl")}


def import_trl() -> tuple[Any, Any, Any]:
    """What `trl` calls."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    return Dataset, GRPOConfig, GRPOTrainer


def _trl_options(case: Case, rows_at_once: int | None) -> dict[str, Any]:
    """Options of `GRPOConfig` for the same job as that of `ours`."""
    num_rows = case.num_prompts * case.num_generations
    at_once = rows_at_once or num_rows
    return {
        "output_dir": case.output_dir, "use_cpu": True, "bf16": False, "max_steps": case.num_steps,
        "per_device_train_batch_size": at_once, "gradient_accumulation_steps": num_rows // at_once,
        "num_generations": case.num_generations, "max_completion_length": case.max_completion_length, "beta": BETA,
        "loss_type": "dapo", "num_iterations": 1, "temperature": 1.0, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "generation_kwargs": {"min_new_tokens": case.max_completion_length},  # every row has its full length
        "logging_steps": 1, "disable_tqdm": True}


def trl(
    case: Case, observe: Callable[[Step], None], *, rows_at_once: int | None = None,
    weights: dict[str, Any] | None = None, **options: Any
) -> dict[str, float]:
    """`GRPOTrainer.train` with plain transformers generation; `options` are those of its `GRPOConfig`.

    An optimizer step is one generation, in micro-batches of `rows_at_once` completions, or all in one. `weights` says
    how `from_pretrained` holds the weights, in float32 unless it does.
    """
    from peft import LoraConfig
    from transformers import TrainerCallback

    Dataset, GRPOConfig, GRPOTrainer = import_trl()
    args = GRPOConfig(**_trl_options(case, rows_at_once) | options)
    seen, kept = {}, {}

    class Timed(GRPOTrainer):
        """Notes what a step samples, and the seconds of what it does before its update."""

        def _generate_single_turn(self, *arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            result = super()._generate_single_turn(*arguments, **more)
            seen["rollout_s"] = time.perf_counter() - start
            return result

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            batch = super()._generate_and_score_completions(inputs)
            seen["before_update_s"] = time.perf_counter() - start
            for name, mask in (("prompt_lengths", "prompt_mask"), ("lengths", "completion_mask")):
                seen[name] = batch[mask].sum(dim=1).tolist()
            return batch

    class Watch(TrainerCallback):
        """From the start of a step, when its prompts are there, to its end, without the logging behind it."""

        def on_step_begin(self, *_: Any, **more: Any) -> None:
            seen["start"] = time.perf_counter()

        def on_step_end(self, *_: Any, **more: Any) -> None:
            seconds = time.perf_counter() - seen["start"]
            rollout_s, before_s = seen["rollout_s"], seen["before_update_s"]
            parts = {"rollout_s": rollout_s, "reference_s": before_s - rollout_s, "update_s": seconds - before_s}
            observe(Step(seconds, parts, seen["prompt_lengths"], seen["lengths"], seen["rewards"]))

        def on_log(self, *_: Any, logs: dict[str, float], **more: Any) -> None:
            kept.update({name: float(logs[name]) for name in ("grad_norm", "kl") if name in logs})

    def vowels(completions: list[str], **columns: Any) -> list[float]:
        seen["rewards"] = vowel_reward(completions)
        return seen["rewards"]

    trainer = Timed(
        model=Qwen2ForCausalLM.from_pretrained(case.model, **(weights or {"dtype": torch.float32})),
        reward_funcs=vowels, args=args,
        train_dataset=Dataset.from_json(case.data, cache_dir=f"{case.output_dir}-data"),
        processing_class=AutoTokenizer.from_pretrained(case.model), callbacks=[Watch()],
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))
    trainer.train()
    return kept


def _ours(says: str, **options: Any) -> Trainer:
    return Trainer(says, import_ours, functools.partial(ours, **options))


def _trl(says: str, **options: Any) -> Trainer:
    return Trainer(says, import_trl, functools.partial(trl, **options))


TRAINERS = {
    "ours": _ours("`grpo_step`, all completions in one packed row, one rank under ZeRO stage 3 (the default)"),
    "ours, checkpointed": _ours("the same with `gradient_checkpointing`", gradient_checkpointing=True),
    "ours, ZeRO stage 0": _ours("the same as the first with `zero_stage` 0", zero_stage=0),
    "TRL": _trl("`GRPOTrainer`, all completions in one batch, no gradient checkpointing"),
    f"TRL, {ROWS} rows at once": _trl(
        f"the same with micro-batches of {ROWS} completions: `per_device_train_batch_size={ROWS}`, the rest by "
        "`gradient_accumulation_steps`; generation is still of all at once", rows_at_once=ROWS),
    f"TRL, {ROWS} rows at once, checkpointed": _trl(
        "the same with `gradient_checkpointing`, TRL's default", rows_at_once=ROWS, gradient_checkpointing=True),
    "TRL, Liger": _trl("the first of TRL's with `use_liger_kernel`", use_liger_kernel=True),
}
_NF4 = {"load_in_4bit": True, "torch_dtype": "bfloat16", "micro_batch_tokens": None, "gradient_checkpointing": "auto"}
_QLORA = {"dtype": torch.bfloat16, "device_map": {"": 0}, "quantization_config": BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16)}
ON_A_GPU = {
    "ours": _ours("`grpo_step`, NF4 and bfloat16, one rank under ZeRO stage 3 (the default)", **_NF4),
    "TRL": _trl(
        "`GRPOTrainer`, NF4 and bfloat16, micro-batches of 8 completions, `gradient_checkpointing` (its default), "
        "generation of all at once", rows_at_once=8, use_cpu=False, bf16=True, gradient_checkpointing=True,
        weights=_QLORA),
}
