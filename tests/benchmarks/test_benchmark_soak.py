"""What the page of a long run says of its samples, worked out by hand. One second."""

import pytest

from benchmarks.soak import judge, markdown


def rows(growth: float) -> list[dict]:
    """101 samples over 100 steps: a warm-up of 20 steps in which memory doubles, then 1,000 bytes plus a slope."""
    return [{"step": step, "bytes": 500 + 25 * step if step < 20 else 1000 * (1 + growth * (step - 20) / 80),
             "files": 30 + (step == 50), "descendants": 2} for step in range(101)]


def test_growth_is_of_the_straight_line_after_the_warm_up() -> None:
    assert judge(rows(0.0), 100)["growth_percent"] == pytest.approx(0.0, abs=1e-9)
    found = judge(rows(0.03), 100)
    assert found["growth_percent"] == pytest.approx(3.0) and found["samples"] == 81
    assert (found["min_files"], found["max_files"], found["max_descendants"]) == (30, 31, 2)


def test_the_page_has_a_row_for_each_rank() -> None:
    result = {"num_steps": 100, "commit": "abc", "machine": "m", "python": "3", "versions": {"torch": "2"},
              "ranks": {0: judge(rows(0.0), 100), 1: judge(rows(0.03), 100)}}
    page = markdown(result)
    assert "| 1 | 81 | 0.0 | 0.0 | +3.00 | 30 to 31 | 2 to 2 |" in page and "| 0 | 81 |" in page
