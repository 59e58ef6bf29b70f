"""What options follow from names of other trainers (`recipe.ForeignNames`), and what options silence others.

A step takes the values that were given, by name, and `in_force`, which has the default for an option that was not. It
replaces the names of others in `values` by options, and returns the lines that say so.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo.options import foreign
from grpo.options.option import default_of, options
from grpo.options.refusal import Mistakes, collecting, nearest, refuse
from rewards.loading import BUILT_IN

InForce = Callable[[str], Any]
LORA_SHAPE = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"]
ENTROPY = [f"entropy_{name}" for name in ("target", "coef_min", "coef_max", "coef_delta")]
ANSWERS = ["num_generations_eval", "eval_temperature"]
SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size", "steps_per_generation")
# TRL's modes of importance sampling, for what vLLM samples, and this sampler's.
MODES = {"token_truncate": "truncated", "token_mask": "masked", "sequence_truncate": "sequence_truncated",
         "sequence_mask": "sequence_masked"}
VLLM = ("use_vllm", *(f"vllm_importance_sampling_{name}" for name in ("correction", "mode", "clip_max", "clip_min")))
UNBOUNDED = 1e9  # above exp(20), the largest weight there is

GENERATED = {"wordproblems", "programs", "clinical_notes", None}  # None: no other dataset for the evaluation


def set_once(values: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Set an option that another name decides; ValueError where it was given itself, with another value."""
    if values.get(name) not in (None, "auto", value):
        refuse(name, values[name], f"contradicts {source}, which makes it {value}", value)
    values[name] = value


def switches(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """bf16, disable_dropout and use_bias_correction_kl each stand for a value of an option."""
    if values.pop("bf16", None):
        set_once(values, "torch_dtype", "bfloat16", "bf16=True")
    if values.pop("disable_dropout", None):
        set_once(values, "lora_dropout", 0.0, "disable_dropout=True")
    corrected = values.pop("use_bias_correction_kl", None)
    if corrected is not None:
        set_once(values, "kl_estimator", "k3_unbiased" if corrected else "k3", f"use_bias_correction_kl={corrected}")
    return []


def correction(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """vllm_importance_sampling_mode is rollout_correction, with its bounds, unless vLLM or the correction is off."""
    given = {name: values.pop(name) for name in VLLM if name in values}
    notes = ["use_vllm=True has no effect: completions come from this project's own sampler (see rollout_slots, "
             "rollout_weights)"] if given.get("use_vllm") else []
    off = [f"{name} is False" for name in VLLM[:2] if given.get(name) is False]
    mode = given.get("vllm_importance_sampling_mode")
    if off or mode is None:
        why = off[0] if off else "vllm_importance_sampling_mode is not given"
        return notes + [f"{name}={given[name]!r} has no effect: {why}" for name in VLLM[2:]
                        if given.get(name) is not None]
    set_once(values, "rollout_correction", MODES[mode], f"vllm_importance_sampling_mode={mode}")
    cap, floor = given.get("vllm_importance_sampling_clip_max", 3.0), given.get("vllm_importance_sampling_clip_min")
    set_once(values, "rollout_correction_cap", UNBOUNDED if cap is None else cap, "vllm_importance_sampling_clip_max")
    set_once(values, "rollout_correction_floor", floor or 0.0, "vllm_importance_sampling_clip_min")
    return notes


def length(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """max_seq_length is max_prompt_length and max_completion_length together."""
    longest, completion = values.pop("max_seq_length", None), in_force("max_completion_length")
    if longest is not None:
        if longest <= completion:
            refuse("max_seq_length", longest, f"must be more than max_completion_length={completion}", completion + 1)
        set_once(values, "max_prompt_length", longest - completion, f"max_seq_length={longest}")
    return []


def batch(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """TRL's batch sizes, in completions, are prompts_per_step:

        prompts_per_step = per_device_train_batch_size * ranks * gradient_accumulation_steps / num_generations

    ValueError if a rank's share is not a whole number of groups, or completions would be used in a later step.
    """
    per_device, accumulation, sampled, steps = given = [values.pop(name, None) for name in SIZES]
    if given == [None] * 4:
        return []
    if per_device is None:
        name, value = next((name, value) for name, value in zip(SIZES, given) if value is not None)
        refuse(name, value, f"needs {SIZES[0]} too", f"{SIZES[0]}={in_force('num_generations')}")
    accumulation, generations = accumulation or 1, in_force("num_generations")
    if per_device * accumulation % generations:
        smallest = generations // math.gcd(generations, per_device)
        refuse(SIZES[1], accumulation, f"times {SIZES[0]}={per_device} must be a multiple of "
               f"num_generations={generations}, so that a rank has whole groups",
               max(1, round(accumulation / smallest)) * smallest)
    completions = per_device * ranks * accumulation
    mistakes: list[str] = []
    for name, value, valid in ((SIZES[2], sampled, completions), (SIZES[3], steps, accumulation)):
        with collecting(mistakes):
            if value not in (None, valid):
                refuse(name, value, f"contradicts {SIZES[0]}={per_device} * {ranks} ranks * {SIZES[1]}={accumulation}: "
                       "completions are used in the step that they are sampled for, and only there", valid)
    if mistakes:
        raise Mistakes(*mistakes)
    source = f"{SIZES[0]}={per_device} * {ranks} ranks * {SIZES[1]}={accumulation} / {generations} generations"
    set_once(values, "prompts_per_step", completions // generations, source)
    return [f"{source} = prompts_per_step={values['prompts_per_step']}; micro_batch_tokens bounds a packed batch"]


def floor(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """min_lr = min_lr_rate * learning_rate."""
    share, peak = values.pop("min_lr_rate", None), in_force("learning_rate")
    if share is None:
        return []
    set_once(values, "min_lr", share * peak, f"min_lr_rate={share} of learning_rate={peak}")
    return [f"min_lr_rate={share} * learning_rate={peak} = min_lr={share * peak:g}"]


def rewards(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """Reward functions under their names here: those of open-r1, and dotted paths as TRL has them.

    Others are refused here, together with the other conflicts of their recipe.
    """
    given = in_force("reward_funcs")
    names, notes = _from_open_r1(given)
    for index, name in enumerate(names):
        if "." in name and ":" not in name and ".py" not in name:
            names[index] = ":".join(name.rsplit(".", 1))
            notes.append(f"reward_funcs: {name} is {names[index]} here")
    unknown = [name for name in names if ":" not in name and ".py" not in name and name not in BUILT_IN]
    if unknown:
        own = "path/to/file.py:function"
        refuse("reward_funcs", unknown[0] if len(unknown) == 1 else unknown,
               f"must be {', '.join(BUILT_IN)}, {own} or module:function", nearest(unknown[0], BUILT_IN) or own)
    if names != given:
        values["reward_funcs"] = names
    return notes + _overlong(values, in_force, is_theirs=names != given)


def _from_open_r1(given: list[str]) -> tuple[list[str], list[str]]:
    """Names of reward functions where open-r1's are replaced by those here, and the line that says so.

    A name that both have is open-r1's if only it has all the others; a list with names of each is refused.
    """
    theirs = [name for name in given if name in foreign.OPEN_R1 or name in foreign.OPEN_R1_OTHERS]
    both = [name for name in theirs if name in BUILT_IN]
    if theirs == both:
        return [*given], []
    if both and theirs != given:
        refuse("reward_funcs", both[0], f"is of this project or of open-r1: {', '.join(given)} are names of each",
               foreign.OPEN_R1.get(both[0], both[0]))
    for name in theirs:
        if name in foreign.OPEN_R1_OTHERS:
            why, near = foreign.OPEN_R1_OTHERS[name]
            refuse("reward_funcs", name, f"of open-r1 is not offered: it {why}", near)
    names = [foreign.OPEN_R1.get(name, name) for name in given]
    here = ", ".join(f"{name} is {foreign.OPEN_R1[name]}" for name in theirs)
    return names, [f"reward_funcs, as open-r1 names them: {here}"]


def _overlong(values: dict[str, Any], in_force: InForce, *, is_theirs: bool) -> list[str]:
    """max_completion_len and soft_punish_cache are arguments of open-r1's soft_overlong_punishment."""
    name = foreign.OPEN_R1["soft_overlong_punishment"]
    given = {key: value for key in foreign.OVERLONG if (value := values.pop(key, None)) is not None}
    if name not in in_force("reward_funcs"):
        return [f"{key}={value} has no effect: soft_overlong_punishment is not in reward_funcs"
                for key, value in given.items() if value != foreign.OVERLONG[key]]
    options = in_force("reward_options") or {}
    own = options.get(name, {})
    for key, value in given.items():
        if isinstance(own, dict) and own.get(key, value) != value:
            refuse(f"reward_options of {name}: {key}", own[key], f"contradicts {key}={value}", value)
    wanted = (foreign.OVERLONG if is_theirs else {}) | given
    if not wanted or not isinstance(own, dict):
        return []
    values["reward_options"] = options | {name: wanted | own}
    return [f"{name}: {', '.join(f'{key}={value}' for key, value in (wanted | own).items())}"]


def resume(values: dict[str, Any], in_force: InForce, ranks: int) -> list[str]:
    """resume_from_checkpoint is resume, where it names the checkpoint that a resumed run goes on from."""
    asked = values.pop("resume_from_checkpoint", None)
    if asked is None:
        return []
    folder = Path(in_force("output_dir"))
    saved = [path for path in folder.glob("checkpoints/step-*") if path.name[5:].isdecimal()]
    newest = max(saved, key=lambda path: int(path.name[5:]), default=None)
    if asked != "true" and Path(asked).resolve() not in [path.resolve() for path in (folder, newest) if path]:
        refuse("resume_from_checkpoint", asked, f"must be true, output_dir={str(folder)!r} or its newest checkpoint: a "
               "run goes on in its own folder, from there", newest or "true")
    set_once(values, "resume", True, f"resume_from_checkpoint={asked}")
    return []


# The steps, each with the names that must be right before it.
STEPS: dict[Callable[[dict[str, Any], InForce, int], list[str]], tuple[str, ...]] = {
    switches: ("torch_dtype", "lora_dropout", "kl_estimator"),
    correction: ("rollout_correction", "rollout_correction_cap", "rollout_correction_floor"),
    length: ("max_completion_length", "max_prompt_length"),
    batch: (*SIZES, "num_generations", "prompts_per_step"),
    floor: ("learning_rate", "min_lr"),
    rewards: ("reward_funcs", "reward_options", *foreign.OVERLONG),
    resume: ("output_dir",),
}


def silenced(values: dict[str, Any], cls: type) -> list[str]:
    """One line for each option of `cls` that was set but has no effect because of another one."""
    defaults = {name: default_of(one) for name, one in options(cls).items()}
    value_of = (defaults | values).__getitem__
    reasons = {
        "beta=0 leaves the KL out of the loss": (value_of("beta") == 0, ["kl_estimator"]),
        "multi_objective_aggregation=normalize_then_sum has its own scale": (
            value_of("multi_objective_aggregation") == "normalize_then_sum", ["scale_rewards"]),
        f"adv_estimator={value_of('adv_estimator')} has its own scale": (
            value_of("adv_estimator") != "grpo", ["scale_rewards"]),
        "adv_estimator is not pass_at_k": (value_of("adv_estimator") != "pass_at_k", ["pass_k"]),
        f"loss_type={value_of('loss_type')} has no such clip": (
            value_of("loss_type") in ("cispo", "sapo"),
            ["epsilon", *(["epsilon_high"] if value_of("loss_type") == "sapo" else [])]),
        "only the clip of loss_type dapo, grpo and dr_grpo has a second one": (
            value_of("loss_type") in ("cispo", "sapo", "geo_mean"), ["delta"]),
        "use_adaptive_entropy is false": (not value_of("use_adaptive_entropy"), ENTROPY),
        "target_kl is none": (value_of("target_kl") is None, ["kl_horizon"]),
        "loss_type is not sapo": (value_of("loss_type") != "sapo", ["sapo_temperature_pos", "sapo_temperature_neg"]),
        "rollout_correction is none": (
            value_of("rollout_correction") == "none", ["rollout_correction_cap", "rollout_correction_floor"]),
        "use_peft=False trains every weight": (not value_of("use_peft"), LORA_SHAPE),
        "adapter_name_or_path brings its own": (value_of("adapter_name_or_path") is not None, LORA_SHAPE),
        "max_steps ends the run": (value_of("max_steps") > 0, ["num_train_epochs"]),
        "warmup_steps comes first": (value_of("warmup_steps") > 0, ["warmup_ratio"]),
        "lr_scheduler_type is not cosine_with_min_lr": (
            value_of("lr_scheduler_type") != "cosine_with_min_lr", ["min_lr"]),
        "save_strategy is not steps": (value_of("save_strategy") != "steps", ["save_steps"]),
        "eval_strategy is not steps": (value_of("eval_strategy") != "steps", ["eval_steps"]),
        "eval_examples is 0": (value_of("eval_examples") == 0, ["eval_strategy", *ANSWERS]),
        "neither load_best_model_at_end nor early_stopping_patience is set": (
            not (value_of("load_best_model_at_end") or value_of("early_stopping_patience")),
            ["metric_for_best_model"]),
        "no function of reward_funcs runs programs": (
            not {"code_runs", "code_tests"} & {*value_of("reward_funcs")}, ["code_sandbox"]),
        "no tracker in report_to shows it": (
            not {"mlflow", "wandb", "trackio"} & {*value_of("report_to")}, ["run_name"]),
        "gradient_checkpointing is off": (
            value_of("gradient_checkpointing") == "false", ["gradient_checkpointing_kwargs"]),
        "generated data has its own columns": (
            all(data in GENERATED or data.startswith("reasoning_gym:") for data in (
                value_of("train_dataset_id_or_path"), value_of("test_dataset_id_or_path"))),
            ["dataset_config", "prompt_column", "answer_column"]),
        "apply_chat_template is false": (
            value_of("apply_chat_template") == "false", ["chat_template", "chat_template_kwargs"]),
    }
    return [
        f"{name}={values[name]!r} has no effect: {reason}"
        for reason, (applies, names) in reasons.items() if applies
        for name in names if name in values and values[name] != defaults[name]
    ]
