"""Groups that teach nothing give way, by hand: whose turn it is, what stays of a draw, what is counted."""

import json
from types import SimpleNamespace

import pytest
import torch

from data.example import Example
from grpo import step
from grpo.config import Config
from grpo.evaluation.answers import Answer, save_answers
from grpo.run.groups import Groups, newest
from grpo.run.pass_rates import Judged, PassRates
from grpo.schedule import prompts_of_step, refills_of_step
from grpo.types import Rollout
from rewards.workers.pool import Scored

NAN = float("nan")


def test_every_problem_that_a_step_does_not_have_stands_in_at_one_place():
    own = prompts_of_step(11, 2, prompts_per_step=4, seed=0)
    others = refills_of_step(11, 2, prompts_per_step=4, seed=0)
    assert [len(place) for place in others] == [2, 2, 2, 1]
    assert sorted([*own, *sum(others, [])]) == list(range(11))


def test_stand_ins_depend_on_the_step_and_the_seed():
    found = [refills_of_step(50, number, prompts_per_step=1, seed=seed)[0] for number in (0, 1) for seed in (0, 1)]
    common = set.intersection(*map(set, found))
    orders = [[problem for problem in one if problem in common] for one in found]
    assert len(common) > 40 and all(orders.count(one) == 1 for one in orders)


def test_a_step_as_long_as_the_data_has_no_stand_ins():
    assert refills_of_step(4, 0, prompts_per_step=4, seed=0) == [[], [], [], []]


def counted() -> PassRates:
    """Problem 0 was solved once of 8, 1 twice of 8 in two groups, 2 always, 3 is not known."""
    rates = PassRates(4, [0.125, 0.9])
    rates.add([Judged(0, 1, 8), Judged(1, 2, 4), Judged(1, 0, 4), Judged(2, 8, 8)])
    return rates


def test_a_problem_fits_within_both_bounds_and_where_nothing_is_known_of_it():
    assert [counted().fits(problem) for problem in range(4)] == [True, True, False, True]
    assert counted().outside() == 0.25


def test_a_problem_outside_gives_its_place_to_the_next_one_that_fits():
    assert counted().wanted([2, 0, 3]) == [0, 3]
    assert counted().wanted([2]) == [2]  # a place is never empty


def test_a_group_without_a_score_says_nothing():
    rates = PassRates(1, [0.5, 1.0])
    rates.add([Judged(0, 0, 0)])
    assert rates.fits(0) and rates.state() == []


def test_pass_rates_come_back_from_a_checkpoint():
    stored = json.loads(json.dumps(counted().state()))
    assert stored == [[0, 1, 8], [1, 2, 8], [2, 8, 8]]
    again = PassRates(4, [0.125, 0.9])
    again.add(Judged(*one) for one in stored)
    assert vars(again) == vars(counted())


def problem(question: str) -> Example:
    return Example(prompt=question, question=question, answer="1", final_answer="1")


def answer(question: str, strict: bool) -> Answer:
    return Answer(index=0, question=question, final_answer="1", completion="", strict=strict, lenient=True,
                  format=True, truncated=False)


def test_answers_of_an_evaluation_count_for_the_problems_with_their_question(tmp_path):
    examples = [problem("one"), problem("two"), problem("one")]
    path = tmp_path / "answers_model_0_shots.jsonl"
    save_answers([answer("one", True), answer("one", False), answer("elsewhere", True)], path)
    rates = PassRates(3, [0.6, 1.0])
    rates.read(str(path), examples)
    assert rates.state() == [[0, 1, 2], [2, 1, 2]]  # the same question twice is the same problem twice


@pytest.mark.parametrize(("content", "said"), [
    (None, "No such file"), ("x", "is not a file of answers"), ('{"index": 1}', "is not a file of answers"),
    ("", "0 answers, and none to a training problem"),
])
def test_a_file_without_answers_to_the_problems_is_refused(tmp_path, content, said):
    path = tmp_path / "answers.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"problem_pass_rates=.*{said}"):
        PassRates(1, None).read(str(path), [problem("one")])


def groups(problems: dict[int, int], texts: list[str], rewards: list[float], **more: object) -> Groups:
    """Groups of two completions, as long as their texts, whose tokens are the letters'."""
    longest = max(map(len, texts))
    token_NT = torch.tensor([[*map(ord, text), *[0] * (longest - len(text))] for text in texts])
    return Groups(
        problems=problems, scored=Scored(rewards, {"right": rewards}, **{"failures": {}, **more}),
        rollout=Rollout(
            prompt_ids=[[one] for one in problems.values()], token_NT=token_NT, text=texts,
            length_N=torch.tensor([len(text) for text in texts]), sampler_logprob_NT=-token_NT.float(),
            truncated_N=torch.tensor([text.isupper() for text in texts])))


def test_the_last_group_of_each_place_stays():
    first = groups({0: 7, 1: 8, 2: 9}, ["aaaaa", "b", "c", "d", "e", "F"], [1, 1, 0, 1, 0, 0],
                   failures={"right": (1, "slow")}, metrics={"m": [1.0]}, extra={"x": list("abcdef")})
    second = groups({0: 3, 2: 4}, ["g", "hh", "i", "j"], [0, 0, 1, 0], failures={"right": (2, "late")},
                    metrics={"m": [2.0]}, extra={"y": list("ghij")})
    third = groups({0: 5}, ["K", "l"], [0, 1])
    found = newest([first, second, third])
    assert found.problems == {0: 5, 1: 8, 2: 4}
    assert found.rollout.text == ["K", "l", "c", "d", "i", "j"] and found.rollout.prompt_ids == [[5], [8], [4]]
    assert found.rollout.token_NT.tolist() == [[ord(text)] for text in found.rollout.text]  # no longer than they are
    assert found.rollout.truncated_N.tolist() == [True, *[False] * 5]
    assert found.rollout.sampler_logprob_NT[1].item() == -ord("l") and found.rollout.length_N.tolist() == [1] * 6
    assert found.scored.total == [0, 1, 0, 1, 1, 0] == found.scored.parts["right"]
    assert found.reward_BG.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert found.scored.extra == {"x": [None, None, "c", "d", None, None], "y": [None] * 4 + ["i", "j"]}
    # What went wrong, and what functions logged, is of all that they were asked.
    assert found.scored.failures == {"right": (3, "late")} and found.scored.metrics == {"m": [1.0, 2.0]}
    assert newest([first]) is first


@pytest.mark.parametrize(("again", "places"), [(0, [6, 7]), (1, [14, 15]), (2, [22, 23])])
def test_the_noise_of_a_group_belongs_to_its_place_in_the_step_and_to_the_draw(monkeypatch, again, places):
    """The second of two ranks with 8 prompts a step has the places 4 to 7 of the first draw, 12 to 15 of the next."""
    asked = []
    monkeypatch.setattr(step, "rank", lambda: 1)
    monkeypatch.setattr(step, "world_size", lambda: 2)
    monkeypatch.setattr(step, "sample", lambda run, examples, places, number: asked.append((examples, places)))
    monkeypatch.setattr(step, "score", lambda *_: None)
    run = SimpleNamespace(config=Config(prompts_per_step=8), train_examples=list("abcdefgh"))
    step.draw(run, {2: 7, 3: 0}, 0, SimpleNamespace(enter=lambda _: None), again)
    assert asked == [(["h", "a"], places)]


def of_rewards(parts: dict[str, list[float]], weights: list[float], **options: object) -> list[int]:
    """The places without a lesson, of groups of two with these rewards."""
    total = [sum(w * v for w, v in zip(weights, values)) for values in zip(*parts.values())]
    problems = {b: b for b in range(len(total) // 2)}
    run = SimpleNamespace(config=Config(reward_funcs=list(parts), num_generations=2, **options),
                          rewards=SimpleNamespace(weights=weights))
    drawn = groups(problems, ["a"] * len(total), total)
    return step.teaches_nothing(run, Groups(problems=problems, rollout=drawn.rollout, scored=Scored(total, parts, {})))


@pytest.mark.parametrize(("options", "without"), [
    # format, correctness: (½, 0) and (½, 0): equal. (½, 0) and (0, 0): nothing right. (½, 1) and (0, 0).
    # (0, 1) and (½, 0.5): equal sums.
    ({}, [0, 3]), ({"adv_estimator": "rloo"}, [0, 3]), ({"scale_rewards": "batch"}, [0, 3]),
    ({"advantage_gate": "outcome"}, [0, 1, 3]),
    ({"multi_objective_aggregation": "normalize_then_sum"}, [0, 3]),  # +0.707 - 0.707: still equal
    ({"adv_estimator": "pass_at_k", "pass_k": 1}, [0, 1]),
])
def test_a_group_without_a_lesson_has_no_advantage_under_the_estimator_of_the_run(options, without):
    parts = {"format": [0.5, 0.5, 0.5, 0.0, 0.5, 0.0, 0.0, 0.5], "correctness": [0, 0, 0, 0, 1, 0, 1, 0.5]}
    assert of_rewards(parts, [1.0, 1.0], **options) == without


def test_rewards_whose_sum_is_equal_teach_where_each_is_normalised():
    # 1 + 0 + 0 = 0 + ½ + ½; over the stds +0.707 - 0.707 - 0.707.
    parts = {"format": [1.0, 0.0], "correctness": [0.0, 0.5], "code_runs": [0.0, 0.5]}
    assert of_rewards(parts, [1.0] * 3) == [0]
    assert of_rewards(parts, [1.0] * 3, multi_objective_aggregation="normalize_then_sum") == []


def test_a_group_with_one_score_teaches_nothing():
    assert of_rewards({"format": [1.0, NAN]}, [1.0]) == [0]


@pytest.mark.parametrize(("options", "said"), [
    ({"problem_filter": [0.9, 0.1]}, "problem_filter"), ({"problem_filter": [0.1]}, "problem_filter"),
    ({"problem_filter": [0.1, 1.5]}, "problem_filter"), ({"problem_filter": [-0.1, 0.5]}, "problem_filter"),
    ({"problem_pass_rates": "x"}, "needs problem_filter"), ({"dynamic_sampling": -1}, "dynamic_sampling"),
])
def test_what_no_run_can_do_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Config(**options)
