"""Gold answers that are no number are refused before a model loads, with their row in the file. 8 s, 6 of imports."""

import json
from pathlib import Path

import pytest
from refusals import refused, save_small_run, small_run

import eval as evaluation_command
import train
from data import load_examples

pytestmark = pytest.mark.usefixtures("one_pool")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gold")
    save_small_run(folder)
    return folder


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("gold", ["3 dozen", "$5m", "Paris", None, True])
def test_a_gold_answer_of_the_training_that_is_no_number_is_one_line_with_its_row(folder, capsys, gold) -> None:
    rows = [{"prompt": "q", "final_answer": gold if number == 7 else "1"} for number in range(1, 9)]
    path = write(folder / "d.jsonl", rows)
    line = refused(train.main, small_run(folder, train_dataset_id_or_path=path), folder, capsys)
    assert line.startswith(
        f"error: train_dataset_id_or_path={path!r} row 7 of split 'train' has the final_answer {gold!r}, which no "
        "completion can match: the reward correctness needs a number; nearest valid value: a number in each row, or ")


@pytest.mark.parametrize(("answer", "words"), [
    ("#### 3 and a half", "row 7 of split 'train' has the final_answer '3 and a half', which"),
    ("so 3", "answer='so 3' in row 7 of split 'train': must end in '#### N'"),
])
def test_a_raw_row_is_named_by_its_place_before_the_shuffle(folder, capsys, answer, words) -> None:
    rows = [{"question": f"q{number}", "answer": answer if number == 7 else "#### 1"} for number in range(1, 21)]
    run = small_run(folder, train_dataset_id_or_path=write(folder / "raw.jsonl", rows))
    assert words in refused(train.main, run, folder, capsys)


def test_a_row_that_validation_takes_from_the_training_data_is_named_by_its_place_in_the_file(folder, capsys) -> None:
    path, golds = folder / "train.jsonl", ["3"] * 10
    write(path, [{"question": f"q{k}", "answer": f"#### {gold}"} for k, gold in enumerate(golds)])
    (held_out,) = load_examples(str(path), "validation", num_shots=0, seed=42)
    index = int(held_out.question[1:])
    golds[index] = "3 dozen"
    write(path, [{"question": f"q{k}", "answer": f"#### {gold}"} for k, gold in enumerate(golds)])
    run = small_run(folder, train_dataset_id_or_path=path, eval_examples=1, seed=42)
    line = refused(train.main, run, folder, capsys)
    assert f"row {index + 1} of split 'train' has the final_answer '3 dozen', which" in line
    assert "the evaluation needs a number; nearest valid value: a number in each row, outcome_reward=a function" in line


@pytest.mark.parametrize("gold", ["5 no wait seven", "2 thirds", "", None, "Paris", True])
def test_a_held_out_answer_that_is_no_number_is_one_line_with_its_row(folder, capsys, gold) -> None:
    rows = [{"prompt": "q", "final_answer": gold if number == 7 else "1"} for number in range(1, 9)]
    path = write(folder / "test.jsonl", rows)
    run = small_run(folder, eval_examples=2, test_dataset_id_or_path=path, reward_funcs="format")
    shown = "''" if gold is None else repr(str(gold))  # of Example.final_answer, which is text
    for command, argv, option in ((train.main, run, "test_dataset_id_or_path"),
                                  (evaluation_command.main, ["--data", path, "--limit", "7"], "data")):
        line = refused(command, argv, folder, capsys)
        assert line.startswith(f"error: {option}={path!r} row 7 of split 'test' has the final_answer {shown}, which no "
                               "completion can match: the evaluation needs a number; nearest valid value: a ")


def test_other_rewards_than_correctness_take_any_gold_answer(folder, capsys) -> None:
    path = write(folder / "d.jsonl", [{"prompt": "q", "final_answer": "Paris"}] * 8)
    run = small_run(folder, train_dataset_id_or_path=path, reward_funcs="format", test_dataset_id_or_path=path,
                    eval_examples=1)
    assert f"error: test_dataset_id_or_path={path!r} row 1 of split 'test'" in refused(train.main, run, folder, capsys)
