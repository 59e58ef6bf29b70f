"""Runs from Python: grpo.train, in a process that goes on. 10 seconds."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch.distributed as dist
from refusals import save_small_run
from safetensors.torch import load_file

import grpo
from grpo.health import last_words
from grpo.health.pulse import pulse
from grpo.run.command import load

REWARDS = """
def letters(completions, **columns):
    return [float(len(text)) for text in completions]

def stops(completions, **columns):
    import os, signal
    os.kill({}, signal.SIGINT)
    return [0.0 for _ in completions]
"""
GROUP = []  # whether tests before these have left this process in one
MEASURED = ("_s", "_bytes", "prefill_share")  # ends of names: they differ from run to run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    save_small_run(folder)
    GROUP[:] = [dist.is_initialized()]
    (folder / "own.py").write_text(REWARDS.format(os.getpid()))
    return folder


def config(folder: Path, output: str, **changed: object) -> grpo.Config:
    return grpo.Config(**{
        "model_name_or_path": folder / "model", "train_dataset_id_or_path": folder / "data.json",
        "output_dir": folder / output, "eval_examples": 0, "max_completion_length": 8, "prompts_per_step": 2,
        "num_generations": 4, "max_steps": 2, "save_strategy": "no", "zero_stage": 0, "learning_rate": 1e-2,
        "reward_funcs": f"{folder / 'own.py'}:letters", **changed})


def environment() -> dict[str, str]:
    """Without what PyTorch sets to its default."""
    return {name: one for name, one in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}


def computed(output: str) -> tuple[list[dict], dict[str, list]]:
    """The metrics of a run that do not depend on the clock, and its adapter."""
    records = [json.loads(line) for line in Path(output, "metrics.jsonl").read_text().splitlines()]
    weights = load_file(Path(output, "adapter", "adapter_model.safetensors"))
    return ([{name: one for name, one in record.items() if not name.endswith(MEASURED)} for record in records],
            {name: tensor.tolist() for name, tensor in weights.items()})


def test_a_run_computes_the_same_after_another_one_and_leaves_the_process_as_it_was(folder: Path) -> None:
    assert grpo.train  # the import sets three variables with which CPU memory is used well
    # A shell that starts the tests in the background has them ignore SIGINT.
    before, on_interrupt = environment(), signal.getsignal(signal.SIGINT)
    first, other, again = (
        grpo.train(config(folder, "first")),
        grpo.train(config(folder, "other", zero_stage=3, seed=7, temperature=0.5, load_in_4bit=False)),
        grpo.train(config(folder, "again")))
    assert computed(first.output_dir) == computed(again.output_dir) != computed(other.output_dir)
    assert environment() == before
    assert [dist.is_initialized()] == GROUP and signal.getsignal(signal.SIGINT) is on_interrupt
    assert pulse.step is None  # or the next message would begin with an empty line, below a progress bar


def test_the_summary_is_the_object_on_file(folder: Path) -> None:
    summary = grpo.train(config(folder, "summed", max_steps=1, eval_examples=1, num_generations_eval=0,
                                test_dataset_id_or_path=folder / "data.json"))
    assert grpo.Summary(**json.loads((folder / "summed" / "summary.json").read_text())) == summary
    assert asdict(summary) | {"seconds": 0} == {
        "steps": 1, "ranks": 1, "seconds": 0, "output_dir": str(folder / "summed"),
        "weights": str(folder / "summed" / "adapter"), "exported_step": 1, "accuracy_before": None,
        "accuracy_after": None, "p_value": None, "greedy_accuracy_before": 0.0, "greedy_accuracy_after": 0.0,
        "greedy_p_value": 1.0}


def test_from_python_and_from_the_command_line_the_options_are_the_same(folder: Path) -> None:
    mine = config(folder, "new", lora_target_modules="q_proj", beta=0, report_to=None)
    argv = [word for name in ("model_name_or_path", "train_dataset_id_or_path", "output_dir", "eval_examples",
                              "max_completion_length", "prompts_per_step", "num_generations", "max_steps",
                              "save_strategy", "zero_stage", "learning_rate", "reward_funcs", "lora_target_modules",
                              "beta") for word in (f"--{name}", *map(str, [getattr(mine, name)].pop()
                                                   if isinstance(getattr(mine, name), list) else
                                                   [getattr(mine, name)]))]
    assert load(argv) == mine


@pytest.mark.parametrize(("changed", "line"), [
    ({"max_steps": "3.5"}, "max_steps='3.5' must be a whole number"),
    ({"reward_funcs": [lambda completions: [1.0]]}, "must find it by its name at the top of a file"),
    ({"reward_funcs": ["format"], "reward_weights": [1, 2]}, "must have one number for each of the 1 reward_funcs"),
    ({"model_name_or_path": "./nowhere"}, "model_name_or_path='./nowhere' must be a folder that holds config.json"),
    ({"plan": 8}, "plan=8 trains nothing: it is for the command"),
    ({"train_dataset_id_or_path": "own.py"}, "own.py:2: must be JSON"),
])
def test_a_mistake_is_a_value_error_of_one_line(folder: Path, changed: dict, line: str, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError) as raised:
        grpo.train(config(folder, "refused", **changed))
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not (folder / "refused").exists() and [dist.is_initialized()] == GROUP


def test_a_run_that_is_interrupted_raises_keyboard_interrupt(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="what there is of the run is in .*stopped"):
        grpo.train(config(folder, "stopped", reward_funcs=f"{folder / 'own.py'}:stops"))
    assert not (folder / "stopped" / "summary.json").exists() and [dist.is_initialized()] == GROUP
    assert last_words.advised("hello") == "hello"  # and not how this run goes on


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'grpo' has no attribute 'trian'"):
        grpo.trian


def test_gradients_that_add_up_in_bfloat16_are_announced(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for dtype, stage, said in (("bfloat16", 0, True), ("float32", 0, False), ("bfloat16", 1, False)):
        grpo.train(config(folder, f"{dtype}{stage}", max_steps=1, torch_dtype=dtype, zero_stage=stage))
        assert ("zero_stage=0 adds up the gradients of micro-batches in bfloat16" in capsys.readouterr().out) == said
