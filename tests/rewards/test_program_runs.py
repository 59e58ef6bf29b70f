"""Programs in a run: the options reach the sandbox, held-out problems are judged by tests, the doctor says what holds.

15 seconds.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from boxes import boxed

from grpo.doctor.problems import gold_completion
from grpo.doctor.programs import sandbox, solutions
from grpo.evaluation.answers import Judged
from grpo.run.scoring import judged, judges_by_reward, where_programs_run
from grpo.types import Rollout

OPTIONS = ["--train_dataset_id_or_path", "programs", "--reward_funcs", "code_format", "code_runs", "code_tests",
           "--outcome_reward", "code_tests", "--prompts_per_step", "2", "--num_generations", "2",
           "--eval_examples", "4", "--max_completion_length", "24", "--max_steps", "1", "--load_in_4bit", "false"]


@pytest.fixture(scope="module")
def run(begin, tmp_path_factory):
    with boxed():
        pass
    return begin(*OPTIONS, "--output_dir", str(tmp_path_factory.mktemp("run") / "out"))


def answered(run, *texts: str) -> Rollout:
    """A rollout with these completions."""
    length = len(texts)
    return Rollout(prompt_ids=[[1]] * length, token_NT=torch.ones(length, 1, dtype=torch.long),
                   length_N=torch.ones(length, dtype=torch.long), truncated_N=torch.zeros(length, dtype=torch.bool),
                   sampler_logprob_NT=torch.zeros(length, 1), text=list(texts))


def test_held_out_programs_are_right_if_they_pass_all_tests(run) -> None:
    first, second, third = run.test_examples[:3]
    tests = ["assert f(1) is None", "assert f(1) == 5"]  # the program below passes one of two
    asked = [first, replace(second, columns={**second.columns, "tests": tests}), third]
    half = "```python\ndef f(x):\n    return None\n```"
    plain = asked[2].answer.removeprefix("```python\n").removesuffix("\n```")
    found = judged(run, asked, answered(run, asked[0].answer, half, plain), 0, on_wait=lambda: None)
    assert found == [Judged(True, True, True), Judged(False, False, True), Judged(False, False, False)]
    assert judges_by_reward(run.config)
    assert not judges_by_reward(replace(run.config, outcome_reward=None))
    assert not judges_by_reward(replace(run.config, outcome_reward="correctness", reward_funcs=["correctness"]))


def test_the_start_block_says_where_programs_run(run) -> None:
    (line,) = where_programs_run(run.config)
    assert line == "they run in a sandbox: no network, no files but a read-only Python, no other processes, limits"
    assert any(line in one for one in run.announcement)
    (line,) = where_programs_run(replace(run.config, code_sandbox="process"))
    assert "with all of this user's rights, under limits alone (code_sandbox=process)" in line
    assert where_programs_run(replace(run.config, reward_funcs=["format"], outcome_reward=None)) == []


def test_only_limits_reach_a_program_where_they_are_asked_for(begin, tmp_path, tmp_path_factory) -> None:
    alone = begin(*OPTIONS, "--code_sandbox", "process", "--output_dir", str(tmp_path / "out"))
    program = "```python\nimport os\nf = lambda x: 1\nassert os.path.exists('/etc/passwd')\n```"
    first = alone.train_examples[0]
    asked = [replace(first, columns={**first.columns, "tests": ["assert f(1) == 1"]})]
    assert judged(alone, asked, answered(alone, program), 0, on_wait=lambda: None)[0].strict


def test_the_doctor_names_where_programs_run_and_what_solutions_earn(run) -> None:
    assert gold_completion(run.train_examples[0]) == " " + run.train_examples[0].columns["solution"]
    (found,) = sandbox(run)
    assert (found.level, found.check) == ("ok", "sandbox")
    alone = SimpleNamespace(config=replace(run.config, code_sandbox="process"))
    assert sandbox(alone)[0].level == "warn"
    assert sandbox(SimpleNamespace(config=replace(run.config, reward_funcs=["format"], outcome_reward=None))) == []


@pytest.mark.parametrize(("gold", "wrong", "level", "words"), [
    ([1, 1, 1], [0, 0], "ok", "3 of 3 solutions earn 1, 0 of 2 empty or nonsense texts anything"),
    ([1, 1, 0.5], [0, 0], "warn", "2 of 3 solutions earn 1, 0 of 2 empty or nonsense texts anything"),
    ([1, 0, 0.5], [0, 0], "fail", "1 of 3 solutions earn 1, 0 of 2 empty or nonsense texts anything"),
    ([1, 1, 1], [0, 0.5], "fail", "3 of 3 solutions earn 1, 1 of 2 empty or nonsense texts anything"),
])
def test_solutions_that_fail_and_nonsense_that_is_paid_are_named(gold, wrong, level: str, words: str) -> None:
    found = solutions("code_tests", gold, wrong, known=True)
    assert (found.level, found.words) == (level, words)
    unknown = solutions("code_tests", [math.nan], [0], known=False)
    assert (unknown.level, unknown.words) == ("ok", "no solution is known, 0 of 1 empty or nonsense texts anything")
