"""The doctor and reward functions of the user's own: what it says of them, and how it tries a step with them. 15 s."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from grpo import update
from grpo.doctor import problems, trial
from grpo.doctor.finding import Finding
from grpo.run.parts import Run
from rewards.workers.pool import RewardPool


@pytest.fixture(scope="module")
def run(begin: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run of the shipped model, two prompts of four completions each."""
    smaller = ["--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "24"]
    return begin(*smaller, "--eval_examples", "0", "--max_steps", "3", "--load_in_4bit", "false",
                 "--output_dir", str(tmp_path_factory.mktemp("run") / "out"))


@pytest.fixture
def with_own(run: Run, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Gives the run a reward function that gives completion n of a call this value; other options as well."""
    pools = []

    def with_own(value: str, **options: str) -> Run:
        file = tmp_path / "own.py"
        file.write_text(f"def own(completions):\n    return [{value} for n, text in enumerate(completions)]\n")
        pools.append(RewardPool([f"{file}:own"], None, timeout_s=20, memory_bytes=2**30))
        return replace(run, rewards=pools[-1], config=replace(run.config, reward_funcs=[f"{file}:own"], **options))

    yield with_own
    for pool in pools:
        pool.close()


def named(findings: list[Finding], check: str) -> Finding:
    (found,) = [one for one in findings if one.check == check]
    return found


def test_a_function_that_has_nothing_to_say_of_any_text_is_no_fault(with_own: Callable[..., Run]) -> None:
    silent = with_own("None")
    found = problems.rewards(silent, silent.train_examples[:4], own=True)
    assert [one.level for one in found] == ["ok", "ok"]
    assert named(found, "rewards together").words.startswith("0 for gold answers, at most 0 for no text")
    half = with_own("1.0 if n % 2 and 'answer' in text else 0.25 if n % 2 else None")
    assert named(problems.rewards(half, half.train_examples[:4], own=True), "rewards together").words == (
        "1 for gold answers, at most 0.25 for no text or nonsense")


def test_an_outcome_for_which_no_gold_answer_is_right_is_told_before_the_run(with_own: Callable[..., Run]) -> None:
    def found(value: str) -> Finding:
        asked = with_own(value, outcome_reward="own")
        return named(problems.rewards(asked, asked.train_examples[:4], own=True), "outcome")

    assert found("0.5").level == "warn"
    assert found("0.5").words == "0 of 4 gold answers are right, own gives them 1 or more"
    assert found("1.0 if n % 2 else 0.5").level == "ok" and "2 of 4" in found("1.0 if n % 2 else 0.5").words
    unnamed = with_own("0.5")
    assert "outcome" not in [one.check for one in problems.rewards(unnamed, unnamed.train_examples[:4], own=True)]


def test_what_a_reward_function_can_read_of_the_run_is_where_it_is(run: Run) -> None:
    assert len(run.train_examples) == 400
    assert run.trainer_state(2) == {
        "global_step": 2, "max_steps": 3, "epoch": 2 * 2 / 400, "num_train_epochs": 1, "logging_steps": 1,
        "save_steps": 50, "is_world_process_zero": True, "is_local_process_zero": True}
    assert replace(run, num_steps=401).trainer_state(0)["num_train_epochs"] == 3  # of as many steps
    epochs = replace(run, num_steps=500, config=replace(run.config, max_steps=-1, num_train_epochs=2.5))
    assert epochs.trainer_state(200)["epoch"] == 1.0 and epochs.trainer_state(0)["num_train_epochs"] == 3


@pytest.mark.parametrize(("gate", "level"), [("none", "ok"), ("outcome", "warn")])
def test_the_step_that_is_tried_has_the_run_s_advantage_gate(with_own: Callable[..., Run], gate, level) -> None:
    # The rewards are negative, so that no completion is right, and differ: with the gate no group has an advantage.
    tried = with_own("-1.0 - n", advantage_gate=gate, outcome_reward="own")
    found = named(trial.first_step(tried), "gradient")
    assert found.level == level and ("as all groups are flat" in found.words) == (gate == "outcome")


def test_the_step_that_is_tried_leaves_out_completions_without_a_reward(
    with_own: Callable[..., Run], monkeypatch
) -> None:
    prepared, prepare = [], update.prepare
    monkeypatch.setattr(update, "prepare", lambda *given: prepared.append(prepare(*given)) or prepared[-1])
    found = trial.first_step(with_own("None if n % 4 == 0 else n"))
    assert [work.keep_U.tolist() for work in prepared] == [[False, True, True, True] * 2] * 2
    assert named(found, "gradient").level == named(found, "kl at step 0").level == "ok"
    assert named(found, "scored").level == "warn"
    assert named(found, "scored").words == "75 % of 8 completions have a reward"
    nothing = trial.first_step(with_own("None"))
    assert named(nothing, "scored").level == "fail" and named(nothing, "gradient").level == "warn"
