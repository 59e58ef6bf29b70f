"""Runs that were made to fail, one for each symptom of docs/when-it-does-not-learn.md: `python -m benchmarks.failures`.

Writes benchmarks/results/failures.json, failures.md and failures.png. A test gives the metrics of each run to the
warnings of grpo/report/watch.py, which have to name the symptom.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from transformers import AutoTokenizer

from benchmarks.record import RESULTS, ROOT, commit, machine, number, versions
from benchmarks.toy_runs import PACKAGES, STEPS, Steps, last, train_all
from data import wordproblems
from grpo.report.watch import warnings
from grpo.run.command import load

SEED = 0
# Options of recipes/toy.yaml, and the metrics that show it; {work} is the folder of the runs.
FAILURES = {
    "healthy": ("", ["accuracy", "reward"]),
    "rate too high": ("--learning_rate 1e-2", ["accuracy", "kl"]),
    "beta too large": ("--beta 100", ["accuracy", "kl_pull_share"]),
    "equal rewards": ("--reward_funcs {work}/rewards.py:polite", ["reward", "zero_variance_share"]),
    "no end": ("--model_name_or_path {work}/other-end --stop_strings", ["truncated_share", "completion_length"]),
    "cut off": ("--max_completion_length 8", ["truncated_share", "accuracy"]),
    "another reward takes over": ("--reward_funcs correctness {work}/rewards.py:brief --reward_weights 1 20 "
                                  "--learning_rate 2e-3",
                                  ["reward", "accuracy", "phantom_advantage_share"]),
    "entropy collapse": ("--reward_funcs {work}/rewards.py:brief --beta 0 --learning_rate 1e-2",
                         ["entropy", "completion_length"]),
    "wrong template": ("--train_dataset_id_or_path {work}/other-template.jsonl",
                       ["accuracy", "phantom_advantage_share"]),
}
REWARD = """
def polite(completions, **columns):
    return [0.0 if "damn" in text else 1.0 for text in completions]

def brief(completions, **columns):
    return [1 - len(text) / 100 for text in completions]
"""


def prepare(work: Path) -> None:
    """A reward that all completions earn, problems in a form that the model has never seen, and a wrong end token."""
    work.mkdir(parents=True, exist_ok=True)
    model = shutil.copytree(ROOT / "data" / "tiny_qwen2", work / "other-end", dirs_exist_ok=True)
    tilde = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("~")
    for name, end in (("config", {"eos_token_id": tilde}), ("generation_config", {"eos_token_id": tilde}),
                      ("tokenizer_config", {"eos_token": "~"})):
        path = model / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | end))
    (work / "rewards.py").write_text(REWARD)
    rows = [{"prompt": f"<|user|>{one.title}<|assistant|>", "final_answer": one.final_answer}
            for one in wordproblems.load("train", num_examples=500, seed=SEED)]
    (work / "other-template.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def warned(options: str, steps: Steps) -> list[str]:
    """The run's warnings."""
    asked = load(["--config", "recipes/toy.yaml", *options.split()])
    return warnings(asdict(asked), steps)


def markdown(result: dict[str, Any]) -> str:
    """The result as a page: where the metrics that show it begin and end, and the first warning."""
    rows = []
    for name, (_, shown) in FAILURES.items():
        steps = result["runs"][name]
        moved = "; ".join(f"{metric} {number(steps[0][metric])} to {number(last(steps, metric))}" for metric in shown)
        told = next(iter(result["warnings"][name]), "none").replace("|", "/")
        rows.append(f"| {name} | `{FAILURES[name][0] or '—'}` | {moved} | {told} |")
    used = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([
        "# Runs that were made to fail\n",
        f"`python -m benchmarks.failures`, commit {result['commit']}. {result['machine']}; {used}.\n",
        f"{STEPS} steps of recipes/toy.yaml with 16 prompts of 8 completions, one rank, seed {result['seed']}. From "
        "the first step to the mean of the last five; the first line that the run printed about it.\n",
        "| run | options | metrics | first warning |", "|---|---|---|---|", *rows, "",
        "![The metrics that show each failure, grey the healthy run's](failures.png)", ""])


def draw(runs: dict[str, Steps], path: Path) -> None:
    """Two of the metrics that show each failure, grey the healthy run's."""
    names = [name for name in FAILURES if name != "healthy"]
    figure, axes = plt.subplots(len(names), 2, sharex=True, figsize=(8, 2 * len(names)))
    for pair, name in zip(axes, names):
        for axis, metric in zip(pair, FAILURES[name][1][-2:]):
            for one, color in (("healthy", "0.6"), (name, "tab:red")):
                axis.plot([step[metric] for step in runs[one]], color=color, linewidth=1.6)
            axis.set_title(f"{name}: {metric}", fontsize=9)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    figure.supxlabel("step (grey: the healthy run)")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Run what has not run, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "failures", help="folder of the runs")
    work = parser.parse_args().work.absolute()
    prepare(work)
    folders = {name: name.replace(" ", "-") for name in FAILURES}
    found = train_all({folder: (FAILURES[name][0].format(work=work), SEED) for name, folder in folders.items()}, work)
    runs = {name: found[folder] for name, folder in folders.items()}
    told = {name: warned(FAILURES[name][0].format(work=work), steps) for name, steps in runs.items()}
    result = {"commit": commit(), "machine": machine(), "versions": versions(PACKAGES), "seed": SEED,
              "options": {name: options for name, (options, _) in FAILURES.items()}, "warnings": told, "runs": runs}
    (RESULTS / "failures.json").write_text(json.dumps(result) + "\n")
    (RESULTS / "failures.md").write_text(markdown(result))
    print(markdown(result))
    draw(runs, RESULTS / "failures.png")


if __name__ == "__main__":
    main()
