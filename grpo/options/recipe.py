"""A recipe: a YAML file plus command-line overrides, read into this project's option names.

Recipes written for TRL and transformers load: each key has its effect, or one line says that it has none, or it is
refused because this project computes something else. `foreign` is the table of those keys.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, get_origin

from grpo.options import foreign
from grpo.options.derived import LORA_SHAPE, MODES, SIZES, STEPS, set_once, silenced
from grpo.options.option import check, convert, default_of, kind_of, option, options
from grpo.options.refusal import SHORT, Mistakes, collecting, nearest, refuse
from grpo.options.strict_yaml import read_yaml
from grpo.options.zero_settings import check_deepspeed, read_json


@dataclass
class ForeignNames:
    """Names of TRL and transformers from which the options above follow; docs/recipes.md has their other keys."""

    bf16: bool | None = option(None, "true means torch_dtype bfloat16.")
    max_seq_length: int | None = option(
        None, "Longest prompt and completion together: max_prompt_length is what max_completion_length leaves of it.",
        unit="tokens", within="[2, inf)")
    per_device_train_batch_size: int | None = option(
        None, "With gradient_accumulation_steps, the TRL way to say prompts_per_step: completions per rank and step.",
        unit="completions", within="[1, inf)")
    gradient_accumulation_steps: int | None = option(
        None, "See per_device_train_batch_size.", unit="micro-batches, 1 where not given", within="[1, inf)")
    generation_batch_size: int | None = option(
        None, "Only the completions of one step: they are used in the step that they are sampled for.",
        unit="completions", within="[1, inf)")
    steps_per_generation: int | None = option(
        None, "Only gradient_accumulation_steps, for the same reason.", within="[1, inf)")
    lr_scheduler_kwargs: dict | None = option(None, "min_lr or min_lr_rate, of cosine_with_min_lr.")
    min_lr_rate: float | None = option(None, "min_lr as a share of learning_rate.", within="[0, 1]")
    use_bias_correction_kl: bool | None = option(None, "true means kl_estimator k3_unbiased, false k3.")
    use_vllm: bool | None = option(None, "false means rollout_correction none; completions come from our own sampler.")
    vllm_importance_sampling_correction: bool | None = option(None, "false means rollout_correction none.")
    vllm_importance_sampling_mode: str | None = option(
        None, "rollout_correction of this sampler: truncated, masked, sequence_truncated or sequence_masked.",
        choices=MODES)
    vllm_importance_sampling_clip_max: float | None = option(
        None, "rollout_correction_cap, with a mode; 3 where it is not given, as in TRL.", within="[1, inf)")
    vllm_importance_sampling_clip_min: float | None = option(
        None, "rollout_correction_floor, with a mode.", within="[0, 1]")
    disable_dropout: bool | None = option(None, "true means lora_dropout 0.")
    max_completion_len: int | None = option(
        None, "Of open-r1's soft_overlong_punishment: goes to reward_options.", unit="tokens", within="[1, inf)")
    soft_punish_cache: int | None = option(None, "The same.", unit="tokens", within="[0, inf)")
    resume_from_checkpoint: str | None = option(
        None, "true, or output_dir or its newest checkpoint, means resume.")


PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Values of TRL, peft and others that have another spelling here.
SPELLINGS: dict[str, dict[str, Any]] = {
    "scale_rewards": {"true": "group", "false": "none"}, "lora_target_modules": {"all-linear": PROJECTIONS},
    "lr_scheduler_type": {"constant_with_warmup": "constant"}, "gradient_checkpointing": {"unsloth": "true"},
    "resume_from_checkpoint": {"true": "true", "false": None}}
# A name: the option that it decides, besides those of foreign.RENAMED. On the command line it replaces the file's.
DECIDES = dict.fromkeys(SIZES, "prompts_per_step") | {
    "bf16": "torch_dtype", "max_seq_length": "max_prompt_length", "lr_scheduler_kwargs": "min_lr",
    "min_lr_rate": "min_lr", "use_bias_correction_kl": "kl_estimator", "disable_dropout": "lora_dropout",
    "vllm_importance_sampling_correction": "rollout_correction", "vllm_importance_sampling_mode": "rollout_correction",
    "vllm_importance_sampling_clip_max": "rollout_correction_cap",
    "vllm_importance_sampling_clip_min": "rollout_correction_floor",
    "resume_from_checkpoint": "resume", "warmup_steps": "warmup_ratio"}


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


def resolve(recipe: dict[str, Any], overrides: dict[str, Any], cls: type, *,
            world_size: int) -> tuple[dict[str, Any], list[str]]:
    """The options of `cls` that a recipe with its overrides gives, and one line for each derived or unused value.

    Raises:
        Mistakes: a line for each name that is unknown, value that is not valid, conflict with what this project
            computes, and contradiction.
    """
    values: dict[str, Any] = {}
    notes: list[str] = []
    wrong: dict[str, str] = {}
    recipe = _without(recipe, overrides)
    for source in (recipe, overrides):
        part, lines = _translate(source, cls, wrong)
        values |= part
        notes += lines

    def in_force(name: str) -> Any:
        return values.get(name, default_of(options(cls)[name]))

    mistakes, unknown = list(wrong.values()), {foreign.RENAMED.get(name, name) for name in wrong}
    ranks = values.get("plan") or world_size
    for step, needs in STEPS.items():
        if not unknown & {*needs}:
            with collecting(mistakes):
                notes += step(values, in_force, ranks)
    if not unknown & {"deepspeed", "zero_stage"}:
        with collecting(mistakes):
            check_deepspeed(in_force("deepspeed") or {}, in_force("zero_stage"))
    if mistakes:
        raise Mistakes(*mistakes)
    if recipe.keys() - options(cls).keys():  # written for another trainer
        notes += _left_out(recipe, values, in_force)
    return values, [*notes, *silenced(values, cls)]


def renamed(cls: type) -> dict[str, Field]:
    """The other names of options of `cls`."""
    return {name: options(cls)[option] for name, option in foreign.RENAMED.items() if option in options(cls)}


def hidden() -> list[str]:
    """Every name that is known and has no effect here."""
    return [name for group in (*foreign.HARMLESS.values(), *foreign.CONFLICTS.values()) for name in group]


def _known(cls: type) -> dict[str, Field]:
    """Every name that has an effect; another name of an option has a field that a refusal calls by that name."""
    known = options(cls) | options(ForeignNames)
    for name, one in renamed(cls).items():
        known[name] = copy(one)
        known[name].name = name
    return known


def _without(recipe: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe without what the overrides replace, under whatever name; the sizes of a batch work together."""
    idle = [name for name in ("bf16", "disable_dropout") if str(overrides.get(name)).lower() == "false"]

    def replaces(name: str, other: str) -> bool:
        alike = _decided(name) == _decided(other) and not {name, other} <= {*SIZES}
        return name == other or alike and name not in idle

    return {name: value for name, value in recipe.items() if not any(replaces(one, name) for one in overrides)}


def _decided(name: str) -> str:
    return DECIDES.get(name, foreign.RENAMED.get(name, name))


def _translate(source: dict[str, Any], cls: type, wrong: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """A recipe or a command line in the names and types of `cls` and ForeignNames, and one line per unused value.

    The lines of what is wrong go to `wrong`, by name.
    """
    known, values, notes = _known(cls), {}, []
    # Own names first, so that another name of the same option is held against it.
    for name, value in sorted(source.items(), key=lambda item: item[0] in foreign.RENAMED):
        mistake: list[str] = []
        with collecting(mistake):
            notes += _take(name, value, known, values) if name in known else _passed_over(name, value, known)
        wrong |= {str(name): line for line in mistake}
    return values, notes


def _take(given: str, value: Any, known: dict[str, Field], values: dict[str, Any]) -> list[str]:
    """Put the value of a known name where it belongs; a line on what a file leaves open."""
    one, name, notes = known[given], foreign.RENAMED.get(given, given), []
    if name != given:
        if value is None:
            return []
        if isinstance(value, list) and len(value) == 1 and get_origin(kind_of(one)[0]) is not list:
            value, = value
    if name == "deepspeed" and isinstance(value, str) and value.endswith(".json"):
        value, notes = read_json(value)
    word = value[0] if isinstance(value, list) and len(value) == 1 else value  # a command line makes it a list
    value = convert(one, SPELLINGS.get(name, {}).get(str(word).lower(), value))
    check(one, value)
    if name == "lr_scheduler_kwargs":
        for key, inner in (value or {}).items():
            if key not in ("min_lr", "min_lr_rate"):
                refuse(name, {key: inner}, "is not offered: only min_lr and min_lr_rate are", "min_lr or min_lr_rate")
            _take(key, inner, known, values)
        return notes
    set_once(values, name, value, f"{given}={value}")
    return notes


def _passed_over(name: str, value: Any, known: dict[str, Field]) -> list[str]:
    """The line on a value without effect, if it needs one; ValueError for a conflict, and for a name nobody knows."""
    shown = name if name in foreign.SECRET else f"{name}={SHORT.repr(value)}"
    for why, group in foreign.HARMLESS.items():
        if name in group:
            return [] if _is_one_of(value, group[name]) else [f"{shown} has no effect: {why}"]
    for why, group in foreign.CONFLICTS.items():
        if name in group and not _is_one_of(value, group[name]):
            if instead := foreign.INSTEAD.get(name, {}).get(str(value)):
                return [f"{shown} is {instead}"]
            accepted = group[name][0] if isinstance(group[name], tuple) else group[name]
            refuse(name, value, f"is not offered: {why}", "none" if accepted is None else accepted)
        if name in group:
            return []
    near = nearest(str(name), known)
    raise ValueError(f"unknown option {name}={SHORT.repr(value)}; "
                     + (f"nearest known one: {near}" if near else "see --help"))


def _is_one_of(value: Any, accepted: Any) -> bool:
    """Is it one of the values, or the value, that a table accepts, as YAML or as the command line writes it?"""
    return any(_plain(value) == _plain(one) for one in (accepted if isinstance(accepted, tuple) else (accepted,)))


def _plain(value: Any) -> str | float:
    text = str(value).strip().lower()
    try:
        return float(text)
    except ValueError:
        return text


def _left_out(recipe: dict[str, Any], values: dict[str, Any], in_force: Callable[[str], Any]) -> list[str]:
    """What the recipe of another trainer leaves to defaults that are others here, in one line."""
    idle = set() if in_force("use_peft") else {"load_in_4bit", *LORA_SHAPE}
    idle |= {"num_train_epochs"} if in_force("max_steps") > 0 else set()
    differing = [f"{name}={in_force(name)} ({theirs})" for name, theirs in foreign.DEFAULTS.items()
                 if name not in values and name not in idle]
    notes = [f"not in the recipe, with TRL's other defaults in brackets: {', '.join(differing)}"] if differing else []
    if "format" in in_force("reward_funcs") and "reward_funcs" in recipe:
        notes.append("reward_funcs: format is this project's answer line; open-r1's is think_answer_format_reward")
    if recipe.get("lr_scheduler_type") == "constant" and (in_force("warmup_ratio") or in_force("warmup_steps")):
        notes.append("lr_scheduler_type='constant' warms up here; that of transformers does not")
    counted = [name for name in ("max_steps", "warmup_steps", "save_steps", "eval_steps", "logging_steps")
               if name in values and (values[name] or 0) > 1]
    if counted and (updates := in_force("num_iterations")) > 1:
        notes.append(f"num_iterations={updates}: {', '.join(counted)} count rollouts, of {updates} updates each; TRL "
                     "counts updates")
    return notes
