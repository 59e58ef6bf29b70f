"""An evaluation of a run as numbers, under the names that metric_for_best_model and trackers know."""

from typing import Any

from grpo.evaluation.answers import Answer
from grpo.evaluation.several import several
from grpo.evaluation.statistics import summarize

PREFIX = {"greedy": "greedy_", "sampled": ""}  # of the names of a mode's numbers
ACCURACY = {mode: f"eval_{prefix}accuracy" for mode, prefix in PREFIX.items()}

NOTE = (  # of the fields of an Answer, as tables show them
    "Strict: right number in the asked format. Lenient: strict, or the last number is right. Format: the answer line "
    "is there. Truncated: cut off by max_completion_length. In brackets the 95 % confidence interval; p is the chance "
    "of a difference at least as large if both were equally good (exact sign-flip test on the same problems)."
)


def numbers(mode: str, answers: list[Answer]) -> dict[str, Any]:
    """The shares of an evaluation by name, with intervals of 95 %; k of "at_k" is all samples of a problem."""
    summary, name = summarize(answers), f"eval_{PREFIX[mode]}"
    found = {f"{name}accuracy": summary["strict"], f"{name}accuracy_interval": summary["strict_interval"],
             f"{name}lenient": summary["lenient"], f"{name}format": summary["format"],
             f"{name}truncated": summary["truncated"]}
    if mode == "sampled":
        of_k, k = several(answers), summary["num_samples"]
        found |= {f"eval_{kind}_at_k": of_k[f"{kind}@{k}"][0] for kind in ("pass", "maj")}
    return found


def percent(summary: dict[str, Any], score: str) -> str:
    """A share and its 95 % interval, in percent."""
    low, high = summary[f"{score}_interval"]
    return f"{100 * summary[score]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
