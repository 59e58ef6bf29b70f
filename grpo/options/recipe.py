"""A recipe: a YAML file plus command-line overrides, read into this project's option names.

Recipes written for TRL and transformers load unchanged: a key that has another name here is translated, and one for
which this project has no choice is named in one line as without effect.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.options.option import ARTICLE, check, convert, option, options
from grpo.options.refusal import SHORT, nearest, refuse
from grpo.options.strict_yaml import read_yaml


@dataclass
class ForeignNames:
    """Names of TRL and transformers, translated into the options above or without effect."""

    dtype: str | None = option(None, "Another name of torch_dtype.")
    bf16: bool | None = option(None, "true means torch_dtype bfloat16.")
    max_seq_length: int | None = option(
        None, "Longest prompt and completion together: max_prompt_length is what max_completion_length leaves of it.",
        unit="tokens", within="[2, inf)")
    per_device_train_batch_size: int | None = option(
        None, "With gradient_accumulation_steps, the TRL way to say prompts_per_step: completions per rank and step.",
        unit="completions", within="[1, inf)")
    gradient_accumulation_steps: int | None = option(
        None, "See per_device_train_batch_size.", unit="micro-batches, 1 where not given", within="[1, inf)")
    top_p: float | None = option(
        None, "Only 1 in training.", within="[1, 1]", why="truncated sampling biases the ratio; eval.py allows it")
    top_k: int | None = option(
        None, "Only 0 (off) in training.", within="[0, 0]", why="truncated sampling biases the ratio")
    packing: bool | None = option(None, "Completions are always packed.")
    attn_implementation: str | None = option(None, "Attention is always sdpa.")
    logging_strategy: str | None = option(None, "Logging always counts steps.", choices=("steps", "epoch", "no"))
    push_to_hub: bool | None = option(None, "Nothing is ever pushed to the Hub.")


# Foreign name -> the only value that this project has, and why.
WITHOUT_EFFECT = {
    "top_p": (1.0, "training samples from the whole distribution"),
    "top_k": (0, "training samples from the whole distribution"),
    "packing": (True, "completions are always packed, which changes no gradient"),
    "attn_implementation": ("sdpa", "a packed batch needs a tree mask, which sdpa takes"),
    "logging_strategy": ("steps", "metrics are written every logging_steps steps"),
    "push_to_hub": (False, "the trained adapter stays in output_dir"),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Values of TRL and peft that have another spelling here.
SPELLINGS: dict[str, dict[str, Any]] = {
    "scale_rewards": {"true": "group", "false": "none"}, "lora_target_modules": {"all-linear": PROJECTIONS}}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# What the option deepspeed may hold, by type; and what it may not, because an option here sets it.
DEEPSPEED = {"zero_optimization": dict, "data_types": dict, "communication_data_type": str, "steps_per_print": int,
             "wall_clock_breakdown": bool}
DEEPSPEED_FLOATS = ("fp32", "bf16", "fp16")
DEEPSPEED_ELSEWHERE = {
    "train_batch_size": "prompts_per_step", "train_micro_batch_size_per_gpu": "micro_batch_tokens",
    "gradient_accumulation_steps": "micro_batch_tokens", "gradient_clipping": "max_grad_norm", "bf16": "torch_dtype",
    "fp16": "torch_dtype", "optimizer": "learning_rate", "scheduler": "lr_scheduler_type",
}
# Settings of zero_optimization that DeepSpeed offers and this project does not.
ZERO_NOT_OFFERED = dict.fromkeys(("offload_optimizer", "cpu_offload", "zenflow"), "it needs another AdamW") | {
    "compute_grad_norm": "the norm is always needed"}


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError if there is no such file, or no YAML mapping in it."""
    path = Path(path)
    if not path.is_file():
        recipes = [str(one) for one in [*path.parent.glob("*.yaml"), *Path("recipes").glob("*.yaml")]]
        refuse("config", str(path), "must be a recipe file", nearest(str(path), recipes) or "recipes/toy.yaml")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse("config", str(path), f"must be YAML, but {error}", "a file like recipes/toy.yaml")
    if not isinstance(content, dict):
        found = type(content).__name__
        refuse("config", str(path), f"must hold a mapping, not a {found}", "a file like recipes/toy.yaml")
    return content


def merge(recipe: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the overrides in place; whichever way the overrides set the batch size replaces the other."""
    if "prompts_per_step" in overrides:
        recipe = {name: value for name, value in recipe.items() if name not in BATCH}
    elif any(name in overrides for name in BATCH):
        recipe = {name: value for name, value in recipe.items() if name != "prompts_per_step"}
    return recipe | overrides


def translate(values: dict[str, Any], cls: type) -> tuple[dict[str, Any], list[str]]:
    """A recipe or a command line in the names and types of `cls` and of TRL's batch sizes; one line per unused value.

    ValueError for an unknown name, a value of another type, or two names that contradict each other.
    """
    own, foreign = options(cls), options(ForeignNames)
    result, notes = {}, []
    for name, value in values.items():
        if name not in own | foreign:
            near = nearest(str(name), own | foreign)
            hint = f"nearest known one: {near}" if near else "see --help"
            raise ValueError(f"unknown option {name}={SHORT.repr(value)}; {hint}")
        one = (own | foreign)[name]
        word = value[0] if isinstance(value, list) and len(value) == 1 else value  # a command line makes it a list
        value = convert(one, SPELLINGS.get(name, {}).get(str(word).lower(), value))
        if name in foreign:
            check(one, value)
        if name not in WITHOUT_EFFECT:
            result[name] = value
        elif value is not None and value != WITHOUT_EFFECT[name][0]:
            notes.append(f"{name}={value!r} has no effect: {WITHOUT_EFFECT[name][1]}")
    dtype = result.pop("dtype", None)
    if dtype is not None:
        _set(result, "torch_dtype", dtype, f"dtype={dtype}")
    if result.pop("bf16", None):
        _set(result, "torch_dtype", "bfloat16", "bf16=True")
    return result, notes


def derive(values: dict[str, Any], *, num_generations: int, max_completion_length: int, world_size: int) -> list[str]:
    """Replace TRL's batch sizes by `prompts_per_step` and `max_seq_length` by `max_prompt_length`, in place.

        prompts_per_step = per_device_train_batch_size * world_size * gradient_accumulation_steps / num_generations

    Returns a line on the prompts_per_step that batch sizes give, if any were given. ValueError if a rank's share is not
    a whole number of groups, or two options contradict each other.
    """
    longest = values.pop("max_seq_length", None)
    if longest is not None:
        if longest <= max_completion_length:
            refuse("max_seq_length", longest, f"must be more than max_completion_length={max_completion_length}",
                   max_completion_length + 1)
        _set(values, "max_prompt_length", longest - max_completion_length, f"max_seq_length={longest}")
    per_device, accumulation = (values.pop(name, None) for name in BATCH)
    if per_device is None and accumulation is None:
        return []
    if per_device is None:
        refuse(BATCH[1], accumulation, f"needs {BATCH[0]} too", f"{BATCH[0]}={num_generations}")
    accumulation = accumulation or 1
    if per_device * accumulation % num_generations:
        smallest = num_generations // math.gcd(num_generations, per_device)
        refuse(BATCH[1], accumulation, f"times {BATCH[0]}={per_device} must be a multiple of "
               f"num_generations={num_generations}, so that a rank has whole groups",
               max(1, round(accumulation / smallest)) * smallest)
    source = f"{BATCH[0]}={per_device} * {world_size} ranks * {BATCH[1]}={accumulation} / {num_generations} generations"
    _set(values, "prompts_per_step", per_device * world_size * accumulation // num_generations, source)
    return [f"{source} = prompts_per_step={values['prompts_per_step']}; micro_batch_tokens bounds a packed batch"]


def check_deepspeed(settings: dict[Any, Any], zero_stage: int) -> None:
    """Refuse with ValueError DeepSpeed settings that an option here sets, or that DeepSpeed would silently ignore."""
    for key, value in settings.items():
        if key in DEEPSPEED_ELSEWHERE:
            refuse("deepspeed", {key: value}, f"is set by the option {DEEPSPEED_ELSEWHERE[key]}", "without this key")
        if key not in DEEPSPEED:
            refuse("deepspeed", {key: value}, "has an unknown key", nearest(str(key), DEEPSPEED) or "without it")
        if type(value) is not DEEPSPEED[key]:
            refuse("deepspeed", {key: value}, f"must have {ARTICLE[DEEPSPEED[key]]} there", "without this key")
        if key == "steps_per_print" and value < 1:
            refuse("deepspeed", {key: value}, "must have at least 1 there", 1)
        if key == "communication_data_type":
            _check_float(value, {key: value})
    for key, value in settings.get("data_types", {}).items():
        if key != "grad_accum_dtype":
            refuse("deepspeed", {"data_types": {key: value}}, "has an unknown key", "grad_accum_dtype")
        _check_float(value, {"data_types": {key: value}})
        if zero_stage == 0:
            refuse("deepspeed", {"data_types": {key: value}}, "needs zero_stage of at least 1", "without this key")
    zero = settings.get("zero_optimization", {})
    for key, value in zero.items():
        setting = {"zero_optimization": {key: value}}
        if type(key) is not str:
            refuse("deepspeed", setting, "has an unknown key", "without this key")
        if value == "auto":
            refuse("deepspeed", setting, "is filled in by another trainer", "without this key")
        if key in ZERO_NOT_OFFERED:
            refuse("deepspeed", setting, f"is not offered: {ZERO_NOT_OFFERED[key]}", "without this key")
    stage = zero.get("stage", zero_stage)
    if stage != zero_stage:
        valid = stage if stage in (0, 1, 2, 3) else "without stage"
        refuse("zero_stage", zero_stage, f"contradicts stage {SHORT.repr(stage)} of the option deepspeed", valid)


def _check_float(value: Any, setting: dict[str, Any]) -> None:
    if value not in DEEPSPEED_FLOATS:
        refuse("deepspeed", setting, f"must have one of {', '.join(DEEPSPEED_FLOATS)} there",
               nearest(str(value).lower(), DEEPSPEED_FLOATS) or "without this key")


def _set(values: dict[str, Any], name: str, value: Any, source: str) -> None:
    if values.get(name) not in (None, "auto", value):
        refuse(name, values[name], f"contradicts {source}, which makes it {value}", value)
    values[name] = value
