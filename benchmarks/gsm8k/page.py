"""The page and the picture of `benchmarks.gsm8k`: every number on them is one of the .json's."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from grpo.evaluation.statistics import SCORES
from grpo.report.page import WINDOW, running_mean

COLORS = {"base": "#d96c1e", "trained": "#2a7ab8"}
# Of the recipe, what says how the run was; all options are in the .json.
SHOWN = (
    "load_in_4bit", "torch_dtype", "lora_r", "lora_alpha", "lora_modules_to_save", "num_shots", "prompts_per_step",
    "num_generations", "max_completion_length", "temperature", "learning_rate", "lr_scheduler_type", "warmup_ratio",
    "warmup_steps", "beta", "loss_type", "epsilon", "zero_stage", "seed")
NOTE = """Strict: the right number in the asked format. Lenient: strict, or the last number is right. Format: the answer
line is there. Truncated: cut at max_completion_length. In brackets the 95 % interval (Wilson); p of the exact paired
test on the same problems, base against trained."""


def markdown(result: dict[str, Any], name: str) -> str:
    """The result as a page."""
    recipe, training = result["recipe"], result["training"]
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    how = "greedy" if result["temperature"] == 0 else f"sampled at temperature {result['temperature']:g}"
    one = result["evaluations"][0]
    ranks = f"{result['ranks']} rank{'s' if result['ranks'] > 1 else ''}"
    return "\n".join([
        f"# {recipe['model_name_or_path']}: base against trained\n",
        f"`{result['command']}`, commit {result['commit']}. {result['machine']}, {ranks}; Python {result['python']}, "
        f"{versions}.\n",
        f"## {one['num_problems']} held-out problems, {how}\n",
        "| shots | model | " + " | ".join(SCORES) + " | p |", "|---" * (len(SCORES) + 3) + "|",
        *map(_row, result["evaluations"]), "", NOTE, "", f"![accuracy against shots, reward against steps]({name}.png)",
        "", f"## The training: {training['steps']} steps, {training['completions']:,} completions, "
        f"{training['seconds'] / 60:,.0f} minutes\n",
        f"| mean of ten steps, 95 % interval | first | last |\n|---|---|---|\n{_ends(training)}\n",
        *_cost(result),
        "The recipe as it ran: " + ", ".join(f"`{key}: {recipe[key]}`" for key in SHOWN) + ".", ""])


def _row(record: dict[str, Any]) -> str:
    cells = [str(record["shots"]), record["label"]]
    for score in SCORES:
        low, high = record[f"{score}_interval"]
        cells.append(f"{100 * record[score]:.1f} ({100 * low:.1f} to {100 * high:.1f})")
    cells.append(f"{record['p_value']:.2g}" if "p_value" in record else "")
    return f"| {' | '.join(cells)} |"


def _ends(training: dict[str, Any]) -> str:
    rows = []
    for name, factor, unit in (("reward", 1, ""), ("accuracy", 100, " %")):
        cells = [f"{factor * training[end][name]['mean']:.3g} ± {factor * training[end][name]['half']:.2g}{unit}"
                 for end in ("first", "last")]
        rows.append(f"| {name} of the sampled completions | {' | '.join(cells)} |")
    others = (("tokens", "tokens of a completion", 1, ""), ("truncated", "truncated", 100, " %"))
    for name, words, factor, unit in others:
        cells = [f"{factor * training[end][name]:.3g}{unit}" for end in ("first", "last")]
        rows.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cost(result: dict[str, Any]) -> list[str]:
    if "phases" not in result:
        return []
    lines = [
        f"A step on this CPU. The floor: operations of the completions and of {result['prompt_tokens']:,.0f} tokens of "
        f"prompts over the {result['product_flops'] / 1e9:.0f} GFLOP/s that a large product reaches here; attention is "
        "left out of it.\n",
        "| phase | seconds | floor | times |", "|---|---|---|---|"]
    for row in [*result["phases"], {"phase": "together", **{
            name: sum(one[name] for one in result["phases"]) for name in ("seconds", "floor")}}]:
        times = f"{row['seconds'] / row['floor']:.2f}" if row["floor"] else ""
        lines.append(f"| {row['phase']} | {row['seconds']:.3g} | {row['floor']:.3g} | {times} |")
    return [*lines, ""]


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy against shots, with the published numbers as thin lines; reward against steps."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, color in COLORS.items():
        records = [record for record in result["evaluations"] if record["label"] == label]
        shots, shares = [record["shots"] for record in records], [100 * record["strict"] for record in records]
        errors = [[abs(100 * record["strict_interval"][end] - share) for record, share in zip(records, shares)]
                  for end in (0, 1)]
        left.errorbar(shots, shares, errors, color=color, marker="o", capsize=3, label=label)
        published = {int(shots): share for shots, share in result["published"].get(label, {}).items()}
        if published:
            left.plot(published.keys(), [100 * share for share in published.values()], color=color, linewidth=0.8,
                      marker="x", markersize=4, linestyle="dashed", label=f"{label}, published")
    left.set(xlabel="shots", ylabel="strict accuracy in %, 95 % interval", ylim=(0, None))
    steps, rewards = zip(*result["training"]["reward"])
    right.plot(steps, rewards, color=COLORS["trained"], alpha=0.35, label="each step")
    right.plot(steps, running_mean(rewards), color=COLORS["trained"], label=f"mean of {2 * WINDOW + 1} steps")
    right.set(xlabel="step", ylabel="mean reward", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
