"""Recipes and command lines that must be refused, most of them generated from the options themselves. 8 seconds.

What each combination of options means is claimed in test_config.py; here is what a user sees of any mistake.
"""

import sys
from dataclasses import Field
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from refusals import refused

import eval as evaluation_command
import train
from data import gsm8k
from grpo.config import Config
from grpo.options.option import options
from grpo.options.recipe import ForeignNames
from grpo.options.strict_yaml import read_yaml

OF_ANOTHER_TYPE = {bool: "maybe", int: "1.5", float: "1e39", dict: "[1]", str: " "}
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with one rank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    return tmp_path


def kinds(one: Field) -> set[type]:
    """The types that an option or its items may have."""
    return {get_args(kind)[0] if get_origin(kind) is list else kind for kind in get_args(one.type) or [one.type]}


def beside(one: Field) -> list[Any]:
    """Values next to an option's valid ones: just outside each end of its interval, and beside its choices."""
    values = [f"{choice}x" for choice in one.metadata["choices"]]
    if within := one.metadata["within"]:
        step = 1 if int in kinds(one) else 0.001
        for end, closed, away in zip(within[1:-1].split(", "), (within[0] == "[", within[-1] == "]"), (-step, step)):
            if end != "inf":
                values.append(float(end) + away if closed else float(end))
    return [int(value) if int in kinds(one) else value for value in values]


def generated(*classes: type) -> list[tuple[str, Any]]:
    return [(name, value) for cls in classes for name, one in options(cls).items() for value in beside(one)]


@pytest.mark.parametrize(("name", "value"), generated(Config, ForeignNames))
def test_a_value_just_outside_its_range_or_choices_names_the_option_and_the_value(name, value, place, capsys) -> None:
    line = refused(train.main, [f"--{name}={value}"], place, capsys)
    assert line.startswith(f"error: {name}=") and str(value) in line and "; nearest valid value: " in line


@pytest.mark.parametrize(("name", "value"), generated(evaluation_command.Settings))
def test_so_does_one_of_the_evaluation(name, value, place, capsys) -> None:
    line = refused(evaluation_command.main, [f"--{name}={value}"], place, capsys)
    assert line.startswith(f"error: {name}=") and str(value) in line and "; nearest valid value: " in line


@pytest.mark.parametrize("one", [one for cls in (Config, ForeignNames) for one in options(cls).values()],
                         ids=lambda one: one.name)
def test_a_value_of_another_type_names_the_option_and_the_value(one, place, capsys) -> None:
    value = next(value for kind, value in OF_ANOTHER_TYPE.items() if kind in kinds(one))
    line = refused(train.main, [f"--{one.name}={value}"], place, capsys)
    assert line.startswith(f"error: {one.name}={value!r} must be ") and "; nearest valid value: " in line


# content of a recipe, words of the line
RECIPES = [
    (b"", ["config='a.yaml'", "must hold a mapping, not a NoneType"]),
    (bytes(range(256)), ["must be YAML", "can't decode byte 0x80"]),
    (b"seed: 1\x00", ["must be YAML", "#x0000"]),
    (b"output_dir: caf\xe9", ["must be YAML", "can't decode byte 0xe9"]),
    (b"seed: 1\n\tbeta: 2", ["must be YAML", "'\\t' that cannot start any token", "line 2"]),
    (b"seed: 1\nbeta: 0.1\nseed: 2", ["the key 'seed' comes twice", "line 3"]),
    (b"deepspeed: {zero_optimization: {stage: 2, stage: 3}}", ["the key 'stage' comes twice"]),
    (b"seed: 1\n---\nseed: 2", ["expected a single document"]),
    (ALIASES.encode(), ["the alias *a must be written out"]),
    (b"deepspeed: &a {x: *a}", ["the alias *a must be written out"]),
    (b"seed: " + b"[" * 1200 + b"]" * 1200, ["nested too deeply"]),
    (b'seed: !!python/object/apply:os.system ["touch ran"]', ["could not determine a constructor"]),
    (b"? [a]\n: 1", ["unhashable key"]),
    (b"'a\\nb': 1\n", ["unknown option a\\nb=1"]),
    (b'"a\\nb": 1\n', ["unknown option a\\nb=1"]),
    (b'"\\e[31mseed": 1', ["unknown option \\x1b[31mseed=1", "nearest known one: seed"]),
    (b"1: 2", ["unknown option 1=2"]),
    (b"notes: [a]", ["unknown option notes=['a']"]),
    (b"config: other.yaml", ["unknown option config='other.yaml'"]),
    (b"seed: {a: 1}", ["seed={'a': 1} must be a whole number"]),
    (b"seed: [1]", ["seed=[1] must be a whole number"]),
    (b"seed: null", ["seed=None must be a whole number"]),
    (b"seed: 1.0", ["seed=1.0 must be a whole number", "nearest valid value: 1"]),
    (b"seed: true", ["seed=True must be a whole number"]),
    (b"beta: true", ["beta=True must be a finite number"]),
    (b"beta: .nan", ["beta=nan must be a finite number"]),
    (b"learning_rate: .inf", ["learning_rate=inf must be a finite number"]),
    (b"learning_rate: 1e-50", ["learning_rate='1e-50' must be a finite number that float32 holds"]),
    (b"beta: 1" + b"0" * 400, ["beta=1000", "...", "must be a finite number"]),
    (b"max_steps: 1" + b"0" * 400, ["max_steps=1000", "...", "at most 64 bits"]),
    (b"max_steps: 1" + b"0" * 5000, ["must be YAML", "4300 digits"]),
    (b"max_steps: -0x8000000000000001", ["max_steps=-9223372036854775809", "at most 64 bits"]),
    (b"model_name_or_path: 7", ["model_name_or_path=7 must be text", "'7'"]),
    (b"model_name_or_path: null", ["model_name_or_path=None must be text"]),
    (b"output_dir: 2020-01-01", ["output_dir=datetime.date(2020, 1, 1) must be text"]),
    (b'output_dir: "a\\0b"', ["output_dir='a\\x00b' must be text", "control characters"]),
    (b'output_dir: "\\ud800"', ["output_dir='\\ud800' must be text", "control characters"]),
    (b"output_dir: ~/runs", ["output_dir='~/runs'", "a shell would replace its ~"]),
    (b"reward_weights: [.nan, 1]", ["reward_weights=nan must be a finite number"]),
    (b"reward_weights: [null, 1]", ["reward_weights=None must be a finite number"]),
    (b"reward_funcs: [null]", ["reward_funcs=None must be text"]),
    (b"reward_funcs: {a: 1}", ["reward_funcs={'a': 1} must be text"]),
    (b"reward_funcs: []", ["reward_funcs=[]", "at least one function"]),
    (b"reward_funcs: [format, format]", ["reward_funcs=['format', 'format']", "rename one"]),
    (b"reward_funcs: [fromat, correctness]", ["reward_funcs='fromat'", "nearest valid value: format"]),
    (b"reward_funcs: [':f', correctness]", ["reward_funcs=':f'", "path/to/file.py:function"]),
    (b"lora_target_modules: []", ["lora_target_modules=[]", "all-linear"]),
    (b"gradient_checkpointing_kwargs: {nonsense: true}", ["{'nonsense': True}", "use_reentrant"]),
    (b"gradient_checkpointing_kwargs: {use_reentrant: 1}", ["{'use_reentrant': 1}", "true or false"]),
]


@pytest.mark.parametrize(("content", "words"), RECIPES, ids=[content[:40] for content, _ in RECIPES])
def test_a_recipe_that_is_no_recipe_is_one_line(content, words, place, capsys) -> None:
    (place / "a.yaml").write_bytes(content)
    line = refused(train.main, ["--config", "a.yaml"], place, capsys)
    assert all(word in line for word in words), line


DEEPSPEED = [
    ("{zero_optimization: []}", ["'zero_optimization': []", "must have a mapping there"]),
    ("{zero_optimization: null}", ["'zero_optimization': None", "must have a mapping there"]),
    ("{zero_optimization: {stage: three}}", ["contradicts stage 'three'", "without stage"]),
    ("{zero_optimization: {stage: auto}}", ["filled in by another trainer"]),
    ("{zero_optimization: {reduce_bucket_size: auto}}", ["filled in by another trainer"]),
    ("{zero_optimization: {offload_optimizer: {device: cpu}}}", ["offload_optimizer", "is not offered"]),
    ("{bf16: {enabled: true}}", ["is set by the option torch_dtype"]),
    ("{fp16: {enabled: true}}", ["is set by the option torch_dtype"]),
    ("{gradient_accumulation_steps: 4}", ["is set by the option micro_batch_tokens"]),
    ("{train_batch_size: auto}", ["is set by the option prompts_per_step"]),
    ("{gradient_clipping: 5}", ["is set by the option max_grad_norm"]),
    ("{optimizer: {type: Adam}}", ["is set by the option learning_rate"]),
    ("{scheduler: {type: WarmupLR}}", ["is set by the option lr_scheduler_type"]),
    ("{zero_optimisation: {}}", ["unknown key", "nearest valid value: zero_optimization"]),
    ("{1: 2}", ["{1: 2}", "unknown key"]),
    ("{steps_per_print: often}", ["'often'", "must have a whole number there"]),
    ("{steps_per_print: 0}", ["{'steps_per_print': 0}", "at least 1", "valid value: 1"]),
    ("{wall_clock_breakdown: 1}", ["{'wall_clock_breakdown': 1}", "must have true or false there"]),
    ("{communication_data_type: fp17}", ["'fp17'}", "must have one of fp32, bf16, fp16 there", "valid value: fp16"]),
    ("{communication_data_type: null}", ["None}", "must have text there"]),
    ("{data_types: 3}", ["must have a mapping there"]),
    ("{data_types: {grad_accum_dtype: fp17}}",
     ["{'data_types': {'grad_accum_dtype': 'fp17'}}", "must have one of fp32, bf16, fp16 there", "valid value: fp16"]),
    ("{data_types: {grad_accum_dtype: int8}}", ["'int8'", "must have one of fp32, bf16, fp16 there"]),
    ("{data_types: {grad_accum_dtype: 3}}", ["must have one of fp32, bf16, fp16 there"]),
    ("{data_types: {grad_acum_dtype: fp32}}", ["unknown key", "nearest valid value: grad_accum_dtype"]),
    ("{data_types: {param_dtype: bf16}}", ["{'param_dtype': 'bf16'}", "unknown key"]),
    ("{zero_optimization: {1: 2}}", ["{1: 2}", "unknown key"]),
    ("{zero_optimization: {cpu_offload: true}}", ["{'cpu_offload': True}", "is not offered"]),
    ("{zero_optimization: {zenflow: {}}}", ["{'zenflow': {}}", "is not offered"]),
    ("{zero_optimization: {compute_grad_norm: false}}", ["{'compute_grad_norm': False}", "is not offered"]),
    ("{data_types: {}, data_types: {}}", ["must be a mapping"]),
]


@pytest.mark.parametrize(("mapping", "words"), DEEPSPEED)
def test_deepspeed_settings_that_would_be_passed_over_or_contradict_an_option_are_refused(
    mapping, words, place, capsys
) -> None:
    line = refused(train.main, ["--deepspeed", mapping], place, capsys)
    assert all(word in line for word in words), line
    assert line.startswith(("error: deepspeed=", "error: zero_stage=")) and "; nearest valid value: " in line


def test_without_zero_gradients_add_up_in_the_type_of_the_weights(place, capsys) -> None:
    asked = ["--zero_stage", "0", "--deepspeed", "{data_types: {grad_accum_dtype: fp32}}"]
    assert "needs zero_stage of at least 1" in refused(train.main, asked, place, capsys)


def test_an_output_folder_that_cannot_be_made_is_refused_by_every_command(place, capsys, monkeypatch) -> None:
    (place / "file").write_text("kept")
    (place / "dangling").symlink_to(place / "nowhere")
    prepare = lambda argv: run_module(["--input", "file", *argv], monkeypatch)  # noqa: E731
    commands = {"output_dir": train.main, "output": evaluation_command.main, "--output_dir": prepare}
    for path, words in (("file/run", "file is no folder"), ("dangling/run", "dangling is no folder"),
                        ("dangling", "dangling is no folder")):
        for option, command in commands.items():
            line = refused(command, [f"--{option.lstrip('-')}", path], place, capsys)
            assert line.startswith(f"error: {option.lstrip('-')}={path!r} cannot be made: {words}"), line
    for name in ("x" * 300, "x/" * 3000):
        line = refused(train.main, ["--output_dir", name], place, capsys)
        assert "cannot be looked up: File name too long" in line and "..." in line


def run_module(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`python -m data.gsm8k`, in this process."""
    monkeypatch.setattr(sys, "argv", ["gsm8k.py", *argv])
    with pytest.raises(SystemExit) as caught:
        gsm8k.main()
    return caught.value.code


COMMANDS = [
    (train.main, "word", ["unknown option word"]),
    (train.main, "--", ["unknown option --"]),
    (train.main, "--seed=1=2", ["seed='1=2' must be a whole number"]),
    (train.main, "--config .", ["config='.' must be a recipe file"]),
    (train.main, f"--train_dataset_id_or_path {'x' * 300}.json", ["File name too long", "train_dataset_id_or_path"]),
    (train.main, f"--reward_funcs {'x' * 300}.py:f", ["File name too long", "reward_funcs"]),
    (train.main, "--micro_batch_tokens 300 --max_completion_length 300 --max_prompt_length 9",
     ["micro_batch_tokens=300 must fit the longest prompt with a completion", "valid value: 309"]),
    (evaluation_command.main, "--num_shots", ["num_shots=[]", "at least one number"]),
    (evaluation_command.main, "--model data/nothing/here", ["data/nothing/here"]),
    (evaluation_command.main, "--shots 1", ["unknown option --shots", "--num_shots"]),
]


@pytest.mark.parametrize(("command", "argv", "words"), COMMANDS, ids=[case[1][:30] for case in COMMANDS])
def test_a_command_line_that_asks_for_nothing_that_exists_is_one_line(command, argv, words, place, capsys) -> None:
    line = refused(command, argv.split(" "), place, capsys)
    assert all(word in line for word in words), line


def test_what_yaml_allows_and_a_recipe_needs_is_still_read() -> None:
    text = "\ufeffseed: 1_000\nbeta: -0.0\nlora_target_modules: &names [q_proj]\n"
    assert read_yaml(text) == {"seed": 1000, "beta": 0.0, "lora_target_modules": ["q_proj"]}
