"""Machine, code and versions of a run, and how it ended, are in run.json, whatever ended it. Needs 3 s."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from grpo.config import Config
from grpo.run import provenance


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_code_is_named_by_its_commit_which_says_so_if_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    git(tmp_path, "init", "-q")
    assert provenance.code() == "", "there is no commit yet"
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    (tmp_path / "notes.txt").touch()  # not part of the code
    assert provenance.code() == f"commit {commit}"
    (tmp_path / "a.py").write_text("2")
    assert provenance.code() == f"commit {commit}, with uncommitted changes"


def test_the_code_of_an_installed_package_is_named_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    monkeypatch.setattr(provenance.importlib.metadata, "version", {"grpo": "1.2.3"}.__getitem__)
    assert provenance.code() == "grpo 1.2.3"


def test_the_machine_is_told_with_its_memory() -> None:
    assert f", {psutil.virtual_memory().total / 2**30:.0f} GiB" in provenance.machine()


def begin(output_dir: Path, *, resume: bool = False, first_step: int = 0) -> SimpleNamespace:
    """What `recorded` needs of a run; its folder has the files of one that has taken a step."""
    Config(seed=1).save(output_dir / "config.yaml")
    (output_dir / "metrics.jsonl").write_text('{"step": 0, "reward": 1.0}\n')
    return SimpleNamespace(output_dir=output_dir, asked=SimpleNamespace(resume=resume), first_step=first_step,
                           num_steps=3)


def starts(output_dir: Path) -> list[dict]:
    return json.loads((output_dir / "run.json").read_text())


def test_a_run_that_is_killed_has_its_start_recorded_and_no_end(tmp_path: Path) -> None:
    with provenance.recorded(begin(tmp_path)):
        (start,) = starts(tmp_path)
    assert start.keys() == {"first_step", "num_steps", "began", "machine", "ranks", "code", "versions"}
    assert start["ranks"] == 1 and {"python", "torch"} <= start["versions"].keys()


def test_a_failure_is_recorded_with_its_reason_and_the_report_is_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), provenance.recorded(begin(tmp_path)):
        1 / 0
    (start,) = starts(tmp_path)
    assert start["ending"] == "failed" and start["reason"].endswith(" ZeroDivisionError: division by zero")
    text = (tmp_path / "report.html").read_text()
    assert "The run failed after 1 of 3 steps: the mean reward " in text
    assert "ZeroDivisionError: division by zero</pre>" in text


def test_a_report_that_cannot_be_written_does_not_hide_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = begin(tmp_path)
    with pytest.raises(SystemExit, match="error: enough"), provenance.recorded(run):
        (tmp_path / "metrics.jsonl").unlink()
        raise SystemExit("error: enough")
    assert "report.html is not written: " in capsys.readouterr().err
    assert starts(tmp_path)[0]["reason"] == "error: enough"


def test_a_resumed_run_has_all_its_starts_and_a_new_one_only_its_own(tmp_path: Path) -> None:
    with provenance.recorded(begin(tmp_path)):
        provenance.ended(tmp_path, "stopped")
    with provenance.recorded(begin(tmp_path, resume=True, first_step=1)):
        assert provenance.ended(tmp_path, "finished") == tmp_path / "report.html"
    assert [(one["first_step"], one["ending"]) for one in starts(tmp_path)] == [(0, "stopped"), (1, "finished")]
    with provenance.recorded(begin(tmp_path)):
        assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize(("first_step", "stays"), [(1, False), (3, True)])
def test_a_run_that_is_prolonged_has_no_end_until_it_is_there(tmp_path: Path, first_step: int, stays: bool) -> None:
    run = begin(tmp_path, resume=True, first_step=first_step)
    (tmp_path / "evaluation").mkdir()
    ends = [tmp_path / "summary.json", tmp_path / "evaluation" / "greedy_after.jsonl"]
    for file in ends:
        file.write_text("{}\n")
    with provenance.recorded(run):
        assert [file.exists() for file in ends] == [stays, stays]
