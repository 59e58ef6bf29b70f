"""The result on README's first screen: `python -m benchmarks.toy` runs the default run for three seeds.

Writes benchmarks/results/toy.json and toy.md. Takes three times as long as `make train`.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, commit, machine, versions

COMMAND = "make train"
SEEDS = (0, 1, 2)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def run(seed: int, folder: Path) -> dict[str, float]:
    """One default run; its summary.json."""
    output = folder / f"seed{seed}"
    subprocess.run([*COMMAND.split(), f"ARGS=--seed {seed} --output_dir {output}"], cwd=ROOT, check=True)
    return {"seed": seed, **json.loads((output / "summary.json").read_text())}


def markdown(result: dict) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows = []
    for run in result["runs"]:
        cells = [str(run["seed"])]
        for prefix in ("", "greedy_"):
            cells += [f"{100 * run[f'{prefix}accuracy_{when}']:.1f}" for when in ("before", "after")]
            cells.append(f"{run[f'{prefix}p_value']:.1g}")
        rows.append(f"| {' | '.join(cells)} | {run['seconds']:.0f} |")
    return "\n".join(
        [
            "# The default run\n",
            f"`{result['command']}` for seeds 0, 1, 2 (`python -m benchmarks.toy`), commit {result['commit']}.",
            f"{result['machine']}; Python {result['python']}, {versions}.\n",
            "Held-out accuracy in percent on 200 generated word problems: sampled at temperature 1 with 4 completions",
            "a problem, and greedy; p of the exact paired test. Seconds from the first evaluation to the last, imports",
            "not counted.\n",
            "| seed | sampled before | after | p | greedy before | after | p | seconds |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Run, and write both files."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder)) for seed in SEEDS]
    result = {
        "command": COMMAND,
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "runs": runs,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "toy.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "toy.md").write_text(markdown(result))
    print(markdown(result), file=sys.stdout)


if __name__ == "__main__":
    main()
