"""Mistakes planted in a run, each named by the right line of the doctor. 15 seconds on a CPU."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import SHARD_EVERYTHING
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import train
from grpo import update
from grpo.advantage import group_advantages
from grpo.doctor import at_rest, problems, trial
from grpo.doctor.finding import Finding
from grpo.run.command import load
from grpo.run.groups import candidates
from grpo.run.parts import Run
from grpo.saving import checkpoint
from grpo.step import sample
from rewards.workers.pool import RewardPool

SMALL = ["--eval_examples", "4", "--prompts_per_step", "2", "--num_generations", "4", "--max_steps", "3",
         "--load_in_4bit", "false"]
SHARDED = ["--deepspeed", json.dumps(SHARD_EVERYTHING)]


@pytest.fixture(scope="module")
def run(begin: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run of the shipped model, sharded; every test leaves it as it was."""
    return begin(*SMALL, *SHARDED, "--output_dir", str(tmp_path_factory.mktemp("run") / "out"))


@contextmanager
def changed(run: Run, part: str, value: float) -> Iterator[None]:
    """The first number of the first weight whose name holds `part` is another one meanwhile."""
    parameter = next(one for name, one in run.engine.policy.named_parameters() if part in name)

    def put(number: float) -> float:
        with run.engine.gathered([parameter], write=True), torch.no_grad():
            before = parameter.view(-1)[0].item()
            parameter.view(-1)[0] = number
        return before

    before = put(value)
    yield
    put(before)


def named(findings: list[Finding], check: str) -> Finding:
    (found,) = [one for one in findings if one.check == check]
    return found


def problems_of(run: Run, **columns: str) -> Run:
    """The run with eight training problems, in which these parts of an example are others."""
    examples = [replace(one, **columns, columns=one.columns | columns) for one in run.train_examples[:8]]
    return replace(run, train_examples=examples)


def reward(run: Run, folder: Path, value: str) -> list[Finding]:
    """What is found when a user's file gives each completion c this value, at a weight of 0.1."""
    file = folder / "mine.py"
    file.write_text(f"import random\ndef mine(completions, **columns):\n    return [{value} for c in completions]\n")
    pool = RewardPool(["format", "correctness", f"{file}:mine"], [1.0, 1.0, 0.1], timeout_s=20, memory_bytes=2**30)
    try:
        return problems.rewards(replace(run, rewards=pool), run.train_examples[:4], own=True)
    finally:
        pool.close()


# -- the short form ----------------------------------------------------------------------------------------------------


def test_a_run_known_to_fail_ends_with_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    answer = "It is so.\n#### The final answer is 7"
    rows = [{"prompt": f"Question {i}?", "answer": answer, "final_answer": "42"} for i in range(8)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    paths = ["--train_dataset_id_or_path", str(tmp_path / "data.json"), "--output_dir", str(tmp_path / "out")]
    assert train.main([*SMALL, *paths, "--eval_examples", "0"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "reward correctness: 0 of 8" in line and "'42' is not what the solution in answer ends in" in line
    assert not (tmp_path / "out").exists()


def test_a_run_begins_with_what_is_doubtful_and_without_calls_of_the_users_rewards(run: Run) -> None:
    asked = replace(run.config, reward_funcs=[*run.config.reward_funcs, "mine.py:costly"])
    uncallable = SimpleNamespace(weights=[1.0, 1.0, 1.0])
    doubtful = replace(run, left_out=200, config=asked, rewards=uncallable)
    lines = at_rest.admit(doubtful).announcement[len(run.announcement):]
    assert lines[0].startswith("checks     checked 22 things")
    assert lines[1].startswith("warn       prompt length: ") and "200 of 600 problems left out" in lines[1]
    assert "max_prompt_length=976" in lines[1] and len(lines) == 2  # a context of 1024 less 48


@pytest.mark.parametrize("other", [["--plan", "2"], ["--resume"]])
def test_the_doctor_looks_at_nothing_but_a_start(other: list[str]) -> None:
    with pytest.raises(ValueError, match="doctor=True looks at the start of a run.*nearest valid value: False"):
        load(["--doctor", *other])


# -- problems and rewards ----------------------------------------------------------------------------------------------


def test_an_end_that_cannot_be_sampled_is_named(run: Run) -> None:
    beyond = named(problems.end_of_text(replace(run, stop_token_ids={0, 7000})), "end tokens")
    assert beyond.level == "warn" and "[7000]" in beyond.words and "generation_config.json" in beyond.cure
    only_strings = named(problems.end_of_text(replace(run, stop_token_ids=set())), "end tokens")
    assert only_strings.level == "warn" and "tokenizer_name_or_path" in only_strings.cure
    short_head = SimpleNamespace(config=SimpleNamespace(vocab_size=2))
    assert "0 of 3 can be sampled" in problems.end_of_text(replace(run, decoder=short_head))[1].words
    wordy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    tokens, strings = problems.end_of_text(replace(run, tokenizer=wordy, stop_token_ids=set()))
    assert tokens.level == "fail" and "none of 383 end a text" in tokens.words
    assert strings.level == "warn" and "0 of 3 can be sampled" in strings.words


def test_prompts_with_a_space_or_an_end_token_behind_them_are_named(run: Run) -> None:
    spaced = named(problems.prompts(problems_of(run, prompt="2 + 2 = "), run.train_examples[:2]), "prompt end")
    assert spaced.level == "warn" and "8 of 8 prompts end in a space" in spaced.words
    last = run.tokenizer.encode(run.train_examples[0].prompt)[-1]
    ended = named(problems.prompts(replace(run, stop_token_ids={last}), run.train_examples[:2]), "prompt end")
    assert ended.level == "warn" and "2 of 2 in an end token" in ended.words


def test_problems_that_come_twice_are_named(run: Run) -> None:
    learnt = run.train_examples
    twice = problems.repetitions(replace(run, train_examples=[*learnt[:3], learnt[0]], test_examples=learnt[2:5]))
    assert [one.level for one in twice] == ["warn", "warn", "ok"]
    assert "1 of 4 training prompts" in twice[0].words and "1 of 3 held-out questions" in twice[1].words
    few = named(problems.repetitions(replace(run, train_examples=learnt[:1])), "prompts per step")
    assert few.level == "warn" and "prompts_per_step=1" in few.cure  # of 2


def test_gold_answers_in_another_format_or_of_another_problem_are_named(run: Run) -> None:
    words = problems_of(run, final_answer="forty two", answer="")
    found = named(problems.rewards(words, words.train_examples, own=False), "reward correctness")
    assert found.level == "fail" and "0 of 8 gold answers earn 1.0" in found.words
    assert "final_answer" in found.cure and "'forty two' holds no number" in found.cure
    other = problems_of(run, final_answer="1234567")
    found = named(problems.rewards(other, other.train_examples, own=False), "reward correctness")
    assert found.level == "fail" and "'1234567' is not what the solution in answer ends in" in found.cure


def test_rewards_that_are_random_broken_or_like_nonsense_are_named(run: Run, tmp_path: Path) -> None:
    assert [one.level for one in reward(run, tmp_path, "float('####' in c)")] == ["ok"] * 4
    likes = reward(run, tmp_path, "float('vlorp' in c)")
    assert named(likes, "reward mine").level == "warn" and named(likes, "rewards together").level == "ok"
    loves = reward(run, tmp_path, "100.0 * ('vlorp' in c)")
    assert named(loves, "rewards together").level == "fail"  # 100 * 0.1 beside 1.5
    draws = named(reward(run, tmp_path, "random.SystemRandom().random()"), "reward mine")
    assert draws.level == "warn" and "another value" in draws.words
    breaks = named(reward(run, tmp_path, "len(c) / len(c)"), "reward mine")
    assert breaks.level == "fail" and "ZeroDivisionError" in breaks.words


# -- weights, schedule, ranks, disk ------------------------------------------------------------------------------------


def test_weights_that_train_by_mistake_or_not_at_all_are_named(run: Run) -> None:
    base = next(one for name, one in run.engine.policy.model.named_parameters() if "input_layernorm" in name)
    base.requires_grad_(True)
    stray = named(at_rest.weights(run), "trained")
    base.requires_grad_(False)
    assert stray.level == "fail" and "not to be trained: 1, first model.layers.0.input_layernorm" in stray.words
    trained = list(run.engine.trainable.values())
    for parameter in trained:
        parameter.requires_grad_(False)
    nothing = named(at_rest.weights(run), "trained")
    for parameter in trained:
        parameter.requires_grad_(True)
    assert nothing.level == "fail" and "lora_target_modules" in nothing.cure
    assert all(one.level == "ok" for one in at_rest.weights(run))


def test_a_weight_that_is_no_number_is_named(run: Run) -> None:
    with changed(run, "layers.1.input_layernorm", float("nan")):
        found = named(at_rest.weights(run), "finite")
    assert found.level == "fail" and "1, first model.layers.1.input_layernorm.weight" in found.words


def test_what_lies_behind_a_rank_s_last_part_is_not_looked_at(run: Run) -> None:
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_tensor, parameter.ds_numel = torch.tensor([1.0, 2.0, float("nan")]), 2
    assert at_rest.shard(parameter).tolist() == [1.0, 2.0]


def test_a_rate_that_moves_nothing_is_named(run: Run) -> None:
    found = at_rest.schedule(replace(run, config=replace(run.config, learning_rate=2.0**-126, warmup_steps=1e9)))
    assert found.level == "fail" and "learning_rate" in found.cure
    assert at_rest.schedule(run).level == "ok"


def test_a_step_that_does_not_fit_in_memory_is_named(run: Run) -> None:
    long = at_rest.memory(replace(run, config=replace(run.config, micro_batch_tokens=10**9)))
    assert long.level == "warn" and "micro_batch_tokens=500000000" in long.cure
    wide = at_rest.memory(replace(run, num_slots=10**7))
    assert wide.level == "fail" and "rollout_slots=5000000" in wide.cure


@pytest.mark.parametrize(("keep", "free", "level"), [
    # Gradients 10, optimizer 20, a row of 64 tokens 64 and the least one 8, 3 slots of 100: 394 where the slots stay.
    (True, 394, "ok"), (True, 393, "warn"), (True, 337, "fail"), (False, 300, "ok"), (False, 299, "fail")])
def test_a_step_s_memory_is_the_update_with_the_slots_or_the_larger_of_both(run, keep, free, level, monkeypatch):
    ledger = SimpleNamespace(gradients=lambda: 10, optimizer=lambda: 20, update=lambda tokens, checkpointing: tokens)
    config = replace(run.config, rollout_keep=keep, micro_batch_tokens=64, max_completion_length=8)
    monkeypatch.setattr(at_rest, "free_bytes", lambda device: free)
    monkeypatch.setattr(at_rest, "slot_bytes", lambda decoder, room: 100)
    monkeypatch.setattr(at_rest, "sample", lambda run: [replace(run.train_examples[0], prompt="")])
    assert at_rest.memory(replace(run, config=config, ledger=ledger, num_slots=3)).level == level


def test_ranks_that_differ_are_named() -> None:
    alike = {"versions": "python 3.12.1", "options": "a", "data": at_rest.fingerprint(["one", "two"]), "free": 1000}
    everyone = [alike, alike, alike | {"data": at_rest.fingerprint(["two", "one"]), "free": 790}]
    versions, options, data, memory = at_rest.of_ranks(everyone)
    assert versions.level == options.level == "ok"
    assert data.level == "fail" and data.words.startswith(f"{alike['data']} on 2 of 3 ranks; rank 2 has ")
    assert memory.level == "warn" and "rank 2" in memory.words  # 790 < 0.8 * 1000
    assert at_rest.of_ranks([alike, alike | {"free": 810}])[3].level == "ok"


def test_a_disk_that_is_full_or_closed_and_a_long_run_without_checkpoints_are_named(run: Run, tmp_path: Path) -> None:
    endless = replace(run, num_steps=10**9)
    assert named(at_rest.disk(endless), "disk").level == "fail"  # 20 million checkpoints
    kept = replace(endless, config=replace(run.config, save_strategy="no"))
    assert named(at_rest.disk(kept), "disk").level == "ok"
    assert "save_steps" in named(at_rest.disk(kept), "checkpoints").cure
    (tmp_path / "file").touch()
    closed = named(at_rest.disk(replace(run, output_dir=tmp_path / "file" / "out")), "disk")
    assert closed.level == "fail" and "cannot be written" in closed.words
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -- one step ----------------------------------------------------------------------------------------------------------


def test_text_that_never_ends_is_named(run: Run) -> None:
    hot = replace(run, config=replace(run.config, temperature=50.0))
    found = trial.first_step(hot)
    assert named(found, "truncated").level == "fail" and "temperature=1" in named(found, "truncated").cure
    assert named(found, "groups").level == "warn" and "easier problems" in named(found, "groups").cure
    # The policy scores at temperature 1 still, so sampler and trainer differ as well.
    assert named(found, "sampler gap").level == "fail"


def test_a_stale_rollout_copy_and_a_reference_that_is_not_the_start_are_named(run: Run, monkeypatch) -> None:
    copy_to = run.engine.copy_to

    def too_early(target: dict[str, torch.Tensor]) -> None:
        with changed(run, "layers.0.self_attn.v_proj.lora_B", 0.0):
            copy_to(target)

    with changed(run, "layers.0.self_attn.v_proj.lora_B", 2.0):
        assert named(at_rest.weights(run), "reference").level == "fail"
        monkeypatch.setattr(run.engine, "copy_to", too_early)
        found = trial.first_step(run)
    assert named(found, "sampler gap").level == "fail"
    assert named(found, "kl at step 0").level == "fail"
    assert named(found, "repeatable").level == named(found, "ratio noise").level == "ok"


def test_the_reference_of_a_start_adapter_is_that_adapter(begin: Callable[..., Run], run: Run, tmp_path: Path) -> None:
    file = checkpoint.export(run.engine, tmp_path, run.peft_config) / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({name: 0.1 * torch.randn(one.shape, generator=generator) for name, one in load_file(file).items()}, file)
    options = [*SMALL, "--zero_stage", "0", "--adapter_name_or_path", str(tmp_path / "adapter")]
    started = begin(*options, "--output_dir", str(tmp_path / "out"))
    assert all(one.level == "ok" for one in at_rest.weights(started))
    found = trial.first_step(started)
    assert named(found, "kl at step 0").level == named(found, "sampler gap").level == "ok"
    with changed(started, "lora_A.reference", 5.0):
        assert named(at_rest.weights(started), "reference").level == "fail"
        assert named(trial.first_step(started), "kl at step 0").level == "fail"


def test_a_gradient_that_is_no_number_or_0_and_a_checkpoint_that_is_not_read_are_named(run: Run, monkeypatch) -> None:
    examples = [run.train_examples[problems[0]] for problems in candidates(run, 0)]
    rollout = sample(run, examples, [0, 1], 0)
    reward_BG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    advantage_N = group_advantages(reward_BG).flatten()

    def norm_of(advantage_N: torch.Tensor) -> Finding:
        free = replace(run, config=replace(run.config, beta=0.0))
        scored_N = torch.ones(8, dtype=torch.bool)
        return trial.gradient(free, update.prepare(rollout, advantage_N, scored_N, free.config, run.limit))

    assert norm_of(advantage_N).level == "ok"
    assert norm_of(advantage_N * float("nan")).level == "fail"
    assert norm_of(advantage_N * 0).level == "warn"
    before = trial.state(run)
    assert trial.saved(run).level == "ok"
    monkeypatch.setattr(checkpoint, "restore", lambda *_: 0)
    found = trial.saved(run)
    assert found.level == "fail" and "224 of 224 tensors differ" in found.words  # 56 of LoRA, each in four forms
    for name, parameter in run.engine.trainable.items():
        run.engine.set_state(parameter, {kind: before[f"{name}:{kind}"] for kind in run.engine.state(parameter)})
