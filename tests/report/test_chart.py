"""A chart in SVG: where its lines and ticks are, worked by hand. Needs no library."""

import re
from xml.etree import ElementTree

import pytest

from grpo.report.chart import MOST_POINTS, Line, chart, kept, scale, ticks


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0.03, [0, 0.01, 0.02, 0.03]), (0, 7, [0, 2, 4, 6]),
    (-1, 1, [-1, -0.5, 0, 0.5, 1]), (0, 4700, [0, 1000, 2000, 3000, 4000]), (3, 3, [3]), (0, 5e-7, None)])
def test_ticks_are_round_numbers_inside_the_range(low, high, expected) -> None:
    found = ticks(low, high)
    assert found == pytest.approx(expected or [index * 1e-7 for index in range(6)])


def test_ticks_of_steps_are_whole() -> None:
    assert ticks(0, 2, whole=True) == [0, 1, 2] and ticks(0, 69, whole=True) == [0, 20, 40, 60]


def test_a_scale_is_a_straight_line_and_one_value_is_in_the_middle() -> None:
    assert [scale(0, 10, 100, 200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert scale(4, 4, 100, 200)(4) == 150


def test_a_line_is_where_its_values_are() -> None:
    svg = chart("kl", [Line([(0, 0.0), (1, 2.0), (2, 4.0)])], x_label="step")
    # x from 50 to 328; y of 0 at 166, of 4 at 24
    assert 'd="M50.0 166.0L189.0 95.0L328.0 24.0"' in svg
    assert re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg) == [
        ("50.0", "166.0"), ("189.0", "95.0"), ("328.0", "24.0")]


def test_wherever_the_mouse_is_in_the_plot_the_nearest_point_is_shown() -> None:
    svg = chart("kl", [Line([(0, 0.0), (1, 2.0), (10, 4.0)])], x_label="step")
    # 27.8 units a step: half way to the neighbours, 0.5 and 5.5, is 63.9 and 202.9
    columns = re.findall(r'<title>(.*?)</title><rect x="([\d.]+)" y="24" width="([\d.]+)" height="142"', svg)
    assert columns == [("step 0: 0", "50.0", "13.9"), ("step 1: 2", "63.9", "139.0"), ("step 10: 4", "202.9", "125.1")]


def test_what_is_drawn_is_told_in_words_too() -> None:
    lines = [Line([(0, 2.0), (1, 1.0), (2, 4.0), (3, 3.0)], "each step"), Line([(0, 9.0)], "a mean"),
             Line([(2, 0.5)], "held-out", intervals=[(0.25, 0.75)])]
    (words,) = re.findall('aria-label="(.*?)"', chart("kl", lines, x_label="step"))
    assert words == ("kl: first 2 at step 0, last 3 at step 3, lowest 1 at step 1, highest 4 at step 2; "
                     "held-out: first 0.5 at step 2, last 0.5 at step 2, lowest 0.5 at step 2, highest 0.5 at step 2")


def test_the_axis_begins_at_0_or_below_and_ends_at_the_top_or_the_largest_value() -> None:
    def labels(values: list[float], top: float | None = None) -> list[str]:
        svg = chart("", [Line(list(enumerate(values)))], x_label="", top=top)
        return re.findall(r'text-anchor="end">([-\d.e]+)<', svg)

    assert labels([9.0, 10.0]) == ["0", "2", "4", "6", "8", "10"]
    assert labels([-4.0, -2.0]) == ["-4", "-3", "-2", "-1", "0"]
    assert labels([0.0, 0.0]) == labels([0.0, 1.0]), "nothing but zeros is at the bottom"
    assert labels([0.1, 0.2], top=1.0) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_a_bar_reaches_from_one_end_of_the_interval_to_the_other() -> None:
    svg = chart("a", [Line([(0, 0.5)], "held-out", intervals=[(0.25, 0.75)])], x_label="shots", top=1.0)
    # one place on the axis is in its middle, 189; of 142 units, a quarter is 35.5
    assert "M189.0 130.5V59.5" in svg and "<title>shots 0, held-out: 0.5 (0.25 to 0.75)</title>" in svg


def test_thousands_of_steps_have_a_few_values_on_hover_and_the_last_one() -> None:
    svg = chart("r", [Line([(step, step * 7 % 97) for step in range(4999)])], x_label="step")
    shown = re.findall(r"<title>step (\d+): ", svg)
    assert len(shown) <= MOST_POINTS and shown[0] == "0" and shown[-1] == "4998" and svg.count("L") == len(shown) - 1


def test_of_each_stretch_the_lowest_and_the_highest_are_kept_and_both_ends() -> None:
    assert kept(range(MOST_POINTS)) == list(range(MOST_POINTS))
    # 780 values in 39 stretches of 20; in the first two 5 is lowest, 7 highest, 30 lowest, 33 highest
    values = [0.0] * 780
    values[5], values[7], values[30], values[33] = -1.0, 2.0, -3.0, 4.0
    assert kept(values)[:6] == [0, 5, 7, 30, 33, 40] and kept(values)[-1] == 779


@pytest.mark.parametrize("lines", [[Line([])], [Line([(0, 0.0)])], [Line([(3, 1.0), (9, 1.0)], "<b>"), Line([])]])
def test_any_number_of_values_is_a_chart_that_a_reader_of_svg_takes(lines) -> None:
    svg = chart('"a" & <b>', lines, x_label="step")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label").startswith('"a" & <b>: ')
    assert "nan" not in svg and "inf" not in svg
