"""Rewards of TRL and open-r1, and math_verify, with numbers worked by hand. 4 seconds.

What needs math-verify is skipped where it is not installed.
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from reward_pools import score, starting

from rewards import loading, open_r1, trl
from rewards.arguments import check_columns

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")
WHOLE = "<think>\n1 + 1 = 2\n</think>\n<answer>\n2\n</answer>"


def called(name: str, *completions: Any, options: dict[str, Any] | None = None, **columns: Any) -> list[float | None]:
    """What a built-in function says of completions; completion n has n + 1 tokens unless `columns` say otherwise."""
    function = loading.load([name], None, {name: options} if options else None)[name]
    columns = {"completion_ids": [list(range(n + 1)) for n in range(len(completions))]} | columns
    return function(completions=list(completions), **columns)


@pytest.mark.parametrize(("text", "value"), [
    ("<think>a</think>b", 1.0), ("<think></think>", 1.0), ("<think>a\n</think>\nb</think>", 1.0), ("", 0.0),
    (" <think>a</think>", 0.0), ("<think>a", 0.0), ("a</think>", 0.0), ("<think><think>a</think>", 0.0),
    ("<think>a</think><think>", 0.0), ("</think><think>", 0.0), ("<THINK>a</THINK>", 0.0),
])
def test_reasoning_stands_first_and_once(text: str, value: float) -> None:
    assert called("think_format_reward", text, [{"role": "assistant", "content": text}]) == [value, value]


@pytest.mark.parametrize(("text", "value"), [
    (WHOLE, 1.0), (WHOLE + "\nmore", 1.0), (WHOLE.replace("\n</answer>", "</answer>"), 0.75),
    ("<think>\n\n</think>\n\n<answer>\n\n</answer>", 1.0), (WHOLE + "<think>\n", 0.75), (2 * WHOLE, 0.0), ("", 0.0),
    (WHOLE.replace("</think>\n", "</think> "), 0.5),
    ("<answer>\n2\n</answer>", 0.25),  # no line break in front of <answer>
])
def test_each_of_four_tags_that_is_there_once_is_a_quarter(text: str, value: float) -> None:
    assert called("tag_count_reward", text) == [value]


@pytest.mark.parametrize(("text", "value"), [
    (WHOLE, 1.0), (WHOLE + "\nmore", 1.0), (WHOLE + "more", 0.0), (f"So {WHOLE}", 0.0), (WHOLE[:-1], 0.0),
    (WHOLE.replace("</think>\n", "</think>\n\n"), 0.0), ("<think>\n\n</think>\n<answer>\n\n</answer>", 1.0),
    ("<think>\n</think>\n<answer>\n</answer>", 0.0), (WHOLE + " and\n</answer>", 1.0), ("", 0.0),
])
def test_the_form_of_open_r1_is_two_blocks_and_nothing_between(text: str, value: float) -> None:
    assert called("think_answer_format_reward", text) == [value]


def test_tokens_over_the_limit_cost_along_a_line() -> None:
    tokens = [[0] * number for number in (0, 6, 7, 9, 10, 11)]
    options = {"max_completion_len": 10, "soft_punish_cache": 4}
    assert called("get_soft_overlong_punishment", *"abcdef", completion_ids=tokens, options=options) == [
        0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    assert called("get_soft_overlong_punishment", *"abcdef", completion_ids=tokens,
                  options=options | {"soft_punish_cache": 0}) == [0.0] * 5 + [-1.0]
    tokens = [[0] * number for number in (1024, 1152, 1280)]
    assert called("get_soft_overlong_punishment", *"abc", completion_ids=tokens) == [0.0, -0.5, -1.0]


def test_repeated_tokens_cost_their_share_of_the_n_grams() -> None:
    tokens = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 3, 1, 2, 3], [1, 2], []]
    # Pairs: 0 of 3, 3 of 4, 2 of 5. Triples: 0 of 2, 2 of 3, 1 of 4.
    assert called("get_repetition_penalty_reward", *"abcde", completion_ids=tokens, options={"ngram_size": 2}) == (
        pytest.approx([0.0, -0.75, -0.4, 0.0, 0.0]))
    found = called("get_repetition_penalty_reward", *"abcde", completion_ids=tokens, options={"max_penalty": -2})
    assert found == pytest.approx([0.0, -4 / 3, -0.5, 0.0, 0.0]) and str(found[0]) == "0.0"


@needs_math_verify
def test_a_short_right_answer_earns_most_and_a_short_wrong_one_least() -> None:
    tokens = [[0] * number for number in (0, 2, 4, 9, 0, 2, 4, 2)]
    texts = [r"\boxed{1}"] * 4 + [r"\boxed{2}"] * 3 + [r"\boxed{1}"]
    golds = ["$1$"] * 7 + ["?"]
    assert called("get_cosine_scaled_reward", *texts, completion_ids=tokens, solution=golds,
                  options={"max_len": 4}) == pytest.approx([1.0, 0.75, 0.5, 0.5, -1.0, -0.75, -0.5, None])
    ends = {"min_value_wrong": -10, "max_value_wrong": 0, "min_value_correct": 2, "max_value_correct": 6}
    assert called("get_cosine_scaled_reward", *texts[1:6:4], completion_ids=[[0] * 2] * 2, solution=["$1$"] * 2,
                  options={"max_len": 4} | ends) == pytest.approx([4.0, -5.0])


@needs_math_verify
def test_a_longer_answer_earns_less_and_a_wrong_one_never_more_than_nothing() -> None:
    texts = [r"\boxed{1}", r"so \boxed{1}", r"so so \boxed{1}", r"\boxed{2}", r"so so \boxed{2}"]  # 9, 12, 15, 9, 15
    assert called("len_reward", *texts, solution=["$1$"] * 5) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert called("len_reward", *texts, solution=["1"] * 5) == [0.5, 0.0, -0.5, 0.5, -0.5]  # no LaTeX: all are right
    assert called("len_reward", *texts[:4:3], solution=["$1$"] * 2) == [0.0, 0.0]  # equally long


@needs_math_verify
@pytest.mark.parametrize(("text", "gold", "value"), [
    (r"so \boxed{7}", 7, 1.0), (r"\boxed{8}", "7", 0.0), (r"$\boxed{\frac{1}{2}}$", "1/2", 1.0),
    (r"\boxed{\frac12}", "0.5", 1.0), (r"\boxed{0.5}", r"\frac{1}{2}", 1.0), (r"\boxed{1{,}234}", "1,234", 1.0),
    ("#### The final answer is 7", "$7$", 1.0), ("The final answer is 1/2.", r"$\frac{2}{4}$", 1.0),
    ("The answer is $7$", r"\boxed{7}", 1.0), (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1.0),
    (r"\boxed{x = 7}", "7", 1.0), (r"\boxed{7 \text{ cm}}", "7", 1.0), (r"\boxed{(1, 2)}", "(1,2)", 1.0),
    (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1.0), (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0), ("$12.50$", "$12.50", 0.0),
    (r"\boxed{12.50}", "$12.50", 1.0), ("7", "7", 0.0), ("7 it is, I guess", "7", 0.0), ("", "7", 0.0),
    (r"\boxed{6} \text{ or } \boxed{7}", "7", 0.0), (r"\boxed{6 \text{ or } 7}", "7", 0.0),
    ("The answer is 7.\nThe answer is 8.", "7", 0.0), (r"\boxed{7} no, \boxed{}", "7", 0.0),
    (r"The answer is 7. \boxed{)(}", "7", 0.0), (r"\boxed{7", "7", 0.0), (r"\boxed{7}", "", None),
    ("\ud800 \x00 \\boxed{7}", "7", 1.0), (r"\boxed{12.50}", r"\$12.50", 1.0),
    (r"\boxed{7}. The final answer is $8$.", "7", 1.0), (r"\boxed{8}. The final answer is $7$.", "7", 0.0),
])
def test_an_answer_counts_in_whatever_form_but_once(text: str, gold: Any, value: float | None) -> None:
    assert called("math_verify", text, final_answer=[gold]) == [value]


@needs_math_verify
def test_only_latex_counts_for_accuracy_and_what_follows_the_reasoning_for_the_other() -> None:
    texts = [r"\boxed{\frac{1}{3}}", "The answer is 1/3", r"<think>\boxed{2}</think> \boxed{\frac{2}{6}}",
             r"<think>\boxed{\frac{1}{3}}</think> no", r"[END] \boxed{\frac{1}{3}}"]
    golds = [r"\frac{1}{3}"] * 5
    # Boxes with fewer than ten characters between them are one answer: the third says 2 and 1/3.
    assert called("accuracy_reward", *texts, solution=golds) == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert called("reasoning_accuracy_reward", *texts, solution=golds) == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert called("reasoning_accuracy_reward", *texts, solution=golds,
                  options={"reasoning_delimiters": ["[END]", "</think>"]}) == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert called("accuracy_reward", texts[0], solution=["no gold"]) == [None]
    assert called("accuracy_reward", r"\boxed{7 \text{ cm}}", r"\boxed{7 a}", solution=["7"] * 2) == [1.0, 0.0]
    twice = r"<think></think> \boxed{\frac{1}{3}} is what I think, or so it seems </think> now I do not know"
    assert called("reasoning_accuracy_reward", twice, solution=golds[:1]) == [0.0]
    assert called("reasoning_accuracy_reward", *texts[1:3], solution=["no gold"] * 2) == [0.0, None]


@pytest.mark.parametrize(("name", "options", "line"), [
    ("get_cosine_scaled_reward", None,
     "max_len=None must be a whole number of at least 1; nearest valid value: 512"),
    ("get_cosine_scaled_reward", {"max_len": 0}, "max_len=0 must be a whole number of at least 1; nearest .*: 1"),
    ("get_cosine_scaled_reward", {"max_len": 9, "min_value_wrong": "low"}, "min_value_wrong='low' must be a number.*"),
    ("get_cosine_scaled_reward", {"max_len": 9, "min_value_wrong": float("nan")}, "min_value_wrong=nan must be a .*"),
    ("get_repetition_penalty_reward", {"max_penalty": 0.5},
     "max_penalty=0.5 must be at most 0; nearest valid value: -0.5"),
    ("get_repetition_penalty_reward", {"ngram_size": 2.5}, "ngram_size=2.5 must be a whole .*; nearest valid value: 3"),
    ("get_soft_overlong_punishment", {"soft_punish_cache": True}, "soft_punish_cache=True must be a whole number.*"),
    ("get_soft_overlong_punishment", {"soft_punish_cache": -1}, "soft_punish_cache=-1 .*; nearest valid value: 0"),
    ("reasoning_accuracy_reward", {"reasoning_delimiters": "</think>"},
     r"reasoning_delimiters='</think>' must be a list of texts; nearest valid value: \['</think>'\]"),
    ("reasoning_accuracy_reward", {"reasoning_delimiters": [""]}, r"reasoning_delimiters=\[''\] must be .*"),
])
def test_an_option_that_a_function_cannot_take_is_refused_when_it_is_loaded(
        name: str, options: dict[str, Any] | None, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "EXTRAS", {})
    with pytest.raises(ValueError, match=f"^reward_options of {name}: {line}$"):
        loading.load([name], None, {name: options} if options else None)


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    for name, extra in loading.EXTRAS.items():
        with pytest.raises(ValueError, match=f"^reward_funcs='{name}': needs the package {extra}, and none is "
                                             f"installed here; nearest valid: pip install {extra}$"):
            loading.load([name])
    assert loading.load(["think_format_reward"]) == {"think_format_reward": trl.think_format_reward}


def test_a_dataset_needs_the_column_that_a_reward_reads() -> None:
    with pytest.raises(ValueError, match="^reward function 'len_reward': missing a required argument: 'solution'"):
        check_columns({"len_reward": open_r1.len_reward}, ["prompt", "answer"])


@needs_math_verify
def test_a_comparison_that_takes_too_long_is_ended_where_a_run_calls_it(tmp_path: Path) -> None:
    (tmp_path / "quick.py").write_text(  # what the first call takes longer for is done before a second is the limit
        "from rewards import latex\nmath_verify = latex.math_verify\nmath_verify([r'\\boxed{7}'], [7])\n"
        "latex.COMPARE_S = 1\n")
    with starting() as start:
        pool = start(f"{tmp_path / 'quick.py'}:math_verify")
        found = score(pool, r"\boxed{9^{9^{9^{9}}}}", r"\boxed{7}", final_answer=["7", "7"])
    assert found.parts == {"math_verify": [0.0, 1.0]} and found.failures == {}
