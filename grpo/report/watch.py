"""Warnings during a run: which metrics have left their healthy range (grpo/report/metrics.py), and what to do.

They depend only on the options and on the lines of metrics.jsonl, so a resumed run and the report find the same ones.
"""

import math
from collections import Counter
from typing import Any

import torch

from grpo.report.metrics import METRICS, Range, metric

NUM_START = 5  # steps whose mean is "the start"; ranges relative to it are checked after them
AGAIN = 50  # a warning is repeated after this many more steps outside
RANGES = [(name, healthy) for name, row in METRICS.items() for healthy in row.ranges]


class Watch:
    """Looks at each step's metrics, from the run's first step on; `settings` are its options, as in config.yaml."""

    def __init__(self, settings: dict[str, Any]) -> None:
        automatic = "bfloat16" if torch.cuda.is_available() else "float32"
        dtype = automatic if settings["torch_dtype"] == "auto" else settings["torch_dtype"]
        exact = dtype == "float32" and not settings["tf32"]
        self.lasting = {"", "on policy" if settings["num_iterations"] == 1 else "off policy",
                        "in float32" if exact else "in bfloat16 or tf32"}  # conditions that hold in every step
        self.start: list[dict[str, Any]] = []  # the records of the first steps
        self.before: dict[str, Any] = {}
        self.num_outside: Counter[tuple[str, Range]] = Counter()  # steps in a row
        self.told: set[tuple[str, Range]] = set()

    def look(self, record: dict[str, Any]) -> list[str]:
        """One line for each range that its metric has been outside of for as many steps as the range's patience."""
        # A metric that is missing, null or not finite is not checked.
        record = {name: value for name, value in record.items() if value is not None and math.isfinite(value)}
        applying = self.lasting | {"later" if record["step"] else "at step 0"}
        if record.get("surrogate") or record.get("kl"):
            applying.add("with a signal")
        lines = []
        for name, healthy in ranges_of(record):
            base = self._base(name, healthy)
            if name not in record or base is None or healthy.when not in applying:
                continue
            inside = healthy.holds(record[name], base)
            self.num_outside[name, healthy] = 0 if inside else self.num_outside[name, healthy] + 1
            late = self.num_outside[name, healthy] - healthy.patience
            told = healthy.once and (name, healthy) in self.told
            if late >= 0 and late % AGAIN == 0 and not told:
                self.told.add((name, healthy))
                lines.append(self._line(record, name, healthy, base))
        if len(self.start) < NUM_START:
            self.start.append(record)
        self.before = record
        return lines

    def _base(self, name: str, healthy: Range) -> float | None:
        """What the bounds are multiples of; None while it is not known."""
        if healthy.of == "the start":
            known = [record[name] for record in self.start if name in record]
            return sum(known) / len(known) if known and len(self.start) == NUM_START else None
        return self.before.get(name, 0.0) if healthy.of == "the step before" else 1.0

    def _line(self, record: dict[str, Any], name: str, healthy: Range, base: float) -> str:
        of = f" ({base:.4g})" if healthy.of else ""
        num_steps = self.num_outside[name, healthy]
        duration = f" for {num_steps} steps" if num_steps > 1 else ""
        return (f"warning [step {record['step']}] {name} is {record[name]:.4g}{duration}, healthy is {healthy}{of}; "
                f"{metric(name).cure}")


def ranges_of(record: dict[str, Any]) -> list[tuple[str, Range]]:
    """The ranges with the names that the record has: of a row for all reward functions, those of each."""
    heads = {name: name.removesuffix("<name>") for name, _ in RANGES}
    return [(logged, healthy) for name, healthy in RANGES for logged in record
            if logged == name or heads[name] != name and logged.startswith(heads[name])]


def warnings(settings: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """All warnings of a run, from the records of its metrics.jsonl."""
    watch = Watch(settings)
    return [line for record in records for line in watch.look(record)]
