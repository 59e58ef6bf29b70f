"""The single table of metrics, and the log that writes them: a number without a meaning cannot be logged.

Every value is taken over all ranks of one step, loss, grad_norm and clip shares as means over its iterations. "Token"
means a completion token that counts in the loss, "row" one completion, "group" the completions of one prompt.
`python -m grpo.metrics` prints the table as Markdown.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from grpo.json_lines import JsonLines


class Metric(NamedTuple):
    """What one logged number means: how it is computed, its unit, what is normal, what to suspect otherwise."""

    formula: str
    unit: str
    healthy: str
    suspect: str


METRICS: dict[str, Metric] = {
    "step": Metric("updates of this run so far, this one not counted", "1", "", ""),
    "epoch": Metric("prompts drawn so far / prompts in the training set", "1", "", ""),
    "reward": Metric("mean over rows of the weighted sum of the reward functions", "points", "rises, noisily",
                     "flat: zero_variance_share, learning_rate; falls: kl, grad_norm"),
    "reward_std_batch": Metric("sample std of the reward over all rows", "points", "> 0", "0: all rewards are equal"),
    "reward_std_within_group": Metric("mean over groups of the sample std in the group", "points", "> 0",
                                      "near 0: no learning signal, although reward_std_batch may be large"),
    "rewards/<name>": Metric("mean over rows of one reward function, before its weight", "points", "rises",
                             "one rises while correctness stays: the policy games that reward"),
    "reward_failures": Metric("share of rows that a reward function failed on, of the function with most", "share", "0",
                              "those rows got 0 from it: read the warnings; above max_reward_failures the run ends"),
    "accuracy": Metric("share of right rows: correctness reward > 0, or reward > 0 without such a function", "share",
                       "rises", "flat while reward rises: only the format is learnt"),
    "zero_variance_share": Metric("share of groups whose largest reward equals their smallest", "share", "< 0.8",
                                  "those groups give no gradient: problems too hard or too easy"),
    "zero_variance_all_right": Metric("share of groups with equal rewards whose rows are all right", "share", "< 0.8",
                                      "high: saturated, take harder problems"),
    "zero_variance_all_wrong": Metric("zero_variance_share - zero_variance_all_right", "share", "< 0.8",
                                      "high: cold start, take easier problems, more shots, or fine-tune first"),
    "kl": Metric("mean over tokens of the KL estimate between policy and ref; null with beta 0", "nats",
                 "0 at step 0, then < 1",
                 "not 0 at step 0: wrong reference; grows fast: learning_rate too high or beta too low"),
    "entropy": Metric("mean over tokens of -sum_v p_v log p_v at the sampling temperature", "nats", "falls slowly",
                      "near 0 early: exploration collapsed; rises: the policy comes apart"),
    "loss": Metric("clipped policy loss + beta * kl, summed over tokens / global denominator", "1", "near 0",
                   "on policy its value is near 0 by construction (advantages sum to 0): read reward and surrogate"),
    "surrogate": Metric("sum of A * logprob / sum of |A|, over tokens", "nats", "any sign, moves",
                        "exactly 0: all advantages are 0; its gradient is the on-policy gradient"),
    "grad_norm": Metric("2-norm of the gradient of all ranks, before max_grad_norm clips it", "1", "0.01 to 10",
                        "0: nothing is trained; jumps: learning_rate too high; null: not finite, step skipped"),
    "learning_rate": Metric("rate of this update, after the schedule", "1", "", ""),
    "clip_share_low": Metric("share of tokens with ratio < 1 - epsilon and A < 0", "share", "0 on policy, then < 0.2",
                             "high: too many iterations or learning_rate too high"),
    "clip_share_high": Metric("share of tokens with ratio > 1 + epsilon_high and A > 0", "share", "as clip_share_low",
                              "as clip_share_low"),
    "ratio_max": Metric("max over tokens of exp(logprob - old logprob)", "1", "1 on policy, then < 2",
                        "large on policy: old and new are not scored alike"),
    "completion_length": Metric("mean over rows of the sampled tokens", "tokens", "below max_completion_length",
                                "grows to the limit: no end is learnt; shrinks to 1: collapse"),
    "truncated_share": Metric("share of rows ended by max_completion_length", "share", "< 0.1",
                              "high: limit too low, or the prompt or the stop strings do not show how to end"),
    "num_tokens": Metric("tokens of the batch", "tokens", "> 0", "0: all completions were masked as truncated"),
    "sampler_gap_mean": Metric("mean over tokens of |sampler logprob - trainer logprob|", "nats",
                               "< 1e-4 float32, < 0.02 bfloat16", "sampler and trainer disagree: stale copy"),
    "sampler_gap_max": Metric("max over tokens of |sampler logprob - trainer logprob|", "nats",
                              "< 1e-3 float32, < 1 bfloat16", "as sampler_gap_mean"),
    "correction_weight_mean": Metric("mean over tokens of the weight of rollout_correction, as applied; absent if none",
                                     "1", "0.99 to 1.01", "else: as sampler_gap_mean, or the cap is too low"),
    "correction_capped_share": Metric("share of tokens with exp(trainer logprob - sampler logprob) > "
                                      "rollout_correction_cap; absent if none", "share", "< 0.01",
                                      "high: as sampler_gap_mean, or the cap is too low"),
    "skipped_steps": Metric("updates of this run skipped because the gradient was not finite", "steps", "0",
                            "> 0: read the dumped batch; learning_rate too high"),
    "step_s": Metric("wall time of the step", "s", "steady", "grows: completion_length"),
    "rollout_s": Metric("wall time of sampling, slowest rank", "s", "the largest part", ""),
    "warmup_s": Metric("part of rollout_s that compiles and records the decoder's step, slowest rank", "s", "small",
                       "0 on a CPU; large every step: many different rollout sizes"),
    "reward_s": Metric("wall time of scoring, slowest rank", "s", "small", "large: a slow reward function"),
    "sync_s": Metric("wall time of copying trained weights into the sampler", "s", "small", ""),
    "reference_s": Metric("wall time of the reference log-probabilities", "s", "< update_s / 2", ""),
    "update_s": Metric("wall time of forward, backward and optimizer", "s", "steady", ""),
    "rollout_tokens_per_s": Metric("sampled tokens / rollout_s", "tokens/s", "steady",
                                   "low: slot_occupancy, prefill_share"),
    "slot_occupancy": Metric("sampled tokens / (rollout_slots * decoder steps)", "share", "> 0.5",
                             "low: a few long rows; fewer rollout_slots than rows keep the slots full"),
    "prefill_share": Metric("seconds of reading prompts / seconds of sampling", "share", "< 0.3",
                            "high: long prompts that share no prefix, or short completions"),
    "tokens_per_s": Metric("sampled tokens / step_s", "tokens/s", "steady", ""),
    "peak_memory_bytes": Metric("largest memory of a rank so far", "bytes", "steady", "grows: a leak"),
    "micro_batches": Metric("forward and backward passes of one iteration, per rank", "1", "", ""),
}
PREFIX = "rewards/"
Sink = tuple[Callable[[int, dict[str, float]], None], Callable[[], None]]  # write one step, close


def metric(name: str) -> Metric:
    """The row of the table for a logged name; all names below "rewards/" share one row.

    Raises:
        ValueError: the table has no such name.
    """
    key = PREFIX + "<name>" if name.startswith(PREFIX) and name != PREFIX else name
    if key not in METRICS:
        raise ValueError(f"metric {name!r} has no row in the table of grpo/metrics.py; add one, or log a listed name")
    return METRICS[key]


def markdown_table() -> str:
    """The table as Markdown, for README."""
    rows = [("metric", *Metric._fields), ("---",) * 5]
    rows += [(f"`{name}`", *(field.replace("|", r"\|") for field in row)) for name, row in METRICS.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _tensorboard(output_dir: Path, first_step: int, settings: dict[str, Any]) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step)
    writer.add_text("config", json.dumps(settings, indent=1))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def _mlflow(output_dir: Path, first_step: int, settings: dict[str, Any]) -> Sink:
    import mlflow

    mlflow.start_run(run_name=f"{output_dir.name} from step {first_step}")
    mlflow.log_params(settings)
    return lambda step, values: mlflow.log_metrics(values, step=step), mlflow.end_run


def _wandb(output_dir: Path, first_step: int, settings: dict[str, Any]) -> Sink:
    import wandb

    run = wandb.init(dir=output_dir, name=f"{output_dir.name} from step {first_step}", config=settings)
    return lambda step, values: run.log(values, step=step), run.finish


SINKS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


class Log:
    """Writes a run's metrics and completions and shows its progress; rank 0 builds one, the other ranks none.

    Args:
        output_dir: where `metrics.jsonl` and `completions.jsonl` go; it exists.
        report_to: further sinks by name: tensorboard, mlflow, wandb.
        total_steps: steps of the whole run, for the progress bar.
        first_step: the step this process starts with; greater than 0 when a run is resumed.
        settings: the resolved configuration, shown beside the metrics by the sinks.
        logging_steps: the sinks receive every so many steps; `metrics.jsonl` receives them all.
    """

    def __init__(self, output_dir: str | Path, *, report_to: list[str], total_steps: int, first_step: int,
                 settings: dict[str, Any], logging_steps: int = 1) -> None:
        output_dir = Path(output_dir)
        self.files = {name: JsonLines(output_dir / f"{name}.jsonl", first_step) for name in ("metrics", "completions")}
        self.sinks = [SINKS[name](output_dir, first_step, settings) for name in report_to]
        self.logging_steps = logging_steps
        interval = 0.1 if sys.stderr.isatty() else 30  # seconds; a log file is no terminal
        self.bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", mininterval=interval)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one step to `metrics.jsonl`, the sinks and the progress bar; a value that is not finite is null.

        Raises:
            ValueError: a name that the table does not hold.
        """
        for name in values:
            metric(name)
        self.files["metrics"].append([{"step": step, **values}])
        if step % self.logging_steps == 0:
            for write, _ in self.sinks:
                write(step, values)
        shown = {"reward": "reward", "kl": "kl", "truncated": "truncated_share", "s/step": "step_s"}
        self.bar.set_postfix({label: f"{values[name]:.3g}" for label, name in shown.items() if name in values})
        self.bar.update()

    def write_completions(self, step: int, columns: dict[str, list[Any]]) -> None:
        """Append one object per row to `completions.jsonl`: the step and the row's value of each column.

        Args:
            step: the step the rows were sampled in.
            columns: N values each, by name: prompt, completion, reward, rewards (parts), advantage, length, truncated.
        """
        rows = zip(*columns.values(), strict=True)
        self.files["completions"].append([{"step": step, **dict(zip(columns, row, strict=True))} for row in rows])

    def close(self) -> None:
        """End the progress bar and the sinks."""
        self.bar.close()
        for _, close in self.sinks:
            close()


if __name__ == "__main__":
    print(markdown_table())
