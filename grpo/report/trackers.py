"""The services that draw a run's curves, as transformers' callbacks use them: with the same names in the environment.

A service that cannot be reached at the start is refused; later an error in one costs a warning, never the run. A
resumed run goes on in the run that the service has already: its name there is in `trackers.json`.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.options.refusal import refuse, spelled_out

FILE = "trackers.json"
MOST_PARAMS = 100  # that MLflow takes in one call
LONGEST_PARAM = 500  # characters of a value that every version of MLflow takes
# MLflow asks a server that is not there seven times, for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
WANDB = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}  # exit codes that stand for how a run ended


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a service is told of a run."""

    output_dir: Path
    first_step: int  # greater than 0 where the run is resumed
    settings: dict[str, Any]
    known: str | None = None  # the run's name in the service, from before it was resumed

    def name(self, variable: str = "") -> str:
        """What the service shows: run_name, or what a variable of the environment says, or the folder."""
        return self.settings["run_name"] or os.environ.get(variable) or self.output_dir.name


class TensorBoard:
    """Event files in the run's folder."""

    id = None

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(opening.output_dir / "tensorboard"), purge_step=opening.first_step)
        self.writer.add_text("config", json.dumps(opening.settings, indent=1))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.writer.add_text("completions", json.dumps(rows, indent=1), step)

    def files(self, paths: Sequence[Path]) -> None:
        pass  # they are in the same folder

    def close(self, status: str) -> None:
        self.writer.close()


class MLflow:
    """MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_NAME, MLFLOW_TAGS (JSON), MLFLOW_RUN_ID."""

    def __init__(self, opening: Opening) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        self.mlflow, self.mine = mlflow, mlflow.active_run() is None
        if self.mine:
            if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
                mlflow.set_experiment(experiment)
            mlflow.start_run(run_id=opening.known,
                             run_name=None if opening.known else opening.name("MLFLOW_RUN_NAME"))
        self.id = mlflow.active_run().info.run_id
        if opening.known:
            return
        mlflow.set_tags(json.loads(os.environ.get("MLFLOW_TAGS", "{}")))
        params = [(name, str(value)[:LONGEST_PARAM]) for name, value in opening.settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            mlflow.log_params(dict(params[first:first + MOST_PARAMS]))

    def write(self, step: int, values: dict[str, float]) -> None:
        self.mlflow.log_metrics(values, step=step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.mlflow.log_dict({"rows": rows}, f"completions/step-{step}.json")

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if path.is_dir():
                self.mlflow.log_artifacts(str(path), path.name)
            else:
                self.mlflow.log_artifact(str(path))

    def close(self, status: str) -> None:
        if self.mine:  # a run that was active before belongs to whoever began it
            # end_run knows a run only in the thread that began it, and the heartbeat closes it from another.
            self.mlflow.MlflowClient().set_terminated(self.id, status)
            self.mlflow.end_run(status)


class WandB:
    """WANDB_PROJECT, WANDB_NAME, WANDB_MODE and what else wandb reads."""

    def __init__(self, opening: Opening) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(dir=opening.output_dir, name=opening.name("WANDB_NAME"), config=opening.settings,
                              id=opening.known, resume="allow" if opening.known else None)
        self.id = self.run.id

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        columns = list(rows[0])
        cells = [[str(row[name]) for name in columns] for row in rows]
        # Without the step: an evaluation after it has a later one, and wandb drops what comes behind its newest step.
        self.run.log({"completions": self.wandb.Table(columns=columns, data=cells)})

    def files(self, paths: Sequence[Path]) -> None:
        artifact = self.wandb.Artifact(f"run-{self.id}", type="model")
        for path in paths:
            artifact.add_dir(str(path), path.name) if path.is_dir() else artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def close(self, status: str) -> None:
        self.run.finish(exit_code=WANDB[status])


class Trackio:
    """TRACKIO_PROJECT, TRACKIO_DIR and what else trackio reads."""

    def __init__(self, opening: Opening) -> None:
        import trackio

        self.trackio, self.id = trackio, opening.known or opening.name()
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "grpo"), name=self.id, config=opening.settings,
            resume="must" if opening.known else "never", embed=False)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.trackio.log(values, step=step)

    def table(self, step: int, rows: list[dict[str, Any]]) -> None:
        import pandas

        self.trackio.log({"completions": self.trackio.Table(dataframe=pandas.DataFrame(rows).astype(str))}, step=step)

    def files(self, paths: Sequence[Path]) -> None:
        pass  # it keeps numbers and tables

    def close(self, status: str) -> None:
        self.run.finish()  # trackio.finish knows a run only in the thread that began it


SERVICES: dict[str, Callable[[Opening], Any]] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB, "trackio": Trackio}


class Tracker:
    """One of SERVICES; an error in it costs a warning."""

    def __init__(self, name: str, service: Any) -> None:
        self.name, self.service, self.fails = name, service, False

    def tell(self, what: str, *given: Any) -> None:
        """Call a method of the service."""
        try:
            getattr(self.service, what)(*given)
            self.fails = False
        except Exception as error:  # of a library or a network: it may raise anything
            if not self.fails:  # one warning for each time it is out of reach
                print(f"\nwarning: report_to={self.name}: {type(error).__name__}: {spelled_out(str(error))}; training "
                      "goes on, and metrics.jsonl has every step", file=sys.stderr, flush=True)
            self.fails = True


def open_trackers(names: list[str], output_dir: Path, first_step: int, settings: dict[str, Any]) -> list[Tracker]:
    """The services of a run, begun or continued.

    Raises:
        ValueError: one cannot be reached, or does not have the run of then.
    """
    file = output_dir / FILE
    known = json.loads(file.read_text(encoding="utf-8")) if first_step and file.is_file() else {}
    trackers = []
    for name in names:
        try:
            service = SERVICES[name](Opening(output_dir=output_dir, first_step=first_step, settings=settings,
                                             known=known.get(name)))
        except Exception as error:  # as above
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            refuse("report_to", name, f"cannot be opened: {reason}", "none, or the service within reach")
        trackers.append(Tracker(name, service))
    if ids := {tracker.name: tracker.service.id for tracker in trackers if tracker.service.id}:
        file.write_text(json.dumps(ids), encoding="utf-8")
    return trackers
