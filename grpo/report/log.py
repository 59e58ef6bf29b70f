"""What a run writes after each step: files, the progress bar, and the services that draw curves."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grpo.options.refusal import spelled_out
from grpo.report.json_lines import JsonLines, read
from grpo.report.metrics import metric
from grpo.report.watch import Watch

Sink = tuple[Callable[[int, dict[str, float]], None], Callable[[], None]]  # write one step, close


def _tensorboard(output_dir: Path, first_step: int, settings: dict[str, Any]) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step)
    writer.add_text("config", json.dumps(settings, indent=1))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def _mlflow(output_dir: Path, first_step: int, settings: dict[str, Any]) -> Sink:
    import mlflow

    mlflow.start_run(run_name=_name(output_dir, first_step, settings))
    mlflow.log_params(settings)
    return lambda step, values: mlflow.log_metrics(values, step=step), mlflow.end_run


def _wandb(output_dir: Path, first_step: int, settings: dict[str, Any]) -> Sink:
    import wandb

    run = wandb.init(dir=output_dir, name=_name(output_dir, first_step, settings), config=settings)
    return lambda step, values: run.log(values, step=step), run.finish


def _name(output_dir: Path, first_step: int, settings: dict[str, Any]) -> str:
    return settings["run_name"] or f"{output_dir.name} from step {first_step}"


SINKS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


class Tracker:
    """One of SINKS; an error in it costs a warning, never the run."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, (self._write, self._close), self.fails = name, sink, False

    def write(self, step: int, values: dict[str, float]) -> None:
        self._try(self._write, step, values)

    def close(self) -> None:
        self._try(self._close)

    def _try(self, call: Callable[..., None], *given: Any) -> None:
        try:
            call(*given)
            self.fails = False
        except Exception as error:  # of a library or a network: it may raise anything
            if not self.fails:  # one warning for each time it is out of reach
                print(f"\nwarning: report_to={self.name}: {type(error).__name__}: {spelled_out(str(error))}; training "
                      "goes on, and metrics.jsonl has every step", file=sys.stderr, flush=True)
            self.fails = True


class Log:
    """Writes a run's metrics and completions and shows its progress; only rank 0 has one.

    Args:
        report_to: names of SINKS.
        first_step: the step this process starts with; greater than 0 when a run is resumed.
        settings: the options of the run; trackers show them, and some healthy ranges depend on them.
        logging_steps: trackers get one step in this many; `metrics.jsonl` gets all.
    """

    def __init__(self, output_dir: Path, *, report_to: list[str], total_steps: int, first_step: int,
                 settings: dict[str, Any], logging_steps: int = 1) -> None:
        self.files = {name: JsonLines(output_dir / f"{name}.jsonl", first_step) for name in ("metrics", "completions")}
        self.watch = Watch(settings)
        for record in read(output_dir / "metrics.jsonl"):
            self.watch.look(record)  # a resumed run knows its first steps and does not repeat its warnings
        self.trackers = [Tracker(name, SINKS[name](output_dir, first_step, settings)) for name in report_to]
        self.logging_steps = logging_steps
        interval = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file is no terminal
        self.bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", mininterval=interval)

    def write(self, step: int, values: dict[str, float], logged: dict[str, float] | None = None) -> None:
        """Append one step to `metrics.jsonl`, the trackers and the progress bar, and warn of what is not healthy.

        `logged` is what reward functions measured, under names of their own that the table of metrics does not have.
        """
        for name in values:
            metric(name)  # raises where the table of metrics has no such row
        values = {**(logged or {}), **values}
        self.files["metrics"].append([{"step": step, **values}])
        if step % self.logging_steps == 0:
            for tracker in self.trackers:
                tracker.write(step, values)
        shown = {"reward": "reward", "kl": "kl", "truncated": "truncated_share", "s/step": "step_s"}
        self.bar.set_postfix({label: f"{values[name]:.3g}" for label, name in shown.items() if name in values})
        self.bar.update()
        for line in self.watch.look({"step": step, **values}):
            self.bar.write(line, file=sys.stderr)

    def evaluated(self, record: dict[str, Any]) -> None:
        """Give an evaluation to the trackers, and print its accuracies; the steps done are its `step`."""
        step, values = record["step"], {name: one for name, one in record.items() if isinstance(one, float)}
        for tracker in self.trackers:
            tracker.write(step, values)
        shown = [f"{name.removeprefix('eval_')} {100 * one:.1f} %" for name, one in values.items()
                 if name.endswith("accuracy") or name.endswith("_at_k")]
        self.bar.write(f"evaluation after {step} steps: {', '.join(shown)}")

    def write_completions(self, step: int, columns: dict[str, list[Any]]) -> None:
        """Append one object per completion to `completions.jsonl`; each column has one value per completion."""
        rows = zip(*columns.values(), strict=True)
        self.files["completions"].append([{"step": step, **dict(zip(columns, row))} for row in rows])

    def close(self) -> None:
        """End the progress bar and the trackers."""
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()

    def flush(self) -> None:
        """Write the lines that the disk did not take before; OSError where it still does not."""
        for file in self.files.values():
            file.flush()
