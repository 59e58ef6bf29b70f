"""A disk that is full for some time, or to the end of the run: what is lost, and what the user is told. 20 seconds."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from fault_runs import lines, numbers, options, prepare, texts
from faults import Warm
from refusals import save_small_run, small_run

import train
from grpo.config import Config
from grpo.evaluation.answers import Answer, load_answers, save_answers
from grpo.health.pulse import pulse
from grpo.report.json_lines import JsonLines, read
from grpo.report.log import Log
from grpo.report.page import write_report

STEP, LAST = 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, warm: Warm) -> Path:
    """The run that nothing happens to."""
    assert warm.run(*options(folder, "whole")).codes == [0, 0]
    return folder / "whole"


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(folder: Path, warm: Warm, whole: Path) -> None:
    plant = f"small_disk('save', rank=0, step={STEP - 1}, num_bytes=5_000)"
    ended = warm.run(*options(folder, "full"), plant=plant)
    assert ended.codes == [0, 0] and texts(folder / "full") == texts(whole)
    assert f"[rank 0 step {STEP - 1} save] step-2 could not be saved, those before it are as they were" in ended.err[0]
    assert sorted(path.name for path in (folder / "full" / "checkpoints").iterdir()) == ["step-1", "step-3", "step-4"]


def test_logs_that_do_not_fit_on_the_disk_are_written_when_there_is_room_again(
    folder: Path, warm: Warm, whole: Path
) -> None:
    plant = f"small_disk('log', rank=0, step={STEP - 1}, num_bytes=1_000)"
    ended = warm.run(*options(folder, "logs", save_strategy="no"), plant=plant)
    assert ended.codes == [0, 0]
    assert "metrics.jsonl cannot be written" in ended.err[0]
    assert texts(folder / "logs") == texts(whole) and numbers(folder / "logs") == numbers(whole)


def test_the_last_lines_are_written_at_the_end_where_there_is_room_again(
    folder: Path, warm: Warm, whole: Path
) -> None:
    plant = f"small_disk('log', rank=0, step={LAST}, num_bytes=1_000, until='export')"
    ended = warm.run(*options(folder, "late", save_strategy="no"), plant=plant)
    assert ended.codes == [0, 0], ended.err[0]
    assert texts(folder / "late") == texts(whole) and numbers(folder / "late") == numbers(whole)


def test_lines_that_are_lost_are_said_after_the_weights_are_safe(folder: Path, warm: Warm, whole: Path) -> None:
    plant = f"full_device('metrics.jsonl', step={LAST})"
    ended = warm.run(*options(folder, "lost", save_strategy="no"), plant=plant)
    assert ended.codes == [1, 1]
    (message,) = ended.messages()
    assert " lacks its end: " in message and "that the disk does not take" in message
    assert "Traceback" not in ended.err[0]
    exported = (folder / "lost" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert exported == (whole / "adapter" / "adapter_model.safetensors").read_bytes()


def test_evaluations_that_do_not_fit_on_the_disk_are_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_later(file: JsonLines) -> None:
        if pulse.phase != "evaluate":  # the disk is full as long as problems are solved
            write(file)

    write = JsonLines._write
    monkeypatch.setattr(JsonLines, "_write", write_later)
    save_small_run(tmp_path)
    held = {"eval_examples": 2, "num_generations_eval": 0, "test_dataset_id_or_path": tmp_path / "data.json"}
    assert train.main(small_run(tmp_path, load_in_4bit=False, **held)) == 0
    assert [row["step"] for row in lines(tmp_path / "out" / "evaluation" / "metrics.jsonl")] == [0, 1]


def test_a_batch_that_cannot_be_kept_costs_a_warning(folder: Path, warm: Warm) -> None:
    kept = folder / "kept" / "skipped" / "step-1.json"
    plant = f"(poison(rank=1, first=1, last=1), full_file('{kept}', step=1))"
    ended = warm.run(*options(folder, "kept"), plant=plant)
    assert ended.codes == [0, 0], ended.err[0]
    assert "warning: [rank 0 step 1 log] the batch of this gradient, which is not finite, could not" in ended.err[0]
    assert not list((folder / "kept" / "skipped").iterdir())
    assert [row["skipped_steps"] for row in lines(folder / "kept" / "metrics.jsonl")] == [0, 1, 1, 1]


def test_half_a_line_is_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "reward": 1.0}\n{"step": 1, "rew')
    assert read(path) == [{"step": 0, "reward": 1.0}]
    assert "1 of 2 lines of" in capsys.readouterr().err


def test_a_report_is_made_of_the_lines_that_are_whole(whole: Path, capsys: pytest.CaptureFixture) -> None:
    path = whole / "metrics.jsonl"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-40])
        page = write_report(whole).read_text()
    finally:
        path.write_bytes(content)
    assert "3 of 4 steps" in page and "1 of 4 lines of" in capsys.readouterr().err


def test_what_stays_in_memory_is_written_by_flush_or_named(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "metrics.jsonl", 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()  # nothing can be written there, whoever runs this
    file.append([{"step": 0}])
    with pytest.raises(OSError, match="metrics.jsonl lacks its end: 12 bytes"):
        file.flush()
    (tmp_path / "metrics.jsonl").rmdir()
    file.flush()
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps({"step": 0}) + "\n"


def test_what_one_file_cannot_take_keeps_nothing_from_another(tmp_path: Path) -> None:
    with Log(tmp_path, report_to=[], total_steps=1, first_step=0, settings=asdict(Config())) as log:
        for file in log.files.values():
            file.pending = b'{"step": 0}\n'
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()  # nothing can be written there
        (tmp_path / "completions.jsonl").unlink()
        with pytest.raises(OSError, match="metrics.jsonl lacks its end"):
            log.flush()
    assert (tmp_path / "completions.jsonl").read_text() == '{"step": 0}\n'


def test_answers_that_are_cut_off_never_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("No space left on device")

    answer = Answer(index=0, question="q", final_answer="1", completion="c", strict=True, lenient=True, format=True,
                    truncated=False)
    path = tmp_path / "answers.jsonl"
    save_answers([answer], path)
    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError):
        save_answers([answer] * 3, path)  # half of three is no whole number of lines
    assert load_answers(path) == [answer]
