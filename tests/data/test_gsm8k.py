"""GSM8K against rows written by hand, and the real files where they are: prompts, splits, prepared files. 6 s."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from data import gsm8k
from data.prompts import COMPLETION, EXEMPLARS, STOP_STRINGS, build_prompt
from rewards.math import correctness_reward, format_reward

ROOT = Path(__file__).parents[2]
GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", ROOT / "../shared/data/gsm8k"))
needs_gsm8k = pytest.mark.skipif(
    not GSM8K_DIR.is_dir(), reason=f"GSM8K is not in {GSM8K_DIR}; set GSM8K_DIR to its folder"
)

ROW = {
    "question": " Ana has 3 boxes of 400 pens. How many pens? ",
    "answer": "Ana has 3*400 = <<3*400=1200>>1200 pens.\nThat is $<<1200=1200>>1,200.\n#### 1,200",
}
TWO_SHOT_PROMPT = """\
Question: Mira picks 14 apples in the morning and twice as many in the afternoon. How many apples does she pick?
Solution: Let's think step by step. In the afternoon Mira picks 14 * 2 = 28 apples.
Over the day she picks 14 + 28 = 42 apples.
#### The final answer is 42

Question: A baker fills 9 trays with 12 rolls each. He sells 84 rolls and shares the rest equally among 8 neighbors. \
How many rolls does each neighbor get?
Solution: Let's think step by step. The baker makes 9 * 12 = 108 rolls.
After the sale 108 - 84 = 24 rolls are left.
Each neighbor gets 24 / 8 = 3 rolls.
#### The final answer is 3

Question: Ana has 3 boxes of 400 pens. How many pens?
Solution: Let's think step by step."""


@pytest.fixture
def raw_folder(tmp_path):
    """A GSM8K of 30 train and 4 test rows; the question of row k is "q<k>?", or "t<k>?" in test."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, letter, count in (("train", "q", 30), ("test", "t", 4)):
        rows = [{"question": f"{letter}{k}?", "answer": f"It is {k}.\n#### {k}"} for k in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def questions(path, split, seed=0):
    return [example.question for example in gsm8k.load(str(path), split, num_shots=0, seed=seed)]


def test_a_row_becomes_a_clean_example(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n\n")
    (example,) = gsm8k.load(str(tmp_path), "test", num_shots=0, seed=0)
    assert example.question == "Ana has 3 boxes of 400 pens. How many pens?"
    assert example.final_answer == "1,200"
    assert example.answer == "Ana has 3*400 = 1200 pens.\nThat is $1,200.\n#### The final answer is 1,200"
    assert example.columns == {**ROW, "prompt": example.prompt, "final_answer": "1,200"}  # the dataset's own text


def test_zero_shot_prompt_is_the_question_in_the_template(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW))
    (example,) = gsm8k.load(str(tmp_path / "test.jsonl"), "test", num_shots=0, seed=0)
    assert example.prompt == (
        "Question: Ana has 3 boxes of 400 pens. How many pens?\nSolution: Let's think step by step."
    )


def test_two_shot_prompt_shows_two_solved_problems_first(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW))
    (example,) = gsm8k.load(str(tmp_path), "test", num_shots=2, seed=0)
    assert example.prompt == TWO_SHOT_PROMPT


def test_a_longer_prompt_extends_the_shorter_one_and_braces_in_a_question_survive():
    prompts = [build_prompt("{x}?", num_shots) for num_shots in range(9)]
    for shorter, longer in zip(prompts, prompts[1:], strict=False):
        assert longer.startswith(shorter.removesuffix("Question: {x}?\nSolution: Let's think step by step."))
    assert [prompt.count("#### The final answer is") for prompt in prompts] == list(range(9))


def test_exemplars_are_right_earn_full_reward_and_are_not_cut_by_a_stop_string():
    for _, reasoning, final_answer in EXEMPLARS:
        equations = re.findall(r"([\d+*/ -]+) = \$?(\d+)", reasoning)
        assert len(equations) == len(reasoning.split("\n"))
        assert all(eval(left) == int(right) for left, right in equations)
        assert equations[-1][1] == final_answer
        completion = COMPLETION.format(reasoning=reasoning, final_answer=final_answer)
        assert format_reward([completion]) + correctness_reward([completion], [final_answer]) == [0.5, 1.0]
        assert not any(stop in completion for stop in STOP_STRINGS)
    assert any(stop in build_prompt("q", 1) for stop in STOP_STRINGS)  # the next question is where a completion ends


def test_validation_is_a_tenth_of_train_and_disjoint_from_it(raw_folder):
    train, validation = questions(raw_folder, "train"), questions(raw_folder, "validation")
    assert (len(train), len(validation)) == (27, 3)
    assert sorted(train + validation) == sorted(f"q{k}?" for k in range(30))
    assert questions(raw_folder, "test") == ["t0?", "t1?", "t2?", "t3?"]


def test_the_place_of_an_example_is_that_of_its_row_in_the_file(raw_folder):
    for split, source in (("train", "train"), ("validation", "train"), ("test", "test")):
        examples = gsm8k.load(str(raw_folder), split, num_shots=0, seed=0)
        assert [example.place for example in examples] == [
            f"row {int(example.question[1:-1]) + 1} of split '{source}'" for example in examples]


def test_the_seed_decides_the_shuffle_and_nothing_else_does(raw_folder):
    for split in ("train", "validation"):
        assert questions(raw_folder, split, seed=1) == questions(raw_folder, split, seed=1)
        assert questions(raw_folder, split, seed=1) != questions(raw_folder, split, seed=2)
        assert questions(raw_folder, split, seed=1) == questions(raw_folder / "train.jsonl", split, seed=1)
    assert questions(raw_folder, "train") != sorted(questions(raw_folder, "train"), key=lambda text: int(text[1:-1]))


def test_a_validation_file_is_used_when_there_is_one(raw_folder):
    (raw_folder / "validation.jsonl").write_text(json.dumps({"question": "v?", "answer": "#### 1"}))
    assert questions(raw_folder, "validation") == ["v?"]
    assert sorted(questions(raw_folder, "train")) == sorted(f"q{k}?" for k in range(30))


def test_prepared_files_hold_what_load_gives(raw_folder, tmp_path):
    output_dir = tmp_path / "prepared"
    command = [sys.executable, "-W", "error", "-m", "data.gsm8k", "--input", str(raw_folder)]
    command += ["--output_dir", str(output_dir), "--num_shots", "2", "--seed", "3"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    for split in ("train", "validation", "test"):
        raw = gsm8k.load(str(raw_folder), split, num_shots=2, seed=3)
        for source in (output_dir, output_dir / f"{split}.json"):
            prepared = gsm8k.load(str(source), split, num_shots=2, seed=99)
            for name in ("question", "answer", "final_answer", "prompt"):
                assert [getattr(row, name) for row in prepared] == [getattr(row, name) for row in raw]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode != 0
    assert again.stderr.startswith("error: output_dir=") and again.stderr.count("\n") == 1


def test_num_shots_without_effect_on_ready_prompts_is_said_once(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"prompt": "p", "final_answer": 4}]))
    with pytest.warns(UserWarning, match="num_shots=8 has no effect"):
        (example,) = gsm8k.load(str(tmp_path / "mine.json"), "train", num_shots=8, seed=0)
    assert (example.prompt, example.final_answer, example.columns["final_answer"]) == ("p", "4", 4)
    with warnings.catch_warnings(action="error"):
        gsm8k.load(str(tmp_path / "mine.json"), "train", num_shots=0, seed=0)
    with pytest.raises(ValueError, match="^num_shots=9"):
        gsm8k.load(str(tmp_path / "mine.json"), "train", num_shots=9, seed=0)


@pytest.mark.parametrize(("num_shots", "nearest"), [(-1, 0), (9, 8)])
def test_num_shots_outside_zero_to_eight_is_refused(raw_folder, num_shots, nearest):
    with pytest.raises(ValueError, match=f"^num_shots={num_shots}: .*nearest valid value: {nearest}$"):
        gsm8k.load(str(raw_folder), "train", num_shots=num_shots, seed=0)


def test_an_answer_without_its_final_line_is_refused(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "q?", "answer": "It is 4."}))
    with pytest.raises(ValueError, match="'It is 4.'.*must end in '#### N'"):
        gsm8k.load(str(tmp_path), "test", num_shots=0, seed=0)


@needs_gsm8k
def test_the_real_gsm8k_splits_into_6726_747_and_1319():
    split = {name: gsm8k.load(str(GSM8K_DIR), name, num_shots=0, seed=42) for name in ("train", "validation", "test")}
    assert [len(examples) for examples in split.values()] == [6726, 747, 1319]  # 7473 - 747, int(7473 / 10), test
    every = [example for examples in split.values() for example in examples]
    assert len({example.question for example in every}) == 8792
    assert not any("<<" in example.answer or ">>" in example.answer for example in every)
    completions, golds = [f"\n{example.answer}" for example in every], [example.final_answer for example in every]
    assert set(format_reward(completions)) == {0.5}
    assert set(correctness_reward(completions, golds)) == {1.0}
    given = {question for question, _, _ in EXEMPLARS}
    assert not given & {example.question for example in every}
