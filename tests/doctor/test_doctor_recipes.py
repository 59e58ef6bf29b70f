"""The doctor finds nothing wrong with the shipped recipes, those of the Hub with the shipped model. 25 seconds."""

import json
from pathlib import Path

import pytest
from faults import Warm
from ranks import ROOT

from grpo.doctor import problems, trial
from grpo.doctor.examination import examine

HOME = ["--model_name_or_path", "data/tiny_qwen2", "--num_shots", "0", "--report_to", "none"]


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 30 problems in GSM8K's raw form."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"question": f"Tom has {i} nuts, found 2 and lost 1. How many nuts are left?",
             "answer": f"{i}+2=<<{i}+2={i + 2}>>{i + 2}. {i + 2}-1=<<{i + 2}-1={i + 1}>>{i + 1}.\n#### {i + 1}"}
            for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_the_toy_recipe_is_green_and_nothing_is_left(begin, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    toy = begin("--prompts_per_step", "2", "--num_generations", "4", "--output_dir", str(tmp_path / "new" / "out"))
    before = trial.checksum(toy)
    assert examine(toy) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "32 things looked at: 32 ok, 0 warn, 0 fail", lines
    assert len(lines) == 32 and all(line.startswith("ok   ") for line in lines)
    assert list(tmp_path.iterdir()) == [] and trial.checksum(toy) == before


def test_the_recipe_of_the_7b_is_green_with_a_local_model(begin, gsm8k: str, tmp_path: Path) -> None:
    smaller = ["--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "32"]
    recipe = ["--config", str(ROOT / "recipes" / "qwen2.5-7b-gsm8k.yaml"), "--train_dataset_id_or_path", gsm8k]
    assert examine(begin(*recipe, *HOME, *smaller, "--output_dir", str(tmp_path / "out"))) == 0


def test_the_recipe_of_clinical_notes_pays_most_for_gold_notes(begin, tmp_path: Path) -> None:
    run = begin("--config", str(ROOT / "recipes" / "clinical-note.yaml"), "--output_dir", str(tmp_path / "out"))
    found = {one.check: one.words for one in problems.of_problems(run, own_rewards=True)}
    for name, gold in (("reward keywords", 1), ("reward keyword_groups", 1), ("reward contexts", 1),
                       ("rewards together", 2)):  # 0.5 + 0.5 + 1
        assert found[name].startswith(f"{gold} for gold answers, "), found[name]
        assert found[name].endswith(("0 for no text and nonsense", "at most 0 for no text or nonsense"))


def test_two_ranks_agree_that_the_recipe_of_the_0_5b_is_green(warm: Warm, gsm8k: str, tmp_path: Path) -> None:
    smaller = ["--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "40"]
    recipe = ["--config", "recipes/qwen2.5-0.5b-gsm8k.yaml", "--train_dataset_id_or_path", gsm8k]
    both = warm.run(*recipe, *HOME, *smaller, "--output_dir", str(tmp_path / "out"), "--doctor")
    assert both.codes == [0, 0], both.out[0] + both.err[0][-2000:]
    lines = [line for line in "".join(both.out).splitlines() if line.startswith(("ok  ", "warn  ", "fail  "))]
    assert len(lines) == 32 and not any(line.startswith("fail") for line in lines)
    assert any("same data" in line and "on 2 of 2 ranks" in line for line in lines)
    assert any("reference: the base" in line for line in lines)  # with a head trained whole beside LoRA, tied
    assert not (tmp_path / "out").exists()
