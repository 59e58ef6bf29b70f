"""Tasks of Reasoning Gym as data: what a name says, splits, and what is refused in one line. 2 seconds.

Skipped where the package is not installed, but for its absence.
"""

import importlib.util

import pytest

from data import gym, load_examples
from data.prompts import build_prompt

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
SMALL = "reasoning_gym:chain_sum?size=40&seed=1&min_terms=2&max_terms=2&max_digits=1"


def load(spec: str, split: str = "train", **options):
    return load_examples(spec, split, **{"num_shots": 0, "seed": 7, **options})


@needs_gym
def test_a_name_with_parameters_gives_the_task_s_own_rows() -> None:
    from reasoning_gym import create_dataset

    rows = list(create_dataset("chain_sum", size=40, seed=1, min_terms=2, max_terms=2, max_digits=1))
    examples = load(SMALL)
    assert [example.question for example in examples] == [row["question"] for row in rows]
    assert [example.final_answer for example in examples] == [row["answer"] for row in rows]
    first = examples[0]
    assert first.prompt == first.columns["prompt"] == build_prompt(rows[0]["question"])
    assert {key: first.columns[key] for key in ("question", "answer", "metadata")} == rows[0]
    assert first.columns["gym_task"] == {
        "name": "chain_sum", "config": {"size": 40, "min_terms": 2, "max_terms": 2, "max_digits": 1}}


@needs_gym
def test_prompts_can_be_messages_and_have_solved_examples() -> None:
    question = load(SMALL)[0].question
    assert load(SMALL, system_prompt="Be brief.")[0].prompt == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    assert load(SMALL, num_shots=1)[0].prompt == build_prompt(question, 1)


@needs_gym
def test_no_held_out_question_is_trained_on_though_neighbouring_seeds_share_rows() -> None:
    train, held_out, test = (
        {example.question for example in load(SMALL, split)} for split in ("train", "validation", "test"))
    assert not train & held_out and not train & test and len(held_out) > 10
    neighbours = {example.question for example in load(SMALL.replace("seed=1", "seed=2"))}
    assert len(train - neighbours) <= 1  # row i of seed 2 is row i + 1 of seed 1
    assert [one.columns["metadata"]["source_index"] for one in load(SMALL)] == list(range(40))


@needs_gym
def test_the_run_s_seed_counts_where_the_name_has_none() -> None:
    without = SMALL.replace("&seed=1", "")
    assert load(without, seed=1)[0].question == load(SMALL)[0].question
    assert load(without, seed=2)[0].question == load(SMALL)[1].question


@needs_gym
def test_values_are_yaml_and_may_be_escaped() -> None:
    assert gym.read_spec("reasoning_gym:basic_arithmetic?operators=[+, %27-%27]&allow_negation=false", seed=3) == (
        "basic_arithmetic", {"operators": ["+", "-"], "allow_negation": False}, 3)


@needs_gym
@pytest.mark.parametrize(("spec", "line"), [
    ("chain_sm", "Reasoning Gym has no single task 'chain_sm'; nearest valid value: reasoning_gym:chain_sum"),
    ("composite", "Reasoning Gym has no single task 'composite'; .*"),
    ("chain_sum?min_term=3", "chain_sum has no parameter 'min_term'; it has min_terms, .*; nearest .*: min_terms"),
    ("chain_sum?size=x", "size='x': must be a valid integer, .*; nearest valid value: size as int"),
    ("chain_sum?size=1.5", "size='1.5': must be a valid integer, .*"),
    ("chain_sum?size=[", r"size='\[': must be YAML; nearest valid value: size as int"),
    ("chain_sum?size", "size='': must be a valid integer; nearest valid value: size as int"),
    ("chain_sum?size=0", "size=0 must be at least 1; nearest valid value: size=1"),
    ("chain_sum?seed=-1", "seed=-1 must be from 0 to 4294967295; nearest valid value: seed=0"),
    ("chain_sum?min_terms=9&max_terms=2",
     "chain_sum does not take these parameters: max_terms must be >= min_terms; .*: reasoning_gym:chain_sum, .*"),
    ("word_ladder?size=3", "the questions of word_ladder depend on PYTHONHASHSEED, .*: PYTHONHASHSEED=0 in the .*"),
])
def test_what_the_gym_does_not_have_is_refused_in_one_line(
        spec: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match=f"^dataset='reasoning_gym:.*': {line}$"):
        load(f"reasoning_gym:{spec}")


@needs_gym
def test_a_fixed_hash_seed_lets_the_tasks_load_that_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load("reasoning_gym:ransom_note?size=3")) == 3


@needs_gym
def test_a_task_with_too_few_questions_has_none_to_hold_out() -> None:
    spec = "reasoning_gym:coin_flip?size=99&min_trials=2&max_trials=2"
    assert len(load(spec)) == 99
    with pytest.raises(ValueError, match="too few questions: all of split 'validation' are trained on too; "):
        load(spec, "validation")
    with pytest.raises(ValueError, match="no split 'testing'; it has train, validation, test; "):
        load(spec, "testing")


def test_without_the_package_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package reasoning-gym, which is not installed here; nearest valid "
                                         "value: pip install reasoning-gym==0.1.25$"):
        load(SMALL)
