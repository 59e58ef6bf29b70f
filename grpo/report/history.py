"""How a run went as a whole: when, on what, from which code, how far, and how it ended. Read from run.json.

A folder from before there was that file has less to tell, and what is missing is left out.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class History:
    """The starts of a run, oldest first, as grpo/run/provenance.py writes them, and its summary.json."""

    starts: list[dict[str, Any]]
    summary: dict[str, Any]  # of a run that has finished
    done: int  # steps

    @property
    def ending(self) -> str:
        """finished, stopped or failed; "" where no end is recorded."""
        if not self.starts:
            return "finished" if self.summary else ""
        return self.starts[-1].get("ending", "")

    @property
    def steps(self) -> str:
        """How many are done, and of how many if that is known and not the same."""
        total = self.starts[-1]["num_steps"] if self.starts else self.done
        plain = f"{self.done} step{'' if self.done == 1 else 's'}"
        return plain if total == self.done else f"{self.done} of {total} steps"

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of what is known."""
        rows = [("went on", f"{date(start['began'])}, at step {start['first_step']}") if index or start["first_step"]
                else ("began", date(start["began"])) for index, start in enumerate(self.starts)]
        unknown = self.starts and self.starts[0]["first_step"]  # the steps before it were not recorded
        if not unknown and all("ended" in start for start in self.starts):  # else nobody knows how long it took
            seconds = sum(_seconds(start) for start in self.starts) or self.summary.get("seconds", 0)
            rows += [("duration", _duration(seconds))] if seconds else []
        newest = self.starts[-1] if self.starts else {"ranks": self.summary.get("ranks", "")}
        return [*rows, ("done", self.steps), *facts(newest)]


def read_history(output_dir: Path, done: int) -> History:
    """The history of the run in a folder; `done` steps are in its metrics.jsonl."""
    starts, summary = output_dir / "run.json", output_dir / "summary.json"
    return History(json.loads(starts.read_text(encoding="utf-8")) if starts.exists() else [],
                   json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}, done)


def facts(start: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what `provenance` found and is known; of eval.py too."""
    packages = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
    rows = [("hardware", start.get("machine")), ("ranks", start.get("ranks")), ("code", start.get("code")),
            ("versions", packages)]
    return [(name, str(value)) for name, value in rows if value]


def date(iso: str) -> str:
    """A time of run.json for people."""
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M UTC")


def _seconds(start: dict[str, Any]) -> float:
    return (datetime.fromisoformat(start["ended"]) - datetime.fromisoformat(start["began"])).total_seconds()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
