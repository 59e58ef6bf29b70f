"""The published experiment: train a model by a recipe, then ask it and its base the same problems at 0, 2, 4, 8 shots.

    python -m benchmarks.gsm8k --model Qwen/Qwen2.5-0.5B --data openai/gsm8k --work outputs/gsm8k [--minutes 60]

Further options go to train.py and win over the recipe. The run and each evaluation are folders in --work. The same
command continues what was cut off, so an experiment of several sittings is one experiment. Writes NAME.json, NAME.md
and NAME.png into benchmarks/results/.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig

from benchmarks.gsm8k.cost import operations, phases, product_flops, prompt_tokens
from benchmarks.gsm8k.page import draw, markdown
from benchmarks.record import RESULTS, ROOT, commit, machine, versions
from benchmarks.toy import PACKAGES
from grpo.config import Config
from grpo.evaluation.answers import Answer, load_answers
from grpo.evaluation.statistics import compare, mean_interval, summarize
from grpo.report.json_lines import read

RECIPE = "recipes/qwen2.5-0.5b-gsm8k.yaml"
ENDS = 10  # steps at either end of the training that are compared
LABELS = {"base": "model", "trained": "adapter"}  # as eval.py calls them
# Of the article whose recipe this is: strict accuracy by the number of shots, on 100 problems.
PUBLISHED = {"base": {8: 0.11}, "trained": {0: 0.06, 2: 0.03, 4: 0.33, 8: 0.41}}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained and what is asked."""

    model: str
    data: str
    work: Path
    shots: list[int]
    problems: int
    temperature: float
    num_samples: int
    answer_length: int | None  # tokens; none: the training's
    train_options: list[str]  # all of train.py's, the recipe among them
    num_ranks: int
    deadline: float  # of time.monotonic()

    @property
    def run(self) -> Path:
        return self.work / "run"


def train(plan: Plan) -> bool:
    """Train, or go on with it; False if the time was over before the last step."""
    if (plan.run / "summary.json").exists():
        return True
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={plan.num_ranks}"]
    # Torchrun gives its ranks 30 s to stop, which a step on a CPU is longer than.
    command = [sys.executable, *(launcher if plan.num_ranks > 1 else []), "train.py", *plan.train_options]
    if any(plan.run.glob("checkpoints/step-*")):
        command.append("--resume")
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(plan.deadline - time.monotonic() if plan.deadline < float("inf") else None)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.terminate()  # it finishes an update, and saves
        process.wait()
        code = 0  # torchrun's is 1
    if code:
        raise SystemExit(f"error: train.py ended with exit code {code}; the same command goes on from its checkpoint")
    return (plan.run / "summary.json").exists()


def ask(plan: Plan, label: str, shots: int) -> bool:
    """Evaluate the base or the trained model; False if the time is over."""
    if (plan.work / f"{label}-{shots}-shots" / "eval.json").exists():
        return True
    if time.monotonic() > plan.deadline:
        return False
    print(f"{label}, {shots} shots", flush=True)
    if code := subprocess.run([sys.executable, "eval.py", *asked(plan, label, shots)], cwd=ROOT).returncode:
        raise SystemExit(f"error: eval.py ended with exit code {code}")
    return True


def asked(plan: Plan, label: str, shots: int) -> list[str]:
    """The options of eval.py, of which those that the training has too are the training's."""
    config = recipe_of(plan)
    options = {
        "model": plan.model, "data": plan.data, "split": "test", "limit": plan.problems, "num_shots": shots,
        "output": plan.work / f"{label}-{shots}-shots", "temperature": plan.temperature,
        "num_samples": plan.num_samples}
    options |= {name: config[name] for name in ("max_completion_length", "seed", "load_in_4bit", "torch_dtype")}
    if plan.answer_length is not None:
        options["max_completion_length"] = plan.answer_length
    if label == "trained":
        options["adapter"] = plan.run / "adapter"
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def recipe_of(plan: Plan) -> dict[str, Any]:
    """Every option of the training as it ran."""
    return yaml.safe_load((plan.run / "config.yaml").read_text())


def shared(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe as others may read it: files and folders by their last part."""
    paths = ("model_name_or_path", "train_dataset_id_or_path", "output_dir")
    return recipe | {name: Path(recipe[name]).name if Path(recipe[name]).exists() else recipe[name] for name in paths}


def answers_of(plan: Plan, label: str, shots: int) -> list[Answer]:
    return load_answers(plan.work / f"{label}-{shots}-shots" / f"answers_{LABELS[label]}_{shots}_shots.jsonl")


def evaluations(plan: Plan) -> list[dict[str, Any]]:
    """A record for base and trained at each number of shots; the trained one has the paired p value."""
    records = []
    for shots in plan.shots:
        base, trained = (answers_of(plan, label, shots) for label in LABELS)
        records.append({"label": "base", "shots": shots, **summarize(base)})
        records.append({"label": "trained", "shots": shots, **summarize(trained),
                        "p_value": compare(base, trained)["p_value"]})
    return records


def training(run: Path) -> dict[str, Any]:
    """What a run's own completions say: reward and accuracy of its first and of its last steps.

    A value for each prompt, the mean of its completions, so that the values are independent.
    """
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in read(run / "completions.jsonl"):
        groups.setdefault((row["step"], row["question"]), []).append(row)
    metrics = read(run / "metrics.jsonl")
    last = metrics[-1]["step"]
    ends = {"first": range(ENDS), "last": range(last - ENDS + 1, last + 1)}
    found: dict[str, Any] = {
        "steps": len(metrics), "completions": sum(map(len, groups.values())),
        "seconds": sum(row["step_s"] for row in metrics),
        "reward": [(row["step"], row["reward"]) for row in metrics],
        "accuracy": [(row["step"], row["accuracy"]) for row in metrics]}

    def interval(values: list[float]) -> dict[str, float]:
        return dict(zip(("mean", "half"), mean_interval(values), strict=True))

    for end, steps in ends.items():
        mine = [rows for (step, _), rows in groups.items() if step in steps]
        found[end] = {
            "reward": interval([np.mean([row["reward"] for row in rows]) for rows in mine]),
            "accuracy": interval([np.mean([row["rewards"]["correctness"] > 0 for row in rows]) for rows in mine]),
            "tokens": float(np.mean([row["length"] for rows in mine for row in rows])),
            "truncated": float(np.mean([row["truncated"] for rows in mine for row in rows]))}
    return found


def step_cost(plan: Plan) -> dict[str, Any]:
    """Where the seconds of a step go, and their floor, on a CPU."""
    if torch.cuda.is_available():
        return {}
    recipe, flops = recipe_of(plan), product_flops()
    asked = prompt_tokens(Config(**recipe), read(plan.run / "completions.jsonl"))
    needed = operations(AutoConfig.from_pretrained(plan.model), recipe)
    found = phases(read(plan.run / "metrics.jsonl"), needed, prompt_tokens=asked, flops=flops)
    return {"product_flops": flops, "prompt_tokens": asked, "phases": found}


def read_command_line(arguments: list[str] | None) -> tuple[Plan, str]:
    """The plan, and the name of the result's files."""
    parser = argparse.ArgumentParser(description="Base against trained, by the number of shots.", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="model folder or Hub name")
    parser.add_argument("--data", default="openai/gsm8k", help="Hub name or folder of GSM8K, or wordproblems")
    parser.add_argument("--work", type=Path, default=Path("outputs/gsm8k"), help="folder of run and evaluations")
    parser.add_argument("--config", default=RECIPE, help="recipe of the training")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 2, 4, 8], help="worked examples in a prompt")
    parser.add_argument("--problems", type=int, default=200, help="of the test split")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the evaluations; 0 is greedy")
    parser.add_argument("--num_samples", type=int, default=1, help="answers to each problem")
    parser.add_argument("--answer_length", type=int, help="max_completion_length of answers; none: the training's")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this sitting")
    parser.add_argument("--nproc", type=int, default=torch.cuda.device_count() or 1, help="ranks of the training")
    parser.add_argument("--name", default="gsm8k", help="of the result's files")
    given, more = parser.parse_known_args(arguments)
    work = given.work.resolve()
    options = ["--config", given.config, "--model_name_or_path", given.model, "--train_dataset_id_or_path", given.data,
               "--output_dir", str(work / "run"), "--eval_examples", "0", "--report_to", "none", *more]
    plan = Plan(
        model=given.model, data=given.data, work=work, shots=given.shots, problems=given.problems,
        temperature=given.temperature, num_samples=given.num_samples, answer_length=given.answer_length,
        train_options=options, num_ranks=given.nproc, deadline=time.monotonic() + 60 * given.minutes)
    return plan, given.name


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> None:
    """Train, ask, write."""
    plan, name = read_command_line(arguments)
    done = train(plan) and all(ask(plan, label, shots) for shots in plan.shots for label in LABELS)
    if not done:
        print(f"the time is over: the same command goes on with {plan.work}")
        return
    words = [word for word in sys.argv[1:] if arguments is None]
    result = {
        "command": " ".join(["python -m benchmarks.gsm8k", *words]), "commit": commit(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine(),
        "python": platform.python_version(), "versions": versions(PACKAGES), "ranks": plan.num_ranks,
        "recipe": shared(recipe_of(plan) | {"model_name_or_path": plan.model}), "temperature": plan.temperature,
        "published": {} if plan.data == "wordproblems" else PUBLISHED,
        "training": training(plan.run), "evaluations": evaluations(plan), **step_cost(plan)}
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (results / f"{name}.md").write_text(markdown(result, name))
    draw(result, results / f"{name}.png")
    print(markdown(result, name))
