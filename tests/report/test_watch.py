"""Each range of the metrics' table warns at the step it should and not one before, is not repeated, comes back after a
recovery, and says what to do. Needs 3 s.
"""

import json
import math
import re
from pathlib import Path

import pytest

from grpo.config import Config
from grpo.options.option import options
from grpo.report.metrics import METRICS, Range, markdown_table
from grpo.report.watch import AGAIN, RANGES, Watch, warnings

ROOT = Path(__file__).parents[2]
OFF_POLICY = {"num_iterations": 2}
BFLOAT16 = {"torch_dtype": "bfloat16"}
# Metric, a value on the edge of its range, one just outside, settings. One line for each end of each patient range.
PATIENT = [
    ("zero_variance_all_right", 0.8, 0.81, {}),
    ("zero_variance_all_wrong", 0.8, 0.81, {}),
    ("phantom_advantage_share", 0.5, 0.51, {}),
    ("phantom_advantage_share/format", 0.5, 0.51, {}),
    ("kl", 1.0, 1.01, {}),
    ("kl_pull_share", 0.1, 0.11, {}),
    ("grad_norm", 10.0, 10.1, {}),
    ("reward_failures", 0.0, 0.01, {}),
    ("clip_share_low", 0.0, 0.001, {}),
    ("clip_share_high", 0.0, 0.001, {}),
    ("clip_share_low", 0.2, 0.21, OFF_POLICY),
    ("clip_share_high", 0.2, 0.21, OFF_POLICY),
    ("ratio_max", 2.0, 2.01, OFF_POLICY),
    ("truncated_share", 0.2, 0.21, {}),
    ("num_tokens", 1, 0, {}),
    ("sampler_gap_mean", 1e-4, 1.1e-4, {}),
    ("sampler_gap_mean", 0.02, 0.021, BFLOAT16),
    ("sampler_gap_mean", 0.02, 0.021, {"tf32": True}),
    ("correction_weight_mean", 1.01, 1.02, {}),
    ("correction_weight_mean", 0.99, 0.98, {}),
    ("correction_capped_share", 0.01, 0.011, {}),
    ("slot_occupancy", 0.25, 0.24, {}),
    ("prefill_share", 0.3, 0.31, {}),
]
# The same for ranges that one step is enough to leave.
IMMEDIATE = [
    ("ratio_max", 1.0, 1.0001, {}),
    ("sampler_gap_max", 1e-3, 1.1e-3, {}),
    ("sampler_gap_max", 1.0, 1.1, BFLOAT16),
    ("sampler_gap_max", 1.0, 1.1, {"tf32": True}),
]


def settings(**changed):
    return {"num_iterations": 1, "torch_dtype": "float32", "tf32": False, **changed}


def warned(metrics, first_step=0, **changed):
    """(step, metric) of each warning, where `metrics` holds the values of each metric, one a step."""
    columns = [dict(zip(metrics, values)) for values in zip(*metrics.values(), strict=True)]
    lines = warnings(settings(**changed), [{"step": first_step + i, **column} for i, column in enumerate(columns)])
    return [(int(step), name) for step, name in re.findall(r"^warning \[step (\d+)\] (\S+) is", "\n".join(lines), re.M)]


@pytest.mark.parametrize(("name", "edge", "outside", "changed"), PATIENT)
def test_a_metric_is_warned_of_in_its_fifth_step_outside_and_on_the_edge_never(name, edge, outside, changed):
    assert warned({name: [edge] * 9}, first_step=1, **changed) == []
    # steps 1, 2 on the edge; 3, 4, 5, 6 outside; 7 is the fifth
    assert warned({name: [edge] * 2 + [outside] * 4}, first_step=1, **changed) == []
    assert warned({name: [edge] * 2 + [outside] * 5}, first_step=1, **changed) == [(7, name)]


@pytest.mark.parametrize(("name", "edge", "outside", "changed"), IMMEDIATE)
def test_what_no_noise_explains_is_warned_of_at_once(name, edge, outside, changed):
    assert warned({name: [edge, edge, outside, outside]}, **changed) == [(2, name)]


# The mean of the first five steps is 100, 0.5, 0.25; they are not looked at, so the fifth step outside is step 9.
@pytest.mark.parametrize(("name", "start", "edge", "outside"), [
    ("completion_length", [80, 90, 100, 110, 120], 25, 24.9),
    ("completion_length", [80, 90, 100, 110, 120], 400, 400.1),
    ("entropy", [0.25, 0.375, 0.5, 0.625, 0.75], 0.05, 0.0499),
    ("accuracy", [0.0, 0.125, 0.25, 0.375, 0.5], 0.125, 0.1249),
])
def test_a_drift_is_measured_against_the_mean_of_the_first_five_steps(name, start, edge, outside):
    assert warned({name: start + [edge] * 9}) == []
    assert warned({name: start + [outside] * 4}) == []
    assert warned({name: start + [outside] * 5}) == [(9, name)]


def test_a_start_with_a_step_that_has_no_number_is_the_mean_of_the_others():
    # 0.5 without the third; a tenth of it is 0.05
    start = [0.25, 0.75, None, 0.25, 0.75]
    assert warned({"entropy": start + [0.05] * 9}) == []
    assert warned({"entropy": start + [0.049] * 5}) == [(9, "entropy")]


def test_a_start_at_zero_allows_everything_above():
    assert warned({"accuracy": [0.0] * 30}) == []


def test_the_kl_of_a_fresh_run_is_exactly_zero_and_a_resumed_run_may_start_with_any():
    assert warned({"kl": [1e-9, 0.1]}) == [(0, "kl")]
    assert warned({"kl": [0.1, 0.1]}, first_step=7) == []


def test_a_gradient_of_zero_is_a_warning_only_where_there_are_advantages_or_a_kl():
    flat = {"grad_norm": [0.0] * 9, "surrogate": [0.0] * 9}
    assert warned({**flat, "kl": [0.0] * 9}) == warned({**flat, "kl": [math.nan] * 9}) == []
    assert warned({**flat, "surrogate": [0.0] * 7 + [-0.1, 0.0]}) == [(7, "grad_norm")]
    assert warned({**flat, "kl": [0.0] * 7 + [0.1, 0.0]}) == [(7, "grad_norm")]


def test_each_skipped_step_after_a_good_one_is_a_warning_and_one_skipped_long_ago_is_none():
    # grad_norm is inf in the steps that are skipped, null in the file: no warning of its own
    assert warned({"skipped_steps": [1, 1, 1, 2, 2, 3], "grad_norm": [math.inf, 1, 1, math.inf, 1, math.inf]}) == [
        (0, "skipped_steps"), (3, "skipped_steps"), (5, "skipped_steps")]


def test_a_warning_is_repeated_after_fifty_steps_and_not_before():
    assert AGAIN == 50
    # outside from step 0 on: the fifth step is 4, then 54, then 104
    assert warned({"truncated_share": [1.0] * 105}) == [(step, "truncated_share") for step in (4, 54, 104)]
    assert warned({"truncated_share": [1.0] * 104}) == [(step, "truncated_share") for step in (4, 54)]


def test_completions_without_a_reward_are_told_once_in_a_run():
    # a series, a healthy step, a long series: without "once" it would be steps 1, 4, 54 and 104
    shares = [0.0, 0.25, 0.25, 0.0] + [1.0] * 110
    assert warned({"unscored_share": shares}) == [(1, "unscored_share")]
    assert "(told once)" in warnings(settings(), [{"step": 0, "unscored_share": 0.5}])[0]


def test_one_healthy_step_ends_a_series_and_the_next_series_is_warned_of_again():
    one_short = [1.0] * 4 + [0.0]
    assert warned({"truncated_share": one_short * 20}) == []
    twice = warned({"truncated_share": [1.0] * 6 + [0.0] + [1.0] * 6})
    assert twice == [(4, "truncated_share"), (11, "truncated_share")]


def test_steps_without_a_number_are_neither_healthy_nor_not():
    for missing in (None, math.nan, math.inf):
        assert warned({"truncated_share": [1.0] * 4 + [missing] * 3 + [1.0]}) == [(7, "truncated_share")]


def test_the_line_names_step_metric_value_duration_range_and_cure():
    records = [{"step": step, "entropy": value} for step, value in enumerate([0.4, 0.5, 0.6, 0.5, 0.5] + [0.03125] * 5)]
    assert warnings(settings(), records) == [
        "warning [step 9] entropy is 0.03125 for 5 steps, healthy is at least 0.1 times the start (0.5); "
        + METRICS["entropy"].cure
    ]
    assert warnings(settings(), [{"step": 0, "kl": 0.25}]) == [
        "warning [step 0] kl is 0.25, healthy is 0 at step 0; " + METRICS["kl"].cure]


def test_a_resumed_run_that_has_looked_at_its_file_warns_as_the_whole_run_does():
    # The start is that of the first process, and the series that it began goes on.
    records = [{"step": step, "entropy": 0.5 if step < 5 else 0.01, "kl": math.nan} for step in range(70)]
    resumed = Watch(settings())
    for record in records[:8]:
        resumed.look(json.loads(json.dumps({**record, "kl": None})))
    lines = [line for record in records[8:] for line in resumed.look(record)]
    assert lines == warnings(settings(), records) and len(lines) == 2


def test_each_reward_function_is_watched_by_itself_and_one_s_own_numbers_are_not():
    shares = {f"phantom_advantage_share/{name}": values for name, values in (
        ("format", [0.6] * 6), ("tests", [0.1] * 6), ("late", [0.1] + [0.6] * 5))}
    assert warned({**shares, "lengths/format": [9.0] * 6, "phantom": [9.0] * 6}) == [
        (4, "phantom_advantage_share/format"), (5, "phantom_advantage_share/late")]
    (line,) = warnings(settings(), [{"step": step, "phantom_advantage_share/a": 1.0} for step in range(5)])
    assert line == ("warning [step 4] phantom_advantage_share/a is 1 for 5 steps, healthy is at most 0.5; "
                    + METRICS["phantom_advantage_share/<name>"].cure)


def test_a_healthy_run_has_no_warning():
    # steps 0 to 11 of the default run, rounded
    run = {
        "accuracy": [0.27, 0.28, 0.24, 0.36, 0.32, 0.29, 0.32, 0.41, 0.39, 0.33, 0.37, 0.48],
        "kl": [0, 7e-5, 2e-4, 4e-4, 7e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3, 7e-3, 7e-3],
        "entropy": [0.119, 0.111, 0.103, 0.108, 0.12, 0.111, 0.107, 0.105, 0.103, 0.11, 0.101, 0.09],
        "surrogate": [0.037, 0.038, 0.025, 0.046, 0.032, 0.037, 0.044, 0.047, 0.05, 0.047, 0.051, 0.054],
        "grad_norm": [0.034, 0.031, 0.022, 0.028, 0.034, 0.033, 0.035, 0.032, 0.031, 0.041, 0.046, 0.037],
        "completion_length": [24, 26, 26, 25, 23, 26, 23, 24, 26, 23, 25, 25],
        "ratio_max": [1] * 12, "clip_share_low": [0] * 12, "skipped_steps": [0] * 12, "sampler_gap_max": [1e-5] * 12,
        "slot_occupancy": [0.7] * 12, "prefill_share": [0.05] * 12, "zero_variance_all_wrong": [0.06] * 12,
    }
    assert warned(run) == []


def test_every_range_is_tried_here_and_every_condition_is_one_that_can_hold():
    tried = {name.replace("/format", "/<name>") for name, *_ in PATIENT + IMMEDIATE}
    tried |= {"completion_length", "entropy", "accuracy", "skipped_steps", "unscored_share"}
    assert {name for name, _ in RANGES} == tried
    both = Watch(settings()).lasting | Watch(settings(**OFF_POLICY, **BFLOAT16)).lasting
    assert {healthy.when for _, healthy in RANGES} <= both | {"at step 0", "later", "with a signal"}


def test_an_open_type_is_the_one_this_machine_would_choose(monkeypatch):
    for on_gpu, name in ((False, "in float32"), (True, "in bfloat16 or tf32")):
        monkeypatch.setattr("torch.cuda.is_available", lambda on_gpu=on_gpu: on_gpu)
        assert name in Watch(settings(torch_dtype="auto")).lasting


def test_every_metric_with_a_range_has_a_cure_that_names_only_what_exists():
    known = set(options(Config)) | set(METRICS)
    for name, row in METRICS.items():
        assert row.cure or not row.ranges, name
        assert set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row.cure)) <= known, name
        assert set(re.findall(r"(\w+)=", row.cure)) <= set(options(Config)), name


def test_the_table_prints_the_ranges_that_the_watch_acts_on():
    assert str(Range(0, 0, "at step 0")) == "0 at step 0"
    assert str(Range(high=0.8)) == "at most 0.8" and str(Range(low=1e-6)) == "at least 1e-06"
    assert str(Range(0.25, 4, of="the start")) == "0.25 to 4 times the start"
    rows = {line.split("`")[1]: line for line in markdown_table().splitlines()[2:]}
    assert [name for name, healthy in RANGES if str(healthy) not in rows[name]] == []


FAILED = json.loads((ROOT / "benchmarks" / "results" / "failures.json").read_text())


@pytest.mark.parametrize(("run", "metric"), [
    ("rate too high", "accuracy"), ("beta too large", "kl_pull_share"), ("equal rewards", "zero_variance_all_right"),
    ("no end", "truncated_share"), ("cut off", "truncated_share"),
    ("another reward takes over", "phantom_advantage_share"), ("entropy collapse", "entropy"),
    ("wrong template", "phantom_advantage_share")])
def test_a_run_that_was_made_to_fail_is_warned_of_by_the_metric_of_its_symptom(run, metric):
    told = warnings(settings(), FAILED["runs"][run])
    assert any(re.match(rf"warning \[step \d+\] {metric} is ", line) for line in told), told
    assert f"`{metric}`" in (ROOT / "docs" / "when-it-does-not-learn.md").read_text()


def test_of_the_run_that_nothing_is_wrong_with_nothing_is_said_and_every_failing_one_is_above():
    assert warnings(settings(), FAILED["runs"]["healthy"]) == []
    assert len(FAILED["runs"]) == 9
