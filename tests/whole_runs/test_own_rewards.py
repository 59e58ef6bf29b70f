"""A run of two ranks with reward functions from Python that give some completions nothing, and log. 15 seconds."""

import statistics
from pathlib import Path

import pytest
from fault_runs import lines, options, prepare
from faults import Ended, Warm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def ended(warm: Warm, folder: Path) -> Ended:
    """Two steps; each rank has one prompt of three completions."""
    argv = options(folder, "out", num_generations=3, max_steps=2, save_strategy="no", scale_rewards="batch")
    ended = warm.run(*argv, program="own_rewards")
    assert ended.codes == [0, 0], ended.err[0][-3000:]
    return ended


@pytest.fixture(scope="module")
def completions(ended: Ended, folder: Path) -> list[dict]:
    return lines(folder / "out" / "completions.jsonl")


def test_a_completion_without_a_reward_is_null_in_the_file_and_without_advantage(completions: list[dict]) -> None:
    assert len(completions) == 2 * 2 * 3
    assert [row["reward"] is None for row in completions] == [True, False, False] * 2 + [True, False, True] * 2
    assert all(row["advantage"] == 0.0 for row in completions if row["reward"] is None)
    assert all(row["rewards"]["nothing"] is None for row in completions)
    assert all(row["rewards"]["vowels"] == pytest.approx(row["reward"]) for row in completions if row["reward"])
    # In step 0 each rank compares its two scored ones, over the std of the four; in step 1 each has one, alone.
    scale = statistics.stdev(row["reward"] for row in completions[:6] if row["reward"] is not None) + 1e-4
    for first in (0, 3):
        _, one, other = completions[first:first + 3]
        half = (one["reward"] - other["reward"]) / 2 / scale
        assert [one["advantage"], other["advantage"]] == pytest.approx([half, -half], rel=1e-5) and half
    assert all(row["advantage"] == 0.0 for row in completions[6:])


def test_it_is_in_no_mean_counted_and_its_tokens_are_not_in_the_loss(folder: Path, completions: list[dict]) -> None:
    for step, record in enumerate(lines(folder / "out" / "metrics.jsonl")):
        rows = [row for row in completions if row["step"] == step]
        scored = [row["reward"] for row in rows if row["reward"] is not None]
        assert record["reward"] == pytest.approx(sum(scored) / len(scored))
        assert record["rewards/vowels"] == pytest.approx(record["reward"])
        assert record["unscored_share"] == pytest.approx(1 - len(scored) / len(rows))
        assert record["rewards/nothing"] is None
        assert record["num_tokens"] == sum(row["length"] for row in rows if row["reward"] is not None)


def test_it_is_told_once(ended: Ended) -> None:
    told = [line for line in ended.err[0].splitlines() if "unscored_share is" in line]
    assert len(told) == 1 and told[0].startswith("warning [step 0] unscored_share is 0.3333")


def test_what_the_functions_log_is_in_the_files(folder: Path, completions: list[dict]) -> None:
    assert all(row["extra"] == {"tokens": row["length"]} for row in completions)
    for step, record in enumerate(lines(folder / "out" / "metrics.jsonl")):
        lengths = [row["length"] for row in completions if row["step"] == step]
        # two calls on each of two ranks: the mean length of the rank's three completions, and the step
        assert record["lengths/tokens"] == pytest.approx((sum(lengths) / len(lengths) + step) / 2)
