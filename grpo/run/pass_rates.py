"""How often each training problem was solved: problems that are always or never solved teach nothing."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data.example import Example
from grpo.evaluation.answers import load_answers
from grpo.options.refusal import refuse


class Judged(NamedTuple):
    """What one group said of its problem."""

    problem: int  # its index in the training examples
    right: int
    scored: int


class PassRates:
    """Right and scored completions of each training problem so far; the same on every rank.

    Args:
        bounds: the lowest and the highest pass rate of a problem that is sampled; None: any.
    """

    def __init__(self, num_examples: int, bounds: list[float] | None) -> None:
        self.low, self.high = bounds or (0.0, 1.0)
        self.right, self.scored = [0] * num_examples, [0] * num_examples

    def add(self, groups: Iterable[Judged]) -> None:
        """Count the completions of these groups."""
        for one in groups:
            self.right[one.problem] += one.right
            self.scored[one.problem] += one.scored

    def fits(self, problem: int) -> bool:
        """Whether the pass rate is within the bounds, or not known."""
        scored = self.scored[problem]
        return not scored or self.low <= self.right[problem] / scored <= self.high

    def wanted(self, candidates: list[int]) -> list[int]:
        """Those of the problems that fit, in order; the first one if none does."""
        return [one for one in candidates if self.fits(one)] or candidates[:1]

    def outside(self) -> float:
        """Share of all problems that do not fit."""
        return sum(not self.fits(problem) for problem in range(len(self.scored))) / len(self.scored)

    def state(self) -> list[list[int]]:
        """[problem, right, scored] of every problem that was judged, for a checkpoint."""
        return [[index, *counts] for index, counts in enumerate(zip(self.right, self.scored)) if counts[1]]

    def read(self, path: str, examples: list[Example]) -> None:
        """Count the answers of eval.py to the training problems, which are known by their questions.

        Raises:
            ValueError: the file is no such file, or has none of the problems.
        """
        try:
            answers = load_answers(Path(path))
        except (OSError, ValueError, TypeError) as error:
            refuse("problem_pass_rates", path, f"is not a file of answers that eval.py wrote ({error})",
                   "answers_model_0_shots.jsonl of the folder that eval.py --output was given")
        places: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            places.setdefault(example.title, []).append(index)
        known = [Judged(place, answer.strict, 1) for answer in answers for place in places.get(answer.question, ())]
        if not known:
            refuse("problem_pass_rates", path, f"has {len(answers):,} answers, and none to a training problem",
                   "answers to train_dataset_id_or_path: eval.py --split train")
        self.add(known)
