"""The output folder of a run: one in use, or from which this run starts, is refused; others stay. 25 seconds."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_runs import options, prepare
from faults import Warm
from safetensors.torch import load_file, save_file
from tiny_models import tiny_qwen2

from grpo.doctor import trial
from grpo.run.command import load
from grpo.run.parts import Run
from grpo.saving.output_lock import claim, lock, put_aside


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path, warm: Warm) -> Path:
    """An adapter that a run of one step has written."""
    assert warm.run(*options(folder, "first", max_steps=1), num_ranks=1).codes == [0]
    return folder / "first" / "adapter"


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["checkpoints/step-5/state.json", "adapter/adapter_model.safetensors",
                                  "model/model.safetensors", "summary.json"])
def test_what_a_run_would_write_over_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("kept")
    with pytest.raises(ValueError, match=rf"output_dir=.*holds another run \({name.split('/')[0]}\).*out-2"):
        load(options(folder, str(tmp_path / "out")))
    assert (tmp_path / "out" / name).read_text() == "kept"


def test_folders_made_ready_and_files_of_others_are_no_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "notes.txt").touch()
    load(options(folder, str(tmp_path / "out")))


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
def test_a_second_run_in_the_folder_of_one_that_runs_is_refused(
    folder: Path, warm: Warm, adapter: Path, resume: bool
) -> None:
    output = adapter.parent if resume else folder / "twice"
    argv = [*options(folder, output.name, max_steps=1), *["--resume"][:resume]]
    held = lock(output)
    before = files(output)
    ended = warm.run(*argv)
    (message,) = ended.messages()
    assert ended.codes == [2, 2] and files(output) == before
    assert f"{output.name}' is in use by another run (process {os.getpid()} on " in message
    held.close()
    assert warm.run(*argv).codes == [0, 0]


def test_a_folder_that_another_run_has_filled_meanwhile_is_refused(
    begin: Callable[..., Run], folder: Path, tmp_path: Path
) -> None:
    run = begin(*options(folder, str(tmp_path / "raced")))  # found free, and a model takes a minute to load
    claim(run.output_dir, resume=False).close()
    (tmp_path / "raced" / "summary.json").touch()
    with pytest.raises(ValueError, match=r"output_dir=.*holds another run \(summary.json\)"):
        claim(run.output_dir, resume=False)


def test_a_run_that_ended_before_its_first_checkpoint_starts_again_and_its_files_stay(
    folder: Path, warm: Warm, adapter: Path
) -> None:
    output, argv = folder / "early", options(folder, "early", max_steps=1, eval_examples=2,
                                             test_dataset_id_or_path=folder / "data.json")
    assert warm.run(*argv, plant="kill('update', rank=0, step=0)", num_ranks=1).codes == [-9]
    left = {path.relative_to(output): path.read_bytes() for path in output.rglob("*.*") if path.name != ".lock"}
    assert Path("evaluation/greedy_before.jsonl") in left and Path("config.yaml") in left
    ended = warm.run(*argv, num_ranks=1)
    aside = output / "ended-early-1"
    assert ended.codes == [0] and f"its files are in {aside}" in ended.out[0]
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*.*")} == left
    assert (output / "summary.json").exists() and len((output / "metrics.jsonl").read_text().splitlines()) == 1


def test_without_locks_a_run_that_ended_early_may_still_be_going_on(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "metrics.jsonl").write_text("kept")
    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock(tmp_path) as file, pytest.raises(ValueError, match=r"another run \(metrics.jsonl\), which may still be"):
        put_aside(tmp_path, file)
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"


def test_a_second_run_that_ended_early_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(str(number))
        (tmp_path / "checkpoints").mkdir(exist_ok=True)  # empty: nothing yet
        with lock(tmp_path) as file:
            put_aside(tmp_path, file)
    assert [(tmp_path / f"ended-early-{number}" / "metrics.jsonl").read_text() for number in (1, 2)] == ["1", "2"]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    other = os.fork()
    if other == 0:
        held = lock(tmp_path)
        os.write(writing, b"locked")
        time.sleep(100)
        held.close()
    assert os.read(reading, 6) == b"locked"
    with pytest.raises(ValueError, match=rf"is in use by another run \(process {other} on "):
        lock(tmp_path)
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    lock(tmp_path).close()


def test_an_adapter_that_the_export_writes_over_is_no_start(folder: Path, tmp_path: Path, adapter: Path) -> None:
    shutil.copytree(adapter, tmp_path / "out" / "adapter")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "adapter")
    (tmp_path / "out" / "checkpoints" / "step-1").mkdir(parents=True)
    argv = options(folder, str(tmp_path / "out"), adapter_name_or_path=tmp_path / "link")
    with pytest.raises(ValueError, match="adapter_name_or_path=.*link' is where this run's export goes: output_dir="):
        load([*argv, "--resume"])


def test_a_model_that_the_export_writes_over_is_no_start(folder: Path, tmp_path: Path) -> None:
    tiny_qwen2().save_pretrained(tmp_path / "out" / "model")
    (tmp_path / "out" / "checkpoints" / "step-1").mkdir(parents=True)
    argv = options(folder, str(tmp_path / "out"), model_name_or_path=tmp_path / "out" / "model", use_peft=False)
    with pytest.raises(ValueError, match="model_name_or_path=.*is where this run's export goes"):
        load([*argv, "--resume"])


def test_a_start_adapter_that_has_changed_is_refused_on_resume(folder: Path, warm: Warm, adapter: Path) -> None:
    start = folder / "start"
    shutil.copytree(adapter, start)
    argv = options(folder, "continued", adapter_name_or_path=start, max_steps=2)
    assert warm.run(*argv, num_ranks=1).codes == [0]
    said = json.loads((folder / "continued" / "checkpoints" / "step-2" / "state.json").read_text())
    assert len(said["adapter"]) == 2 * 64 + 1  # two digests in hexadecimal
    file = start / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(name for name in tensors if "lora_B" in name)
    save_file(tensors | {name: tensors[name] + torch.ones(1)}, file)
    before = files(folder / "continued")
    ended = warm.run(*argv, "--resume", num_ranks=1)
    (message,) = ended.messages()
    assert ended.codes == [2] and "resume=True with another adapter than" in message and str(start) in message
    file.unlink()
    ended = warm.run(*argv, "--resume", num_ranks=1)
    assert ended.codes == [2] and f"{str(start)!r} is no adapter folder" in ended.messages()[0]
    after = files(folder / "continued")
    lock_file = folder / "continued" / ".lock"
    assert before.keys() == after.keys() and all(before[path] == after[path] for path in after if path != lock_file)


@pytest.mark.parametrize("neighbour", [True, False])
def test_the_doctor_removes_what_it_made_and_leaves_a_neighbour_s(
    begin: Callable[..., Run], folder: Path, tmp_path: Path, neighbour: bool
) -> None:
    begin(*options(folder, str(tmp_path / "never")))  # ranks that can be asked for their number
    output = tmp_path / "outputs" / "mine"
    with trial.scratch(output) as scratch:
        scratch.mkdir(parents=True)
        (scratch / "state").touch()
        if neighbour:
            (tmp_path / "outputs" / "other").mkdir()
            (tmp_path / "outputs" / "other" / "metrics.jsonl").touch()
    assert not output.exists()
    assert (tmp_path / "outputs").exists() == neighbour
    assert (tmp_path / "outputs" / "other" / "metrics.jsonl").exists() == neighbour


def test_the_doctor_s_checkpoint_is_tried_also_where_its_step_was_skipped(
    begin: Callable[..., Run], folder: Path, tmp_path: Path
) -> None:
    assert trial.saved(begin(*options(folder, str(tmp_path / "skipped")))).level == "ok"  # AdamW has no moments yet
