"""The result of a run, or of eval.py, in one sentence of plain words."""

from typing import Any

from grpo.evaluation.answers import Answer
from grpo.evaluation.record import percent
from grpo.evaluation.statistics import compare, summarize
from grpo.report.history import History

ENDS = 5  # steps at either end whose mean reward is told; of a long run a twentieth
CHANCE = 0.05  # a p value from which on a difference may well be chance


def of_run(history: History, records: list[dict[str, Any]], answered: tuple[str, list[Answer], list[Answer]] | None,
           after: int) -> str:
    """What came of a run; one that was stopped, failed or has no end says so first.

    Args:
        records: of metrics.jsonl.
        answered: how held-out problems were answered (greedy or sampled), the answers before and the newest ones.
        after: the steps that the newest answers come after.
    """
    state, done = "", history.steps
    if not history.done:
        return {"failed": "The run failed before its first step ended.",
                "stopped": "The run was stopped as asked before its first step."}.get(
                    history.ending, "No step is recorded: the run is still starting, or was killed.")
    if history.ending != "finished":
        state = {"failed": f"The run failed after {done}: ", "stopped": f"The run was stopped as asked after {done}: "
                 }.get(history.ending, f"No end is recorded after {done} (the run goes on, or was killed): ")
    result = _accuracy(*answered, after) if answered else _reward(records)
    return state + (result[0].lower() + result[1:] if state else result)


def of_evaluation(records: list[dict[str, Any]], split: str) -> str:
    """What the first number of shots gave, compared with the model alone where there is an adapter."""
    new = records[0]
    number, kind = new["num_shots"], "training" if split == "train" else "held-out"
    size = f"{new['num_problems']} {kind} problems"
    shots = f"with {number} worked example{'s'[number == 1:]} in the prompt" if number else "without worked examples"
    old = next((one for one in records[1:] if one["num_shots"] == number), None)
    if old is None:
        return f"The {new['model']} has {_share(new)} of {size} right, {shots}."
    return (f"The adapter has {_share(new)} of {size} right, the model without it {_share(old)}, {shots}"
            f"{_verdict(new['p_value'])}.")


def _accuracy(mode: str, before: list[Answer], newest: list[Answer], after: int) -> str:
    old, new, p_value = summarize(before), summarize(newest), compare(before, newest)["p_value"]
    way = "went" if p_value >= CHANCE else "rose" if new["strict"] > old["strict"] else "fell"
    return (f"The accuracy of {mode} answers to {old['num_problems']} held-out problems {way} from {_share(old)} to "
            f"{_share(new)} in {_steps(after)}{_verdict(p_value)}.")


def _reward(records: list[dict[str, Any]]) -> str:
    rewards = [record["reward"] for record in records if record.get("reward") is not None]
    if not rewards:
        return "No completion had a reward, and held-out accuracy was not measured."
    num = min(max(ENDS, len(rewards) // 20), max(len(rewards) // 2, 1))
    first, last = sum(rewards[:num]) / num, sum(rewards[-num:]) / num
    which = "step" if num == 1 else f"{num} steps"
    return (f"The mean reward of the training's completions went from {first:.3g} in the first {which} to "
            f"{last:.3g} in the last {which}; held-out accuracy was not measured.")


def _share(summary: dict[str, Any]) -> str:
    share = percent(summary, "strict").replace("(", "(95 % interval ")
    return share.replace(" %", "\u00a0%")  # one word, so that no line begins with the sign


def _steps(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"


def _verdict(p_value: float) -> str:
    if p_value >= CHANCE:
        return f"; the difference may be chance (p = {p_value:.2g} in a paired test)"
    return f" (p = {p_value:.2g} in a paired test)"
