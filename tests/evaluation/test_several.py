"""pass@k and maj@k by hand, and by enumeration of all choices of k samples. A second."""

from collections import Counter
from itertools import combinations

import pytest

from grpo.evaluation.answers import Answer
from grpo.evaluation.several import majority_at, pass_at, several


def test_pass_at_k_by_hand():
    assert pass_at(4, 2, 1) == 0.5 and pass_at(4, 2, 2) == pytest.approx(1 - 1 / 6) and pass_at(4, 2, 3) == 1.0
    assert pass_at(4, 0, 4) == 0.0 and pass_at(4, 1, 4) == 1.0


def test_majority_by_hand():
    # Of the 6 pairs one is right twice, one wrong twice, and four are a tie: (1 + 4 / 2) / 6.
    assert majority_at(2, [2], 0, 2) == pytest.approx(0.5)
    assert majority_at(1, [1, 1], 0, 3) == pytest.approx(1 / 3)  # three say three things
    assert majority_at(1, [], 2, 2) == pytest.approx(2 / 3)  # one of three pairs states nothing
    assert majority_at(0, [3], 1, 2) == 0.0


@pytest.mark.parametrize(("right", "wrong", "silent"), [
    (2, [2], 0), (3, [1, 2], 1), (1, [3], 2), (2, [2, 2], 1), (4, [], 0), (0, [1], 2), (1, [1, 1, 1], 1)])
def test_both_are_the_mean_over_all_choices(right, wrong, silent):
    said = ["right"] * right + [f"wrong {n}" for n, size in enumerate(wrong) for _ in range(size)] + [None] * silent
    for k in range(1, len(said) + 1):
        passed, majority = [], []
        for chosen in combinations(said, k):
            votes = Counter(word for word in chosen if word is not None)
            most = [word for word, count in votes.items() if count == max(votes.values())]
            passed.append("right" in chosen)
            majority.append(("right" in most) / len(most) if most else 0.0)
        assert pass_at(len(said), right, k) == pytest.approx(sum(passed) / len(passed))
        assert majority_at(right, wrong, silent, k) == pytest.approx(sum(majority) / len(majority))


def test_numbers_are_votes_and_the_mean_is_over_problems():
    def answer(index, number, strict=False):
        text = f"\n#### The final answer is {number}" if number else "I do not know"
        return Answer(index=index, question="", final_answer="7", completion=text, strict=strict, lenient=strict,
                      format=bool(number), truncated=False)

    # Problem 0: 7, 7.0, 5, 5.00. Problem 1: 7 and nothing else. Problem 2: 7, 5, 6 and nothing.
    answers = [answer(0, "7", True), answer(1, "7", True), answer(0, "7.0", True), answer(0, "5"), answer(0, "5.00"),
               answer(1, ""), answer(1, ""), answer(1, ""), answer(2, "7", True), answer(2, "5"), answer(2, "6"),
               answer(2, "")]
    found = several(answers)
    assert list(found) == ["pass@1", "maj@1", "pass@2", "maj@2", "pass@4", "maj@4"]
    assert found["pass@1"][0] == found["maj@1"][0] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert found["pass@2"][0] == pytest.approx((5 / 6 + 1 / 2 + 1 / 2) / 3)
    assert found["maj@2"][0] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    # 1/2, 1 and 1/3: mean 0.6111, variance 0.12037, half width 1.96 * sqrt(0.12037 / 3) = 0.3926.
    assert found["maj@4"] == pytest.approx((0.6111, 0.6111 - 0.3926, 1.0), abs=1e-4)
