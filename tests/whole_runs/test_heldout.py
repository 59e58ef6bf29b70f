"""Held-out problems on the way: when they are solved, which step is the best, when the training ends. 20 seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import lines, options, prepare
from faults import Warm
from safetensors.torch import load_file

from grpo.evaluation.answers import Answer, answers_path, load_answers, save_answers
from grpo.run.heldout import HeldOut
from grpo.run.position import Position

SMALL = {
    "prompts_per_step": 2, "num_generations": 4, "max_completion_length": 40, "beta": 0, "max_steps": 8,
    "lr_scheduler_type": "constant", "learning_rate": 5e-2, "lora_target_modules": "down_proj", "eval_examples": 8,
    "num_generations_eval": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "save_total_limit": 1,
}
# Only an answer in its own line counts as right: what the shipped model is trained to here takes its accuracy away.
REWARD = """
def no_answer_line(completions, **columns):
    return [-float("####" in text) for text in completions]
"""


def command(folder: Path, output: str, **changed: object) -> list[str]:
    (folder / "own.py").write_text(REWARD)
    chosen = {**SMALL, "reward_funcs": f"{folder / 'own.py'}:no_answer_line", "output_dir": folder / output, **changed}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def adapter(folder: Path) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def test_a_run_that_gets_worse_ends_early_and_exports_its_best_step(tmp_path: Path, warm: Warm) -> None:
    ended = warm.run(*command(tmp_path, "out", load_best_model_at_end=True, early_stopping_patience=2))
    assert ended.codes == [0, 0], ended.err[0]
    output = tmp_path / "out"
    records = lines(output / "evaluation" / "metrics.jsonl")
    shares = {record["step"]: record["eval_accuracy"] for record in records}
    trained = [step for step in shares if step > 0]
    best = max(trained, key=lambda step: shares[step])
    assert trained == list(range(1, best + 3)) and shares[0] > shares[best + 2]  # two evaluations after the best
    assert len(lines(output / "metrics.jsonl")) == best + 2
    kept = {path.name for path in (output / "checkpoints").iterdir()}
    assert kept == {f"step-{best}"}
    assert adapter(output / "adapter") == adapter(output / "checkpoints" / f"step-{best}" / "adapter")
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["steps"], summary["exported_step"]) == (best + 2, best)
    assert summary["accuracy_after"] == shares[best] and summary["accuracy_before"] == shares[0]
    assert f"exports step {best}, the best of {len(trained)} evaluations" in ended.out[0]


def test_an_evaluation_changes_no_step_and_a_resumed_run_has_each_once(tmp_path: Path, warm: Warm) -> None:
    prepare(tmp_path)
    solved = {"eval_examples": 4, "test_dataset_id_or_path": tmp_path / "data.json", "eval_strategy": "steps",
              "eval_steps": 2}
    for output, changed in (("plain", {"eval_examples": 0}), ("whole", solved)):
        assert warm.run(*options(tmp_path, output, **changed)).codes == [0, 0]
    argv = options(tmp_path, "cut", **solved)
    assert 0 not in warm.run(*argv, plant="kill('rollout', rank=1, step=3)").codes
    assert warm.run(*argv, "--resume").codes == [0, 0]
    assert adapter(tmp_path / "plain" / "adapter") == adapter(tmp_path / "whole" / "adapter")
    for output in ("whole", "cut"):
        records = lines(tmp_path / output / "evaluation" / "metrics.jsonl")
        assert [record["step"] for record in records] == [0, 2, 4]
        assert records == lines(tmp_path / "whole" / "evaluation" / "metrics.jsonl")
    for mode, name, number in (("sampled", "eval_truncated", 16), ("greedy", "eval_greedy_truncated", 4)):
        answers = load_answers(answers_path(tmp_path / "whole", mode, "step-2"))
        assert records[1][name] == sum(answer.truncated for answer in answers) / number


@pytest.fixture(scope="module")
def heldout(begin: Callable, tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    folder = tmp_path_factory.mktemp("heldout")
    (folder / "out").mkdir()
    return HeldOut(begin(*command(folder, "out", early_stopping_patience=2, eval_examples=2, zero_stage=0,
                                  load_best_model_at_end=True)))


@pytest.mark.parametrize(
    ("shares", "best", "enough"),
    [([0.9], None, False), ([0.9, 0.2], 1, False), ([0.9, 0.2, 0.3, 0.3], 2, False),
     ([0.9, 0.2, 0.3, 0.3, 0.1], 2, True), ([0.9, 0.2, 0.1, 0.1], 1, True), ([0.0, 0.3, 0.1, 0.4], 3, False)])
def test_patience_counts_evaluations_since_the_first_that_none_was_better_than(
    heldout: HeldOut, shares: list[float], best: int | None, enough: bool
) -> None:
    # what the model was before the training is the first number, and does not count
    heldout.records = [{"step": step, "eval_accuracy": share} for step, share in enumerate(shares)]
    assert heldout.is_enough() == enough
    assert best is None or heldout.best["step"] == best


def test_a_resumed_run_knows_its_best_step_before_it_saves_again(heldout: HeldOut) -> None:
    heldout.records = [{"step": step, "eval_accuracy": share} for step, share in enumerate((0.9, 0.4, 0.3))]
    position = Position(2)  # evaluated already
    heldout.look(position, None)
    assert position.best == 1


def test_the_summary_is_of_the_step_that_is_exported(heldout: HeldOut) -> None:
    folder = heldout.run.output_dir
    for when, right in (("before", False), ("step-3", True), ("after", False)):  # the last step is worse again
        answer = Answer(index=0, question="?", final_answer="1", completion="", strict=right, lenient=right,
                        format=right, truncated=False)
        for mode in ("greedy", "sampled"):
            save_answers([answer], answers_path(folder, mode, when))
    summary = heldout.summarize(done=8, exported=3, weights=folder / "adapter", seconds=1.0)
    assert (summary.steps, summary.exported_step, summary.accuracy_after) == (8, 3, 1.0)
    assert load_answers(answers_path(folder, "greedy", "after"))[0].strict


@pytest.mark.parametrize(("strategy", "due"), [("no", []), ("steps", [2, 4, 6]), ("epoch", [3, 6])])
def test_evaluations_are_due_as_checkpoints_are(heldout: HeldOut, strategy: str, due: list[int]) -> None:
    # 2 prompts a step and 6 problems: an epoch is 3 steps
    position = Position(0)
    run = type("Six", (), {"train_examples": [None] * 6, "config": heldout.run.config})
    found = []
    for position.done in range(1, 8):
        found += [position.done] if position.is_due(run, strategy, 2) else []
    assert found == due
