"""What a run writes after each step: files, the progress bar, and the services that draw curves."""

import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grpo.report.json_lines import JsonLines, read
from grpo.report.metrics import metric
from grpo.report.trackers import open_trackers
from grpo.report.watch import Watch


class Log:
    """Writes a run's metrics and completions and shows its progress; only rank 0 has one. A context, which closes it.

    Args:
        report_to: names of `grpo.report.trackers.SERVICES`.
        first_step: the step this process starts with; greater than 0 when a run is resumed.
        settings: the options of the run; trackers show them, and some healthy ranges depend on them.
        logging_steps: trackers get one step in this many; `metrics.jsonl` gets all.
    """

    def __init__(self, output_dir: Path, *, report_to: list[str], total_steps: int, first_step: int,
                 settings: dict[str, Any], logging_steps: int = 1) -> None:
        names = ["metrics", "completions"]
        # Also where a resumed run keeps none any more: what follows its checkpoint is of a course that was left.
        names += ["tokens"] if settings["keep_tokens"] or (output_dir / "tokens.jsonl").exists() else []
        self.files = {name: JsonLines(output_dir / f"{name}.jsonl", first_step) for name in names}
        self.watch = Watch(settings)
        for record in read(output_dir / "metrics.jsonl"):
            self.watch.look(record)  # a resumed run knows its first steps and does not repeat its warnings
        self.trackers = open_trackers(report_to, output_dir, first_step, settings)
        self.logging_steps, self.status = logging_steps, "FINISHED"
        self.newest: tuple[int, list[dict[str, Any]]] | None = None  # the step that has completions, and these
        self.ending, self.ended = threading.Lock(), False
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
            self._tell("write", step, values)
        shown = {"reward": "reward", "kl": "kl", "truncated": "truncated_share", "s/step": "step_s"}
        self.bar.set_postfix({label: f"{values[name]:.3g}" for label, name in shown.items() if name in values})
        self.bar.update()
        for line in self.watch.look({"step": step, **values}):
            self.bar.write(line, file=sys.stderr)

    def evaluated(self, record: dict[str, Any]) -> None:
        """Give an evaluation to the trackers, and print its accuracies; the steps done are its `step`."""
        step, values = record["step"], {name: one for name, one in record.items() if isinstance(one, float)}
        self._tell("write", step, values)
        shown = [f"{name.removeprefix('eval_')} {100 * one:.1f} %" for name, one in values.items()
                 if name.endswith("accuracy") or name.endswith("_at_k")]
        self.bar.write(f"evaluation after {step} steps: {', '.join(shown)}")

    def write_completions(self, step: int, columns: dict[str, list[Any]]) -> None:
        """Append one object per completion to `completions.jsonl`; each column has one value per completion."""
        rows = [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]
        self.files["completions"].append([{"step": step, **row} for row in rows])
        self.newest = (step, (self.newest[1] if self.newest and self.newest[0] == step else []) + rows)

    def write_tokens(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Append one object per completion whose tokens are kept to `tokens.jsonl`."""
        self.files["tokens"].append([{"step": step, **row} for row in rows])

    def keep(self, paths: list[Path]) -> None:
        """Give the trackers the files that the run leaves, and its newest completions."""
        if self.newest:
            self._tell("table", *self.newest)
        self._tell("files", paths)

    def close(self) -> None:
        """End the progress bar and the trackers, which show the run's `status`."""
        self.bar.close()
        self.tell_end(self.status)

    def tell_end(self, status: str) -> None:
        """Tell the trackers once how the run ended; the heartbeat does it from its own thread before it ends all."""
        with self.ending:
            if not self.ended:
                self.ended = True
                self._tell("close", status)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self.status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
        self.close()

    def _tell(self, what: str, *given: Any) -> None:
        for tracker in self.trackers:
            tracker.tell(what, *given)

    def flush(self) -> None:
        """Write the lines that the disk did not take before; OSError where it still does not."""
        with ExitStack() as each:  # also where one of them fails
            for file in self.files.values():
                each.callback(file.flush)
