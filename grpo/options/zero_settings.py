"""The option `deepspeed`: a mapping of DeepSpeed settings, or a JSON file with one, and what neither may hold."""

import json
from pathlib import Path
from typing import Any

from grpo.options.option import ARTICLE
from grpo.options.refusal import SHORT, Mistakes, collecting, nearest, refuse, spelled_out

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
PLAIN_ADAMW = ("AdamW", "Adam")  # optimizers of a file that are AdamW here, where their numbers are left to the trainer


def read_json(path: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in a DeepSpeed file for transformers, and one line about those that it leaves to the trainer.

    Left out are `auto` (here the options decide), what is switched off, and an AdamW without numbers of its own.

    Raises:
        ValueError: there is no such file, or no JSON mapping in it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
    except (OSError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        refuse("deepspeed", path, f"must be a mapping, or a JSON file that holds one, but {words}", "{}")
    if not isinstance(content, dict):
        refuse("deepspeed", path, f"must hold a mapping, not a {type(content).__name__}", "{}")
    left: list[str] = []
    settings = {key: kept for key, value in content.items() if (kept := _decided(key, value, key, left)) is not None}
    return settings, [spelled_out(f"deepspeed={path!r} leaves to the options here: {', '.join(left)}")] if left else []


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        twice = next(key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return mapping


def _decided(key: str, value: Any, where: str, left: list[str]) -> Any:
    """A setting without what it leaves to the trainer, whose places are added to `left`; None if nothing remains."""
    if value == "auto" or isinstance(value, dict) and value.get("enabled") == "auto":
        left.append(where)
        return None
    if not isinstance(value, dict):
        return value
    off = value.get("enabled") is False and key != "bf16"  # without it weights are float32, which torch_dtype says
    if off or key.startswith("offload_") and value.get("device") in (None, "none"):
        return None
    kept = {name: one for name, inner in value.items()
            if (one := _decided(name, inner, f"{where}.{name}", left)) is not None}
    return None if not kept or key == "optimizer" and kept.keys() == {"type"} and kept["type"] in PLAIN_ADAMW else kept


def check_deepspeed(settings: dict[Any, Any], zero_stage: int) -> None:
    """Refuse DeepSpeed settings that an option here sets, or that DeepSpeed would silently ignore.

    Raises:
        Mistakes: a line for each such setting.
    """
    mistakes: list[str] = []
    for key, value in settings.items():
        with collecting(mistakes):
            _check_setting(key, value)
    for name, check in (("data_types", _check_data_type), ("zero_optimization", _check_zero)):
        section = settings.get(name)
        for key, value in section.items() if isinstance(section, dict) else ():
            with collecting(mistakes):
                check(key, value, zero_stage)
    if mistakes:
        raise Mistakes(*mistakes)


def _check_setting(key: Any, value: Any) -> None:
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


def _check_data_type(key: Any, value: Any, zero_stage: int) -> None:
    if key != "grad_accum_dtype":
        refuse("deepspeed", {"data_types": {key: value}}, "has an unknown key", "grad_accum_dtype")
    _check_float(value, {"data_types": {key: value}})
    if zero_stage == 0:
        refuse("deepspeed", {"data_types": {key: value}}, "needs zero_stage of at least 1", "without this key")


def _check_zero(key: Any, value: Any, zero_stage: int) -> None:
    setting = {"zero_optimization": {key: value}}
    if type(key) is not str:
        refuse("deepspeed", setting, "has an unknown key", "without this key")
    if value == "auto":
        refuse("deepspeed", setting, "is filled in by another trainer", "without this key")
    if key in ZERO_NOT_OFFERED:
        refuse("deepspeed", setting, f"is not offered: {ZERO_NOT_OFFERED[key]}", "without this key")
    if key == "stage" and value != zero_stage:
        valid = value if value in (0, 1, 2, 3) else "without stage"
        refuse("zero_stage", zero_stage, f"contradicts stage {SHORT.repr(value)} of the option deepspeed", valid)


def _check_float(value: Any, setting: dict[str, Any]) -> None:
    if value not in DEEPSPEED_FLOATS:
        refuse("deepspeed", setting, f"must have one of {', '.join(DEEPSPEED_FLOATS)} there",
               nearest(str(value).lower(), DEEPSPEED_FLOATS) or "without this key")
