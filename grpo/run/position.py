"""The step a run has reached, and the checkpoints it saves."""

import sys

from grpo.distributed import rank
from grpo.health import last_words
from grpo.health.pulse import describe, pulse
from grpo.run.parts import Run
from grpo.saving import checkpoint, continuation


class Position:
    """Steps done, and how many of them are in the newest checkpoint."""

    def __init__(self, first_step: int) -> None:
        self.done, self.saved = first_step, first_step or None  # None: there is no checkpoint
        self.best: int | None = None  # the step whose checkpoint is kept, however many newer ones there are
        if first_step:
            last_words.advise(self._advice())

    def is_save_due(self, run: Run) -> bool:
        """Whether the options ask for a checkpoint after the newest step."""
        return self.is_due(run, run.config.save_strategy, run.config.save_steps)

    def is_due(self, run: Run, strategy: str, steps: int) -> bool:
        """Whether what is done by `strategy` comes after the newest step."""
        if strategy == "epoch":
            per_epoch = len(run.train_examples) / run.config.prompts_per_step
            return int(self.done / per_epoch) > int((self.done - 1) / per_epoch)
        return strategy == "steps" and self.done % steps == 0

    def save(self, run: Run, *, must: bool) -> None:
        """Save what is done; a disk that does not take it costs a warning. Collective: every rank.

        Raises:
            SystemExit: it `must` be saved, since the run stops, and could not be; on every rank.
        """
        pulse.enter("save")
        problem = "" if self.saved == self.done else checkpoint.save(
            run.engine, run.output_dir, step=self.done, peft_config=run.peft_config,
            facts=continuation.facts(run.asked, run.sources, self.done) | {
                "coefficients": run.coefficients, "pass_rates": run.pass_rates.state()},
            save_total_limit=run.config.save_total_limit, keep=self.best)
        where = describe(pulse.take())
        if problem and must:
            raise SystemExit(f"error: {where} stopped as asked, but step-{self.done} could not be saved: {problem}")
        if problem and rank() == 0:
            print(f"\nwarning: {where} step-{self.done} could not be saved, those before it are as they were: "
                  f"{problem}", file=sys.stderr, flush=True)
        if not problem:
            self.saved = self.done
            last_words.advise(self._advice())
        if must and rank() == 0:
            print(f"\nstopped as asked after {self.done} of {run.num_steps} steps; {self._advice()}", flush=True)

    def _advice(self) -> str:
        return f"step-{self.saved} is saved: go on with the same command and --resume"
