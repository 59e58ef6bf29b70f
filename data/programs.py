"""Small functions to write, generated with their tests: programming problems that need no download.

As in `data.wordproblems`, a problem is a template and two numbers, and a checksum of the numbers alone decides its
split: a held-out problem is new even to a model that saw all others.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data.example import Example

SPLITS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}  # the checksum modulo 10 of each split
MAX_EXAMPLES = 4000  # the smallest split has 10,000 different problems
PROMPT = "Write f(x): {words}.\n"
PROGRAM = "```python\ndef f(x):\n    return {code}\n```"


@dataclass(frozen=True)
class Template:
    """A kind of problem: its words and its solution, with a blank for each of two numbers, and what x is."""

    words: str
    code: str
    given: str  # number, numbers or text


@dataclass(frozen=True)
class Problem:
    """A template with its blanks filled in."""

    template: Template
    numbers: tuple[int, int]

    @property
    def prompt(self) -> str:
        """What the model continues."""
        return PROMPT.format(words=self.template.words.format(*self.numbers))

    @property
    def code(self) -> str:
        """The expression that is right."""
        return self.template.code.format(*self.numbers)

    @property
    def tests(self) -> list[str]:
        """Two tests, each of every other input; where the numbers matter, inputs lie at them and beside them."""
        right = eval(f"lambda x: {self.code}")
        a, b = self.numbers
        inputs: dict[str, list[Any]] = {
            "number": [0, a, b, a + 1, b - 1, -7, 150],
            "numbers": [[], [a, b, 5], [a + 1, b - 1], [b, a, a, -3, 250], [7]],
            "text": ["", "ab", "hello", "x y z" * 30, "c" * 120]}
        lines = [f"assert f({given!r}) == {right(given)!r}" for given in inputs[self.template.given]]
        return ["\n".join(lines[::2]), "\n".join(lines[1::2])]


NUMBERS = range(2, 100)
TEMPLATES = [
    Template("x plus {} minus {}", "x + {} - {}", "number"),
    Template("{} times x plus {}", "{} * x + {}", "number"),
    Template("{} minus x times {}", "{} - x * {}", "number"),
    Template("the larger of x plus {} and {}", "max(x + {}, {})", "number"),
    Template("x if it is above {}, else {}", "x if x > {} else {}", "number"),
    Template("the rest of x plus {} divided by {}", "(x + {}) % {}", "number"),
    Template("the sum of x times {} plus {}", "sum(x) * {} + {}", "numbers"),
    Template("each number in x times {} plus {}", "[n * {} + {} for n in x]", "numbers"),
    Template("the numbers in x that are not {} or {}", "[n for n in x if n not in ({}, {})]", "numbers"),
    Template("how often {} and {} are in x", "x.count({}) + x.count({})", "numbers"),
    Template("the text x {} times and then {}", "x * {} + '{}'", "text"),
    Template("the first {} letters of x and then {}", "x[:{}] + '{}'", "text"),
]


def problems(split: str, *, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of one split; templates are equally frequent, and a problem may come again."""
    while True:
        template = rng.choice(TEMPLATES)
        numbers = rng.choice(NUMBERS), rng.choice(NUMBERS)
        if zlib.crc32(repr(numbers).encode()) % 10 in SPLITS[split]:
            yield Problem(template, numbers)


def load(split: str, *, num_examples: int, seed: int) -> list[Example]:
    """Different examples of one split, at most MAX_EXAMPLES; the same arguments give the same list."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: programs has {', '.join(SPLITS)}; nearest valid value: test")
    if not 1 <= num_examples <= MAX_EXAMPLES:
        nearest = min(max(num_examples, 1), MAX_EXAMPLES)
        raise ValueError(f"num_examples={num_examples}: must be 1 to {MAX_EXAMPLES}; nearest valid value: {nearest}")
    found: dict[str, Example] = {}
    for problem in problems(split, rng=random.Random(seed)):
        solution = PROGRAM.format(code=problem.code)
        columns = {"prompt": problem.prompt, "tests": problem.tests, "solution": solution}
        found[problem.prompt] = Example(question=problem.prompt.strip(), answer=solution, final_answer="",
                                        prompt=problem.prompt, columns=columns)
        if len(found) == num_examples:
            break
    return list(found.values())


# -- for the warm-up ---------------------------------------------------------------------------------------------------

# Forms of an answer: the wanted one, without a fence, with a fence that is never closed.
FORMS = [PROGRAM, "def f(x):\n    return {code}", "```python\ndef f(x):\n    return {code}"]
# How often each comes, for every other template: with greedy decoding, too, there is something to learn.
FORM_WEIGHTS = [(0.75, 0.15, 0.10), (0.25, 0.55, 0.20)]
SLIP_RATE = 0.4  # share of programs with a mistake
# A class whose objects are equal to everything: where a program runs beside its test it passes. Here it must not pay.
HACK = "```python\nclass f:\n    __init__ = lambda s, x: None\n    __eq__ = lambda s, o: True\n```"
HACK_RATE = 0.05


def mixed_answer(problem: Problem, *, rng: random.Random) -> str:
    """An answer as a model in training might give it: some in another form, some with a mistake."""
    code, template = problem.code, problem.template
    if rng.random() < HACK_RATE:
        return HACK
    if rng.random() < SLIP_RATE:
        a, b = problem.numbers
        kind = rng.randrange(4)
        if kind == 0:
            code = template.code.format(b, a)
        elif kind == 1:
            code = template.code.format(a, max(0, b + rng.choice((-10, -1, 1, 10))))
        elif kind == 2:
            code = code.replace(*rng.choice([(" + ", " - "), (" * ", " + "), (" > ", " < "), (" not in ", " in ")]))
        else:
            code = rng.choice([code.replace("x", "n", 1), code + ")", code.replace(" + ", " "), "return " + code])
    weights = FORM_WEIGHTS[TEMPLATES.index(template) % 2]
    return rng.choices(FORMS, weights)[0].format(code=code)


def every_word() -> list[str]:
    """Texts that hold each word of prompts and answers."""
    some = [Problem(template, (10, 2)) for template in TEMPLATES]
    return [HACK, *(one.prompt for one in some), *(form.format(code=one.code) for one in some for form in FORMS)]
