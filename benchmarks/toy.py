"""The runs without a download for three seeds: `python -m benchmarks.toy [toy-code]`, the default run or that one.

Writes benchmarks/results/toy.json and toy.md, or those of toy-code. Takes three times as long as `make train`. Seeds
whose summary.json is in --work already are not run again.
"""

import argparse
import json
import platform
import subprocess
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, commit, machine, versions

RUNS = {  # options, title, problems
    "toy": ("", "The default run", "generated word problems"),
    "toy-code": ("--config recipes/toy-code.yaml", "Programs, each run in the sandbox", "generated functions to write"),
}
SEEDS = (0, 1, 2)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def run(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One run; its summary.json."""
    output = folder / f"{name}-{seed}"
    if not (output / "summary.json").is_file():
        options = f"{RUNS[name][0]} --seed {seed} --output_dir {output}".strip()
        subprocess.run(["make", "train", f"ARGS={options}"], cwd=ROOT, check=True)
    return {"seed": seed, **json.loads((output / "summary.json").read_text())}


def markdown(name: str, result: dict) -> str:
    """The result as a page."""
    _, title, problems = RUNS[name]
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
            f"# {title}\n",
            f"`{result['command']}` for seeds 0, 1, 2 (`python -m benchmarks.toy {name}`), commit {result['commit']}.",
            f"{result['machine']}; Python {result['python']}, {versions}.\n",
            f"Held-out accuracy in percent on 200 {problems}: sampled at temperature 1 with 4 completions",
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="toy", choices=RUNS)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "benchmark", help="folder of the runs")
    asked = parser.parse_args()
    name, options = asked.name, RUNS[asked.name][0]
    result = {
        "command": f'make train ARGS="{options}"' if options else "make train",
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
        "runs": [run(name, seed, asked.work.absolute()) for seed in SEEDS],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(name, result))
    print(markdown(name, result))


if __name__ == "__main__":
    main()
