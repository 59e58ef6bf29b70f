"""Rewards against numbers worked by hand, gold answers, hostile text and reward files as TRL users write them. 2 s.

Called directly here; test_reward_pool.py has the process in which a run calls them.
"""

import json
import math
import os
import re
import time
from pathlib import Path

import pytest

from rewards.arguments import check_columns
from rewards.loading import load
from rewards.math import correctness_reward, format_reward
from rewards.values import check_values

GSM8K_DIR = Path(os.environ.get("GSM8K_DIR", Path(__file__).parents[2] / "../shared/data/gsm8k"))
MARKER = "\n#### The final answer is"


def points(completion, gold):
    """What one completion earns from (format_reward, correctness_reward)."""
    return format_reward([completion])[0], correctness_reward([completion], [gold])[0]


@pytest.mark.skipif(not GSM8K_DIR.is_dir(), reason=f"GSM8K is not in {GSM8K_DIR}; set GSM8K_DIR to its folder")
def test_every_gold_answer_of_gsm8k_in_the_template_scores_one_and_a_half():
    answers = [json.loads(line)["answer"] for name in ("train", "test") for line in open(GSM8K_DIR / f"{name}.jsonl")]
    golds = [answer.split("#### ")[1] for answer in answers]
    completions = [f" Some steps.{MARKER} {gold}" for gold in golds]
    assert len(golds) == 8792
    # 0.5 for the format + 1.0 for the number, whether gold is the number or the whole solution around it
    for final_answer in (golds, answers):
        assert set(format_reward(completions)) == {0.5}
        assert set(correctness_reward(completions, final_answer)) == {1.0}


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        (" 18", "18"),
        ("  18  \r", "18"),
        (" -5", "#### -5"),
        (" $12.50", "12.5"),
        (" -$3", "-3"),
        (" $-3", "-3"),
        (" 1,234", "1234"),
        (" 1234", "1,234"),
        (" 1,234,567.25", "1234567.25"),
        (" .5", "0.5"),
        (" 007", "7"),
        (" 18.", "18"),
        (" 18.0", "18"),
        (" 50%", "50"),
        (" 50 %.", "50"),
        (" 18 dollars", "$18"),
        (" 60 miles per hour.", "So far.\n#### The final answer is 60 miles"),
        (" 5 sq. ft.", "5"),
        (" 18€", "18"),
        (" 3", 3),
        (" 3", 3.0),
        (" -0", "0"),
        (" 42.001", "42"),  # |42.001 - 42| = 0.001, still within
        (" 7\nQuestion: next one?\n#### The final answer is 8", "7"),
        (" " + "9" * 32, "9" * 32),  # longest number that counts
    ],
)
def test_a_number_written_as_people_write_it_scores_fully(written, gold):
    assert points(f"steps{MARKER}{written}", gold) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        (" 19", "18"),
        (" 5", "-5"),
        (" 42.0011", "42"),
        (" 18 hours", "81"),
        (" 1.234", "1,234"),
        (" 100000000000000001", "100000000000000002"),  # equal as float64, different as numbers
        (" 18", None),
        (" 18", ""),
        (" 18", "eighteen"),
        (" 18", float("nan")),
        (" 18", float("inf")),
        pytest.param(" 18", 10**5000, id="huge"),  # str() of it raises
        (" 18", "9" * 5000),
        (" 18", ["18"]),
    ],
)
def test_a_wrong_number_or_a_gold_answer_without_one_earns_the_format_only(written, gold):
    assert points(f"steps{MARKER}{written}", gold) == (0.5, 0.0)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "18",
        MARKER,
        f"{MARKER} ",
        f"{MARKER}\n18",
        f"{MARKER}18",
        f"{MARKER}: 18",
        *(f"steps{MARKER} {mark}" for mark in (".", "-", "$", "%", ",", "-$", "$.", "-.", "...")),
        *(f"steps{MARKER} {word}" for word in ("nan", "inf", "-inf", "NaN", "Infinity", "unknown", "eighteen")),
        *(f"steps{MARKER} {text}" for text in ("--18", "18-", "1 8", "18 or 19", "18/2", "9 + 9", "x = 18", "18e")),
        *(f"steps{MARKER} {text}" for text in ("1.8.0", "18..", "1800,000", "18,0", ",018", "0x12", "1_8", "**18")),
        *(f"steps{MARKER} {text}" for text in ("\u0661\u0668", "18½", "\u00b2", "１８")),  # digits, but not 0 to 9
        f"steps{MARKER} {'9' * 33}",
        f"steps{MARKER} {'1' * 5000}",
        f"steps{MARKER} 18.{'0' * 5000}",
        "#### The final answer is 18",  # no line break: the marker stands behind the prompt's last words
        "steps\n#### 18",
        "steps\n#### the final answer is 18",
        "steps #### The final answer is 18",
        f"steps{MARKER} unknown{MARKER} 18",  # the first answer line counts
        None,
        18,
        [],
        [{"role": "assistant"}],
        [{"role": "assistant", "content": None}],
        ["18"],
    ],
)
def test_anything_else_earns_nothing_and_raises_nothing(completion):
    assert points(completion, "18") == (0.0, 0.0)


def test_the_first_answer_line_counts():
    assert points(f"a{MARKER} 1{MARKER} 2", "1") == (0.5, 1.0)
    assert points(f"a{MARKER} 1{MARKER} 2", "2") == (0.5, 0.0)


def test_one_gold_answer_per_completion_is_required():
    with pytest.raises(ValueError, match="shorter"):
        correctness_reward([f"{MARKER} 1", f"{MARKER} 1"], ["1"])


def test_a_conversation_is_scored_by_its_last_message():
    turns = [{"role": "user", "content": f"{MARKER} 1"}, {"role": "assistant", "content": f"so{MARKER} 2"}]
    assert points(turns, "2") == (0.5, 1.0)


@pytest.mark.parametrize("unit", ["1", "1,", "1,234", ",", "-", "$", ".", "%", " ", "a ", "1 ", "1.0", " a. "])
def test_hostile_text_of_a_million_characters_takes_linear_time(unit):
    bulk = unit * (1_000_000 // len(unit))
    started_s = time.process_time()
    format_reward([f"{MARKER} {start}{bulk}!" for start in ("", "5", "5 ", "5.0", "5 a")])
    format_reward([f"\n#### The final answer{bulk}", "\n#### The final answer i" * 40_000])
    assert time.process_time() - started_s < 5  # quadratic time would be hours


TRL_FILE = '''
from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch

NOT_CALLABLE = 3

@dataclass
class Limits:
    low: int

def by_column(completions, solution, **kwargs):  # as in TRL's documentation
    return [1.0 if wanted in text else 0.0 for text, wanted in zip(completions, solution)]

def by_prompt(prompts, completions, **kwargs):
    return [float(len(prompt)) for prompt in prompts]

def only_maths(completions, task, **kwargs):
    return [1.0 if name == "math" else None for name in task]

def as_array(completions, **kwargs):
    return numpy.ones(len(completions), dtype=numpy.float32)

def as_tensors(completions, **kwargs):
    return [torch.tensor(2.0) for _ in completions]

def as_bools(completions, **kwargs):
    return [text == "x" for text in completions]

def too_few(completions, **kwargs):
    return [1.0]

def one_number(completions, **kwargs):
    return 1.0

def a_word(completions, **kwargs):
    return ["1.0" for _ in completions]

def not_a_number(completions, **kwargs):
    return [float("nan") for _ in completions]

def infinite(completions, **kwargs):
    return [float("inf") for _ in completions]

def greedy(completions, **kwargs):
    return (1.0 for _ in completions)

def closed(completions):
    return [1.0 for _ in completions]
'''


@pytest.fixture
def trl_file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(TRL_FILE)
    return path


def values_of(path, name):
    (function,) = load([f"{path}:{name}"]).values()
    columns = {"solution": ["x", "x"], "task": ["math", "code"]}
    return check_values(function(prompts=["ab", "abc"], completions=["x", "y"], **columns), count=2)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("by_column", [1.0, 0.0]),
        ("by_prompt", [2.0, 3.0]),
        ("as_array", [1.0, 1.0]),
        ("as_tensors", [2.0, 2.0]),
        ("as_bools", [1.0, 0.0]),
        ("only_maths", [1.0, None]),
    ],
)
def test_a_trl_reward_function_works_unchanged(trl_file, name, values):
    found = values_of(trl_file, name)
    assert found == values
    assert all(value is None or type(value) is float for value in found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("too_few", "returned 1 values; must return a list of 2 numbers"),
        ("one_number", "returned float; must return a list"),
        ("greedy", "returned generator; must return a list"),
        ("a_word", "returned '1.0' for completion 0"),
        ("not_a_number", "returned nan for completion 0"),
        ("infinite", "returned inf for completion 0"),
    ],
)
def test_a_return_value_that_breaks_the_rules_is_told_in_one_line(trl_file, name, reason):
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        values_of(trl_file, name)
    assert "\n" not in str(caught.value)


def test_a_column_that_a_function_needs_and_the_data_lacks_is_named_before_any_call(trl_file):
    functions = load(["format", "correctness"])
    with pytest.raises(ValueError, match="'correctness': missing a required argument: 'final_answer'.* label"):
        check_columns(functions, ["label"])
    check_columns(functions, ["label", "final_answer"])
    check_columns(load([f"{trl_file}:closed"]), ["label"])  # it gets what it names, and no more


@pytest.mark.parametrize(
    ("reward_funcs", "reward_weights", "reason"),
    [
        ([], None, "needs at least one"),
        (["corectness"], None, "nearest valid value: correctness"),
        (["my_rewards.py"], None, "nearest valid value: my_rewards.py:FUNCTION"),
        (["nowhere/mine.py:func"], None, "no file nowhere/mine.py"),
        (["{file}:absent"], None, "'absent' does not exist in .*by_column"),
        (["{file}:NOT_CALLABLE"], None, "'NOT_CALLABLE' is not callable"),
        (["format", "correctness"], [1.0], "one weight per function"),
        (["format"], [math.nan], "finite"),
        (["format", "format"], None, "different names"),
        (["{folder}/broken.py:f"], None, r"importing it raised ZeroDivisionError: division by zero \(broken.py:3\)"),
        (["{folder}/typo.py:f"], None, r"importing it raised SyntaxError: .* \(typo.py:1\)"),
        (["{folder}/leaves.py:f"], None, r"importing it raised SystemExit: 3 \(leaves.py:2\)"),
    ],
)
def test_reward_functions_that_cannot_be_loaded_are_refused_in_one_line(trl_file, reward_funcs, reward_weights, reason):
    (trl_file.parent / "broken.py").write_text("import json\n\n1 / 0\n")
    (trl_file.parent / "typo.py").write_text("def f(:\n")
    (trl_file.parent / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    places = {"{file}": str(trl_file), "{folder}": str(trl_file.parent)}
    with pytest.raises(ValueError, match=reason) as caught:
        load([re.sub(r"{\w+}", lambda found: places[found[0]], name) for name in reward_funcs], reward_weights)
    assert str(caught.value).startswith("reward_")
    assert "\n" not in str(caught.value)
