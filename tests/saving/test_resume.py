"""A run that is killed and resumed is the run that was not: bit for bit on one rank, to 1e-6 at another number of them.

Six steps against three, kill -9, and three more: NF4, ZeRO-3 that keeps nothing gathered, a trained head beside LoRA,
the middle of an epoch, two updates a step. 40 seconds.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from fault_runs import lines, numbers, options, prepare, texts
from faults import Warm
from ranks import SHARD_EVERYTHING
from safetensors.torch import load_file

from grpo.saving import checkpoint

NUM_STEPS, KILLED = 6, 3  # steps; the kill comes in the one after three


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    prepare(folder)
    return folder


def hard(folder: Path, output: str, **changed: object) -> list[str]:
    """Seven problems, two a step: the fourth step begins in the first epoch and ends in the second."""
    chosen = {
        "load_in_4bit": True, "lora_modules_to_save": "lm_head embed_tokens", "num_iterations": 2,
        "max_steps": NUM_STEPS, "save_steps": 3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.3,
        "keep_tokens": 1, **changed}
    return [*options(folder, output, **{"zero_stage": 3, **chosen}), "--deepspeed", json.dumps(SHARD_EVERYTHING)]


@pytest.fixture(scope="module")
def whole(folder: Path, warm: Warm) -> dict[int, Path]:
    """The run that is not killed, on one rank and on two."""
    for ranks in (1, 2):
        assert warm.run(*hard(folder, f"whole{ranks}"), num_ranks=ranks).codes == [0] * ranks
    return {ranks: folder / f"whole{ranks}" for ranks in (1, 2)}


@pytest.fixture(scope="module")
def killed(folder: Path, warm: Warm) -> dict[int, Path]:
    """The run that is killed, on one rank and on two."""
    for ranks in (1, 2):
        command = hard(folder, f"killed{ranks}")
        ended = warm.run(*command, num_ranks=ranks, plant=f"kill('backward', rank=0, step={KILLED})")
        assert ended.codes[0] == -signal.SIGKILL
        assert len(lines(folder / f"killed{ranks}" / "metrics.jsonl")) == KILLED
    return {ranks: folder / f"killed{ranks}" for ranks in (1, 2)}


def resumed_from(killed: Path, warm: Warm, after: int, **changed: object) -> Path:
    """A copy of the run that was killed, resumed on so many ranks."""
    folder, output = killed.parent, f"{killed.name}to{after}{''.join(changed)}"
    shutil.copytree(killed, folder / output)
    ended = warm.run(*hard(folder, output, **changed), "--resume", num_ranks=after)
    assert ended.codes == [0] * after, ended.err[0][-2000:]
    return folder / output


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def test_three_steps_kill_and_three_more_are_six_steps_bit_for_bit(
    warm: Warm, whole: dict[int, Path], killed: dict[int, Path]
) -> None:
    resumed = resumed_from(killed[1], warm, 1)
    assert numbers(resumed) == numbers(whole[1]) and texts(resumed) == texts(whole[1])
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-6/state.safetensors", "tokens.jsonl"):
        assert (resumed / name).read_bytes() == (whole[1] / name).read_bytes()
    assert [row["epoch"] for row in lines(resumed / "metrics.jsonl")][3] == pytest.approx(8 / 7)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [(2, 1, {}), (1, 2, {}), (2, 2, {"zero_stage": 2}), (2, 2, {"micro_batch_tokens": 25})],
    ids=["2 to 1", "1 to 2", "stage 2", "shorter rows"])
def test_at_another_number_of_ranks_stage_or_row_length_the_run_is_the_same_to_1e_6(
    warm: Warm, whole: dict[int, Path], killed: dict[int, Path], before: int, after: int, changed: dict[str, object]
) -> None:
    if "zero_stage" in changed:
        changed = changed | {"deepspeed": {}}
    resumed = resumed_from(killed[before], warm, after, **changed)
    assert texts(resumed) == texts(whole[2])
    for expected, found in zip(lines(whole[2] / "metrics.jsonl"), lines(resumed / "metrics.jsonl"), strict=True):
        for name in ("reward", "kl", "loss", "grad_norm", "entropy"):
            assert found[name] == pytest.approx(expected[name], abs=1e-6, rel=1e-6), (expected["step"], name)
    expected, found = weights(whole[2]), weights(resumed)
    assert expected.keys() == found.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-6
    if "micro_batch_tokens" in changed:
        counts = [lines(output / "metrics.jsonl")[-1]["micro_batches"] for output in (whole[2], resumed)]
        assert counts[0] < counts[1]


def test_a_recipe_that_computes_something_else_is_refused_with_its_fields(
    folder: Path, warm: Warm, whole: dict[int, Path]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole[1].rglob("[!.]*")}
    changed = {"learning_rate": 2e-3, "seed": 7, "max_steps": 8, "num_generations": 4, "zero_stage": 0}
    ended = warm.run(*hard(folder, "whole1", **changed), "--resume", num_ranks=1)
    (message,) = ended.messages()
    assert ended.codes == [2] and "step-6" in message and "nearest valid value" in message
    for said in ("learning_rate (0.001 then, 0.002 now)", "seed (42 then, 7 now)", "max_steps (6 then, 8 now)",
                 "num_generations (2 then, 4 now)"):
        assert said in message
    assert "zero_stage (" not in message, "that may change"
    assert before == {path: path.stat().st_mtime_ns for path in whole[1].rglob("[!.]*")}


def test_other_data_is_refused(folder: Path, warm: Warm, whole: dict[int, Path]) -> None:
    data = folder / "data.json"
    original = data.read_text()
    data.write_text(original.replace("Tom has 3", "Tom had 3"))
    try:
        ended = warm.run(*hard(folder, "whole1"), "--resume", num_ranks=1)
    finally:
        data.write_text(original)
    (message,) = ended.messages()
    assert ended.codes == [2] and "with other data than" in message and "7 training problems then, 7 now" in message


def test_a_run_that_leaves_out_a_problem_goes_on(folder: Path, warm: Warm) -> None:
    long = {"prompt": "Question: " + "How many apples? " * 20, "final_answer": "1"}
    (folder / "with_long.json").write_text(json.dumps([*json.loads((folder / "data.json").read_text()), long]))
    changed = {"train_dataset_id_or_path": folder / "with_long.json", "max_prompt_length": 40}
    ended = warm.run(*options(folder, "leaves_out", **changed), num_ranks=1)
    assert ended.codes == [0] and "1 problems left out" in ended.out[0]
    kept = checkpoint.record(folder / "leaves_out" / "checkpoints" / "step-4")
    assert kept["data"]["num_examples"] == 7 and kept["epoch"] == 8 / 7  # it has read eight of seven
    before = numbers(folder / "leaves_out")
    for number in (3, 4):
        shutil.rmtree(folder / "leaves_out" / "checkpoints" / f"step-{number}")
    ended = warm.run(*options(folder, "leaves_out", **changed), "--resume", num_ranks=1)
    assert ended.codes == [0], ended.err[0]
    assert numbers(folder / "leaves_out") == before
