"""Which checkpoint is the newest, what is put back from one, and what a continuation may change. 4 seconds."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from grpo.config import Config
from grpo.options.option import options
from grpo.saving import checkpoint, content, continuation

# Where a run goes on, how fast, and what it tells; not what it computes.
MAY_DIFFER = {
    "plan", "doctor", "resume", "output_dir", "ddp_timeout", "trust_remote_code",
    "zero_stage", "deepspeed", "micro_batch_tokens", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "logprob_impl", "rollout_slots", "rollout_weights", "rollout_keep",
    "save_strategy", "save_steps", "save_total_limit", "logging_steps", "keep_tokens", "report_to", "run_name",
    "max_skipped_steps", "reward_timeout", "reward_memory", "max_reward_failures",
    "eval_strategy", "eval_steps", "early_stopping_patience",
    # Names and paths: test_moved.py has what they hold.
    "model_name_or_path", "tokenizer_name_or_path", "adapter_name_or_path", "train_dataset_id_or_path",
    "test_dataset_id_or_path", "model_revision", "dataset_config",
}
READ = {"data": {"num_examples": 1, "sha256": "of prompts"}, "adapter": None, "content": {}, "reward_files": {}}


def test_step_10_is_newer_than_step_9(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-100", ".step-200", "step-best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [folder.name for folder in checkpoint._numbered(tmp_path)] == ["step-100", "step-10", "step-9"]
    old = checkpoint._superfluous(tmp_path, step=10, save_total_limit=1, keep=None)
    assert [folder.name for folder in old] == ["step-100", "step-9"]  # the first is of a course that was left
    old = checkpoint._superfluous(tmp_path, step=10, save_total_limit=1, keep=9)
    assert [folder.name for folder in old] == ["step-100"]


def test_what_a_checkpoint_holds_is_put_back(tmp_path: Path) -> None:
    tensors = dict(zip(("master", "exp_avg", "exp_avg_sq"), torch.arange(6.0).view(3, 2)))
    save_file({f"w:{kind}": tensor.clone() for kind, tensor in tensors.items()}, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps({"step": 7, "optimizer_steps": 5, "skipped_steps": 2}))
    weight, calls = torch.nn.Parameter(torch.zeros(2)), []
    engine = SimpleNamespace(
        trainable={"w": weight}, skipped_steps=0, start_optimizer=lambda steps: calls.append(steps),
        set_state=lambda parameter, state: calls.append((parameter, state)))
    assert checkpoint.restore(engine, tmp_path) == 7 and engine.skipped_steps == 2
    started, (parameter, state) = calls
    assert started == 5 and parameter is weight and state.keys() == tensors.keys()
    assert all(torch.equal(state[kind], tensors[kind]) for kind in tensors)


def resumed(config: Config, name: str) -> None:
    """Continue a run whose recipe had another value of this option."""
    then = continuation.facts(config, READ, 3)
    then["recipe"][name] = "another"
    continuation.check(Path("step-3"), then, config, READ)


@pytest.mark.parametrize("name", options(Config))
def test_an_option_that_decides_what_is_computed_may_not_change_on_resume(name: str) -> None:
    if name in MAY_DIFFER:
        resumed(Config(), name)
        return
    with pytest.raises(ValueError, match=rf"another recipe than step-3: {name} \('another' then, .* now\)"):
        resumed(Config(), name)


@pytest.mark.parametrize("name", ["max_steps", "num_train_epochs"])
def test_the_length_of_a_run_may_change_where_the_rate_does_not_depend_on_it(name: str) -> None:
    constant = Config(lr_scheduler_type="constant")
    resumed(constant, name)
    resumed(replace(constant, warmup_steps=2.0), name)  # two, of however many
    shares = replace(constant, warmup_ratio=0.1), replace(constant, warmup_steps=0.1)
    for depends in (*shares, Config(lr_scheduler_type="linear")):
        with pytest.raises(ValueError, match=name):
            resumed(depends, name)


def test_a_run_that_is_older_than_an_option_had_its_default() -> None:
    then = continuation.facts(Config(), READ, 3)
    del then["recipe"]["warmup_steps"]
    continuation.check(Path("step-3"), then, Config(), READ)
    with pytest.raises(ValueError, match=r"warmup_steps \(0.0 then, 2.0 now\)"):
        continuation.check(Path("step-3"), then, Config(warmup_steps=2.0), READ)


def test_a_reward_file_that_was_edited_is_named_on_resume_and_not_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    for file in (one, other):
        file.write_text("def reward(**_): ...")
    funcs = ["format", f"{one}:reward", f"{other}:reward", "rewards.math:correctness_reward"]
    read = READ | {"reward_files": content.of_reward_files(funcs)}
    then = continuation.facts(Config(), read, 3)
    assert list(read["reward_files"]) == [str(one), str(other)] and continuation.edited(then, read) == []
    other.write_text("def reward(**_): return 1")
    now = READ | {"reward_files": content.of_reward_files(funcs)}
    continuation.check(Path("step-3"), then, Config(), now)
    assert continuation.edited(then, now) == [
        f"{other} is not the file it was: from here on rewards are those of the new one"]
    del then["reward_files"]  # written before checkpoints had them
    assert continuation.edited(then, now) == []
