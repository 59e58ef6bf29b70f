"""What the services that draw curves get of a run: each the real library with a local store. 20 seconds."""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from refusals import save_small_run, small_run

import train
from grpo.config import Config
from grpo.health import heartbeat
from grpo.report import trackers
from grpo.report.log import Log

pytestmark = pytest.mark.usefixtures("one_pool")


class Mine:
    """A service that keeps what it is told, and fails when it is asked to."""

    def __init__(self, opening: trackers.Opening, fails_at: tuple = ()) -> None:
        self.id, self.told, self.fails_at = opening.known or "first", [], fails_at

    def write(self, step: int, values: dict[str, float]) -> None:
        if step in self.fails_at:
            raise ConnectionError("out of\nreach")
        self.told.append((step, values))

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.told.append((step, rows))

    def files(self, paths: list[Path]) -> None:
        self.told.append([path.name for path in paths])

    def close(self, status: str) -> None:
        self.told.append(status)
        if self.fails_at:
            raise TimeoutError("at the end")


def open_log(folder: Path, report_to: list[str], first_step: int = 0, **settings: Any) -> Log:
    return Log(folder, report_to=report_to, total_steps=4, first_step=first_step, logging_steps=2,
               settings=asdict(Config(**settings)))


def test_a_service_gets_every_logging_steps_th_step_evaluations_completions_files_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.SERVICES, "mine", Mine)
    with open_log(tmp_path, ["mine"]) as log:
        for step in range(4):
            log.write(step, {"reward": float(step)})
            log.write_completions(step, {"completion": ["a"], "reward": [step]})
            log.write_completions(step, {"completion": ["b"], "reward": [step]})
        log.evaluated({"step": 4, "eval_accuracy": 0.5, "eval_accuracy_interval": [0.1, 0.9]})
        log.keep([tmp_path / "report.html"])
    (mine,) = log.trackers
    assert mine.service.told == [
        (0, {"reward": 0.0}), (2, {"reward": 2.0}), (4, {"eval_accuracy": 0.5}),
        (3, [{"completion": "a", "reward": 3}, {"completion": "b", "reward": 3}]), ["report.html"], "FINISHED"]
    with pytest.raises(KeyError), open_log(tmp_path, ["mine"]) as log:
        raise KeyError
    assert log.trackers[0].service.told == ["FAILED"]
    with pytest.raises(KeyboardInterrupt), open_log(tmp_path, ["mine"]) as log:
        raise KeyboardInterrupt
    assert log.trackers[0].service.told == ["KILLED"]
    with open_log(tmp_path, ["mine"]) as log:
        heartbeat_ends(log)
    assert log.trackers[0].service.told == ["FAILED"]  # and nothing after it


def test_an_error_of_a_tracker_costs_a_warning_and_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(trackers.SERVICES, "mine", lambda opening: Mine(opening, fails_at=(0, 2)))
    with open_log(tmp_path, ["mine"]) as log:
        for step in range(5):
            log.write(step, {"reward": 0.5})
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: report_to")]
    # One for each time out of reach: steps 0 and 2, then, after step 4, the end.
    assert warnings == [f"warning: report_to=mine: {words}; training goes on, and metrics.jsonl has every step"
                        for words in (r"ConnectionError: out of\nreach", "TimeoutError: at the end")]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_resumed_run_goes_on_in_the_run_of_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.SERVICES, "mine", Mine)
    open_log(tmp_path, ["mine"]).close()
    (tmp_path / trackers.FILE).write_text(json.dumps({"mine": "the first one"}))
    assert open_log(tmp_path, ["mine"], first_step=2).trackers[0].service.id == "the first one"
    assert open_log(tmp_path, ["mine"]).trackers[0].service.id == "first"  # a new run


def heartbeat_ends(log: Log) -> None:
    """As before a verdict: from another thread than the one that began."""
    thread = threading.Thread(target=log.tell_end, args=("FAILED",))
    thread.start()
    thread.join()
    assert not any(tracker.fails for tracker in log.trackers)


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow with a store in a folder."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "grpo")
    monkeypatch.setenv("MLFLOW_TAGS", '{"team": "reasoning"}')
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow


def test_a_run_that_was_stopped_and_resumed_is_one_run_of_mlflow(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    farewells: list[Any] = []
    monkeypatch.setattr(heartbeat, "before_end", farewells.append)
    save_small_run(tmp_path)
    more = {"report_to": "mlflow", "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant",
            "load_in_4bit": False, "eval_examples": 2, "test_dataset_id_or_path": tmp_path / "data.json"}
    assert train.main(small_run(tmp_path, **more, max_steps=2)) == 0
    assert train.main([*small_run(tmp_path, **more, max_steps=3), "--resume"]) == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("grpo").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "out", "reasoning")
    assert run.data.params["num_generations"] == "2" and len(run.data.params) == len(asdict(Config()))
    steps = [one.step for one in client.get_metric_history(run.info.run_id, "reward")]
    assert sorted(set(steps)) == [0, 1, 2]
    assert {one.step for one in client.get_metric_history(run.info.run_id, "eval_accuracy")} >= {0, 2, 3}
    kept = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert kept == {"adapter", "report.html", "completions"}
    assert [one.args for one in farewells] == [("FAILED",)] * 2


def test_a_run_that_fails_is_shown_as_failed(tmp_path: Path, mlflow: Any) -> None:
    with pytest.raises(KeyError), open_log(tmp_path, ["mlflow"], run_name="mine") as log:
        log.write(0, {"reward": 0.5})
        raise KeyError
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("grpo").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FAILED", "mine")
    assert mlflow.active_run() is None


def test_a_run_that_the_heartbeat_ends_is_shown_as_failed(tmp_path: Path, mlflow: Any) -> None:
    heartbeat_ends(open_log(tmp_path, ["mlflow"]))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("grpo").experiment_id])
    assert run.info.status == "FAILED"
    mlflow.end_run()  # the heartbeat's process would be gone


def test_what_cannot_be_reached_is_one_line_before_the_first_step(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save_small_run(tmp_path)
    store = os.environ["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    monkeypatch.setitem(trackers.PATIENCE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert train.main(small_run(tmp_path, report_to="mlflow", load_in_4bit=False)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: report_to='mlflow' cannot be opened: ") and "Traceback" not in line
    mlflow.set_tracking_uri(store)
    assert train.main(small_run(tmp_path, report_to="mlflow", load_in_4bit=False)) == 0  # the same folder


def wandb_records(folder: Path) -> list[Any]:
    """What wandb has stored of the one run of a folder, as soon as its own process has written the end."""
    from wandb.proto.wandb_internal_pb2 import Record

    (store,) = folder.glob("offline-run-*/run-*.wandb")
    give_up = time.monotonic() + 30
    while True:
        # 7 bytes, then blocks of 32 KiB: checksum (4 bytes), length (2), and whether a record ends here (1 or 4)
        content, place, whole, found = store.read_bytes(), 7, b"", []
        while place + 7 <= len(content):
            length, kind = int.from_bytes(content[place + 4:place + 6], "little"), content[place + 6]
            whole, place = whole + content[place + 7:place + 7 + length], place + 7 + length
            place += -place % 32768 if -place % 32768 < 7 else 0
            if kind in (1, 4):
                found.append(Record.FromString(whole))
                whole = b""
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_wandb_gets_a_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_NAME", "from the environment")
    with open_log(tmp_path, ["wandb"]) as log:
        assert log.trackers[0].service.run.name == "from the environment"
        log.write(0, {"reward": 0.5})
        log.write_completions(0, {"completion": ["a"], "reward": [0.5]})
        log.evaluated({"step": 1, "eval_accuracy": 0.5})  # of a later step than the completions
        (tmp_path / "report.html").write_text("page")
        log.keep([tmp_path / "report.html"])
    assert not log.trackers[0].fails
    *records, end = wandb_records(tmp_path / "wandb")
    rows = [{(item.key or item.nested_key[0]): item.value_json for item in record.history.item} for record in records
            if record.WhichOneof("record_type") == "history"]
    assert [(row["_step"], row.get("reward"), row.get("eval_accuracy"), "completions" in row) for row in rows] == [
        ("0", "0.5", None, False), ("1", None, "0.5", True)]
    assert end.exit.exit_code == 0


def test_trackio_gets_a_run_and_its_second_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    (tmp_path / "out").mkdir()
    for first_step in (0, 2):
        with open_log(tmp_path / "out", ["trackio"], first_step=first_step) as log:
            log.write(first_step, {"reward": 0.5})
            log.write_completions(first_step, {"completion": ["a"], "reward": [0.5]})
            log.keep([])
            if first_step:
                heartbeat_ends(log)
        assert not log.trackers[0].fails
    found = SQLiteStorage.get_logs(project="grpo", run="out")
    assert [row["reward"] for row in found if "reward" in row] == [0.5, 0.5]


def test_tensorboard_gets_every_logging_steps_th_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_log(tmp_path, ["tensorboard"]) as log:
        for step in range(4):
            log.write(step, {"reward": float(step)})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(0, 0.0), (2, 2.0)]
