"""eval.py on one rank and on two: the same answers, written as each evaluation ends. 10 seconds."""

import json
from pathlib import Path

import pytest
from faults import Warm
from refusals import refused, save_small_run

import eval as evaluation_script

OPTIONS = ["--num_shots", "0", "2", "--limit", "5", "--max_completion_length", "12", "--temperature", "1",
           "--num_samples", "2"]


def files(folder: Path) -> dict[str, str]:
    """What an evaluation wrote, but for the name of its folder."""
    return {path.name: path.read_text().replace(str(folder), "") for path in sorted(folder.iterdir())}


def test_two_ranks_answer_as_one_does(tmp_path: Path, warm: Warm) -> None:
    for num_ranks in (1, 2):
        ended = warm.run(*OPTIONS, "--output", str(tmp_path / f"{num_ranks}"), num_ranks=num_ranks, program="eval")
        assert ended.codes == [0] * num_ranks, ended.err[-1]
    one, two = (files(tmp_path / name) for name in ("1", "2"))
    assert one.keys() == {"answers_model_0_shots.jsonl", "answers_model_2_shots.jsonl", "eval.html", "eval.json"}
    for name in one:
        if name.endswith("jsonl"):
            rows, others = ([json.loads(line) for line in texts[name].splitlines()] for texts in (one, two))
            assert len(rows) == 10 and sorted(rows, key=str) == sorted(others, key=str)
    assert json.loads(one["eval.json"])["results"] == json.loads(two["eval.json"])["results"]
    assert "model" in ended.out[0] and ended.out[1] == ""


def test_each_evaluation_is_written_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    real = evaluation_script.write
    monkeypatch.setattr(evaluation_script, "write", lambda settings, answers, records, made: (
        real(settings, answers, records, made), written.append([key[1] for key in answers])))
    assert evaluation_script.main([*OPTIONS, "--output", str(tmp_path / "out")]) == 0
    assert written == [[0], [0, 2]]


def test_lengths_are_checked_before_the_first_token(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    # the shipped model has room for 1,024 tokens; 8 examples take more than half of them
    save_small_run(tmp_path)
    argv = ["--num_shots", "0", "8", "--limit", "2", "--max_completion_length", "900", "--output",
            str(tmp_path / "out")]
    line = refused(evaluation_script.main, argv, tmp_path, capsys)
    assert line.startswith("error: max_completion_length=900: with the ") and "context of 1024 tokens" in line
