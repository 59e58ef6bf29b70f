"""What the doctor says of rewards that run programs: where they run, and what the dataset's own solutions earn."""

from grpo.doctor.finding import Finding, judge
from grpo.run.parts import Run
from grpo.run.scoring import RUN_PROGRAMS, WHERE
from rewards.loading import metric_name

PROGRAM_REWARDS = ("code_format", *RUN_PROGRAMS)


def sandbox(run: Run) -> list[Finding]:
    """Where programs run. In the full sandbox each layer was seen to hold before the model was loaded."""
    if not {*RUN_PROGRAMS} & {metric_name(name) for name in run.config.reward_funcs}:
        return []
    alone = run.config.code_sandbox == "process"
    return [judge("sandbox", f"programs run {WHERE[run.config.code_sandbox]}",
                  warn="code_sandbox=full: a program of the model can read your files and use your network"
                  if alone else "")]


def solutions(name: str, gold_N: list[float], wrong_N: list[float], *, known: bool) -> Finding:
    """Do the dataset's solutions earn everything, and nonsense nothing?"""
    whole, paid = sum(value == 1 for value in gold_N), sum(value > 0 for value in wrong_N)
    few = known and 2 * whole < len(gold_N)
    cure = "train_dataset_id_or_path=a file whose solutions pass their tests" if known and whole < len(gold_N) else ""
    gold = f"{whole} of {len(gold_N)} solutions earn 1" if known else "no solution is known"
    return judge(f"reward {name}", f"{gold}, {paid} of {len(wrong_N)} empty or nonsense texts anything",
                 warn=cure, fail=f"a {name} that gives nonsense nothing" if paid else cure if few else "")
