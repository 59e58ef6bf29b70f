"""TRL's rewards against TRL's own functions; skipped where TRL or math-verify is not installed. 3 seconds.

Without TRL, tests/rewards/test_verifiers.py holds the same functions against numbers worked by hand.
"""

import itertools
import random
from typing import Any

import pytest

from rewards import loading

theirs = pytest.importorskip("trl.rewards", reason="TRL is not installed")

ANSWERS = [
    r"\boxed{7}", r"so $\boxed{7}$", r"$$\boxed{\frac{1}{3}}$$", r"\boxed{\frac13}", "The answer is $7$.", "7",
    "answer: 7", r"The final answer is $\frac{2}{6}$", r"\boxed{1} and \boxed{7}", r"\boxed{0.5}", r"\boxed{50\%}",
    r"\boxed{x = 7}",
    r"\boxed{7 \text{ cm}}", r"\boxed{\sqrt{8}}", r"\boxed{(1, 2)}", r"\boxed{\{2, 1\}}", r"\boxed{7", r"\boxed{}", "",
    r"\boxed{6} \boxed{7}", r"<think>\boxed{7}</think> no", r"<think>a</think> \boxed{7}",
    r"</think> \boxed{\frac{1}{2}}",
    r"<think>a</think> b </think> The answer is $\frac{1}{2}$", r"<think>\n$1$</think>", r"[END] \boxed{7}",
    r"\boxed{7.0}", r"\boxed{7,000}", r"\boxed{-7}", r"\boxed{(x+1)^2}", r"\boxed{\text{seven}}", r"\[ \boxed{7} \]",
]
GOLDS = ["7", "$7$", r"\frac{1}{3}", "1/2", r"$2\sqrt{2}$", "$x^2+2x+1$", "no number", r"$\{1,2\}$", "", "$(1,2)$"]
PAIRS = [(answer, GOLDS[(index + shift) % len(GOLDS)]) for index, answer in enumerate(ANSWERS) for shift in (0, 3)]
PAIRS += [(answer, gold) for answer, gold in itertools.product(ANSWERS, GOLDS[:2])]
LENGTHS = [0, 1, 2, 3, 63, 64, 65, 90, 100, 101, 1024, 1025, 1151, 1152, 1279, 1280, 1281, 5000]
MARKS = ["<think>", "</think>", "a", "\n", "<answer>", " "]


def talks(texts: list[str]) -> list[Any]:
    """Completions as TRL has them."""
    return [[{"role": "assistant", "content": text}] for text in texts]


def ours(name: str, completions: list[Any], **columns: Any) -> list[float | None]:
    options = columns.pop("options", None)
    return loading.load([name], None, {name: options} if options else None)[name](completions=completions, **columns)


@pytest.mark.parametrize(("name", "options"), [
    ("accuracy_reward", {}), ("reasoning_accuracy_reward", {}),
    ("reasoning_accuracy_reward", {"reasoning_delimiters": ["[END]", "</think>"]}),
])
def test_what_is_right_is_what_trl_finds_right(name: str, options: dict[str, Any]) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    texts, golds = map(list, zip(*PAIRS))
    expected = getattr(theirs, name)(talks(texts), golds, **options)
    assert {None, 0.0, 1.0} == {*expected} and len(PAIRS) > 100
    assert ours(name, talks(texts), solution=golds, options=options) == expected


@pytest.mark.parametrize("options", [{"max_len": 64}, {"max_len": 1280, "min_value_wrong": -3, "max_value_correct": 9}])
def test_the_cosine_is_trl_s(options: dict[str, Any]) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed")
    texts = [r"\boxed{7}", r"\boxed{8}"] * len(LENGTHS)
    tokens = [[0] * length for length in LENGTHS for _ in range(2)]
    golds = ["$7$"] * (len(texts) - 1) + ["none"]
    expected = theirs.get_cosine_scaled_reward(**options)(talks(texts), golds, tokens)
    assert expected == ours(
        "get_cosine_scaled_reward", talks(texts), solution=golds, completion_ids=tokens, options=options)


def test_the_form_of_reasoning_is_trl_s() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices(MARKS, k=draw.randrange(7))) for _ in range(500)]
    texts += ["<think>" + text for text in texts]
    expected = theirs.think_format_reward(talks(texts))
    assert {*expected} == {0.0, 1.0}
    assert ours("think_format_reward", talks(texts)) == expected


@pytest.mark.parametrize("options", [{}, {"ngram_size": 1}, {"ngram_size": 2, "max_penalty": -0.3}, {"ngram_size": 5}])
def test_the_cost_of_repetition_is_trl_s(options: dict[str, Any]) -> None:
    draw = random.Random(1)
    tokens = [draw.choices(range(3), k=length) for length in range(40)] + [[1] * 9, []]
    expected = theirs.get_repetition_penalty_reward(**options)(tokens)
    assert ours("get_repetition_penalty_reward", [""] * len(tokens), completion_ids=tokens, options=options) == (
        pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize("options", [
    {"max_completion_len": 1280, "soft_punish_cache": 256}, {"max_completion_len": 100, "soft_punish_cache": 37},
    {"max_completion_len": 64, "soft_punish_cache": 0}, {"max_completion_len": 64, "soft_punish_cache": 90}])
def test_the_cost_of_length_is_trl_s(options: dict[str, Any]) -> None:
    tokens = [[0] * length for length in [*LENGTHS, *range(60, 105)]]
    expected = theirs.get_soft_overlong_punishment(**options)(tokens)
    assert ours("get_soft_overlong_punishment", [""] * len(tokens), completion_ids=tokens, options=options) == expected


def test_the_defaults_are_those_of_trl() -> None:
    repeated = theirs.get_repetition_penalty_reward()
    assert loading.load(["get_repetition_penalty_reward"])["get_repetition_penalty_reward"].keywords == vars(repeated)
    cosine = vars(theirs.get_cosine_scaled_reward(max_len=5))
    options = {"get_cosine_scaled_reward": {"max_len": 5}}
    assert loading.load([*options], None, options)["get_cosine_scaled_reward"].keywords == cosine
