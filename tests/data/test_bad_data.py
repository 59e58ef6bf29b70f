"""Datasets that must be refused before a model loads: one line each, nothing written. 5 seconds, most of it imports.

What the loader itself says of broken lines and missing columns is in test_data.py; here is what reaches the user.
"""

import json
from pathlib import Path

import pytest
from refusals import refused, save_small_run, small_run

import eval as evaluation_command
import train
from data import load_examples

pytestmark = pytest.mark.usefixtures("one_pool")

HAS = "row 7 of split 'train' has the final_answer"
GOOD = {"prompt": "q", "final_answer": "1"}


def lines(*rows: dict) -> str:
    return "\n".join(map(json.dumps, rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_small_run(folder)
    return folder


def seven(row: dict) -> str:
    """Six good rows, then this one, then a good one."""
    return lines(*[GOOD] * 6, row, GOOD)


# name of the file, content, words of the line
FILES = [
    ("d.jsonl", b"", ["split 'train' is empty"]),
    ("d.json", b"5", ["d.json:1: a row must be a JSON object, this one is 5"]),
    ("d.json", b"null", ["d.json:1: a row must be a JSON object, this one is null"]),
    ("d.json", json.dumps([GOOD, GOOD])[:-9], ["d.json:1: must be JSON"]),
    ("d.jsonl", lines(GOOD, GOOD)[:-9], ["d.jsonl:2: must be JSON"]),
    ("d.jsonl", seven(GOOD).replace("\n{", "\n{,", 3), ["d.jsonl:2: must be JSON"]),
    ("d.jsonl", b"\0" * 9, ["d.jsonl:1: must be JSON"]),
    ("d.jsonl", seven(GOOD).encode() + b"\n\0\0", ["d.jsonl:9: must be JSON"]),
    ("d.jsonl", seven(GOOD).encode("utf-16"), ["d.jsonl: byte 0 is not UTF-8"]),
    ("d.jsonl", b"[" * 100_000, ["d.jsonl:1: is nested too deeply"]),
    ("d.jsonl", b'{"prompt": "q", "x": ' + b"[" * 100_000, ["d.jsonl:1: is nested too deeply; nearest valid"]),
    ("d.jsonl", seven({**GOOD, "x": 0}).replace(": 0", ": " + "[" * 600 + "]" * 600),
     ["row 7, column 'x' is nested 600 deep, in lists or mappings; nearest valid: at most 100 deep"]),
    ("d.jsonl", '{"prompt": "q", "prompt": "r"}', ["d.jsonl:1: the key 'prompt' comes twice"]),
    ("d.jsonl", '{"prompt": "q", "x": {"y": 1, "y": 2}}', ["d.jsonl:1: the key 'y' comes twice"]),
    ("d.jsonl", '{"prompt": "q", "final_answer": 1' + "0" * 5000 + "}", ["d.jsonl:1: Exceeds the limit"]),
    ("d.jsonl", seven({"final_answer": "1"}), ["row 7, column 'prompt' must be text, is None"]),
    ("d.jsonl", seven({**GOOD, "prompt": " \n"}), ["row 7, column 'prompt' must be text, is ' \\n'"]),
    ("d.jsonl", seven({**GOOD, "prompt": ["q"]}), ["row 7, column 'prompt' must be text, is ['q']"]),
    ("d.jsonl", seven({**GOOD, "prompt": {"text": "q"}}), ["row 7, column 'prompt' must be text"]),
    ("d.jsonl", seven({**GOOD, "prompt": "half \ud83d"}), ["row 7, column 'prompt' must be text, is 'half \\ud83d'"]),
    ("d.jsonl", seven({**GOOD, "prompt": "long " * 2000}), ["max_completion_length=8", "max_prompt_length=2040"]),
    ("d.json", json.dumps([[GOOD]]), ["d.json:1: a row must be a JSON object"]),
    ("d.json", json.dumps({"data": [GOOD]}), ["it has data", "prompt_column=data"]),
    ("d.json", json.dumps({"data": [GOOD]}, indent=1), ["d.json:1: must be JSON"]),
    ("d.jsonl", seven({**GOOD, "completions": "x"}), ["the column 'completions' has the name of what"]),
    ("d.jsonl", seven({**GOOD, "prompts": "x"}), ["'prompts'", "nearest valid value: prompts_of_dataset"]),
    ("d.jsonl", seven({**GOOD, "trainer_state": 1}), ["'trainer_state'", "reward functions"]),
    ("d.jsonl", seven({"prompt": "q"}), [f"{HAS} None, which no completion can match"]),
    ("d.jsonl", seven({**GOOD, "final_answer": "a lot"}), [f"{HAS} 'a lot'", "correctness"]),
    ("d.jsonl", seven({**GOOD, "final_answer": [1]}), [f"{HAS} [1]"]),
    ("d.jsonl", seven({**GOOD, "final_answer": float("nan")}), [f"{HAS} nan"]),
    ("d.jsonl", seven({**GOOD, "final_answer": float("inf")}), [f"{HAS} inf"]),
    ("d.jsonl", lines(*[{"question": "q", "answer": "so ####"}] * 20), ["of split 'train' has the final_answer ''"]),
    ("d.jsonl", lines(*[{"question": "q", "answer": "1"}] * 20), ["answer='1'", "must end in '#### N'"]),
    ("d.csv", "prompt,final_answer\nq,1\nq,1,1\n", ["d.csv: cannot be read as .csv", "Expected 2 fields in line 3"]),
    ("d.parquet", b"PAR1\0\1\2", ["d.parquet: cannot be read as .parquet", "Parquet file size is 7 bytes"]),
    ("d.jsonl", lines({**GOOD, "prompt": [{"role": "user", "content": "q"}]}), ["chat_template=None", "messages"]),
]


@pytest.mark.parametrize(("name", "content", "words"), FILES, ids=[case[2][0][:50] for case in FILES])
def test_a_file_that_holds_no_problems_is_one_line(folder, capfd, name, content, words) -> None:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        line = refused(train.main, small_run(folder, train_dataset_id_or_path=path), folder, capfd)
    finally:
        path.unlink()
    assert all(word in line for word in words), line


def test_what_is_no_file_of_problems_is_one_line(folder, tmp_path, capsys) -> None:
    (tmp_path / "train.jsonl").mkdir()
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nowhere")
    for path, word in (
        (tmp_path, "a folder must hold one of train.json"),
        (tmp_path / "train.jsonl", "a folder must hold one of train.json"),
        (tmp_path / "dangling.json", "must be an existing file or folder"),
        ("/dev/null", "no such file or folder"),
        ("no/such", "not to be had from the Hub either"),
    ):
        line = refused(train.main, small_run(folder, train_dataset_id_or_path=path), tmp_path, capsys)
        assert word in line and str(path) in line
        line = refused(evaluation_command.main, ["--data", str(path)], tmp_path, capsys)
        assert str(path) in line


def test_options_that_the_dataset_does_not_go_with_are_one_line(folder, capsys) -> None:
    for changed, words in (
        ({"dataset_splits": "trian"}, ["no split 'trian'; nearest valid value: train"]),
        ({"prompt_column": "promt"}, ["prompt_column='promt'", "nearest valid value: prompt_column=prompt"]),
        ({"eval_examples": 2}, ["has no split 'validation'"]),
        ({"eval_examples": 2, "test_dataset_id_or_path": folder / "model"}, ["a folder must hold one of"]),
        ({"num_generations": 10**11}, ["num_generations=100000000000", "completions here, whose tokens need"]),
        ({"prompts_per_step": 10**11}, ["completions here, whose tokens need", "prompts_per_step"]),
    ):
        line = refused(train.main, small_run(folder, **changed), folder, capsys)
        assert all(word in line for word in words), line


def test_a_byte_order_mark_in_front_is_no_mistake(tmp_path) -> None:
    for content in (lines(GOOD, GOOD), json.dumps([GOOD, GOOD])):
        (tmp_path / "d.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
        examples = load_examples(str(tmp_path / "d.json"), "train", num_shots=0, seed=0)
        assert [example.prompt for example in examples] == ["q", "q"]
