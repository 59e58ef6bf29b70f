"""What is one number beyond doubt, and what is none: the rows of docs/answers.md, and what no table can list. 4 s.

The table of lenient scores is held against the code in test_lenient.py.
"""

import json
import os
import random
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from answer_table import numbers, rows

from rewards.math import correctness_reward, format_reward, gold_number
from rewards.number import last_number, parse_number

GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", Path(__file__).parents[2] / "../shared/data/gsm8k"))
MARKER = "\n#### The final answer is"
ACCEPTED, REFUSED = numbers("What is accepted"), [text for text, _ in rows("What is refused")]


def points(line, gold):
    """What a completion with this answer line earns from (format_reward, correctness_reward)."""
    completion = f"Some steps.{MARKER} {line}"
    return format_reward([completion])[0], correctness_reward([completion], [gold])[0]


@pytest.mark.parametrize(("line", "number"), ACCEPTED, ids=[ascii(line) for line, _ in ACCEPTED])
def test_an_answer_line_that_the_page_accepts_states_its_number(line, number):
    assert points(line, float(number)) == (0.5, 1.0)
    assert points(line, float(number) + 1) == (0.5, 0.0)
    assert gold_number(line) == gold_number(f"Steps with 7 in them.\n#### {line}") == number


@pytest.mark.parametrize("line", REFUSED, ids=ascii)
def test_an_answer_line_that_the_page_refuses_earns_nothing_and_is_no_gold_answer(line):
    assert points(line, "5") == (0.0, 0.0)
    assert gold_number(line) is gold_number(f"Steps with 7 in them.\n#### {line}") is None


def test_the_page_has_more_than_a_hundred_answer_lines_of_both_sides_and_none_twice():
    assert len(ACCEPTED) > 50 and len(REFUSED) > 70
    lines = [line for line, _ in ACCEPTED] + REFUSED
    assert len(set(lines)) == len(lines)


@pytest.mark.skipif(not GSM8K_DIR.is_dir(), reason=f"GSM8K is not in {GSM8K_DIR}; set GSM8K_DIR to its folder")
def test_every_gold_answer_of_gsm8k_is_its_digits_without_commas():
    answers = [json.loads(line)["answer"] for name in ("train", "test") for line in open(GSM8K_DIR / f"{name}.jsonl")]
    written = [answer.split("#### ")[1].strip() for answer in answers]
    assert len(answers) == 8792
    assert [gold_number(answer) for answer in answers] == [Decimal(text.replace(",", "")) for text in written]


NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred dozen half third fourth
    fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth nineteenth twentieth thirtieth fortieth ninetieth
    hundredth thousandth millionth quarter pi thousands millions billions trillions hundreds dozens tens ones fives
    sixes twenties fifties nineties halves thirds fourths fifths eighths ninths tenths twelfths twentieths quarters
    hundredths lakhs crores""".split()
# Of the same letters, and no numbers.
UNITS = """seconds pies pie tents tones tons oneness stones weights heights often tense halfway someone
    knots notes orders waiters words northern footsteps mm m g t l kg km cm Gb Mb bns kN millimeters milligrams miles
    billiards grams grander scores bakers quarts thirst forth fortnights hundredweights""".split()


@pytest.mark.parametrize("word", NUMBER_WORDS)
def test_no_number_in_words_is_a_unit_wherever_it_stands_behind_the_digits(word):
    for line in (f"5 {word}", f"5{word}", f"5-{word}", f"5 apples and {word} pears", f"5. It was {word.upper()}.",
                 f"5 {word.title()}-year-olds", f"5%, {word}", f"**5** {word}", f"2 million {word}"):
        assert parse_number(line) is None, line
        assert last_number(line) is None, line


@pytest.mark.parametrize("word", [word for word in UNITS if "-" not in word])
def test_a_word_that_only_looks_like_a_number_is_a_unit(word):
    assert parse_number(f"5 {word}") == last_number(f"5 {word}") == 5


@pytest.mark.parametrize("word", ["mn", "mln", "mio", "mil", "mill", "MM", "bln", "tn", "trn", "tr", "grand", "gross",
                                  "score", "squared", "Cubed", "factorial", "k", "b", "B", "M", "T", "G", "e", "E"])
def test_what_may_be_a_scale_makes_no_number_right_behind_the_digits_only(word):
    assert parse_number(f"5 {word}") is last_number(f"5 {word}") is parse_number(f"5 {word} apples") is None
    assert parse_number(f"5 apples {word}") == last_number(f"5 apples {word}") == 5


@pytest.mark.parametrize("line", ["2 million-dollar houses", "2 thousand-piece puzzles", "2 billion's"])
def test_a_scale_that_is_part_of_a_word_does_not_multiply(line):
    assert parse_number(line) is last_number(line) is None


@pytest.mark.parametrize("word", ["m", "mm", "t", "g", "l", "L", "cr"])
def test_a_metre_or_a_litre_of_money_may_be_a_scale(word):
    assert parse_number(f"5 {word}") == last_number(f"5 {word}") == 5
    for line in (f"$5{word}", f"5 {word} dollars", f"5{word} €", f"-€5{word}", f"5{word} US dollars", f"5 {word} EUR"):
        assert parse_number(line) is last_number(line) is None, line


def test_values_are_exact_whatever_their_length():
    nines = "9" * 32
    assert parse_number(f"{nines} million") == int(nines) * 10**6
    assert parse_number(f"-{nines}e99") == -int(nines) * 10**99
    assert last_number("1/3") == Fraction(1, 3)
    just_above = f".001{'0' * 27}1"  # 32 characters, of 29 digits
    assert points(just_above, 0) == (0.5, 0.0)
    assert points(".001", 0) == (0.5, 1.0)


@pytest.mark.parametrize("gold", [True, False, "True", None, float("nan"), float("-inf"), [5], "", "five", "5 dozen"])
def test_what_is_no_number_is_no_gold_answer(gold):
    assert gold_number(gold) is None


@pytest.mark.parametrize("gold", [2_000_000, 2e6, "2e6", "2e+06", "2 million", "$2,000,000", "so\n#### 2 million"])
def test_a_gold_answer_with_a_scale_is_the_number_written_out(gold):
    assert points("2,000,000", gold) == points("$2 million", gold) == (0.5, 1.0)
    assert points("2", gold) == (0.5, 0.0)


@pytest.mark.parametrize("line", ["5 m\u0131llion", "5 thou\u017fand", "5\u212a", "5 \u212a", "5 \u0661", "5\u00b2",
                                  "\u0665 million", "5 s\u0130x", "5\x00", "5\u2028million"])
def test_letters_that_only_become_ours_in_another_case_are_none_of_ours(line):
    assert parse_number(line) is None
    last_number(line)


PIECES = ["5", "12", "1,234", ".5", " ", "\u00a0", "\u202f", ".", ",", "-", "\u2212", "$", "\\$", "€", "%", "\\%", "**",
          "\\boxed{", "$\\boxed{", "}", "= ", "k", "K", " million", "m", " apples", " seven", "/", ". So", "½",
          "\n", "(", "²", "}{", "^", ":", "no", "0", "000", "\\"]


def test_a_line_of_any_pieces_raises_nothing_and_states_all_its_digits_or_none():
    draw, stated = random.Random(0), 0
    for _ in range(20_000):
        line = "".join(draw.choices(PIECES, k=draw.randint(1, 6)))
        number = parse_number(line)
        last_number(line)
        if number:
            stated += 1
            digits = "".join(letter for letter in line if letter in "0123456789")
            assert digits.strip("0") == str(int(abs(number) * 10**30)).strip("0"), line
    assert stated > 500


@pytest.mark.parametrize("unit", ["1", "1,", "1,234", "1\u00a0", "1 234", " 234", "1/", "1/2 ", "1e", "1e3", "-", "$",
                                  "\\$", ".", ".5", "%", " ", "a ", "**", "}", "}{", "1}{", "5k", " million", "half ",
                                  "no", "m ", "\u00bd", "= ", "\\boxed{", "1 2", "1^", "5 1/", "twenty"])
def test_hostile_text_of_thirty_thousand_characters_takes_linear_time(unit):
    bulk, started_s = unit * (30_000 // len(unit)), time.process_time()
    for start in ("5", "$", "**5", "1 234 "):
        parse_number(f"{start}{bulk}!")
        last_number(f"{start}{bulk}!")
    assert time.process_time() - started_s < 2  # 0.1 s; 10^9 steps of quadratic time are 10 s
