"""`--doctor`: looks at all that is known to go wrong, and tries one step. Nothing is trained, no file stays."""

from grpo.distributed import rank
from grpo.doctor import at_rest, trial
from grpo.doctor.finding import count, failures
from grpo.run.parts import Run


def examine(run: Run) -> int:
    """Print one line for each thing looked at; the exit code is 0 if none failed. Collective: every rank."""
    show = print if rank() == 0 else lambda *_, **__: None
    findings = at_rest.look(run, own_rewards=True)
    show(*findings, sep="\n", flush=True)
    if not failures(findings):  # or there would be no first step
        step = trial.first_step(run)
        show(*step, sep="\n")
        findings += step
    show(count(findings))
    return 1 if failures(findings) else 0
