"""Clinical notes, generated: a handbook's page, a patient's symptoms, and the note that names illness and treatment.

Every illness and treatment is invented. No two illnesses share a symptom, so a page and two symptoms leave one answer.
A checksum of page and symptoms decides the split, as in `data.wordproblems`: no two splits share both.
"""

import random
import warnings
import zlib
from typing import NamedTuple

from data.conversation import converse
from data.example import Example
from data.prompts import check_num_shots
from data.wordproblems import SPLITS

NUM_EXAMPLES = 1000  # of each split
NAMES = ["Tom", "Mia", "Sam", "Eva"]
DAYS = range(2, 10)
PAGE_LENGTH = 3  # illnesses


class Illness(NamedTuple):
    """What the handbook says of an illness; terms with their forms, as rewards.text reads them, the plain one first."""

    name: str
    symptoms: tuple[str, str, str]
    treatment: str


ILLNESSES = [
    Illness("velm fever", ("chills|chill", "sweating|sweats", "dizziness|dizzy"), "mint tea"),
    Illness("tarno rash", ("itching|itches|itchy", "blisters|blister", "swelling|swollen"), "oat cream"),
    Illness("brindle cough", ("coughing|coughs", "hoarseness|hoarse", "wheezing|wheezes"), "honey syrup"),
    Illness("orlo ache", ("stiffness|stiff", "cramps|cramp", "numbness|numb"), "warm baths|warm bath"),
    Illness("sedge flu", ("sneezing|sneezes", "headache|headaches", "tiredness|tired"), "bed rest|rest in bed"),
    Illness("harrow colic", ("nausea|nauseous", "bloating|bloated", "hiccups|hiccup"), "rice soup"),
]


def load(split: str, *, num_shots: int, seed: int, chat: bool) -> list[Example]:
    """NUM_EXAMPLES different examples of one split; the same arguments give the same list.

    Args:
        num_shots: has no effect; one warning says so.
        chat: makes the task the user's message, else a text that stops where the note starts.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: clinical_notes has {', '.join(SPLITS)}; nearest valid value: test")
    check_num_shots(num_shots)
    if num_shots:
        warnings.warn(f"num_shots={num_shots} has no effect: clinical_notes has ready prompts", stacklevel=2)
    rng, example_of_question = random.Random(seed), {}
    while len(example_of_question) < NUM_EXAMPLES:
        page = rng.sample(ILLNESSES, PAGE_LENGTH)
        illness = rng.choice(page)
        symptoms = rng.sample(illness.symptoms, 2)
        if _tenth(page, symptoms) in SPLITS[split]:
            example = _example(rng.choice(NAMES), rng.choice(DAYS), page, illness, symptoms, chat=chat)
            example_of_question[example.question] = example
    return list(example_of_question.values())


def _example(
    name: str, days: int, page: list[Illness], illness: Illness, symptoms: list[str], *, chat: bool
) -> Example:
    lines = [f"{one.name}: {', '.join(map(_plain, one.symptoms))}; give {_plain(one.treatment)}" for one in page]
    first, second = map(_plain, symptoms)
    question = "\n".join([
        "Handbook:", *lines, f"{name} has had {first} and {second} for {days} days. Write the note in two sentences: "
        "which illness the symptoms point to, and how it is treated."])
    note = f"{name} has {first} and {second}, which points to {illness.name}. " \
           f"Against {illness.name} we give {_plain(illness.treatment)}."
    groups = {"symptoms": symptoms, "diagnosis": [illness.name], "treatment": [illness.treatment]}
    columns = {"question": question, "reference": note, "groups": groups,
               "terms": [*symptoms, illness.name, illness.treatment]}
    return Example(question=question, answer=note, final_answer="", columns=columns, place="every task",
                   prompt=converse(question) if chat else f"{question}\nNote:")


def _plain(term: str) -> str:
    """The first form of a term."""
    return term.partition("|")[0]


def _tenth(page: list[Illness], symptoms: list[str]) -> int:
    """Which tenth of all tasks has this page and these symptoms: splits are tenths."""
    return zlib.crc32(repr((page, symptoms)).encode()) % 10
