"""Rewards cannot hurt the run: functions that hang, crash, swell, multiply, lie or print cost only rewards. 30 seconds.

Every misbehaviour is a real one, in a real worker. `bad` among the completions sets it off.
"""

import datetime
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ranks import ROOT
from reward_pools import CASES, MISLED, score, starting

import train
from rewards.math import correctness_reward, format_reward
from rewards.workers import pool
from rewards.workers.pool import RewardPool
from rewards.workers.processes import in_session

# Three children, the last of which leaves the session.
THREE = """
import os, time
for number in range(3):
    if os.fork() == 0:
        if number == 2:
            os.setsid()
        os.write(1, b".")
        break
time.sleep(60)
"""


@pytest.fixture
def start():
    with starting() as start:
        yield start


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def pid_in(path: Path) -> int:
    """The number that a process writes there, once it has."""
    give_up = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return int(path.read_text())


def test_processes_are_counted_by_their_session() -> None:
    with subprocess.Popen([sys.executable, "-c", THREE], stdout=subprocess.PIPE, start_new_session=True) as leader:
        try:
            assert leader.stdout.read(3) == b"..."
            assert in_session(leader.pid) == 3  # with the leader; of psutil's children are three
        finally:
            for process in [*psutil.Process(leader.pid).children(), leader]:
                process.kill()


def test_a_pool_gives_what_direct_calls_give_weighed_and_summed_and_keeps_state(start) -> None:
    marker = "\n#### The final answer is"
    texts, gold = [f"a{marker} 4", f"a{marker} 5", "none"], ["4", "4", "4"]
    one = start("format", "correctness", "counts", weights=[2.0, -0.5, 0.25])
    total, parts, failures, *_ = score(one, *texts, final_answer=gold)
    assert parts["format"] == format_reward(texts) == [0.5, 0.5, 0.0]
    assert parts["correctness"] == correctness_reward(texts, gold) == [1.0, 0.0, 0.0]
    assert parts["counts"][:2] == [1.0, 1.0] and math.isnan(parts["counts"][2])
    assert total == [0.75, 1.25, 0.0]  # 2*0.5 - 0.5*1 + 0.25; 2*0.5 + 0.25; nothing applies
    assert failures == {}
    assert score(one, "x", final_answer=["1"]).parts["counts"] == [2.0]


def test_columns_of_any_python_value_arrive(start) -> None:
    when = datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc)
    # 2024 + the byte 3 + 5
    assert score(start("reads"), "x", when=[when], raw=[b"\x00\x03"], deep=[{"a": (5,)}]).total == [2032.0]


def test_a_column_that_is_missing_is_refused(start) -> None:
    with pytest.raises(ValueError, match="'reads': missing a required argument: 'raw'"):
        start("reads").check_columns(["when", "deep"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("spins", "took more than 0.5 s"),
        ("backtracks", "took more than 0.5 s"),
        ("forks", "started more than 64 processes"),
        ("storms", "started more than 64 processes"),
        ("swells", "used more than 0.5 GiB"),
        ("raises", "raised ZeroDivisionError: division by zero (reward_cases.py:"),
        ("leaves", "raised SystemExit: enough (reward_cases.py:"),
        ("exits", "ended with exit code 7"),
        ("dies", "was killed by signal 9"),
        ("breaks", "was killed by signal 11"),
        ("kills_its_keeper", MISLED),
        ("lies", MISLED),
    ],
)
def test_only_the_completion_at_fault_loses_its_reward_and_the_next_call_is_fine(start, name: str, reason: str) -> None:
    one = start(name, "counts", timeout_s=0.5 if reason.startswith("took") else 60, memory_gib=0.5)
    total, parts, failures, *_ = score(one, "good", "bad", "fine")
    assert parts[name] == [1.0, 0.0, 1.0] and set(parts["counts"]) == {1.0}
    count, said = failures.pop(name)
    assert count == 1 and said.startswith(reason) and failures == {}
    assert score(one, "good", "fine").parts[name] == [1.0, 1.0]


def test_each_call_draws_from_the_seed_together_or_alone(start) -> None:
    scored = score(start("draws", "draws_one"), "a", "b", seed="7/3/0")
    drawn = random.Random("7/3/0")
    first, second = drawn.random(), drawn.random()
    assert scored.parts == {"draws": [first, second], "draws_one": [first, first]}


def test_limits_hold_between_two_calls_too(start, capfd: pytest.CaptureFixture) -> None:
    one, printed, give_up = start("swells_later", memory_gib=0.5), "", time.monotonic() + 30
    assert score(one, "a").total == [1.0]
    while "between two calls they used more than 0.5 GiB; they are loaded again" not in printed:
        assert time.monotonic() < give_up, printed
        time.sleep(0.05)
        printed += capfd.readouterr().err
    assert score(one, "a").failures == {}


def test_a_wrong_return_value_is_not_tried_again_and_fails_for_all(start) -> None:
    one = start("few", "word", "not_a_number", "lazy", "counts")
    total, parts, failures, *_ = score(one, "a", "b")
    assert failures == {
        "few": (2, "returned 1 values; must return a list of 2 numbers"),
        "word": (2, "returned str; must return a list of 2 numbers"),
        "not_a_number": (2, "returned nan for completion 0; must be a finite number of at most 1e+15 in size, or None "
                         "when it does not apply"),
        "lazy": (2, "returned generator; must return a list of 2 numbers"),
    }
    assert total == [1.0, 1.0] and all(parts[name] == [0.0, 0.0] for name in failures)


def test_a_value_that_its_weight_makes_too_large_fails_where_it_arises_and_both_are_named(start) -> None:
    total, _, failures, *_ = score(start("lengths", "counts", weights=[1e15, 1.0]), "a", "four")
    assert total == [1.0, 1.0]
    assert failures == {"lengths": (2, "returned 4 for completion 1; must be a finite number of at most 1 in size "
                                       "(1e+15 over its reward_weights of 1e+15), or None when it does not apply")}


def test_after_three_more_failures_the_rest_is_not_tried_and_counts_as_failed(start, tmp_path: Path) -> None:
    log = tmp_path / "log"
    count, reason = score(start("notes"), *"abcdefgh", log=[str(log)] * 8).failures["notes"]
    assert (count, reason.partition(" (")[0]) == (8, r"raised KeyError: 'no\nsuch key'")
    assert log.read_text().split() == ["8", "1", "1", "1"]


def test_a_call_that_fails_only_as_a_whole_is_told_but_costs_nothing(start) -> None:
    _, parts, failures, *_ = score(start("one_by_one"), "a", "b")
    assert parts["one_by_one"] == [1.0, 1.0]
    count, reason = failures["one_by_one"]
    assert count == 0 and reason.startswith("raised KeyError") and reason.endswith("when called with all of them")


def test_a_gigabyte_of_output_is_dropped_but_for_its_first_64_kib(start, capfd: pytest.CaptureFixture) -> None:
    assert score(start("prints", timeout_s=60), "a").failures == {}
    printed = capfd.readouterr().err
    assert printed.count("o") + printed.count("e") < 2**16 + 200
    assert "dropped 1,073,676,288 bytes" in printed  # 2**30 - 2**16


def test_a_child_that_returns_from_the_function_too_does_not_answer(start) -> None:
    one = start("comes_back_twice", "counts")
    assert [score(one, "a", "b").total for _ in range(3)] == [[2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]


def test_the_caller_hears_that_it_waits_and_may_give_up(start) -> None:
    one, waited = start("waits", "counts"), []
    score_one = {"prompts": ["p"], "completions": ["a"], "completion_ids": [[1]], "columns": {}, "trainer_state": {}}
    one.score(**score_one, on_wait=lambda: waited.append(0))
    assert len(waited) == 1  # in 1.3 s, once a second

    def give_up() -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        one.score(**score_one, on_wait=give_up)
    assert one.score(**score_one).parts == {"waits": [1.0], "counts": [1.0]}  # no late answer is taken for its


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("1 / 0", r"importing it raised ZeroDivisionError: division by zero \(broken.py:1\)"),
        ("while True: pass", "loading them took more than 1 s"),
        ("import os; os._exit(3)", "loading them ended with exit code 3"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    monkeypatch.setattr(pool, "IMPORT_S", 1 if "while" in code else 60)
    others = set(psutil.Process().children(recursive=True))
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(ValueError, match=f"^reward_funcs=.*broken.py:f.*{reason}") as caught:
        RewardPool([f"{tmp_path / 'broken.py'}:f"], None, timeout_s=10, memory_bytes=2**32)
    assert "\n" not in str(caught.value)
    assert set(psutil.Process().children(recursive=True)) <= others


TRAINER = """
import sys
from rewards.workers.pool import RewardPool
file, name, pids = sys.argv[1:]
one = RewardPool([f"{file}:daemon", f"{file}:{name}"], None, timeout_s=1000, memory_bytes=2**32)
one.score(prompts=["p"], completions=["bad"], completion_ids=[[1]], columns={"pids": [pids]}, trainer_state={})
"""


@pytest.mark.parametrize("name", ["spins", "stops_its_keeper"])
def test_nothing_is_left_when_the_trainer_is_killed_in_the_middle_of_a_call(tmp_path: Path, name: str) -> None:
    pids = tmp_path / "pids"
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(CASES), name, str(pids)], cwd=ROOT)
    try:
        daemon = pid_in(pids)
        time.sleep(0.2)  # now it is in the other function
        processes = psutil.Process(trainer.pid).children(recursive=True)
        assert len(processes) == 3 and daemon in [process.pid for process in processes]
    finally:
        trainer.kill()
        trainer.wait()
    give_up = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert [process for process in processes if alive(process)] == []


def test_closing_ends_what_a_function_left_behind(start, tmp_path: Path) -> None:
    one = start("daemon")
    assert score(one, "a", pids=[str(tmp_path / "pids")]).total == [1.0]
    daemon = psutil.Process(pid_in(tmp_path / "pids"))
    assert alive(daemon)
    one.close()
    assert not alive(daemon)


FAILS_ONE_OF_FOUR = """
alone = 0
def picky(completions, **columns):
    global alone
    if len(completions) > 1:
        raise RuntimeError("one by one, please")
    alone += 1
    if alone % 4 == 2:
        raise RuntimeError("not this one")
    return [1.0]
"""


def test_a_run_goes_on_warns_once_a_step_and_logs_the_share(begin, tmp_path: Path, capfd) -> None:
    (tmp_path / "picky.py").write_text(FAILS_ONE_OF_FOUR)
    options = {
        "model_name_or_path": ROOT / "data/tiny_qwen2", "reward_funcs": f"{tmp_path / 'picky.py'}:picky",
        "max_steps": 2, "prompts_per_step": 2, "num_generations": 2, "max_completion_length": 4, "eval_examples": 0,
        "max_reward_failures": 0.25, "output_dir": tmp_path / "out", "save_strategy": "no"}
    train.follow(begin(*(word for name, value in options.items() for word in (f"--{name}", str(value)))))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning: reward" in line]
    assert warnings == [
        f"[rank 0 step {step}] warning: reward function 'picky' failed on 1 of 4 completions (raised RuntimeError: not "
        "this one (picky.py:9)): they get 0" for step in (0, 1)]
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["reward_failures"], row["reward"]) for row in metrics] == [(0.25, 0.75)] * 2
