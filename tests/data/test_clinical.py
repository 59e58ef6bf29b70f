"""Generated clinical notes: splits, gold notes, and what a wrong or copied note earns. 1 second."""

import pytest

from data import clinical, load_examples
from data.example import Example
from rewards.loading import load

OPTIONS = {"contexts": {"pairs": [["symptoms", "diagnosis"], ["diagnosis", "treatment"]]}}


def examples(split: str = "train", seed: int = 0, **options) -> list[Example]:
    return load_examples("clinical_notes", split, num_shots=0, seed=seed, **options)


def earned(rows: list[Example], texts: list[str]) -> list[set[float]]:
    """What texts earn from keywords, keyword_groups and contexts."""
    columns = {name: [row.columns[name] for row in rows] for name in ("terms", "groups")}
    functions = load(["keywords", "keyword_groups", "contexts"], None, OPTIONS)
    return [set(function(texts, **columns)) for function in functions.values()]


def test_a_gold_note_earns_everything_and_a_copy_of_the_task_no_context() -> None:
    rows = examples()[::5]
    assert earned(rows, [f" {row.answer}" for row in rows]) == [{1.0}, {1.0}, {1.0}]
    assert earned(rows, [row.prompt for row in rows]) == [{1.0}, {1.0}, {0.0}]


def test_a_note_with_another_illness_of_the_page_earns_its_symptoms() -> None:
    rows = examples()[::5]
    wrong = []
    for row in rows:
        right, = row.columns["groups"]["diagnosis"]
        other = next(one for one in clinical.ILLNESSES if one.name != right and one.name in row.question)
        wrong.append(f"{row.answer.partition('points to')[0]}points to {other.name}. Against {other.name} we give "
                     f"{other.treatment.partition('|')[0]}.")
    assert earned(rows, wrong) == [{0.5}, {0.5 / 3}, {0.0}]  # two of four terms, one of three groups, no pair


def test_a_task_names_what_its_note_needs_and_one_illness_fits() -> None:
    for row in examples():
        *handbook, task = row.question.splitlines()
        symptoms = [term.partition("|")[0] for term in row.columns["groups"]["symptoms"]]
        fitting = [line for line in handbook if any(one in line.partition(":")[2] for one in symptoms)]
        assert len(fitting) == 1 and fitting[0].startswith(row.columns["groups"]["diagnosis"][0] + ":")
        assert all(one in task for one in symptoms) and row.prompt == f"{row.question}\nNote:"
        assert row.columns["reference"] == row.answer


def test_no_two_splits_share_a_page_with_its_symptoms_whatever_the_seeds() -> None:
    def tasks(split: str, seed: int) -> set[tuple]:
        return {(tuple(row.question.splitlines()[:-1]), *row.columns["groups"]["symptoms"])
                for row in examples(split, seed)}

    train, validation, test = tasks("train", 0), tasks("validation", 1), tasks("test", 2)
    assert not train & validation and not train & test and not validation & test


def test_the_seed_decides_the_tasks_and_none_comes_twice() -> None:
    first, again, other = examples(seed=3), examples(seed=3), examples(seed=4)
    assert first == again != other
    assert len({row.question for row in first}) == len(first) == clinical.NUM_EXAMPLES


def test_the_task_may_be_a_message_and_solved_examples_are_said_to_have_no_effect() -> None:
    row = examples(apply_chat_template="true")[0]
    assert row.prompt == [{"role": "user", "content": row.question}]
    with pytest.warns(UserWarning, match="num_shots=2 has no effect: clinical_notes has ready prompts"):
        load_examples("clinical_notes", "train", num_shots=2, seed=0)
    with pytest.raises(ValueError, match="num_shots=9"):
        load_examples("clinical_notes", "train", num_shots=9, seed=0)


def test_a_split_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="split='dev': clinical_notes has train, validation, test; nearest valid"):
        examples("dev")
