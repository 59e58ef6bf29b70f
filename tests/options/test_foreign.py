"""Recipes of other trainers: every key is honoured, harmless or refused, and public recipes load. 4 seconds.

What a key of TRL or transformers is comes from peer_fields.json, which peer_fields.py reads from the installed classes.
"""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import peer_fields
import pytest
import yaml
from foreign_recipes import NOT_BUILT, RECIPES, furnish, loaded, notes, refused
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from grpo.config import Config
from grpo.options import foreign, recipe
from grpo.options.option import convert, default_of, options

PEERS = {"trl": peer_fields.committed("trl"), "transformers": peer_fields.committed("transformers")}
DEFAULTS = {**PEERS["transformers"]["TrainingArguments"], **PEERS["trl"]["ScriptArguments"],
            **PEERS["trl"]["ModelConfig"], **PEERS["trl"]["GRPOConfig"]}
LOADED: dict[str, dict[str, Any]] = {
    "open-r1-demo": {
        "min_lr": pytest.approx(2e-6), "lr_scheduler_type": "cosine_with_min_lr", "prompts_per_step": 4,
        "max_prompt_length": 512, "prompt_column": "problem", "train_dataset_id_or_path": "AI-MO/NuminaMath-TIR"},
    "open-r1-evaluated": {"temperature": 0.7, "prompts_per_step": 8, "save_total_limit": 1},
    "open-r1-code": {
        "loss_type": "dr_grpo", "scale_rewards": "none", "lr_scheduler_type": "constant", "beta": 0.0,
        "mask_truncated_completions": True, "reward_weights": [1.0, 0.1]},
    "open-r1-zero": {"prompts_per_step": 16, "dataset_splits": "train", "epsilon": 0.2},
    "aws-countdown": {
        "max_steps": 450, "beta": 0.001, "prompts_per_step": 8, "train_dataset_id_or_path": "problems.jsonl"},
    "aws-rlvr": {
        "max_completion_length": 1024, "max_prompt_length": 512, "torch_dtype": "bfloat16", "num_train_epochs": 15.0,
        "warmup_steps": 0.0, "save_total_limit": 10},
    "aws-gsm8k": {
        "max_prompt_length": 512, "lora_modules_to_save": ["lm_head", "embed_tokens"], "prompts_per_step": 2},
    "philschmid-countdown": {"prompts_per_step": 1, "learning_rate": 5e-7, "tf32": True},
    "philschmid-qlora": {"max_grad_norm": 0.3, "lora_alpha": 16, "lr_scheduler_type": "constant"},
    "unsloth-notebook": {
        "adam_beta2": 0.99, "weight_decay": 0.1, "gradient_checkpointing": "true", "seed": 3407,
        "torch_dtype": "bfloat16", "prompts_per_step": 1},
    "unsloth-arguments": {"max_prompt_length": 512, "prompts_per_step": 4, "max_grad_norm": 0.1},
    "trl-script": {
        "kl_estimator": "k3", "epsilon_high": 0.28, "warmup_steps": 0.1, "run_name": "first", "prompts_per_step": 8,
        "rollout_correction": "truncated", "rollout_correction_cap": 3.0},
    "trl-zero": {
        "deepspeed": {"zero_optimization": {"stage": 3, "overlap_comm": True}}, "lora_dropout": 0.0,
        "ddp_timeout": 3600, "resume": False, "prompts_per_step": 4},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in with one rank, with the files that recipes name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    furnish(tmp_path)
    return tmp_path


def test_every_key_has_one_place_in_the_table() -> None:
    places = [*foreign.SAME, *options(recipe.ForeignNames), *foreign.RENAMED, *recipe.hidden()]
    assert len(places) == len({*places})
    assert DEFAULTS.keys() - {*places} == set()
    assert {*options(Config)} & {*places} <= {*foreign.SAME}  # an option is in no other place
    assert len(DEFAULTS) == 216 and len(places) > 300


def test_every_option_that_a_name_leads_to_exists() -> None:
    if NOT_BUILT:
        pytest.skip(f"not built yet: {', '.join(sorted(NOT_BUILT))}")
    assert {*foreign.SAME, *foreign.RENAMED.values(), *recipe.DECIDES.values()} <= {*options(Config)}


@pytest.mark.parametrize("package", ["transformers", "trl"])
def test_the_fields_on_file_are_those_of_the_installed_classes(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    version = importlib.metadata.version(package)
    if version != PEERS[package]["version"]:
        pytest.skip(f"{package} is {version}, and the fields on file are of {PEERS[package]['version']}")
    assert peer_fields.installed(package) == PEERS[package]


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name in recipe.hidden()])
def test_no_default_of_the_others_is_a_conflict(name: str, place: Path) -> None:
    said = notes(place, **{name: DEFAULTS[name]})
    # NF4 without double quantisation is worth a line.
    assert said == [] or name == "use_bnb_nested_quant"


def test_no_default_of_trl_that_is_another_one_here_is_passed_over_in_silence(place: Path) -> None:
    no_matter = {"gradient_checkpointing", "save_steps", "logging_steps", "report_to"}  # for what is learnt
    same = [name for name in foreign.SAME if name in DEFAULTS and name not in NOT_BUILT | no_matter]
    differing = {name: DEFAULTS[name] for name in same
                 if DEFAULTS[name] is not None and DEFAULTS[name] != default_of(options(Config)[name])}
    assert differing.items() <= foreign.DEFAULTS.items()
    assert foreign.DEFAULTS.keys() - differing.keys() == {"lora_target_modules", "prompts_per_step"}
    assert TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["qwen2"] == ["q_proj", "v_proj"]
    said, = loaded(place, dataset_name="openai/gsm8k").notes
    for name, theirs in foreign.DEFAULTS.items():
        assert f"{name}={default_of(options(Config)[name])} ({theirs})" in said
    # What is given, or has no effect, is not told; nor is anything of a recipe of this project.
    said, = loaded(place, dataset_name="openai/gsm8k", use_peft=False, load_in_4bit=False, max_steps=3, beta=0.1).notes
    assert re.findall(r"(\w+)=\S+ \(", said) == [
        "prompts_per_step", "learning_rate", "lr_scheduler_type"]
    assert loaded(place, train_dataset_id_or_path="openai/gsm8k").notes == ()


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_recipe_with_the_keys_of_another_trainer_loads(name: str, place: Path) -> None:
    keys = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    config = loaded(place, "--report_to", "none", **keys)
    assert {option: getattr(config, option) for option in LOADED[name]} == LOADED[name]
    said = " ".join(config.notes)
    for key, value in keys.items():  # honoured, or named, or what is done anyway
        if key in recipe.hidden() and f"{key}=" not in said:
            accepted = [group[key] for table in (foreign.HARMLESS, foreign.CONFLICTS) for group in table.values()
                        if key in group]
            assert recipe._is_one_of(value, *accepted), key
    assert all(getattr(config, key) == convert(options(Config)[key], value)
               for key, value in keys.items() if key in ("seed", "max_steps", "learning_rate", "num_generations"))


def test_there_are_recipes_of_each_family() -> None:
    families = [path.stem.split("-")[0] for path in RECIPES.glob("*.yaml") if "open-r1" not in path.stem]
    assert {*families} == {"aws", "philschmid", "unsloth", "trl"} and len(LOADED) == len(families) + 4 >= 12


def test_a_recipe_with_four_conflicts_is_one_message_that_names_the_four(place: Path) -> None:
    lines = refused(place, top_p=0.9, use_vllm=True, sync_ref_model=True, loss_type="bnpo",
                    optim="lion_8bit", beta=0.1)
    assert lines == [
        "top_p=0.9 is not offered: truncated sampling biases the ratio (eval.py has top_p); nearest valid value: 1",
        "sync_ref_model=True is not offered: the reference stays the policy of step 0; nearest valid value: False",
        "loss_type='bnpo' is not offered: its mean is over a micro-batch, so it depends on how the batch is split; "
        "nearest valid value: dapo",
        "optim='lion_8bit' is not offered: the optimizer is AdamW; nearest valid value: adamw_torch"]


def test_mistakes_of_every_kind_from_file_and_command_line_are_told_together(place: Path) -> None:
    lines = refused(place, "--beta", "-1", "--use_dora", "true", num_generation=8, per_device_train_batch_size=8,
                    steps_per_generation=2, lr_scheduler_kwargs={"power": 2}, reward_funcs=["acuracy", "len_reward"],
                    deepspeed={"zero_optimization": {"stage": 2}}, seed="one", resume_from_checkpoint="elsewhere")
    assert [re.match(r"(unknown option )?\w+", line).group() for line in lines] == [
        "unknown option num_generation", "lr_scheduler_kwargs", "seed", "beta", "use_dora", "steps_per_generation",
        "reward_funcs", "resume_from_checkpoint", "zero_stage"]  # each key alone, then what several say together
    assert "reward_funcs='acuracy' must be format, correctness, " in lines[6]
    assert lines[6].endswith("path/to/file.py:function or module:function; nearest valid value: accuracy_reward")


@pytest.mark.parametrize(("given", "here"), [
    (["accuracy", "format", "tag_count"], ["accuracy_reward", "think_answer_format_reward", "tag_count_reward"]),
    (["length", "format"], ["len_reward", "think_answer_format_reward"]),
    (["tag_count", "correctness"], ["tag_count_reward", "correctness"]),
    (["accuracy", "my.py:brevity"], ["accuracy_reward", "my.py:brevity"]),
])
def test_a_list_of_open_r1_s_names_is_what_open_r1_computes_and_a_line_says_so(
        given: list[str], here: list[str], place: Path) -> None:
    (place / "my.py").write_text("")
    config = loaded(place, reward_funcs=given)
    pairs = [f"{name} is {ours}" for name, ours in zip(given, here) if name != ours]
    assert config.reward_funcs == here
    assert config.notes == (f"reward_funcs, as open-r1 names them: {', '.join(pairs)}",)


def test_format_is_this_project_s_where_nothing_says_otherwise_and_a_foreign_recipe_is_told(place: Path) -> None:
    assert loaded(place, reward_funcs=["format", "correctness"]).notes == ()
    config = loaded(place, reward_funcs=["format"], dataset_name="a/b")
    assert config.reward_funcs == ["format"]
    assert config.notes[-1] == (
        "reward_funcs: format is this project's answer line; open-r1's is think_answer_format_reward")


@pytest.mark.parametrize(("given", "line"), [
    (["accuracy", "format", "correctness"],
     "reward_funcs='format' is of this project or of open-r1: accuracy, format, correctness are names of each; nearest "
     "valid value: think_answer_format_reward"),
    (["accuracy", "cosine"], "reward_funcs='cosine' of open-r1 is not offered: it counts characters, and gives 1 where "
     "it cannot read the solution; nearest valid value: get_cosine_scaled_reward"),
    (["code", "format"], "reward_funcs='code' of open-r1 is not offered: it has its programs run elsewhere, by a "
     "service; nearest valid value: path/to/file.py:function"),
])
def test_a_name_of_open_r1_that_is_doubtful_or_computes_something_else_is_refused(
        given: list[str], line: str, place: Path) -> None:
    assert refused(place, reward_funcs=given) == [line]


def test_arguments_of_open_r1_s_overlong_punishment_become_options(place: Path) -> None:
    name = "get_soft_overlong_punishment"
    config = loaded(place, reward_funcs=["accuracy", "soft_overlong_punishment"], max_completion_len=900)
    assert config.reward_options == {name: {"max_completion_len": 900, "soft_punish_cache": 4096}}
    assert f"{name}: max_completion_len=900, soft_punish_cache=4096" in config.notes
    own = {name: {"max_completion_len": 800}}
    config = loaded(place, reward_funcs=[name], soft_punish_cache=90, reward_options=own)
    assert config.reward_options == {name: {"max_completion_len": 800, "soft_punish_cache": 90}}
    assert loaded(place, reward_funcs=[name]).reward_options is None  # TRL's script has other values than open-r1
    assert loaded(place, soft_punish_cache=4096).notes[:-1] == ()
    assert loaded(place, soft_punish_cache=90).notes[0] == (
        "soft_punish_cache=90 has no effect: soft_overlong_punishment is not in reward_funcs")
    assert refused(place, reward_funcs=[name], max_completion_len=900, reward_options=own) == [
        f"reward_options of {name}: max_completion_len=800 contradicts max_completion_len=900; nearest valid value: "
        "900"]


def test_a_dotted_path_of_trl_names_the_same_function(place: Path) -> None:
    config = loaded(place, reward_funcs=["my_lib.rewards.brevity", "correctness"])
    assert config.reward_funcs == ["my_lib.rewards:brevity", "correctness"]
    assert config.notes == ("reward_funcs: my_lib.rewards.brevity is my_lib.rewards:brevity here",)


def test_a_mistake_hides_no_second_one_that_follows_from_it(place: Path) -> None:
    assert len(refused(place, num_generations="some", per_device_train_batch_size=6)) == 1
    assert len(refused(place, max_grpo_completion_length="x", max_seq_length=100)) == 1
    assert len(refused(place, zero_stage=9, deepspeed={"zero_optimization": {"stage": 2}})) == 1


def test_the_command_line_replaces_what_the_file_says_under_any_name(place: Path) -> None:
    file = dict(top_p=0.9, dataset_name="a/b", bf16=True, lr_scheduler_kwargs={"min_lr": 1e-6}, warmup_steps=5,
                max_seq_length=900, optim="sgd", lr_scheduler_type="cosine_with_min_lr", disable_dropout=True)
    config = loaded(place, "--top_p", "1", "--train_dataset_id_or_path", "c/d", "--dtype", "float32", "--min_lr_rate",
                    "0.5", "--warmup_ratio", "0.1", "--max_prompt_length", "7", "--optim=adamw_torch", "--lora_dropout",
                    "0.1", "--learning_rate", "1e-4", **file)
    assert (config.train_dataset_id_or_path, config.torch_dtype, config.min_lr) == ("c/d", "float32", 5e-5)
    assert (config.warmup_steps, config.warmup_ratio, config.max_prompt_length) == (0.0, 0.1, 7)
    assert config.lora_dropout == 0.1
    assert loaded(place, "--per_device_train_batch_size", "8", per_device_train_batch_size="x").prompts_per_step == 1


def test_a_switch_that_is_off_replaces_nothing(place: Path) -> None:
    config = loaded(place, "--bf16", "false", "--disable_dropout", "False", torch_dtype="bfloat16", lora_dropout=0.05)
    assert (config.torch_dtype, config.lora_dropout) == ("bfloat16", 0.05)


def test_a_plan_counts_the_ranks_that_it_is_for(place: Path) -> None:
    assert loaded(place, "--plan", "4", per_device_train_batch_size=8).prompts_per_step == 4  # 8 * 4 ranks / 8
