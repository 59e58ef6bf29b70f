"""Three ranks, which divide hardly any tensor: train, save, kill, resume, doctor and export. 30 seconds.

2,048 numbers are 683, 683 and 682 on three ranks: the last part is filled up, and nothing may read or keep the filling.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from fault_runs import lines, numbers, options, prepare, texts
from faults import MOST_S, Warm
from peft import PeftModel
from ranks import SHARD_EVERYTHING
from safetensors.torch import load_file
from tiny_models import tiny_qwen2

KILLED = 2  # the step of the kill; step-2 is saved then


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    prepare(folder, num_problems=40)
    return folder


def uneven(folder: Path, output: str, **changed: object) -> list[str]:
    """Six prompts a step, which one, two and three ranks share; head and embeddings trained beside LoRA, over NF4.

    A reward of 0 or 1 makes most groups of two flat: they give way to others, and solved problems are passed over.
    """
    chosen = {"prompts_per_step": 6, "max_steps": 3, "load_in_4bit": True,
              "reward_funcs": f"{folder / 'my_rewards.py'}:vocal", "dynamic_sampling": 2, "problem_filter": "0 0.9",
              "lora_modules_to_save": "lm_head embed_tokens", **changed}
    return [*options(folder, output, **{"zero_stage": 3, **chosen}), "--deepspeed", json.dumps(SHARD_EVERYTHING)]


@pytest.fixture(scope="module")
def whole(folder: Path, warm: Warm) -> Path:
    """The run that nothing happens to."""
    ended = warm.run(*uneven(folder, "whole"), num_ranks=3)
    assert ended.codes == [0, 0, 0], ended.err[0][-2000:]
    return folder / "whole"


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def test_what_the_ranks_share_is_uneven(whole: Path) -> None:
    sizes = [tensor.numel() for tensor in weights(whole).values()]
    assert sum(size % 3 > 0 for size in sizes) > len(sizes) / 2
    assert 64 * 320 in sizes and 64 * 320 % 3 == 2  # the embeddings


def test_flat_groups_gave_way_and_solved_problems_were_passed_over(whole: Path) -> None:
    steps = numbers(whole)
    assert all(1 < row["groups_drawn"] <= 3 for row in steps)
    shares = [row["filtered_share"] for row in steps]
    assert 0 < shares[0] <= shares[1] <= shares[2] < 1
    flat = [row["zero_variance_share"] for row in steps]
    assert min(flat) < 0.5


@pytest.fixture(scope="module")
def killed(folder: Path, warm: Warm) -> Path:
    """The same run, of which a rank is killed."""
    ended = warm.run(*uneven(folder, "killed"), num_ranks=3, plant=f"kill('backward', rank=2, step={KILLED})")
    assert ended.codes[2] == -signal.SIGKILL and ended.seconds < MOST_S
    assert len(lines(folder / "killed" / "metrics.jsonl")) == KILLED
    return folder / "killed"


@pytest.mark.parametrize(("ranks", "stage"), [(3, 3), (1, 3), (2, 3), (3, 2)])
def test_killed_on_three_ranks_and_resumed_the_run_is_the_one_that_was_not(
    folder: Path, warm: Warm, whole: Path, killed: Path, ranks: int, stage: int
) -> None:
    output, changed = f"on{ranks}stage{stage}", {} if stage == 3 else {"zero_stage": stage}
    shutil.copytree(killed, folder / output)
    command = uneven(folder, output, **changed)[: None if stage == 3 else -2]  # SHARD_EVERYTHING is of stage 3
    ended = warm.run(*command, "--resume", num_ranks=ranks)
    assert ended.codes == [0] * ranks, ended.err[0][-2000:]
    assert texts(folder / output) == texts(whole)
    if (ranks, stage) == (3, 3):
        assert numbers(folder / output) == numbers(whole)
    for name, tensor in weights(whole).items():
        difference = (weights(folder / output)[name] - tensor).abs().max()
        assert difference <= (0 if (ranks, stage) == (3, 3) else 1e-6), name


def test_the_doctor_writes_and_reads_a_checkpoint_on_three_ranks(folder: Path, warm: Warm) -> None:
    shipped = ["--prompts_per_step", "3", "--num_generations", "2", "--max_completion_length", "32", "--eval_examples",
               "4", "--max_steps", "3", "--lora_target_modules", "q_proj", "--lora_modules_to_save", "lm_head",
               "embed_tokens", "--deepspeed", json.dumps(SHARD_EVERYTHING), "--output_dir", str(folder / "examined")]
    ended = warm.run(*shipped, "--doctor", num_ranks=3)
    assert ended.codes == [0, 0, 0], ended.out[0][-2000:] + ended.err[0][-2000:]
    (line,) = [line for line in ended.out[0].splitlines() if " checkpoint: " in line]
    assert "bytes written and read; 0 of" in line
    assert not (folder / "examined").exists()


def test_an_export_of_three_ranks_is_what_plain_peft_loads(folder: Path, whole: Path) -> None:
    base = tiny_qwen2(num_hidden_layers=1)
    loaded = PeftModel.from_pretrained(base, str(whole / "adapter"))
    found = loaded.state_dict()
    for name, tensor in load_file(whole / "checkpoints" / "step-3" / "adapter" / "adapter_model.safetensors").items():
        stem, _, leaf = name.rpartition(".")
        kept = [f"{stem}.default.{leaf}", f"{stem}.modules_to_save.default.{leaf}"]
        (where,) = [one for one in kept if one in found]
        assert torch.equal(found[where], tensor), name
