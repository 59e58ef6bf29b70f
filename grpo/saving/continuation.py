"""What a resumed run must have in common with the one it continues; kept in every checkpoint.

The steps of a run are a function of its recipe, its data and the step number. So a continuation may run elsewhere and
otherwise (ranks, ZeRO stage, memory, output), but not compute something else under the same name.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.example import Example
from grpo.config import Config
from grpo.options.option import options

# Options that say where, how fast and how loud, not what is computed.
FREE = {
    "plan", "doctor", "resume", "output_dir", "ddp_timeout", "zero_stage", "deepspeed", "micro_batch_tokens",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "logprob_impl", "rollout_slots", "rollout_weights",
    "rollout_keep", "save_strategy", "save_steps", "save_total_limit", "max_skipped_steps", "logging_steps",
    "report_to", "reward_timeout", "reward_memory", "max_reward_failures", "trust_remote_code",
}
LENGTH = {"max_steps", "num_train_epochs"}  # without effect on a step where the learning rate is constant


def facts(config: Config, examples: list[Example], adapter: str | None, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` steps says of its run: recipe, data, position in it, keys of all random draws.

    `adapter` is the fingerprint of the start adapter when it was read.
    """
    drawn = step * config.prompts_per_step
    return {
        "recipe": {name: getattr(config, name) for name in options(Config)},
        "data": {"num_examples": len(examples), "sha256": fingerprint(one.prompt for one in examples)},
        "adapter": adapter,
        "prompts_drawn": drawn,
        "epoch": drawn / len(examples),
        # Order of the data, sampling noise and dropout are functions of these two: no generator has a state to keep.
        "keys": {"seed": config.seed, "step": step},
    }


def fingerprint(texts: Iterable[str]) -> str:
    """Digits that differ where one text or their order does."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def adapter_fingerprint(path: str | None) -> str | None:
    """Of the start adapter's files, which a resumed run reads again as its reference; None without one."""
    files = [] if path is None else [Path(path) / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return "-".join(digests) or None


def check(folder: Path, said: dict[str, Any], config: Config, examples: list[Example]) -> None:
    """Refuse a continuation that would compute something else.

    Args:
        folder: the checkpoint.
        said: its facts.
        config: the recipe as the user gives it now.
        examples: the training problems now.

    Raises:
        ValueError: the fields that differ, then and now.
    """
    now = facts(config, examples, adapter_fingerprint(config.adapter_name_or_path), 0)
    constant = config.lr_scheduler_type == "constant" and config.warmup_ratio == 0
    free = FREE | (LENGTH if constant else set())
    names = [name for name in now["recipe"] if name not in free]
    differing = [name for name in names if said["recipe"].get(name) != now["recipe"][name]]
    if differing:
        then = said["recipe"]
        listed = ", ".join(f"{name} ({then.get(name)!r} then, {now['recipe'][name]!r} now)" for name in differing)
        raise ValueError(
            f"resume=True with another recipe than {folder}: {listed}; nearest valid value: those of then, or a new "
            "output_dir with adapter_name_or_path set to the checkpoint's adapter")
    if "adapter" in said and said["adapter"] != now["adapter"]:  # older checkpoints do not say
        raise ValueError(
            f"resume=True with another adapter than {folder}: the files of adapter_name_or_path="
            f"{config.adapter_name_or_path!r} are not those that the run started from, and that its reference is; "
            "nearest valid value: the adapter of then, at that path")
    if said["data"] != now["data"]:
        raise ValueError(
            f"resume=True with other data than {folder}: {said['data']['num_examples']:,} training problems then, "
            f"{now['data']['num_examples']:,} now, and the prompts differ; nearest valid value: the data of then")
