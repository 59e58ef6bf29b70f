"""What each variant changes in the default run: `python -m benchmarks.variants` trains every one for three seeds.

Writes benchmarks/results/variants.json, variants.md and variants.png. Runs that are there already are not run again, so
it can be ended and started again. Each is one rank; as many at a time as there are cores.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.record import RESULTS, ROOT, machine, versions
from benchmarks.toy_runs import COMPLETIONS, LAST, PACKAGES, STEPS, Steps, last, train_all

SEEDS = (0, 1, 2)
BASE, OFF_POLICY, CUT = "default", "two updates", "30 tokens"
# In the order of docs/variants.md, which has their results. Those that differ from the default only off policy have a
# second iteration, as "two updates"; those that need cut completions may have 30 tokens, where the default has 48.
VARIANTS = {
    BASE: "",
    "GRPO as in the paper": "--loss_type grpo --kl_estimator k3",
    "Dr. GRPO": "--loss_type dr_grpo --scale_rewards none",
    "batch std": "--scale_rewards batch",
    "RLOO": "--adv_estimator rloo",
    "REINFORCE++ baseline": "--adv_estimator reinforce_plus_plus_baseline",
    "PASS@k": "--adv_estimator pass_at_k --pass_k 4",
    "GDPO": "--multi_objective_aggregation normalize_then_sum",
    "outcome gate": "--advantage_gate outcome",
    OFF_POLICY: "--num_iterations 2",
    "clip-higher": "--num_iterations 2 --epsilon_high 0.28",
    "dual clip": "--num_iterations 2 --delta 3",
    "GSPO": "--num_iterations 2 --importance_sampling_level sequence --loss_type grpo "
            "--epsilon 3e-4 --epsilon_high 4e-4",
    "CISPO": "--num_iterations 2 --loss_type cispo --epsilon_high 5",
    "SAPO": "--num_iterations 2 --loss_type sapo",
    "GMPO": "--num_iterations 2 --loss_type geo_mean --epsilon 0.4",
    "entropy bonus": "--entropy_coef 0.001",
    "entropy target": "--use_adaptive_entropy --entropy_target 0.2",
    "top-entropy tokens": "--top_entropy_quantile 0.2",
    "truncated correction": "--rollout_correction truncated",
    "masked correction": "--rollout_correction masked --rollout_correction_floor 0.5",
    "sequence mask": "--rollout_correction sequence_masked --rollout_correction_floor 0.5",
    "sequence truncated": "--rollout_correction sequence_truncated",
    "KL k1": "--kl_estimator k1",
    "KL k2": "--kl_estimator k2",
    "KL k3": "--kl_estimator k3",
    "KL exact": "--kl_estimator exact",
    "adaptive beta": "--target_kl 0.05",
    "dynamic sampling": "--dynamic_sampling 2",
    "difficulty": "--problem_filter 0.1 0.9",
    CUT: "--max_completion_length 30",
    "overlong filtering": "--max_completion_length 30 --mask_truncated_completions",
    "overlong shaping": "--max_completion_length 30 --reward_funcs format correctness get_soft_overlong_punishment "
                        "--reward_options "
                        '{"get_soft_overlong_punishment":{"max_completion_len":30,"soft_punish_cache":4}}',
}
CURVES = ("accuracy", "entropy", "kl", "grad_norm")


def accuracy_of(steps: Steps) -> str:
    """With groups that gave way, or problems passed over, accuracy is not that of the policy."""
    return "accuracy_of_first" if "accuracy_of_first" in steps[0] else "accuracy"


def base_of(name: str) -> str:
    """What a variant is compared with."""
    return next((base for base in (OFF_POLICY, CUT) if name != base and VARIANTS[base] in VARIANTS[name]), BASE)


def row(name: str, runs: dict[str, list[Steps]]) -> str:
    """A variant's row of the table."""
    of, base = runs[name], runs[base_of(name)]
    right = [100 * last(one, accuracy_of(one)) for one in of]
    against = "—"
    if of is not base:
        apart = [a - 100 * last(one, "accuracy") for a, one in zip(right, base, strict=True)]
        against = f"{statistics.fmean(apart):+.1f} ± {statistics.stdev(apart) / math.sqrt(len(apart)):.1f}"
    means = [statistics.fmean(last(one, metric) for one in of) for metric in CURVES[1:]]
    cells = [name, f"`{VARIANTS[name]}`" if VARIANTS[name] else "—", " ".join(f"{one:.1f}" for one in right), against,
             *(f"{mean:.3g}" for mean in means)]
    return f"| {' | '.join(cells)} |"


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    used = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([
        "# Variants on the default run\n",
        f"`python -m benchmarks.variants`, {' and '.join(result['commits'])}. {result['machine']}; {used}.\n",
        f"{STEPS} steps of recipes/toy.yaml with 16 prompts of 8 completions, one rank, seeds "
        f"{', '.join(map(str, SEEDS))}, nothing else changed: no rate or coefficient was tuned for a variant. Values "
        f"at the end are means over the last {LAST} steps. Accuracy is of sampled completions, by seed in percent; "
        "with dynamic sampling and the filter, that of the first groups drawn. Against: the mean over seeds of the "
        "difference to the default, or to two updates or 30 tokens where the variant has them, and its standard error "
        f"over the seeds. A seed's accuracy is of {LAST * COMPLETIONS:,} completions, so differences below 3 points "
        "are noise.\n",
        "| variant | options | accuracy by seed | against | entropy | KL | gradient norm |",
        "|---|---|---|---|---|---|---|",
        *(row(name, result["runs"]) for name in VARIANTS),
        "", "![Accuracy over steps, each variant beside what it is compared with](variants.png)", ""])


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy over steps of each variant, mean and seeds, above what it is compared with."""
    names = [name for name in VARIANTS if name != BASE]
    columns = 5
    figure, axes = plt.subplots(
        -(-len(names) // columns), columns, sharex=True, sharey=True, figsize=(13, 15), squeeze=False,
        layout="constrained")
    for axis in axes.flat[len(names):]:
        axis.set_visible(False)
    for place, (axis, name) in enumerate(zip(axes.flat, names)):
        base = base_of(name)
        plot(axis, result["runs"][base], "0.55", base)
        plot(axis, result["runs"][name], "tab:blue", name)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelbottom=place + columns >= len(names))
    figure.supxlabel("step")
    figure.supylabel("accuracy of sampled completions (grey: what it is compared with)")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def plot(axis: Axes, runs: list[Steps], color: str, label: str) -> None:
    """The seeds thin, their mean thick."""
    curves = [[step[accuracy_of(steps)] for step in steps] for steps in runs]
    for curve in curves:
        axis.plot(curve, color=color, linewidth=0.6, alpha=0.5)
    axis.plot([statistics.fmean(step) for step in zip(*curves)], color=color, linewidth=1.8, label=label)


def main() -> None:
    """Run what has not run, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "variants", help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="train these, and write nothing")
    asked = parser.parse_args()
    folders = {(name, seed): f"{name.replace(' ', '-')}-{seed}" for name in asked.only or VARIANTS for seed in SEEDS}
    found = train_all({folder: (VARIANTS[name], seed) for (name, seed), folder in folders.items()}, asked.work)
    if asked.only:
        return
    kept = {*CURVES, "reward", "accuracy_of_first", "groups_drawn", "filtered_share", "zero_variance_share"}
    runs = {name: [[{key: value for key, value in step.items() if key in kept} for step in found[folders[name, seed]]]
                   for seed in SEEDS] for name in VARIANTS}
    commits = sorted({json.loads((asked.work / folder / "run.json").read_text())[0]["code"]
                      for folder in folders.values()})  # the runs can be of several sittings
    result = {"commits": commits, "machine": machine(), "versions": versions(PACKAGES), "steps": STEPS,
              "options": VARIANTS, "runs": runs}
    (RESULTS / "variants.json").write_text(json.dumps(result) + "\n")
    (RESULTS / "variants.md").write_text(markdown(result))
    draw(result, RESULTS / "variants.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
