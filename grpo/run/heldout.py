"""The held-out problems of a run: solved before and after the training and on the way, the best step, the summary."""

import shutil
import sys
from pathlib import Path
from typing import Any

from data.example import Example
from grpo.distributed import gather_objects, rank, world_size
from grpo.evaluation.answers import Judged, answers_path, evaluate, load_answers, save_answers
from grpo.evaluation.record import PREFIX, numbers
from grpo.evaluation.statistics import compare
from grpo.health.pulse import pulse
from grpo.health.stop_request import stop_request
from grpo.report.json_lines import JsonLines, read
from grpo.report.log import Log
from grpo.run.parts import Run
from grpo.run.position import Position
from grpo.run.scoring import judged, judges_by_reward
from grpo.run.summary import Summary
from grpo.saving import checkpoint
from grpo.saving.sealed_folder import damage
from grpo.types import Rollout

SAMPLES = 4  # of a problem, where num_generations_eval does not say


class HeldOut:
    """The evaluations of a run: one record for each, the same on every rank."""

    def __init__(self, run: Run) -> None:
        """Collective: every rank."""
        self.run, self.file = run, None
        if rank() == 0 and run.test_examples:
            (run.output_dir / "evaluation").mkdir(exist_ok=True)
            self.file = JsonLines(run.output_dir / "evaluation" / "metrics.jsonl", run.first_step + 1)
        self.records: list[dict[str, Any]] = gather_objects(read(self.file.path) if self.file else [])[0]

    @property
    def best(self) -> dict[str, Any]:
        """The first of the steps that none was better than; what the model was before the training does not count."""
        given = self.run.config.metric_for_best_model
        metric = given or ("eval_accuracy" if self._samples() else "eval_greedy_accuracy")
        return max((record for record in self.records if record["step"] > 0), key=lambda record: record[metric])

    def look(self, position: Position, log: Log | None) -> None:
        """Solve them if that is due after the steps that are done. Collective: every rank.

        Raises:
            Stopped: the run was asked to stop; on every rank.
        """
        run, done = self.run, position.done
        due = done in (0, run.num_steps) or position.is_due(
            run, run.config.eval_strategy, run.config.eval_steps or run.config.save_steps)
        self._keep_best(position)  # also where a resumed run begins: its next checkpoint must leave the best one
        if not run.test_examples or not due or done in [record["step"] for record in self.records]:
            return
        record = {"step": done, **self._solve(done)}
        self.records.append(record)
        if self.file:
            self.file.append([record])
        if log:
            log.evaluated(record)
        self._keep_best(position)
        if position.best == done:
            position.save(run, must=False)

    def _keep_best(self, position: Position) -> None:
        if self.run.config.load_best_model_at_end and any(record["step"] > 0 for record in self.records):
            position.best = self.best["step"]

    def is_enough(self) -> bool:
        """Whether the last early_stopping_patience evaluations were no better than one before."""
        trained = [record for record in self.records if record["step"] > 0]
        patience = self.run.config.early_stopping_patience
        if patience is None or not trained or trained.index(self.best) >= len(trained) - patience:
            return False
        if rank() == 0:
            print(f"\nstops early: the last {patience} evaluations were no better than step {self.best['step']}")
        return True

    def choose(self, position: Position, log: Log | None) -> int:
        """The step whose weights are exported; they are in the engine then. Collective: every rank.

        Raises:
            Stopped: the run was asked to stop; on every rank.
        """
        if not self.run.config.load_best_model_at_end:
            return position.done
        self.look(position, log)
        if (step := self.best["step"]) == position.done:
            return step
        folder = self.run.output_dir / "checkpoints" / f"step-{step}"
        problem = gather_objects(damage(folder) if rank() == 0 else "")[0]
        if rank() == 0:
            print(f"\nwarning: step {step} was the best, and the last is exported: {problem}" if problem else
                  f"\nexports step {step}, the best of {len(self.records) - 1} evaluations; the best of several is a "
                  "little too high by chance: eval.py on other problems tells",
                  file=sys.stderr if problem else sys.stdout)
        if problem:
            return position.done
        checkpoint.take_weights(self.run.engine, folder)
        return step

    def flush(self) -> None:
        """As Log.flush does."""
        if self.file:
            self.file.flush()

    def summarize(self, done: int, exported: int, weights: Path, seconds: float) -> Summary:
        """What came of the run, saved too; `weights` are those of the step `exported`."""
        run, found = self.run, {}
        for mode, _, _ in self._modes() if run.test_examples else []:
            before, then, after = (answers_path(run.output_dir, mode, when)
                                   for when in ("before", self._name(exported), "after"))
            if then.exists():  # else an older version wrote the last answers, and as these at once
                shutil.copyfile(then, after)
            compared = compare(load_answers(before), load_answers(after))
            found |= {f"{PREFIX[mode]}{name}": value for name, value in compared.items()}
        summary = Summary(steps=done, ranks=world_size(), seconds=round(seconds, 1), output_dir=str(run.output_dir),
                          weights=str(weights), exported_step=exported, **found)
        summary.save()
        return summary

    def _name(self, step: int) -> str:
        """Of the files with the answers after so many steps; a last step may be none in a run that is prolonged."""
        return f"step-{step}" if step else "before"

    def _samples(self) -> int:
        given = self.run.config.num_generations_eval
        return SAMPLES if given is None else given

    def _modes(self) -> list[tuple[str, float, int]]:
        """Name, temperature and number of samples of each way to answer."""
        # Training improves what is sampled at its own temperature; greedy answers are how a model is mostly used.
        config = self.run.config
        sampled = ("sampled", config.eval_temperature or config.temperature, self._samples())
        return [("greedy", 0.0, 1), *([sampled] if self._samples() else [])]

    def _solve(self, done: int) -> dict[str, Any]:
        """Answer the problems and save the answers; what came out. Collective: every rank."""
        run, when = self.run, self._name(done)

        def judge(asked: list[Example], rollout: Rollout) -> list[Judged]:
            return judged(run, asked, rollout, done, on_wait=pulse.progress)

        pulse.enter("evaluate")
        run.sync()
        mine = list(range(rank(), len(run.test_examples), world_size()))  # the share of this rank
        examples = [run.test_examples[index] for index in mine]
        prompts = [run.prompt_ids(example) for example in examples]
        found: dict[str, Any] = {}
        for mode, temperature, num_samples in self._modes():
            with stop_request.may_end_this():
                answers = evaluate(
                    run.decoder, run.tokenizer, examples, prompts, num_samples=num_samples, temperature=temperature,
                    seed=run.config.seed, max_completion_length=run.config.max_completion_length,
                    stop_token_ids=run.stop_token_ids, stop_strings=run.config.stop_strings, prompt_index=mine,
                    num_slots=run.num_slots, progress=f"{mode} {when}" if rank() == 0 else None,
                    judge=judge if judges_by_reward(run.config) else None)
            everyone = [answer for part in gather_objects(answers) for answer in part]
            found |= numbers(mode, everyone)
            if rank() == 0:
                save_answers(everyone, answers_path(run.output_dir, mode, when))
        return found
