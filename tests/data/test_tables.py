"""Datasets that are no plain JSON: Parquet, CSV, TSV, .gz, folders of save_to_disk, configurations. 10 seconds."""

import gzip
import json
from pathlib import Path

import datasets
import pytest

from data import load_examples
from data.tables import hub_splits

USER = {"role": "user", "content": "What is 2 + 2?"}
ROWS = [{"prompt": [USER], "reward_model": {"ground_truth": str(number)}, "level": number} for number in range(3)]
TEXTS = 'prompt;final_answer;hint\n"2 + 2,\n""please""";4;NA\nNone;;b\n'  # with the separator for ";"
CUT_OFF = gzip.compress(b'{"prompt": "q"}', mtime=0)[:-9]  # with the time in it the names of two collections differ


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the library stores of the files that it reads."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def load(path: Path, split: str = "train", **options):
    return load_examples(str(path), split, **{"num_shots": 0, "seed": 0, **options})


def message(path: Path, split: str = "train", **options) -> str:
    with pytest.raises(ValueError) as caught:
        load(path, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_holds_messages_and_nested_columns_as_json_does(tmp_path, cache):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "mine.parquet")
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    options = {"answer_column": "reward_model.ground_truth"}
    assert load(tmp_path / "mine.parquet", **options) == load(tmp_path / "mine.jsonl", **options)
    assert not list(cache.rglob("*.arrow")), "a copy of the data"


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.csv.gz", "d.tsv.gz"])
def test_csv_and_tsv_keep_what_stands_in_a_cell_and_only_an_empty_one_is_missing(tmp_path, name):
    path, text = tmp_path / name, TEXTS.replace(";", "\t" if "tsv" in name else ",").encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    first, second = load(path)
    assert (first.prompt, float(first.final_answer), first.columns["hint"]) == ('2 + 2,\n"please"', 4, "NA")
    assert (second.prompt, second.final_answer, second.columns["hint"]) == ("None", "", "b")
    assert second.columns["final_answer"] is None


def test_json_in_gz_is_read_as_json_with_file_and_line(tmp_path):
    for name in ("mine.jsonl.gz", "mine.json.gz"):
        text = "\n".join(map(json.dumps, ROWS)) if "jsonl" in name else json.dumps(ROWS)
        (tmp_path / name).write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
        assert [one.columns["level"] for one in load(tmp_path / name)] == [0, 1, 2]
    (tmp_path / "mine.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}\n{"prompt" "q"}'))
    assert "mine.jsonl.gz:2: must be JSON" in message(tmp_path / "mine.jsonl.gz")


def test_a_file_is_the_split_it_is_named_after_whatever_its_format(tmp_path):
    for split, number in (("train", 3), ("validation", 2), ("test", 1)):
        ending = {"train": "parquet", "validation": "jsonl.gz", "test": "csv"}[split]
        path = tmp_path / f"{split}.{ending}"
        texts = [{"prompt": f"p{row}"} for row in range(number)]
        if ending == "parquet":
            datasets.Dataset.from_list(texts).to_parquet(path)
        elif ending == "csv":
            path.write_text("prompt\n" + "".join(f"{one['prompt']}\n" for one in texts))
        else:
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, texts)).encode()))
    assert [len(load(tmp_path, split)) for split in ("train", "validation", "test")] == [3, 2, 1]
    assert "no split 'train'; nearest valid value: validation" in message(tmp_path / "validation.jsonl.gz")
    assert len(load(tmp_path / "validation.jsonl.gz", "test")) == 2  # named by the user for evaluation
    assert "no split 'test'" in message(tmp_path / "train.parquet", "test")


def test_a_folder_of_save_to_disk_has_its_splits_or_is_one(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "mine")
    datasets.DatasetDict({"train": rows, "test": rows.select([1]), "hard": rows.select([2])}).save_to_disk(
        tmp_path / "split")
    assert [one.columns["level"] for one in load(tmp_path / "mine")] == [0, 1, 2]
    assert len(load(tmp_path / "mine", "test")) == 3
    assert [one.columns["level"] for one in load(tmp_path / "split", "test")] == [1]
    assert [one.columns["level"] for one in load(tmp_path / "split", "hard")] == [2]
    assert "no split 'easy'; nearest valid value: train or test or hard" in message(tmp_path / "split", "easy")


@pytest.mark.parametrize(("name", "content", "words"), [
    ("d.parquet", b"PAR1\0\1\2", "d.parquet: cannot be read as .parquet: ArrowInvalid"),
    ("d.csv", b"", "d.csv: cannot be read as .csv: EmptyDataError"),
    ("d.csv", b"prompt,final_answer\nq,1\nq,1,2\n", "d.csv: cannot be read as .csv: ParserError: Error tokenizing "
     "data. C error: Expected 2 fields in line 3"),
    ("d.tsv", "prompt\nq".encode("utf-16"), "d.tsv: cannot be read as .tsv: UnicodeDecodeError"),
    ("d.csv.gz", b"prompt\nq\n", "d.csv.gz: cannot be read as .csv.gz: BadGzipFile"),
    ("d.jsonl.gz", b'{"prompt": "q"}', "d.jsonl.gz: cannot be read: Not a gzipped file"),
    ("d.jsonl.gz", CUT_OFF, "d.jsonl.gz: cannot be read: Compressed file ended"),
    ("d.csv", b"prompt,n\n", "split 'train' is empty"),
    ("d.csv", b'prompt\n"[{""role"": ""user""}]"\n', "row 1, column 'prompt' holds messages, but written as text"),
    ("d.csv", b"prompt\n5\n", "row 1, column 'prompt' must be text, is 5"),
])
def test_a_broken_table_is_one_line_that_names_the_file(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in message(tmp_path / name)


def test_a_broken_folder_of_save_to_disk_is_one_line(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "mine")
    next((tmp_path / "mine").glob("*.arrow")).write_bytes(b"nothing")
    assert "mine: cannot be read as a folder of save_to_disk: " in message(tmp_path / "mine")


def test_a_name_with_the_signs_of_a_pattern_is_a_name(tmp_path):
    for name in ("a[1].csv", "a*.csv", "a?.csv"):
        (tmp_path / name).write_text(f"prompt\nof {name}\n")
    assert [load(tmp_path / name)[0].prompt for name in ("a[1].csv", "a*.csv", "a?.csv")] == [
        "of a[1].csv", "of a*.csv", "of a?.csv"]


def test_a_configuration_is_chosen_by_its_name(tmp_path):
    """A clone of a Hub dataset stands for it: the library reads both in the same way."""
    described = []
    for name, number in (("main", 3), ("socratic", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.json").write_text(json.dumps(ROWS[:number]))
        described.append(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.json\n")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(described)}---\n")
    assert len(hub_splits(str(tmp_path), "socratic")["train"]()) == 2
    with pytest.raises(ValueError, match=r"dataset_config=None.*available configs: \['main', 'socratic'\]"):
        hub_splits(str(tmp_path), None)
    with pytest.raises(ValueError, match="'socrates' not found. Available: .'main', 'socratic'"):
        hub_splits(str(tmp_path), "socrates")


def test_a_dataset_that_the_library_cannot_read_is_one_line(tmp_path):
    """Splits of different columns, for which the library has an error of its own."""
    (tmp_path / "one.json").write_text(json.dumps([{"a": 1}]))
    (tmp_path / "two.json").write_text(json.dumps([{"b": "x"}]))
    with pytest.raises(ValueError, match="not to be had from the Hub either .*Error: ") as caught:
        hub_splits(str(tmp_path), None)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_a_local_file_is_refused(tmp_path):
    (tmp_path / "d.csv").write_text("prompt\nq\n")
    assert message(tmp_path / "d.csv", dataset_config="main").endswith("d.csv is here; nearest valid value: none")
