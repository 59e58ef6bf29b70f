"""Arithmetic word problems in the shape of GSM8K, generated: the default data needs no download.

A problem is a template, a name and a tuple of numbers. A checksum of the numbers alone decides its split: no two splits
share a tuple of numbers, whatever the seeds, so a held-out problem is new even to a model that saw all others.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import add, mul, sub

from data.example import Example
from data.prompts import COMPLETION, build_prompt

# The checksum modulo 10 of each split.
SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
MAX_EXAMPLES = 4000  # the smallest split has 4,500 different questions
NAMES = ["Tom", "Mia", "Sam", "Eva"]
OPERATORS = {"+": add, "-": sub, "*": mul}
MAX_RESULT = 99  # after every step: two digits


@dataclass(frozen=True)
class Template:
    """A kind of problem: its words, and the operators between its numbers, worked from left to right."""

    question: str  # with {name} and one {} per number
    operators: str  # one character of "+-*" per step
    ranges: tuple[range, ...]  # from which each number is drawn; one more than operators


@dataclass(frozen=True)
class Problem:
    """A template with its blanks filled in."""

    template: Template
    name: str
    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        """The problem as text."""
        return self.template.question.format(*self.numbers, name=self.name)


FEW, MANY = range(2, 10), range(2, 40)
TEMPLATES = [
    Template("{name} has {} apples and buys {} more. How many apples now?", "+", (MANY, MANY)),
    Template("{name} had {} coins and lost {}. How many coins are left?", "-", (MANY, MANY)),
    Template("{name} has {} boxes of {} pens and buys {} more. How many pens now?", "*+", (FEW, FEW, FEW)),
    Template("{name} had {} bags of {} nuts and lost {}. How many nuts are left?", "*-", (FEW, FEW, FEW)),
    Template("{name} had {} eggs, lost {} and buys {} more. How many eggs now?", "-+", (MANY, FEW, FEW)),
    Template("{name} buys {} red and {} blue cups a day. How many cups in {} days?", "+*", (FEW, FEW, FEW)),
    Template("{name} had {} nuts, found {} and lost {}. How many nuts are left?", "+-", (MANY, FEW, FEW)),
    Template("{name} has {} bags of {} coins, found {} and lost {}. How many coins now?", "*+-", (FEW, FEW, FEW, FEW)),
]


def problems(split: str, *, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of one split; templates are equally frequent, and a problem may come again."""
    while True:
        template = rng.choice(TEMPLATES)
        while True:
            numbers = tuple([rng.choice(numbers) for numbers in template.ranges])
            if _tenth(numbers) in SPLITS[split] and _stays_small(template, numbers):
                break
        yield Problem(template, rng.choice(NAMES), numbers)


def solve(problem: Problem, *, slips: Sequence[int] | None = None) -> tuple[str, int]:
    """The reasoning, such as "3*4=12. 12+5=17.", and the last result; `slips` are added to the steps' results."""
    operators, (result, *rest) = problem.template.operators, problem.numbers
    steps = []
    for operator, number, slip in zip(operators, rest, slips or [0] * len(rest), strict=True):
        before, result = result, OPERATORS[operator](result, number) + slip
        steps.append(f"{before}{operator}{number}={result}.")
    return " ".join(steps), result


def load(split: str, *, num_examples: int, seed: int) -> list[Example]:
    """Different examples of one split, at most MAX_EXAMPLES; the same arguments give the same list."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: wordproblems has {', '.join(SPLITS)}; nearest valid value: test")
    if not 1 <= num_examples <= MAX_EXAMPLES:
        nearest = min(max(num_examples, 1), MAX_EXAMPLES)
        raise ValueError(f"num_examples={num_examples}: must be 1 to {MAX_EXAMPLES}; nearest valid value: {nearest}")
    example_of_question: dict[str, Example] = {}
    for problem in problems(split, rng=random.Random(seed)):
        if problem.question not in example_of_question:
            example_of_question[problem.question] = _example(problem)
        if len(example_of_question) == num_examples:
            return list(example_of_question.values())


def _example(problem: Problem) -> Example:
    reasoning, result = solve(problem)
    answer = COMPLETION.format(reasoning=reasoning, final_answer=result).strip()
    row = {"question": problem.question, "answer": answer, "final_answer": str(result)}
    return Example(**row, prompt=build_prompt(problem.question), columns=row)


@cache
def _tenth(numbers: tuple[int, ...]) -> int:
    """Which tenth of all problems has these numbers: splits are tenths."""
    return zlib.crc32(repr(numbers).encode()) % 10


def _stays_small(template: Template, numbers: tuple[int, ...]) -> bool:
    """Whether the result of every step has one or two digits and no sign."""
    result, *rest = numbers
    for operator, number in zip(template.operators, rest, strict=True):
        result = OPERATORS[operator](result, number)
        if not 0 <= result <= MAX_RESULT:
            return False
    return True
