"""What every refused command must look like: one line, exit code 2, and not a file touched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import tiny_qwen2, tiny_tokenizer


def refused(command: Callable[[list[str]], int], argv: list[str], folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Run a command that must refuse, and give the line that it says.

    Args:
        command: `train.main` or one like it.
        argv: its command line.
        folder: everything the test owns; nothing in it may change.
        capsys: of the test.
    """
    before = snapshot(folder)
    assert command(argv) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    lines = printed.err.replace("collect2: error", "").splitlines()  # DeepSpeed tries a compiler when it is imported
    (line,) = [line for line in lines if "error" in line.lower()]
    assert line.startswith("error: ") and len(line) < 1000
    assert snapshot(folder) == before
    return line


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder in it with its size and the time of its last change."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def small_run(folder: Path, **changed: object) -> list[str]:
    """The command line of one small step with `model` and `data.json` of a folder, with some options changed."""
    options = {
        "model_name_or_path": folder / "model", "train_dataset_id_or_path": folder / "data.json",
        "output_dir": folder / "out", "eval_examples": 0, "max_completion_length": 8, "prompts_per_step": 2,
        "num_generations": 2, "max_steps": 1, "save_strategy": "no", "zero_stage": 0, **changed,
    }
    return [word for name, value in options.items()
            for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))]


def save_small_run(folder: Path) -> None:
    """Write `model`, with its tokenizer, and `data.json`."""
    tiny_qwen2(num_hidden_layers=1).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Question {number}?", "final_answer": "1"} for number in range(8)]
    (folder / "data.json").write_text(json.dumps(rows))
