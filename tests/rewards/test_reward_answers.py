"""Whose answer is whose: no line from a reward function's process is taken for that of another call, and nobody waits
for what does not come. 10 seconds.
"""

import io
import time
from pathlib import Path

import pytest
from reward_pools import MISLED, score, starting

from rewards.workers import pool
from rewards.workers.pool import RewardPool
from rewards.workers.requests import HEAD, read


@pytest.fixture
def start():
    with starting() as start:
        yield start


def test_a_keeper_that_a_function_stopped_is_given_up_and_replaced(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IMPORT_S", 30)
    monkeypatch.setattr(pool, "GRACE_S", 0.5)
    one, start_s = start("stops_its_keeper", timeout_s=0.5), time.monotonic()
    assert score(one, "bad").failures == {"stops_its_keeper": (1, MISLED)}
    assert time.monotonic() - start_s < 15  # 0.5 + 0.5: nothing is loaded, so no time is given for that
    assert score(one, "good", "fine").total == [1.0, 1.0]


SLOW_THE_SECOND_TIME = """
import os, pathlib, time
mark = pathlib.Path(__file__ + ".loaded")
time.sleep(3 if mark.exists() else 0)
mark.touch()
def dies(completions, **columns):
    return [os._exit(7) if text == "bad" else 1.0 for text in completions]
"""


def test_functions_that_are_loaded_anew_get_the_time_for_that(
    start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_THE_SECOND_TIME)
    monkeypatch.setattr(pool, "GRACE_S", 1)
    one = start(f"{tmp_path / 'slow.py'}:dies", timeout_s=1)
    assert score(one, "bad").failures == {"dies": (1, "ended with exit code 7")}
    assert score(one, "good").total == [1.0]  # after 3 seconds, more than the 1 + 1 of a call


@pytest.mark.parametrize(
    ("line", "own"),
    [
        ('{"values": [9.0]}\n', 0.0),
        ('2 {"values": [9.0]}\n', 0.0),
        ('1 {"values": [9.0]}\n1 {"values": [8.0]}\n', 0.0),
        ('1 {"values": [9.0]}\n', 9.0),  # of its own call: as good as what it returns
    ],
)
def test_a_line_that_a_function_writes_itself_answers_for_no_other_call(start, capfd, line: str, own: float) -> None:
    one = start("forges", "lengths")
    _, parts, failures, *_ = score(one, "four", line=[line])
    assert parts == {"forges": [own], "lengths": [4.0]}
    assert failures == ({} if own else {"forges": (1, MISLED)})
    assert "an answer came that this call did not ask for; they are loaded again" in capfd.readouterr().err
    assert [score(one, text, line=[""]).parts["lengths"] for text in ("a", "ab")] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ('1 {"values": [3.0]}\n', [3.0]),
        ('1 loads\n1 {"values": [3.0]}\n', [3.0]),
        ('1 {"values": [3.0], "metrics": {"a": [1.5, null]}, "extra": {"b": ["x"]}}\n', [3.0]),
        ('1 {"values": [3.0], "metrics": {"a": ["x"]}}\n', None),
        ('1 {"values": [3.0], "metrics": ["a"]}\n', None),
        ('1 {"values": [3.0], "extra": {"b": ["x", "y"]}}\n', None),
        ('1 {"values": [3.0], "extra": {"b": "x"}}\n', None),
        ('0 {"values": [3.0]}\n', None),
        ('2 {"values": [3.0]}\n', None),
        ('{"values": [3.0]}\n', None),
        ('1 {"values": [3.0]}\n\n', None),
        ('1 {"values": [1e39]}\n', None),
    ],
)
def test_the_trainer_takes_one_line_with_the_number_of_its_call(monkeypatch, said: str, values: list | None) -> None:
    script = """printf '0 {"values": []}\n'; head -c 1 > /dev/null; printf '%s' "$0"; cat > /dev/null"""
    monkeypatch.setattr(pool, "command", lambda *_: ["sh", "-c", script, said])
    one = RewardPool(["format"], None, timeout_s=10, memory_bytes=2**32)
    scored = score(one, "x")
    one.close()
    assert scored.parts["format"] == (values or [0.0])
    assert scored.failures == ({} if values else {"format": (1, MISLED)})


def test_half_a_request_is_none() -> None:
    whole = HEAD.pack(7, 3) + b"abc"
    assert read(io.BytesIO(whole)) == (7, b"abc")
    assert [read(io.BytesIO(whole[:end])) for end in range(len(whole))] == [None] * len(whole)
