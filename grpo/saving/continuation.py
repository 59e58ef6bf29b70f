"""What a resumed run must have in common with the run it continues; stored in every checkpoint.

The steps of a run are a function of its recipe, of what it reads, and of the step number. A resumed run may differ in
where and how it runs (ranks, ZeRO stage, memory, output) and in where the files lie, but not in what it computes.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data.example import Example
from grpo.config import Config
from grpo.options.option import default_of, options
from grpo.options.surroundings import READ
from grpo.saving import content

# Options that say where, how fast and how loud, not what is computed.
FREE = {
    "plan", "doctor", "resume", "output_dir", "ddp_timeout", "zero_stage", "deepspeed", "micro_batch_tokens",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "logprob_impl", "rollout_slots", "rollout_weights",
    "rollout_keep", "save_strategy", "save_steps", "save_total_limit", "max_skipped_steps", "logging_steps",
    "report_to", "run_name", "reward_timeout", "reward_memory", "max_reward_failures", "trust_remote_code",
    "keep_tokens", "eval_strategy", "eval_steps", "early_stopping_patience",
    *READ,  # names and paths; what they hold is compared
}
BY_CONTENT = {"model_revision", "dataset_config"}  # free too, where a checkpoint knows what the names held
LENGTH = {"max_steps", "num_train_epochs"}  # without effect on a step where the learning rate is constant
WHAT = {"model_name_or_path": "model", "tokenizer_name_or_path": "tokenizer",
        "train_dataset_id_or_path": "training dataset", "test_dataset_id_or_path": "held-out problems"}
INSTEAD = {"tokenizer_name_or_path": "model_name_or_path", "test_dataset_id_or_path": "train_dataset_id_or_path"}


def sources(
    config: Config, train: list[Example], test: list[Example], tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]], model: str,
) -> dict[str, Any]:
    """What a run reads, as fingerprints; `prompts` are the tokens of `train`'s, `model` is the model's fingerprint."""
    return {
        "data": {"num_examples": len(train), "sha256": content.fingerprint(one.prompt_text for one in train)},
        "adapter": content.of_adapter(config.adapter_name_or_path),
        "reward_files": content.of_reward_files(config.reward_funcs),
        "content": {
            "model_name_or_path": model, "tokenizer_name_or_path": content.of_tokenizer(tokenizer, prompts),
            "train_dataset_id_or_path": content.of_examples(train),
            "test_dataset_id_or_path": content.of_examples(test)},
    }


def facts(config: Config, read: dict[str, Any], step: int) -> dict[str, Any]:
    """What a checkpoint after `step` steps stores of its run: recipe, sources, position, keys of all random draws."""
    drawn = step * config.prompts_per_step
    return {
        "recipe": {name: getattr(config, name) for name in options(Config)},
        **read,
        "prompts_drawn": drawn,
        "epoch": drawn / read["data"]["num_examples"],
        # Order of the data, sampling noise and dropout are functions of these two: no generator has a state to keep.
        "keys": {"seed": config.seed, "step": step},
    }


def check(folder: Path, then: dict[str, Any], config: Config, read: dict[str, Any]) -> None:
    """Refuse to resume with a recipe, start adapter, data or model that would compute something else: ValueError.

    Args:
        then: the facts of the checkpoint in `folder`.
        read: the `sources` of now.
    """
    share = config.warmup_steps or config.warmup_ratio  # from 1 on a number of steps, whatever the run's length
    constant = config.lr_scheduler_type == "constant" and (share == 0 or share >= 1)
    free = FREE | (LENGTH if constant else set()) | (BY_CONTENT if "content" in then else set())
    now = {name: getattr(config, name) for name in options(Config)}
    was = {name: default_of(one) for name, one in options(Config).items()} | then["recipe"]  # older than an option
    differing = [name for name in now if name not in free and was[name] != now[name]]
    if differing:
        listed = ", ".join(f"{name} ({was[name]!r} then, {now[name]!r} now)"
                           for name in differing)
        raise ValueError(f"resume=True with another recipe than {folder}: {listed}; nearest valid value: the values of "
                         "then, or a new output_dir with adapter_name_or_path set to the checkpoint's adapter")
    if then["adapter"] != read["adapter"]:
        raise ValueError(
            f"resume=True with another adapter than {folder}: the files of adapter_name_or_path="
            f"{config.adapter_name_or_path!r} are not those that the run started from, and its reference needs them; "
            "nearest valid value: the adapter of then")
    if then["data"] != read["data"]:
        raise ValueError(
            f"resume=True with other data than {folder}: {then['data']['num_examples']:,} training problems then, "
            f"{read['data']['num_examples']:,} now, and the prompts differ; nearest valid value: the data of then")
    for name, found in read["content"].items():
        known = then.get("content", {}).get(name)  # None: of before checkpoints had it
        if known is None and was[name] != now[name]:
            raise ValueError(
                f"resume=True with {name}={now[name]!r}: {folder} was written by a version that stored the name alone, "
                f"{was[name]!r}, and not what was in it; nearest valid value: that name, which may be a link")
        if known is not None and known != found:
            given, before = (name if values[name] is not None else INSTEAD.get(name, name) for values in (now, was))
            raise ValueError(
                f"resume=True with another {WHAT[name]} than {folder}: what {given}={now[given]!r} holds is not what "
                f"the run read from {was[before]!r}; nearest valid value: the {WHAT[name]} of then")


def edited(then: dict[str, Any], read: dict[str, Any]) -> list[str]:
    """A line for each reward file that is another one than then; not refused, since mending one is why runs go on."""
    was = then.get("reward_files", {})  # a checkpoint of before has none
    return [f"{place} is not the file it was: from here on rewards are those of the new one"
            for place, found in read["reward_files"].items() if was.get(place, found) != found]
