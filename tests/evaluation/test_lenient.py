"""The lenient score, the last number of a completion in any words: the table of docs/answers.md. 5 s, of imports."""

import re

import pytest
from answer_table import numbers

from grpo.evaluation.answers import last_number_right
from rewards.number import last_number

LENIENT = numbers("Strict and lenient")


@pytest.mark.parametrize(("end", "number"), LENIENT, ids=[ascii(end) for end, _ in LENIENT])
def test_the_last_number_of_a_completion_is_that_of_the_page_and_no_part_of_it(end, number):
    for completion in (end, f"First 7 more.\nSo {end}", f"{end}\nOne line more."):
        assert last_number(completion) == number
        assert number is None or last_number_right(completion, str(float(number)))
        assert not any(last_number_right(completion, part) for part in re.findall("[0-9]+", end)
                       if number is None or abs(int(part) - number) > 0.001)


@pytest.mark.parametrize("completion", [
    "so it is 12", "12.", "the total is $12", "3 + 9 = 12 apples", "7, 5, so 12.0004", "from 5-12", "(4)-12", "012",
])
def test_the_last_number_in_any_words_counts_as_lenient(completion):
    assert last_number_right(completion, "12")


@pytest.mark.parametrize("completion", ["", "twelve", "12 or 13", "-12", "12.5", "1,012", "9" * 5000, "$-", "12 - 3"])
def test_another_last_number_or_none_does_not(completion):
    assert not last_number_right(completion, "12")


def test_thousands_commas_and_a_minus_are_read_in_the_last_number():
    assert last_number_right("we get 1,234,000.50", "1234000.5")
    assert last_number_right("left with -5", "-5")
    assert not last_number_right("any", "no number")
