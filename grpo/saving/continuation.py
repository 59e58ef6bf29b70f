"""What a resumed run must have in common with the run it continues; stored in every checkpoint.

The steps of a run are a function of its recipe, its data and the step number. A resumed run may differ in where and how
it runs (ranks, ZeRO stage, memory, output), but not in what it computes.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.example import Example
from grpo.config import Config
from grpo.options.option import default_of, options

# Options that say where, how fast and how loud, not what is computed.
FREE = {
    "plan", "doctor", "resume", "output_dir", "ddp_timeout", "zero_stage", "deepspeed", "micro_batch_tokens",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "logprob_impl", "rollout_slots", "rollout_weights",
    "rollout_keep", "save_strategy", "save_steps", "save_total_limit", "max_skipped_steps", "logging_steps",
    "report_to", "run_name", "reward_timeout", "reward_memory", "max_reward_failures", "trust_remote_code",
    "eval_strategy", "eval_steps", "early_stopping_patience",
}
LENGTH = {"max_steps", "num_train_epochs"}  # without effect on a step where the learning rate is constant


def facts(config: Config, examples: list[Example], adapter: str | None, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` steps stores of its run: recipe, data, position, keys of all random draws."""
    drawn = step * config.prompts_per_step
    return {
        "recipe": {name: getattr(config, name) for name in options(Config)},
        "data": {"num_examples": len(examples), "sha256": fingerprint(one.prompt_text for one in examples)},
        "adapter": adapter,  # fingerprint of the start adapter when the run read it
        "prompts_drawn": drawn,
        "epoch": drawn / len(examples),
        # Order of the data, sampling noise and dropout are functions of these two: no generator has a state to keep.
        "keys": {"seed": config.seed, "step": step},
    }


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 over texts; their order counts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def adapter_fingerprint(path: str | None) -> str | None:
    """SHA-256 of the start adapter's files, which a resumed run reads again as its reference; None without one."""
    files = [] if path is None else [Path(path) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return "-".join(digests) or None


def check(folder: Path, then: dict[str, Any], config: Config, examples: list[Example]) -> None:
    """Refuse to resume with a recipe, start adapter or data that would compute something else: ValueError."""
    now = facts(config, examples, adapter_fingerprint(config.adapter_name_or_path), 0)
    share = config.warmup_steps or config.warmup_ratio  # from 1 on a number of steps, whatever the run's length
    constant = config.lr_scheduler_type == "constant" and (share == 0 or share >= 1)
    free = FREE | (LENGTH if constant else set())
    names = [name for name in now["recipe"] if name not in free]
    was = {name: default_of(one) for name, one in options(Config).items()} | then["recipe"]  # older than an option
    differing = [name for name in names if was[name] != now["recipe"][name]]
    if differing:
        listed = ", ".join(f"{name} ({was[name]!r} then, {now['recipe'][name]!r} now)"
                           for name in differing)
        raise ValueError(f"resume=True with another recipe than {folder}: {listed}; nearest valid value: the values of "
                         "then, or a new output_dir with adapter_name_or_path set to the checkpoint's adapter")
    if then["adapter"] != now["adapter"]:
        raise ValueError(
            f"resume=True with another adapter than {folder}: the files of adapter_name_or_path="
            f"{config.adapter_name_or_path!r} are not those that the run started from, and its reference needs them; "
            "nearest valid value: the adapter of then, at that path")
    if then["data"] != now["data"]:
        raise ValueError(
            f"resume=True with other data than {folder}: {then['data']['num_examples']:,} training problems then, "
            f"{now['data']['num_examples']:,} now, and the prompts differ; nearest valid value: the data of then")
