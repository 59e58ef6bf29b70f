"""The general loader against small files written by hand: columns, splits, and one line for each mistake. 5 s."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import data
from rewards import loading
from rewards.arguments import check_columns

ROOT = Path(__file__).parents[2]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, split="train", **options):
    return data.load_examples(str(path), split, **{"num_shots": 0, "seed": 0, **options})


def message(path, split="train", **options):
    """The error of a load, which must be one line."""
    with pytest.raises(ValueError) as caught:
        load(path, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("as_list", [False, True])
def test_any_dataset_with_a_prompt_column_keeps_its_order_and_all_its_columns(tmp_path, as_list):
    rows = [{"prompt": "b", "solution": "x", "level": 2}, {"prompt": "a", "solution": "y", "level": 1}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows, indent=1) if as_list else "\n".join(map(json.dumps, rows)))
    examples = load(path)
    assert [example.prompt for example in examples] == ["b", "a"]
    assert [example.columns for example in examples] == rows


def test_columns_reach_the_reward_functions_by_name(tmp_path):
    reward_file = tmp_path / "mine.py"
    reward_file.write_text("def f(completions, solution, **kw): return [a == b for a, b in zip(completions, solution)]")
    rows = [{"prompt": "a", "solution": "x"}, {"prompt": "b", "solution": "y"}]
    examples = load(write(tmp_path / "mine.jsonl", rows))
    columns = {name: [example.columns[name] for example in examples] for name in examples[0].columns}
    del columns["prompt"]
    function, = loading.load([f"{reward_file}:f"]).values()
    assert function(prompts=["a", "b"], completions=["x", "x"], **columns) == [True, False]


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a": ', "}")])
def test_a_column_nested_a_hundred_deep_can_be_pickled_and_one_deeper_is_refused(tmp_path, opened, closed):
    path = tmp_path / "mine.jsonl"
    for depth in (100, 101):
        path.write_text(f'{{"prompt": "a"}}\n{{"prompt": "b", "x": {opened * depth}1{closed * depth}}}\n')
        if depth == 100:
            assert pickle.loads(pickle.dumps(load(path)[1].columns))["prompt"] == "b"
    assert "row 2, column 'x' is nested 101 deep" in message(path)


def test_prompt_column_takes_another_column_as_it_is(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"question": "2 + 2?", "answer": "4", "prompt": "unused"}])
    (example,) = load(path, prompt_column="question")
    assert (example.prompt, example.question, example.final_answer) == ("2 + 2?", "2 + 2?", "4")


@pytest.mark.parametrize(
    ("row", "final_answer"),
    [
        ({"final_answer": "7", "answer": "x #### 8"}, "7"),
        ({"final_answer": None, "answer": "x\n#### 8"}, "8"),
        ({"answer": "x\n#### The final answer is 9"}, "9"),
        ({"answer": 10}, "10"),
        ({"answer": 0}, "0"),
        ({}, ""),
    ],
)
def test_the_final_answer_is_its_column_or_the_end_of_the_answer(tmp_path, row, final_answer):
    (example,) = load(write(tmp_path / "mine.jsonl", [{"prompt": "p", **row}]))
    assert example.final_answer == final_answer


def test_without_any_answer_column_the_correctness_reward_is_refused_not_silently_zero(tmp_path):
    (example,) = load(write(tmp_path / "mine.jsonl", [{"prompt": "p", "label": "4"}]))
    with pytest.raises(ValueError, match="missing a required argument: 'final_answer'"):
        check_columns(loading.load(["correctness"]), list(example.columns))


def test_a_key_that_some_rows_lack_is_none_in_them(tmp_path):
    examples = load(write(tmp_path / "mine.jsonl", [{"prompt": "a"}, {"prompt": "b", "hint": "h"}]))
    assert [example.columns["hint"] for example in examples] == [None, "h"]


def test_rows_without_a_prompt_get_the_template_of_gsm8k(tmp_path):
    rows = [{"question": f"q{k}?", "answer": f"#### {k}"} for k in range(20)]
    path = write(tmp_path / "raw.jsonl", rows)
    examples = load(path, num_shots=1)
    assert examples[0].prompt.startswith("Question: Mira picks")
    assert examples[0].prompt.endswith(f"{examples[0].question}\nSolution: Let's think step by step.")
    assert (len(load(path)), len(load(path, "validation")), len(load(path, "test"))) == (18, 2, 20)


def test_wordproblems_are_generated_and_take_solved_examples():
    for num_shots in (0, 2):
        examples = load("wordproblems", "validation", num_shots=num_shots)
        assert all(example.prompt.count("Question:") == num_shots + 1 for example in examples)
        assert all(example.columns["prompt"] == example.prompt for example in examples)
    train = {example.question for example in load("wordproblems", seed=1)}
    assert not train & {example.question for example in examples}


def test_ready_prompts_are_never_split_again_so_validation_must_be_a_file(tmp_path):
    rows = [{"prompt": f"p{k}", "final_answer": "1"} for k in range(20)]
    path = write(tmp_path / "train.json", rows)
    assert len(load(path)) == 20
    assert "no split 'validation', and rows with ready prompts are not split again" in message(path, "validation")
    assert message(path, "test").endswith("no split 'test'; nearest valid value: train")  # these are training rows
    write(tmp_path / "validation.json", rows[:2])
    assert len(load(tmp_path, "validation")) == 2
    assert len(load(tmp_path / "validation.json", "test")) == 2  # named by the user for evaluation


def test_a_missing_file_is_refused_with_the_nearest_one(tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "p"}])
    assert message(tmp_path / "trian.jsonl").endswith(f"nearest valid value: {tmp_path / 'train.jsonl'}")
    assert "no such file or folder" in message(tmp_path / "nowhere" / "train.jsonl")
    assert "a folder must hold one of train.json" in message(ROOT / "tests")


def test_a_dataset_without_the_needed_column_says_which_it_has(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"prompts": "p", "label": 1}])
    assert "prompt_column='prompt', or question and answer; it has prompts, label" in message(path)
    assert message(path).endswith("nearest valid value: prompt_column=prompts")
    assert message(path, prompt_column="labels").endswith("nearest valid value: prompt_column=label")


@pytest.mark.parametrize("value", [None, "", "  ", 5, [{"role": "user", "content": "p"}]])
def test_a_prompt_that_is_not_text_is_refused_by_row(tmp_path, value):
    path = write(tmp_path / "mine.jsonl", [{"prompt": "p"}, {"prompt": value}])
    assert "row 2, column 'prompt' must be text, is" in message(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"prompt": "p"}\n\n{"prompt": \n', "mine.jsonl:3: must be JSON"),
        ('[{"prompt": "p"},\n{"prompt" "q"}]', "mine.jsonl:2: must be JSON"),
        ('{"prompt": "p"}\n[1]\n', "mine.jsonl:2: a row must be a JSON object"),
        ('{"prompt": "p", "n": ' + "1" * 5000 + "}", "mine.jsonl:1: Exceeds the limit"),
        ("", "split 'train' is empty"),
        ("\n \n", "split 'train' is empty"),
        ("[]", "split 'train' is empty"),
        ('{"question": "q", "answer": "#### 1"}', "needs at least 10 rows"),
    ],
)
def test_a_broken_or_empty_file_is_refused_with_file_and_line(tmp_path, text, reason):
    (tmp_path / "mine.jsonl").write_text(text)
    split = "validation" if "at least 10" in reason else "train"
    assert reason in message(tmp_path / "mine.jsonl", split)


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    assert "mine.jsonl: byte 15 is not UTF-8" in message(tmp_path / "mine.jsonl")


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert load(tmp_path / "mine.jsonl")[0].prompt == "a\u2028b"


def test_the_hub_out_of_reach_is_one_clear_line(tmp_path):
    code = "import data; data.load_examples('openai/gsm8k', 'train', num_shots=0, seed=0)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    last_line = run.stderr.strip().split("\n")[-1]
    assert last_line.startswith("ValueError: dataset='openai/gsm8k': no file or folder of this name, and not to be had")
