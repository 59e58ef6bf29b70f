"""What every result file says besides its numbers: the commit, the machine, the versions; and how numbers look."""

import functools
import importlib.metadata
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str:
    """The commit of the code; says so if files other than the results differ from it."""
    git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    name = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() or "unknown"
    changed = git(["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"]).stdout.strip()
    return f"{name} with uncommitted changes" if changed else name


def machine() -> str:
    """Processor and cores, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{sum(line.startswith('processor') for line in lines)} cores of {model}, no GPU"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package."""
    return {name: importlib.metadata.version(name) for name in packages}


def number(value: float) -> str:
    """Three significant digits."""
    return f"{float(f'{value:.3g}'):,.10g}"
