"""The metrics table refuses what it does not hold, and a resumed log holds every step once. Needs 6 s."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from grpo.advantage import gate_advantages, group_advantages, reward_terms
from grpo.config import Config
from grpo.health.pulse import pulse
from grpo.report import measures
from grpo.report.log import Log
from grpo.report.measures import Clock, is_right, logged_metrics, reward_metrics
from grpo.report.metrics import METRICS, markdown_table, metric
from rewards.workers.pool import Scored


def open_log(folder, first_step=0, report_to=(), logging_steps=1):
    return Log(folder, report_to=list(report_to), total_steps=4, first_step=first_step, settings=asdict(Config()),
               logging_steps=logging_steps)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_logging_a_name_without_a_row_in_the_table_raises_and_writes_nothing(tmp_path):
    log = open_log(tmp_path)
    with pytest.raises(ValueError, match="'rewrad' has no row in grpo/report/metrics.py"):
        log.write(0, {"reward": 1.0, "rewrad": 1.0})
    log.close()
    assert read(tmp_path / "metrics.jsonl") == []


def test_reward_parts_share_one_row_of_the_table():
    assert metric("rewards/format") is metric("rewards/my_own") is METRICS["rewards/<name>"]
    with pytest.raises(ValueError, match="'rewards/'"):
        metric("rewards/")


def test_a_share_of_one_function_is_its_own_row():
    assert metric("phantom_advantage_share/format") is METRICS["phantom_advantage_share/<name>"]
    assert metric("phantom_advantage_share") is METRICS["phantom_advantage_share"]
    with pytest.raises(ValueError, match="'kl/format'"):
        metric("kl/format")


def test_every_metric_has_a_formula_and_a_unit():
    assert [name for name, row in METRICS.items() if not (row.formula and row.unit)] == []


def test_the_markdown_table_has_five_cells_in_every_row():
    lines = markdown_table().splitlines()
    assert len(lines) == len(METRICS) + 2
    assert {line.replace(r"\|", "").count("|") for line in lines} == {6}


def test_a_phase_lasts_until_the_next_one_and_the_heartbeat_is_told(monkeypatch):
    now = iter([10.0, 10.0, 13.0, 18.0])  # the clock is made, three phases begin
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(7)
    for phase in ("reward", "advantage", "reference"):
        clock.enter(phase)
    assert clock.seconds == {"reward_s": 3.0, "advantage_s": 5.0}
    assert (pulse.step, pulse.phase) == (7, "reference")


def test_each_step_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = open_log(tmp_path)
    log.write(0, {"reward": 0.5, "rewards/format": 0.25})
    assert read(tmp_path / "metrics.jsonl") == [{"step": 0, "reward": 0.5, "rewards/format": 0.25}]
    log.close()


def test_values_that_are_not_finite_become_null_so_that_the_file_stays_json(tmp_path):
    log = open_log(tmp_path)
    log.write(0, {"grad_norm": math.inf, "kl": math.nan})
    log.write_completions(0, {"rewards": [{"format": 0.5, "mine": math.nan}]})
    log.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 0, "grad_norm": None, "kl": None}]
    assert read(tmp_path / "completions.jsonl") == [{"step": 0, "rewards": {"format": 0.5, "mine": None}}]


def test_a_resumed_log_drops_the_steps_it_will_write_again_and_half_a_line(tmp_path):
    log = open_log(tmp_path)
    for step in range(3):
        log.write(step, {"reward": float(step)})
        log.write_completions(step, {"completion": [f"a{step}", f"b{step}"], "truncated": [False, True]})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rew')  # killed here; no new line
    log = open_log(tmp_path, first_step=2)
    log.write(2, {"reward": 20.0})
    log.close()
    metrics = [(record["step"], record["reward"]) for record in read(tmp_path / "metrics.jsonl")]
    assert metrics == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert [record["step"] for record in read(tmp_path / "completions.jsonl")] == [0, 0, 1, 1]
    assert read(tmp_path / "completions.jsonl")[1] == {"step": 0, "completion": "b0", "truncated": True}


def test_columns_of_different_length_are_refused(tmp_path):
    log = open_log(tmp_path)
    with pytest.raises(ValueError):
        log.write_completions(0, {"completion": ["a", "b"], "truncated": [False]})
    log.close()


def test_the_progress_line_shows_reward_kl_truncated_share_seconds_and_the_steps_left(tmp_path, capsys):
    log = open_log(tmp_path, first_step=2)
    log.write(2, {"reward": 0.75, "kl": 0.001, "truncated_share": 0.125, "step_s": 1.5})
    log.bar.refresh()
    line = capsys.readouterr().err.split("\r")[-1]
    log.close()
    assert "3/4" in line  # two steps before the resume and this one, of four
    for shown in ("reward=0.75", "kl=0.001", "truncated=0.125", "s/step=1.5"):
        assert shown in line


# format 0.5 and correctness 1: nothing is right in the first group, one row in the second, and the third is all wrong.
REWARDS = [[0.5, 0.0, 0.0, 0.0], [1.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def measured(reward_BG, parts, *, scale="none", gate="none", outcome=None, failures=None):
    """The reward metrics where these are the totals of functions whose weights are 1."""
    right_BG = is_right(reward_BG, parts, outcome)
    part_FBG = torch.tensor(list(parts.values())).view(-1, *reward_BG.shape)
    term_FBG = reward_terms(
        part_FBG, torch.ones(len(parts)), ~reward_BG.isnan(), aggregation="sum_then_normalize")
    advantage_BG = gate_advantages(group_advantages(reward_BG, scale=scale, eps=0.0), right_BG, gate=gate)
    return reward_metrics(reward_BG, Scored([], parts, failures or {}), right_BG, term_FBG=term_FBG,
                          compared_BG=reward_BG, advantage_BG=advantage_BG, num_sampled=reward_BG.numel())


def scored(rewards, scale, gate="none"):
    """The same of groups in which a reward above 1 is a right answer's."""
    values = [reward for group in rewards for reward in group]
    parts = {"format": [value - (value > 1) for value in values], "correctness": [float(value > 1) for value in values]}
    return measured(torch.tensor(rewards), parts, scale=scale, gate=gate)


@pytest.mark.parametrize(("scale", "share"), [
    # |A| of the first group (0.375, 0.125, 0.125, 0.125), of the second (1, 0, 0.5, 0.5): 0.75 / (0.75 + 2)
    ("none", 0.75 / 2.75),
    # divided by the sample stds 0.25 and sqrt(1.5 / 3) = 0.7071: 3 / (3 + 2.8284)
    ("group", 3 / (3 + 2 * 2 ** 0.5)),
])
def test_phantom_share_is_the_advantage_mass_of_groups_in_which_nothing_is_right(scale, share, monkeypatch):
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    metrics = scored(REWARDS, scale)
    assert metrics["phantom_advantage_share"] == pytest.approx(share)
    assert metrics["accuracy"] == 1 / 12 and metrics["zero_variance_all_wrong"] == 1 / 3
    assert scored(REWARDS, scale, gate="outcome")["phantom_advantage_share"] == 0.0
    assert scored(REWARDS[2:], scale)["phantom_advantage_share"] == 0.0  # no mass at all


def test_phantom_share_is_one_ratio_over_all_ranks_and_no_mean_of_theirs(monkeypatch):
    # The second rank has a share of 1, the first one of 0; their masses are 0.75 and 2.
    calls = []
    monkeypatch.setattr(measures, "global_sum", lambda values: calls.append(values) or values)
    scored(REWARDS[:1], "none")
    second = iter(calls.copy())
    monkeypatch.setattr(
        measures, "global_sum", lambda values: {name: values[name] + other for name, other in next(second).items()})
    assert scored(REWARDS[1:2], "none")["phantom_advantage_share"] == pytest.approx(0.75 / 2.75)


def test_a_mean_of_rewards_is_over_the_scored_completions_and_one_over_groups_is_over_those_that_compare(monkeypatch):
    # Group 1: rewards 3, 1 and one without; group 2: one scored alone; group 3: 2 and 2, both right.
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    nan = math.nan
    reward_BG = torch.tensor([[3.0, 1.0, nan], [6.0, nan, nan], [2.0, 2.0, nan]])
    parts = {"correctness": [1.0, 0.0, 1.0, 0.0, nan, nan, 1.0, 1.0, 0.0], "mine": [nan] * 9}
    assert is_right(reward_BG, parts, None).tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    found = measured(reward_BG, parts, failures={"mine": (3, "raised")})
    expected = {
        "reward": 14 / 5, "unscored_share": 4 / 9, "accuracy": 3 / 5, "reward_failures": 3 / 9,
        "reward_std_within_group": (2**0.5 + 0) / 2, "zero_variance_share": 1 / 2, "zero_variance_all_right": 1 / 2,
        "zero_variance_all_wrong": 0.0, "rewards/correctness": 4 / 7,
        # 2.8 is the mean; squared distances 0.04 3.24 10.24 0.64 0.64
        "reward_std_batch": (14.8 / 4) ** 0.5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert math.isnan(found["rewards/mine"])


def test_where_nothing_is_scored_a_mean_is_no_number_rather_than_0(monkeypatch):
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    reward_BG = torch.full((2, 2), math.nan)
    found = measured(reward_BG, {"mine": [math.nan] * 4})
    assert found["unscored_share"] == 1.0 and found["phantom_advantage_share"] == found["reward_std_batch"] == 0.0
    means = ("reward", "accuracy", "reward_std_within_group", "zero_variance_share", "rewards/mine")
    assert all(math.isnan(found[name]) for name in means)


def test_what_reward_functions_log_is_averaged_over_calls_and_ranks(monkeypatch):
    # Three calls, of which the other rank made two, and one metric that only it logged.
    other = {"boxed": [0.5, 1.0], "late": [math.nan]}
    monkeypatch.setattr(measures, "gather_objects", lambda logged: [logged, other])
    found = logged_metrics({"boxed": [0.0]})
    assert found["boxed"] == 0.5 and math.isnan(found["late"]) and list(found) == ["boxed", "late"]


def test_what_reward_functions_log_stands_under_its_name_and_the_trainer_s_own_numbers_stay(tmp_path):
    log = open_log(tmp_path)
    log.write(0, {"reward": 0.5}, {"boxed": 0.25, "reward": 9.0})
    log.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 0, "boxed": 0.25, "reward": 0.5}]


# Four completions of three problems. What runs earns 0.25, and so does each test of two.
PARTS = {"runs": [0.25, 0.25, 0.0, 0.0, 0.25, 0.25, 0.25, 0.0, 0.25, 0.25, 0.25, 0.25],
         "tests": [0.5, 0.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]}
SUMS = torch.tensor([[0.75, 0.25, 0.0, 0.0], [1.25, 0.75, 0.75, 0.0], [0.25] * 4])


def test_the_phantom_share_is_divided_among_the_functions_by_how_much_their_rewards_differ(monkeypatch):
    # Only in the second group something passes all tests. The first one's |A|: mean 0.25, (0.5, 0, 0.25, 0.25), 1 in
    # all; the second's: mean 0.6875, (0.5625, 0.0625, 0.0625, 0.6875), 1.375 in all. Of the 1, centred: runs
    # (0.125, 0.125, -0.125, -0.125), tests (0.375, -0.125, -0.125, -0.125), so 0.5 to 0.75.
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    found = measured(SUMS, PARTS, outcome="tests")
    assert found["accuracy"] == 1 / 12 and found["phantom_advantage_share"] == pytest.approx(1 / 2.375)
    assert found["phantom_advantage_share/runs"] == pytest.approx(0.4 / 2.375)
    assert found["phantom_advantage_share/tests"] == pytest.approx(0.6 / 2.375)
    gated = measured(SUMS, PARTS, outcome="tests", gate="outcome")
    assert [value for name, value in gated.items() if name.startswith("phantom")] == [0.0] * 3
    # Judged by what runs, which gives no 1, nothing is right, and all is phantom.
    assert measured(SUMS, PARTS, outcome="runs")["phantom_advantage_share"] == 1.0


def test_a_function_that_is_the_same_for_all_or_0_or_1_for_the_outcome_has_no_part_in_it(monkeypatch):
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    found = scored(REWARDS, "group")
    assert found["phantom_advantage_share/correctness"] == 0.0 < found["phantom_advantage_share/format"]
    assert found["phantom_advantage_share/format"] == found["phantom_advantage_share"]
    # A completion without a reward, 9 by one function, has no part either: (0.5, 0) is all that is compared.
    nan = math.nan
    parts = {"format": [0.5, 0.0, 9.0, nan], "correctness": [0.0, 0.0, nan, nan]}
    found = measured(torch.tensor([[0.5, 0.0, nan, nan]]), parts)
    assert (found["phantom_advantage_share/format"], found["phantom_advantage_share/correctness"]) == (1.0, 0.0)


def test_a_partial_reward_is_right_only_with_full_marks_and_none_is_not():
    reward_BG = torch.ones(1, 6)
    parts = {"tests": [0.0, 0.1, 0.999, 1.0, 2.0, math.nan], "correctness": [1.0] * 6}
    assert is_right(reward_BG, parts, "tests").tolist() == [[False, False, False, True, True, False]]
    assert is_right(reward_BG, parts, None).all()


def test_right_is_correctness_where_there_is_one_and_any_reward_otherwise():
    reward_BG = torch.tensor([[0.5, 1.0], [0.0, -1.0]])
    parts = {"format": [0.5, 0.0, 0.0, 0.0], "correctness": [0.0, 1.0, math.nan, 0.0]}
    assert is_right(reward_BG, parts, None).tolist() == [[False, True], [False, False]]
    assert is_right(reward_BG, {"brevity": [0.5, 1.0, 0.0, -1.0]}, None).tolist() == [[True, True], [False, False]]
