"""Recipes of other trainers: every key is honoured, harmless or refused, and public recipes load. 4 seconds.

What a key of TRL or transformers is comes from peer_fields.json, which peer_fields.py reads from the installed classes.
"""

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

import peer_fields
import pytest
import yaml

from grpo.config import Config, load
from grpo.options import foreign, recipe
from grpo.options.derived import SIZES
from grpo.options.option import convert, default_of, options

RECIPES = Path(__file__).parent / "recipes"
PEERS = {"trl": peer_fields.committed("trl"), "transformers": peer_fields.committed("transformers")}
DEFAULTS = {**PEERS["transformers"]["TrainingArguments"], **PEERS["trl"]["ScriptArguments"],
            **PEERS["trl"]["ModelConfig"], **PEERS["trl"]["GRPOConfig"]}
NOT_BUILT = {*foreign.SAME, *foreign.RENAMED.values()} - {*options(Config)}  # options that another change brings
NOT_BUILT |= {name for name, option in foreign.RENAMED.items() if option in NOT_BUILT}
LOADED: dict[str, dict[str, Any]] = {
    "open-r1-demo": {
        "min_lr": pytest.approx(2e-6), "lr_scheduler_type": "cosine_with_min_lr", "prompts_per_step": 4, "max_prompt_length": 512,
        "prompt_column": "problem", "train_dataset_id_or_path": "AI-MO/NuminaMath-TIR"},
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
        "max_prompt_length": 768, "lora_modules_to_save": ["lm_head", "embed_tokens"], "prompts_per_step": 2},
    "philschmid-countdown": {"prompts_per_step": 1, "learning_rate": 5e-7, "tf32": True},
    "philschmid-qlora": {"max_grad_norm": 0.3, "lora_alpha": 16, "lr_scheduler_type": "constant"},
    "unsloth-notebook": {
        "adam_beta2": 0.99, "weight_decay": 0.1, "gradient_checkpointing": "true", "seed": 3407,
        "torch_dtype": "bfloat16", "prompts_per_step": 1},
    "unsloth-arguments": {"max_prompt_length": 512, "prompts_per_step": 4, "max_grad_norm": 0.1},
    "trl-script": {
        "kl_estimator": "k3", "epsilon_high": 0.28, "warmup_steps": 0.1, "run_name": "first", "prompts_per_step": 8},
    "trl-zero": {
        "deepspeed": {"zero_optimization": {"stage": 3, "overlap_comm": True}}, "lora_dropout": 0.0,
        "ddp_timeout": 3600, "resume": False, "prompts_per_step": 4},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in with one rank, with the data of the recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1 + 1"}')
    shutil.copy(RECIPES / "zero3.json", tmp_path)
    return tmp_path


def loaded(place: Path, *argv: str, **keys: Any) -> Config:
    """The configuration of a recipe with these keys, which alone would load without a note."""
    built = {name: value for name, value in keys.items() if name not in NOT_BUILT}
    (place / "a.yaml").write_text(yaml.safe_dump(built, sort_keys=False))
    return load(["--config", "a.yaml", *argv])


def refused(place: Path, *argv: str, **keys: Any) -> list[str]:
    with pytest.raises(ValueError) as caught:
        loaded(place, *argv, **keys)
    return str(caught.value).split("\n")


def notes(place: Path, *argv: str, **keys: Any) -> list[str]:
    """What is said of a recipe with these keys, besides what it leaves to defaults."""
    return [line for line in loaded(place, *argv, **keys).notes if not line.startswith("not in the recipe")]


# The table


def test_every_key_has_one_place_in_the_table() -> None:
    places = [*foreign.SAME, *options(recipe.ForeignNames), *foreign.RENAMED, *recipe.hidden()]
    assert len(places) == len({*places})
    assert DEFAULTS.keys() - {*places} == set()
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
    # Two defaults are worth a line: this project always does the opposite, and never less than it.
    assert said == [] or name == "use_bnb_nested_quant"


def test_no_default_of_trl_that_is_another_one_here_is_passed_over_in_silence(place: Path) -> None:
    """Only those with an influence on what is learnt, and of one value: batch and checkpoints are a run's own matter."""
    other = {"output_dir", "max_steps", "gradient_checkpointing", "save_steps", "logging_steps", "report_to",
             "model_name_or_path", "lora_target_modules", "dtype", "lora_modules_to_save", "epsilon_high"}
    same = [name for name in foreign.SAME if name in DEFAULTS and name not in NOT_BUILT | other]
    differing = {name: DEFAULTS[name] for name in same
                 if DEFAULTS[name] is not None and DEFAULTS[name] != default_of(options(Config)[name])}
    assert differing == foreign.DEFAULTS
    said, = loaded(place, dataset_name="openai/gsm8k").notes
    for name, theirs in foreign.DEFAULTS.items():
        assert f"{name}={default_of(options(Config)[name])} ({theirs})" in said
    # What is given, or has no effect, is not told; nor is anything of a recipe of this project.
    said, = loaded(place, dataset_name="openai/gsm8k", use_peft=False, load_in_4bit=False, max_steps=3, beta=0.1).notes
    assert re.findall(r"(\w+)=", said) == ["max_completion_length", "learning_rate", "lr_scheduler_type"]
    assert loaded(place, train_dataset_id_or_path="openai/gsm8k").notes == ()


# Public recipes


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
    lines = refused(place, top_p=0.9, use_vllm=True, importance_sampling_level="sequence", loss_type="bnpo",
                    optim="lion_8bit", beta=0.1)
    assert lines == [
        "top_p=0.9 is not offered: truncated sampling biases the ratio (eval.py has top_p); nearest valid value: 1",
        "importance_sampling_level='sequence' is not offered: the ratio is one of tokens; nearest valid value: token",
        "loss_type='bnpo' is not offered: its mean is over a micro-batch, so it depends on how the batch is split; "
        "nearest valid value: dapo",
        "optim='lion_8bit' is not offered: the optimizer is AdamW; nearest valid value: adamw_torch"]


def test_mistakes_of_every_kind_from_file_and_command_line_are_told_together(place: Path) -> None:
    lines = refused(place, "--beta", "-1", "--delta", "2", num_generation=8, per_device_train_batch_size=8,
                    steps_per_generation=2, lr_scheduler_kwargs={"power": 2}, reward_funcs=["accuracy", "tag_count"],
                    deepspeed={"zero_optimization": {"stage": 2}}, seed="one", resume_from_checkpoint="elsewhere")
    assert [re.match(r"(unknown option )?\w+", line).group() for line in lines] == [
        "unknown option num_generation", "lr_scheduler_kwargs", "seed", "beta", "delta", "steps_per_generation",
        "reward_funcs", "resume_from_checkpoint", "zero_stage"]  # each key alone, then what several say together
    assert "reward_funcs=['accuracy', 'tag_count'] must be format, correctness or path/to/file.py:function" in lines[6]


def test_a_mistake_hides_no_second_one_that_follows_from_it(place: Path) -> None:
    assert len(refused(place, num_generations="some", per_device_train_batch_size=6)) == 1
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


# Keys one by one


@pytest.mark.parametrize("name, value, word", [
    ("use_vllm", True, "this project's own sampler"), ("use_liger_kernel", True, "logprob_impl"),
    ("eval_strategy", "steps", "before and after the training"), ("eval_steps", 100, "before and after"),
    ("save_only_model", True, "what resume needs"), ("overwrite_output_dir", True, "never written over"),
    ("torch_compile", "true", "torch.compile is not used"), ("num_completions_to_print", 4, "completions.jsonl"),
    ("fsdp", "full_shard", "ZeRO shards"), ("data_seed", 7, "seed orders the data"),
    ("env", {"WANDB_PROJECT": "p"}, "environment"), ("logging_strategy", False, "logging_steps"),
])
def test_a_harmless_key_is_named_in_one_line(name: str, value: Any, word: str, place: Path) -> None:
    line, = notes(place, **{name: value})
    assert line.startswith(f"{name}={value!r} has no effect: ") and word in line


@pytest.mark.parametrize("name, value, valid", [
    ("top_k", 50, "0"), ("min_p", 0.1, "0"), ("repetition_penalty", 1.1, "1"), ("generation_kwargs", {"a": 1}, "none"),
    ("vllm_sampling_params", {"min_p": 0.1}, "none"), ("delta", 2.0, "none"), ("sync_ref_model", True, "False"),
    ("multi_objective_aggregation", "normalize_then_sum", "sum_then_normalize"), ("entropy_coef", 0.01, "0"),
    ("top_entropy_quantile", 0.2, "1"), ("use_rslora", True, "False"), ("use_dora", True, "False"),
    ("load_in_8bit", True, "False"), ("bnb_4bit_quant_type", "fp4", "nf4"), ("fp16", True, "False"),
    ("shuffle_dataset", False, "True"), ("load_best_model_at_end", True, "False"), ("adafactor", True, "False"),
    ("neftune_noise_alpha", 5, "none"), ("reward_fn", "a.py", "none"), ("model_init_kwargs", {"a": 1}, "none"),
    ("optim", "galore_adamw", "adamw_torch"), ("ignore_data_skip", True, "False"),
])
def test_what_would_compute_something_else_is_refused(name: str, value: Any, valid: str, place: Path) -> None:
    line, = refused(place, **{name: value})
    assert line.startswith(f"{name}={value!r} is not offered: ") and line.endswith(f"; nearest valid value: {valid}")


@pytest.mark.parametrize("optim, said", [
    ("adamw_torch", []), ("adamw_torch_fused", []),
    ("adamw_8bit", ["optim='adamw_8bit' is AdamW with both averages in float32, which is the same equation without the "
                    "rounding, and more memory"]),
    ("paged_adamw_32bit", ["optim='paged_adamw_32bit' is AdamW, with its averages where ZeRO puts them"]),
])
def test_what_is_adamw_there_is_adamw_here(optim: str, said: list[str], place: Path) -> None:
    assert notes(place, optim=optim) == said


def test_a_token_for_the_hub_is_not_shown(place: Path) -> None:
    line, = notes(place, hub_token="hf_secret")
    assert line.startswith("hub_token has no effect") and "secret" not in line


def test_values_of_the_command_line_are_read_as_in_a_recipe(place: Path) -> None:
    said = notes(place, "--use_vllm", "--eval_strategy", "no", "--top_p", "1.0", "--vllm_server_port", "9",
                 "--include_for_metrics", "a", "b", "--model_init_kwargs", "{}", "--delta", "none", "--debug", "[")
    assert [line.split(" has no effect")[0] for line in said] == [
        "use_vllm=True", "vllm_server_port=9", "include_for_metrics=['a', 'b']", "debug='['"]


def test_two_names_of_an_option_must_agree(place: Path) -> None:
    assert loaded(place, dtype="float32", torch_dtype="float32").torch_dtype == "float32"
    line, = refused(place, dtype="float32", torch_dtype="bfloat16")
    assert line == "torch_dtype='bfloat16' contradicts dtype=float32, which makes it float32; nearest valid value: float32"
    line, = refused(place, dataset_name="a/b", dataset_id_or_path="a/c")
    assert line.startswith("train_dataset_id_or_path='a/b' contradicts dataset_id_or_path=a/c")
    assert refused(place, max_grpo_completion_length="x")[0].startswith("max_grpo_completion_length='x' must be a whole")


def test_a_correction_of_the_kl_is_an_estimator(place: Path) -> None:
    assert loaded(place, use_bias_correction_kl=True).kl_estimator == "k3_unbiased"
    assert loaded(place, use_bias_correction_kl=False).kl_estimator == "k3"
    assert refused(place, use_bias_correction_kl=True, kl_estimator="k1")[0].startswith("kl_estimator='k1' contradicts")


@pytest.mark.parametrize("keys, line", [
    # 8 completions a rank * 1 rank * 2 = 16 completions a step
    (dict(generation_batch_size=32), "generation_batch_size=32 contradicts per_device_train_batch_size=8 * 1 ranks * "
     "gradient_accumulation_steps=2: completions are used in the step that they are sampled for, and only there; "
     "nearest valid value: 16"),
    (dict(steps_per_generation=4), "steps_per_generation=4 contradicts per_device_train_batch_size=8 * 1 ranks * "
     "gradient_accumulation_steps=2: completions are used in the step that they are sampled for, and only there; "
     "nearest valid value: 2"),
])
def test_completions_of_a_later_step_are_refused(keys: dict, line: str, place: Path) -> None:
    batch = dict(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert refused(place, **batch, **keys) == [line]
    assert loaded(place, **batch, generation_batch_size=16, steps_per_generation=2).prompts_per_step == 2
    assert refused(place, **keys)[0].endswith("needs per_device_train_batch_size too; nearest valid value: "
                                              "per_device_train_batch_size=8")
    assert {*keys} <= {*SIZES}


def test_the_rate_ends_at_min_lr_however_it_is_said(place: Path) -> None:
    cosine = dict(lr_scheduler_type="cosine_with_min_lr", learning_rate=1e-4)
    assert loaded(place, **cosine, min_lr="2e-5").min_lr == 2e-5
    assert loaded(place, **cosine, lr_scheduler_kwargs={"min_lr": "2e-5"}).min_lr == 2e-5
    config = loaded(place, **cosine, lr_scheduler_kwargs={"min_lr_rate": 0.25})
    assert config.min_lr == 2.5e-5 and "min_lr_rate=0.25 * learning_rate=0.0001 = min_lr=2.5e-05" in config.notes
    assert loaded(place, **cosine, min_lr_rate=0).min_lr == 0.0
    assert refused(place, **cosine) == [
        "lr_scheduler_type='cosine_with_min_lr' needs min_lr; nearest valid value: min_lr=1e-05"]
    assert refused(place, **cosine, min_lr=2e-4)[0].startswith("min_lr=0.0002 must be at most learning_rate=0.0001")
    assert refused(place, **cosine, lr_scheduler_kwargs={"min_lr_rate": 2})[0].startswith("min_lr_rate=2.0 must lie in")
    assert refused(place, **cosine, min_lr=1e-5, min_lr_rate=0.2)[0].startswith("min_lr=1e-05 contradicts")
    assert notes(place, min_lr=1e-5) == ["min_lr=1e-05 has no effect: lr_scheduler_type is not cosine_with_min_lr"]


def test_a_constant_rate_with_a_warm_up_is_what_transformers_calls_constant_with_warmup(place: Path) -> None:
    there = dict(dataset_name="a/b", warmup_ratio=0.1)
    assert notes(place, **there, lr_scheduler_type="constant_with_warmup") == []
    assert notes(place, **there, lr_scheduler_type="constant") == [
        "lr_scheduler_type='constant' warms up here; that of transformers does not"]
    assert notes(place, warmup_steps=3, warmup_ratio=0.1) == ["warmup_ratio=0.1 has no effect: warmup_steps comes first"]


def test_a_run_goes_on_only_from_the_newest_checkpoint_of_its_folder(place: Path) -> None:
    for step in (9, 10):
        (place / "run" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    newest = str(place / "run" / "checkpoints" / "step-10")
    for value in (True, "true", "run", "run/", "run/checkpoints/step-10", newest):
        assert loaded(place, output_dir="run", resume_from_checkpoint=value).resume, value
    assert not loaded(place, output_dir="new", resume_from_checkpoint=False).resume
    line, = refused(place, output_dir="run", resume_from_checkpoint="run/checkpoints/step-9")
    assert line == ("resume_from_checkpoint='run/checkpoints/step-9' must be true, output_dir='run' or its newest "
                    "checkpoint: a run goes on in its own folder, from there; nearest valid value: "
                    "run/checkpoints/step-10")
    assert refused(place, output_dir="new", resume_from_checkpoint="run")[0].endswith("nearest valid value: true")
    assert refused(place, output_dir="new", resume_from_checkpoint=True)[0].startswith("resume=True needs a checkpoint")


def test_a_name_of_the_run_is_for_trackers_that_show_one(place: Path) -> None:
    line = "run_name='first' has no effect: report_to has neither mlflow nor wandb"
    assert notes(place, run_name="first") == [line]


# DeepSpeed files


def test_a_deepspeed_file_leaves_to_the_options_what_is_auto_in_it(place: Path) -> None:
    config = loaded(place, deepspeed="zero3.json")
    assert config.deepspeed == {"zero_optimization": {"stage": 3, "overlap_comm": True}}
    assert config.notes == (
        "deepspeed='zero3.json' leaves to the options here: fp16, bf16, optimizer.params.lr, optimizer.params.betas, "
        "zero_optimization.reduce_bucket_size, gradient_accumulation_steps, gradient_clipping, train_batch_size, "
        "train_micro_batch_size_per_gpu",)


@pytest.mark.parametrize("content, words", [
    ('{"gradient_clipping": 1.0}', "is set by the option max_grad_norm"),
    ('{"bf16": {"enabled": true}}', "is set by the option torch_dtype"),
    ('{"bf16": {"enabled": false}}', "is set by the option torch_dtype"),
    ('{"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}', "is set by the option learning_rate"),
    ('{"optimizer": {"type": "Lion", "params": {"lr": "auto"}}}', "is set by the option learning_rate"),
    ('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}', "it needs another AdamW"),
    ('{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}', "the option lr_scheduler_type"),
    ('{"zero_optimization": {"stage": 2}}', "contradicts stage 2 of the option deepspeed"),
    ('{"fp16": {"enabled": true}}', "is set by the option torch_dtype"),
    ("[1]", "must hold a mapping, not a list"), ("{", "or a JSON file that holds one, but Expecting property name"),
    ('{"a": 1, "a": 2}', "the key 'a' comes twice"), ("", "but Expecting value"), ("[" * 10**5, "but maximum recursion"),
])
def test_the_rest_of_a_deepspeed_file_is_checked_as_a_mapping_is(content: str, words: str, place: Path) -> None:
    (place / "ds.json").write_text(content)
    line, = refused(place, deepspeed="ds.json")
    assert words in line and line.startswith(("deepspeed=", "zero_stage="))


def test_what_a_deepspeed_file_switches_off_is_not_there(place: Path) -> None:
    (place / "ds.json").write_text('{"fp16": {"enabled": false}, "zero_optimization": {"stage": "auto"}}')
    assert loaded(place, deepspeed="ds.json").deepspeed == {}
    assert "No such file" in refused(place, deepspeed="none.json")[0]
