"""Where a run looks for what it reads: here, in the home folder, in the project; and never on a Hub for a path. 1 s."""

from pathlib import Path

import pytest
from ranks import ROOT

from grpo.options import evaluation
from grpo.run.command import load

HOLDING = {"model_name_or_path": "config.json", "tokenizer_name_or_path": "tokenizer_config.json",
           "adapter_name_or_path": "adapter_config.json"}
READ = [*HOLDING, "train_dataset_id_or_path", "test_dataset_id_or_path"]
SHIPPED = "data/tiny_qwen2"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, with a folder `here` to run in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def folder(path: Path) -> Path:
    """A folder that looks like a model, a tokenizer, an adapter and a dataset."""
    path.mkdir(parents=True)
    for name in (*HOLDING.values(), "train.json", "test.json"):
        (path / name).touch()
    return path


def test_a_home_is_spelled_out_wherever_something_is_read(home: Path) -> None:
    mine = str(folder(home / "mine"))
    for name in READ:
        assert getattr(load([f"--{name}", "~/mine"]), name) == mine
    for name in ("model", "adapter", "data"):
        assert getattr(evaluation.parse([f"--{name}", "~/mine"]), name) == mine


def test_the_projects_own_files_are_found_from_anywhere() -> None:
    assert load([]).model_name_or_path == evaluation.parse([]).model == str(ROOT / SHIPPED)
    assert load(["--tokenizer_name_or_path", SHIPPED]).tokenizer_name_or_path == str(ROOT / SHIPPED)


def test_what_is_here_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(Path(SHIPPED))
    assert load([]).model_name_or_path == evaluation.parse([]).model == SHIPPED
    monkeypatch.chdir(ROOT)
    assert load(["--output_dir", str(home / "out")]).model_name_or_path == SHIPPED, "as the recipe has it"


def test_what_the_project_does_not_have_stays_a_name() -> None:
    for name in ("Qwen/Qwen2.5-0.5B", "tests", "wordproblems"):  # the second is a folder of the project
        assert load(["--model_name_or_path", name]).model_name_or_path == name
    assert load([]).train_dataset_id_or_path == "wordproblems"


@pytest.mark.parametrize("value", ["./none", "../none", "~/none", "~nobody/none", "/none/none", "a/b/c", "none/"])
def test_a_path_is_never_asked_of_a_hub(value: str) -> None:
    for name, file in HOLDING.items():
        with pytest.raises(ValueError, match=f"^{name}=.* must be a folder that holds {file}; nearest valid value: "):
            load([f"--{name}", value])
    for name, file in (("model", "config.json"), ("adapter", "adapter_config.json")):
        with pytest.raises(ValueError, match=f"^{name}=.* must be a folder that holds {file}; nearest valid value: "):
            evaluation.parse([f"--{name}", value])


def test_an_adapter_is_never_a_hubs(home: Path) -> None:
    folder(Path("runs/mine"))
    with pytest.raises(ValueError, match="must be a folder that holds adapter_config.json; .*: runs/mine$"):
        load(["--adapter_name_or_path", "runs/mien"])
    with pytest.raises(ValueError, match="nearest valid value: a folder that save_pretrained wrote$"):
        evaluation.parse(["--adapter", "somebody/adapter"])
