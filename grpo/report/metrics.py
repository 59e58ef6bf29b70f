"""The one table of metrics: a number without a row in it cannot be logged.

Every value is taken over all ranks of one step; loss, grad_norm and the clip shares are means over its iterations.
A "token" is a completion token that counts in the loss. A "scored" completion has a reward, a "group" is the scored
completions of one prompt, at least two.
`python -m grpo.report.metrics` prints the table as Markdown.
"""

import math
from typing import Literal, NamedTuple


class Range(NamedTuple):
    """A healthy value is in it: low <= value <= high.

    >>> print(Range(0.25, 4, of="the start"))
    0.25 to 4 times the start
    """

    low: float = -math.inf  # in the metric's unit, or a multiple of what `of` names
    high: float = math.inf
    # Where it applies. "with a signal": an advantage or the KL is not 0, so there must be a gradient.
    when: Literal["", "at step 0", "later", "on policy", "off policy", "in float32", "in bfloat16 or tf32",
                  "with a signal"] = ""
    of: Literal["", "the start", "the step before"] = ""  # the start: the mean of the run's first steps
    patience: int = 5  # steps in a row outside before there is a warning; 1 where noise cannot lead outside
    once: bool = False  # one warning in a run is enough

    def holds(self, value: float, base: float) -> bool:
        """Is the value healthy? `base` is what `of` names, 1 for an absolute range."""
        # inf * 0 would be NaN.
        low, high = (bound if math.isinf(bound) else bound * base for bound in (self.low, self.high))
        return low <= value <= high

    def __str__(self) -> str:
        if self.low == self.high:
            bounds = f"{self.low:g}"
        elif math.isinf(self.low):
            bounds = f"at most {self.high:g}"
        elif math.isinf(self.high):
            bounds = f"at least {self.low:g}"
        else:
            bounds = f"{self.low:g} to {self.high:g}"
        return " ".join(part for part in (bounds, self.of and f"times {self.of}", self.when,
                                          self.once and "(told once)") if part)


class Metric(NamedTuple):
    """What one logged number means."""

    formula: str
    unit: str  # "1" for a plain number
    course: str  # how it should develop, in words
    cure: str  # what to do where it does not, or leaves its ranges
    ranges: tuple[Range, ...] = ()

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Its row of the table, below COLUMNS and after its name."""
        healthy = ", ".join(filter(None, (self.course, *map(str, self.ranges))))
        return self.formula, self.unit, healthy, self.cure


COLUMNS = ("metric", "formula", "unit", "healthy", "else")
METRICS: dict[str, Metric] = {
    "step": Metric("updates of this run so far, this one not counted", "1", "", ""),
    "epoch": Metric("prompts drawn so far / prompts in the training set", "1", "", ""),
    "reward": Metric("mean over scored completions of the weighted sum of the reward functions", "points",
        "rises, noisily",
        "flat: read zero_variance_share, then raise learning_rate; falls: lower it, or raise beta"),
    "reward_std_batch": Metric("sample std of the reward over all scored completions", "points", "not 0",
        "0: all rewards are equal; read completions.jsonl"),
    "reward_std_within_group": Metric("mean over groups of the sample std in the group", "points", "not 0",
        "near 0: no learning signal, although reward_std_batch may be large"),
    "rewards/<name>": Metric(
        "mean of one reward function over the completions it did not give None, before its weight", "points", "rises",
        "one rises while accuracy stays: the policy games it; lower its reward_weights"),
    "reward_failures": Metric("share of completions that a reward function failed on, of the function with most",
        "share", "", "reward_failure says what those get: correct the function that the warnings name, or raise "
        "reward_timeout or reward_memory", (Range(0, 0),)),
    "unscored_share": Metric(
        "share of completions without a reward: None from all functions, or a failure with reward_failure=exclude",
        "share", "", "they are in no mean and std of a group and not in the loss; completions.jsonl has null as their "
        "reward", (Range(0, 0, patience=1, once=True),)),
    "accuracy": Metric(
        "share of right ones in the scored completions: outcome_reward gave at least 1, or reward > 0 where neither it "
        "nor correctness is there", "share", "rises",
        "collapse: lower learning_rate or raise beta; flat while reward rises: only the format is learnt, "
        "advantage_gate=outcome", (Range(low=0.5, of="the start"),)),
    "accuracy_of_first": Metric("accuracy with dynamic_sampling or problem_filter, of all groups that were sampled "
        "first, those included that gave way: what the policy can do, where accuracy is of what it learns from",
        "share", "rises", "as accuracy"),
    "groups_drawn": Metric("groups sampled / prompts_per_step; more than 1 where groups without a lesson gave way",
        "1", "", "dynamic_sampling + 1: hardly a group teaches; take other problems, or a problem_filter"),
    "filtered_share": Metric("share of the training problems whose pass rate is outside problem_filter", "share", "",
        "near 1: the data is used up; take harder or easier problems"),
    "phantom_advantage_share": Metric(
        "sum of |A| over groups without a right completion / sum of |A|, after advantage_gate; 0 where that is 0",
        "share", "",
        "high: what is learnt comes from groups with nothing right; advantage_gate=outcome, or easier problems",
        (Range(high=0.5),)),
    "phantom_advantage_share/<name>": Metric(
        "part of phantom_advantage_share from one reward function: in each group |A| is divided among the functions by "
        "sum of |weighted reward - mean over the group|, the reward normalised with normalize_then_sum", "share", "",
        "high: this function teaches where nothing is right; lower its reward_weights, or advantage_gate=outcome",
        (Range(high=0.5),)),
    "zero_variance_share": Metric(
        "share of groups without differences: equal rewards, with normalize_then_sum of each function", "share",
        "small",
        "those groups give no gradient; its two parts below say what to do"),
    "zero_variance_all_right": Metric("share of groups with equal rewards whose completions are all right", "share", "",
        "saturated: take harder problems, or end the run here", (Range(high=0.8),)),
    "zero_variance_all_wrong": Metric("zero_variance_share - zero_variance_all_right", "share", "",
        "cold start: take easier problems, more num_shots or num_generations, or fine-tune first", (Range(high=0.8),)),
    "kl": Metric("mean over tokens of the KL estimate between policy and ref; null with beta 0", "nats", "",
        "not 0 at step 0: wrong reference, check model and adapter; later: lower learning_rate or raise beta",
        (Range(0, 0, "at step 0", patience=1), Range(high=1, when="later"))),
    "kl_pull_share": Metric("beta * sum of sqrt(2 |kl|) / (that + sum of |A|), over tokens; null with beta 0", "share",
        "", "high: the KL holds the policy back more than the rewards move it; lower beta", (Range(high=0.1),)),
    "entropy": Metric("mean over tokens of -sum_v p_v log p_v at the sampling temperature", "nats", "falls slowly",
        "exploration collapsed: lower learning_rate, or raise epsilon_high or beta; rises instead: the policy falls "
        "apart, lower learning_rate", (Range(low=0.1, of="the start"),)),
    "loss": Metric("policy loss + beta * kl, summed over tokens / global denominator, - entropy_coef * entropy", "1",
        "near 0",
        "on policy its value is near 0 by construction (advantages sum to 0): read reward and surrogate"),
    "surrogate": Metric("sum of A * logprob / sum of |A|, over tokens", "nats", "any sign, moves",
        "exactly 0: all advantages are 0; its gradient is the on-policy gradient"),
    "grad_norm": Metric("2-norm of the gradient of all ranks, before max_grad_norm clips it", "1", "",
        "0: nothing is trained, check lora_target_modules; large: lower learning_rate; null: not finite, skipped_steps "
        "says what to do", (Range(low=1e-6, when="with a signal", patience=1), Range(high=10))),
    "learning_rate": Metric("rate of this update, after the schedule", "1", "", ""),
    "beta": Metric("coefficient of the KL in this update; absent without target_kl", "1", "settles",
        "grows without end: lower learning_rate, or raise target_kl"),
    "entropy_coef": Metric("coefficient of the entropy bonus in this update, 0 above entropy_target; absent without "
        "use_adaptive_entropy", "1", "", "at entropy_coef_max: raise that, or entropy_coef_delta"),
    "clip_share_low": Metric("share of tokens with ratio < 1 - epsilon and A < 0", "share", "",
        "high: lower num_iterations or learning_rate", (Range(0, 0, "on policy"), Range(high=0.2, when="off policy"))),
    "clip_share_high": Metric(
        "share of tokens with ratio > 1 + epsilon_high (cispo: > epsilon_high) and A > 0", "share", "",
        "high: lower num_iterations or learning_rate", (Range(0, 0, "on policy"), Range(high=0.2, when="off policy"))),
    "ratio_max": Metric("max over tokens of exp(logprob - old logprob)", "1", "",
        "on policy: a bug, old and new are not computed alike; off policy: lower num_iterations or learning_rate",
        (Range(high=1, when="on policy", patience=1), Range(high=2, when="off policy"))),
    "completion_length": Metric("mean over completions of the sampled tokens", "tokens", "below max_completion_length",
        "grows: raise beta, or show in the prompt how to end; shrinks: collapse, lower learning_rate",
        (Range(0.25, 4, of="the start"),)),
    "truncated_share": Metric("share of completions ended by max_completion_length", "share", "",
        "raise max_completion_length, or let num_shots show how to end", (Range(high=0.2),)),
    "num_tokens": Metric("tokens of the batch", "tokens", "",
        "0: all completions were masked as truncated, or unscored_share is 1; raise max_completion_length",
        (Range(low=1),)),
    "sampler_gap_mean": Metric("mean over tokens of |sampler logprob - trainer logprob|", "nats", "",
        "sampler and trainer disagree: rollout_weights=lora or torch_dtype=float32; a gap that stays is a bug: the "
        "sampler's weights are old",
        (Range(high=1e-4, when="in float32"), Range(high=0.02, when="in bfloat16 or tf32"))),
    "sampler_gap_max": Metric("max over tokens of |sampler logprob - trainer logprob|", "nats", "",
        "as sampler_gap_mean: rollout_weights=lora or torch_dtype=float32; or weigh the gap away with "
        "rollout_correction=truncated",
        (Range(high=1e-3, when="in float32", patience=1), Range(high=1, when="in bfloat16 or tf32", patience=1))),
    "correction_weight_mean": Metric("mean over tokens of the weight of rollout_correction, as applied; absent if none",
        "1", "", "raise rollout_correction_cap, or close the gap: sampler_gap_mean", (Range(0.99, 1.01),)),
    "correction_capped_share": Metric(
        "share of tokens with exp(trainer logprob - sampler logprob), or that of their completion, beyond "
        "rollout_correction_cap or rollout_correction_floor; absent if none", "share", "",
        "raise rollout_correction_cap, or close the gap: sampler_gap_mean", (Range(high=0.01),)),
    "skipped_steps": Metric("updates of this run skipped because the gradient was not finite", "steps", "stays 0",
        "look at its batch in the folder skipped; lower learning_rate, or torch_dtype=float32",
        (Range(high=1, of="the step before", patience=1),)),
    "step_s": Metric("wall time of the step", "s", "steady", "grows: completion_length"),
    "sync_s": Metric("wall time of copying trained weights into the sampler", "s", "small", ""),
    "rollout_s": Metric("wall time of sampling, slowest rank", "s", "the largest part", ""),
    "warmup_s": Metric("part of rollout_s that compiles and records the sampler's step, slowest rank", "s", "small",
        "0 on a CPU; large every step: many different numbers of slots"),
    "reward_s": Metric("wall time of scoring, and of waiting for the rank that samples longest", "s", "small",
        "large: a slow reward function"),
    "advantage_s": Metric("wall time of comparing in groups, gathering from all ranks, packing", "s", "small", ""),
    "reference_s": Metric("wall time of the reference log-probabilities", "s", "below half of update_s", ""),
    "update_s": Metric("wall time of forward, backward and optimizer", "s", "steady", ""),
    "rollout_tokens_per_s": Metric("sampled tokens / rollout_s", "tokens/s", "steady",
        "low: slot_occupancy, prefill_share"),
    "slot_occupancy": Metric("sampled tokens / (rollout_slots * steps of the sampler)", "share", "",
        "a few long completions outlast the rest: fewer rollout_slots than completions keep the slots full",
        (Range(low=0.25),)),
    "prefill_share": Metric("seconds of reading prompts / seconds of sampling", "share", "",
        "long prompts that share no prefix, or short completions: raise num_generations", (Range(high=0.3),)),
    "tokens_per_s": Metric("sampled tokens / step_s", "tokens/s", "steady", ""),
    "peak_memory_bytes": Metric("largest memory of a rank so far", "bytes", "steady", "grows: a leak"),
    "micro_batches": Metric("forward and backward passes of one iteration, per rank", "1", "", ""),
    "<name>": Metric("mean over calls and ranks of what reward functions gave to log_metric(name, value)", "1", "", ""),
}
PREFIX = "rewards/"


def metric(name: str) -> Metric:
    """The row of a logged name; ValueError where there is none."""
    head, _, function = name.partition("/")
    key = f"{head}/<name>" if function else name  # all reward functions share one
    if key not in METRICS:
        raise ValueError(f"metric {name!r} has no row in grpo/report/metrics.py; add one, or log a listed name")
    return METRICS[key]


def markdown_table() -> str:
    """The table as Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [(f"`{name}`", *(cell.replace("|", r"\|") for cell in row.cells)) for name, row in METRICS.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(markdown_table())
