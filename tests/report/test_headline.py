"""The result in one sentence, for each way a run can end. Needs a second."""

import pytest

from grpo.evaluation.answers import Answer
from grpo.evaluation.statistics import summarize
from grpo.report.headline import of_evaluation, of_run
from grpo.report.history import History

RISING = [{"step": step, "reward": step / 10} for step in range(20)]


def answers(num_right: int, num: int = 10) -> list[Answer]:
    return [Answer(index=index, question="", final_answer="", completion="", strict=index < num_right, lenient=True,
                   format=True, truncated=False) for index in range(num)]


def history(ending: str, done: int = 20, total: int = 20) -> History:
    start = {"num_steps": total} | ({"ending": ending} if ending else {})
    return History([start], {}, done)


def headline(ending: str, records: list[dict], answered=None, total: int = 20) -> str:
    text = of_run(history(ending, len(records), total), records, answered, after=len(records))
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_finished_run_with_an_evaluation_tells_accuracy_interval_and_p() -> None:
    # 8 of 10 problems gained, none lost: p = 2 / 2^8 = 0.0078; Wilson's intervals of 1 and 9 of 10
    assert headline("finished", RISING, ("sampled", answers(1), answers(9))) == (
        "The accuracy of sampled answers to 10 held-out problems rose from 10.0 % (95 % interval 1.8 to 40.4) to "
        "90.0 % (95 % interval 59.6 to 98.2) in 20 steps (p = 0.0078 in a paired test).")
    assert " fell from 90.0 %" in headline("finished", RISING, ("greedy", answers(9), answers(1)))


def test_a_difference_that_may_be_chance_is_no_rise() -> None:
    # 5 problems gained, none lost: p = 2 / 2^5 = 0.0625; with a sixth 0.031
    text = headline("finished", RISING, ("sampled", answers(1), answers(6)))
    assert " went from 10.0 %" in text and text.endswith("; the difference may be chance (p = 0.062 in a paired test).")
    assert " rose from 10.0 %" in headline("finished", RISING, ("sampled", answers(1), answers(7)))


def test_a_finished_run_without_an_evaluation_tells_the_reward_of_its_first_and_last_steps() -> None:
    # means of 0, 0.1 .. 0.4 and of 1.5 .. 1.9; of four steps the first two and the last two
    assert headline("finished", RISING) == (
        "The mean reward of the training's completions went from 0.2 in the first 5 steps to 1.7 in the last 5 steps; "
        "held-out accuracy was not measured.")
    assert "from 0.05 in the first 2 steps to 0.25 in the last 2 steps" in headline("finished", RISING[:4])
    # of 200 steps the means of 0 .. 0.9 and of 19 .. 19.9
    long = [{"step": step, "reward": step / 10} for step in range(200)]
    assert "from 0.45 in the first 10 steps to 19.4 in the last 10 steps" in headline("finished", long)
    assert "from 0 in the first step to 0 in the last step" in headline("finished", RISING[:1])


def test_steps_without_a_reward_are_left_out() -> None:
    empty = [{"step": step, "reward": None} for step in range(3)]
    assert headline("finished", empty) == "No completion had a reward, and held-out accuracy was not measured."
    assert "from 0.05 in the first 2 steps to 0.25 " in headline("finished", [*RISING[:4], *empty])


@pytest.mark.parametrize(("ending", "words"), [
    ("stopped", "The run was stopped as asked after 4 of 20 steps: the mean reward "),
    ("failed", "The run failed after 4 of 20 steps: the mean reward "),
    ("", "No end is recorded after 4 of 20 steps (the run goes on, or was killed): the mean reward "),
])
def test_a_run_without_its_last_step_says_so_first(ending: str, words: str) -> None:
    assert headline(ending, RISING[:4]).startswith(words)


@pytest.mark.parametrize(("ending", "words"), [
    ("stopped", "The run was stopped as asked before its first step."),
    ("failed", "The run failed before its first step ended."),
    ("", "No step is recorded: the run is still starting, or was killed."),
])
def test_a_run_without_any_step_says_only_that(ending: str, words: str) -> None:
    assert headline(ending, [], ("sampled", answers(1), answers(9))) == words


def test_a_folder_without_run_json_has_finished_where_it_has_a_summary() -> None:
    assert History([], {"steps": 3}, 3).ending == "finished" and History([], {}, 3).ending == ""
    assert History([], {}, 1).steps == "1 step" and history("", 2, 3).steps == "2 of 3 steps"


def test_the_result_of_eval_py_compares_the_adapter_with_the_model_at_the_first_number_of_shots() -> None:
    def record(model: str, num_shots: int, num_right: int, **more: float) -> dict:
        return {"model": model, "num_shots": num_shots, **summarize(answers(num_right)), **more}

    alone = of_evaluation([record("model", 2, 9), record("model", 0, 1)], "train").replace("\N{NO-BREAK SPACE}", " ")
    assert alone == ("The model has 90.0 % (95 % interval 59.6 to 98.2) of 10 training problems right, with 2 worked "
                     "examples in the prompt.")
    both = of_evaluation([record("adapter", 1, 9, p_value=0.0078), record("adapter", 0, 0, p_value=0.5),
                          record("model", 1, 1), record("model", 0, 0)], "test").replace("\N{NO-BREAK SPACE}", " ")
    assert both == ("The adapter has 90.0 % (95 % interval 59.6 to 98.2) of 10 held-out problems right, the model "
                    "without it 10.0 % (95 % interval 1.8 to 40.4), with 1 worked example in the prompt (p = 0.0078 in "
                    "a paired test).")
