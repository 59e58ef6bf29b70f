"""A tokenizer with a token that was added to it, and not to the model: only prompts that have it are refused. 10 s."""

import json
import shutil
from pathlib import Path

import pytest
from refusals import refused, save_small_run, small_run
from tiny_models import tiny_tokenizer
from transformers import AutoTokenizer

import eval as evaluation_command
import train

ADDED = "<step>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 320 tokens with a tokenizer of 321; `data.json`, and `added.json`, whose third prompt has the last."""
    folder = tmp_path_factory.mktemp("added")
    save_small_run(folder)
    tokenizer = tiny_tokenizer()
    assert tokenizer.add_tokens([ADDED]) == 1 and tokenizer.encode(ADDED) == [320]
    tokenizer.save_pretrained(folder / "model")
    rows = json.loads((folder / "data.json").read_text())
    rows[0]["prompt"] += tokenizer.decode([319])
    assert tokenizer.encode(rows[0]["prompt"])[-1] == 319  # the last that the model has
    (folder / "data.json").write_text(json.dumps(rows))
    rows[2]["prompt"] += ADDED
    (folder / "added.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("name", ["train_dataset_id_or_path", "test_dataset_id_or_path"])
def test_a_prompt_with_a_token_that_the_model_has_not_is_refused_by_its_row(folder, tmp_path, capsys, name) -> None:
    changed = {"test_dataset_id_or_path": folder / "data.json", "eval_examples": 8, "output_dir": tmp_path / "out"}
    changed[name] = folder / "added.json"
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert line.startswith(f"error: {name}=") and "row 3 " in line
    assert "has the token '<step>' (320), which is not below the model's vocab_size=320" in line


def test_the_evaluation_refuses_it_as_well(folder, capsys) -> None:
    argv = ["--model", str(folder / "model"), "--data", str(folder / "added.json"), "--split", "train"]
    line = refused(evaluation_command.main, argv, folder, capsys)
    assert line.startswith("error: data=") and "row 3 " in line and "'<step>' (320)" in line


def test_a_token_that_no_prompt_has_is_no_mistake(folder, tmp_path, begin) -> None:
    run = begin(*small_run(folder, output_dir=tmp_path / "out"))
    assert len(run.tokenizer) > 320 and run.decoder.config.vocab_size == 320


def test_an_end_beyond_the_model_is_refused_only_where_it_has_no_other(folder, tmp_path, begin, capsys) -> None:
    model = shutil.copytree(folder / "model", tmp_path / "model")
    changed = {"model_name_or_path": model, "output_dir": tmp_path / "out"}
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 320]}')
    assert begin(*small_run(folder, **changed)).stop_token_ids >= {1, 320}
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = ADDED
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").write_text("{}")
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert "has no token that ends a text: 320 is not below vocab_size=320" in line
