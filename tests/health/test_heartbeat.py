"""Who is to blame when a run stands still, worked out by hand; and what a user reads. One second."""

import json
import socket
import time
from collections.abc import Iterator

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from grpo import distributed
from grpo.health import heartbeat, last_words
from grpo.health import pulse as pulses
from grpo.health.pulse import Pulse, describe
from grpo.report.json_lines import JsonLines

MOVING = {"rank": 0, "step": 3, "phase": "rollout", "place": "a.py:1 in f", "quiet_s": 0.0, "idle_s": 0.0,
          "waits": False}


def trouble(others: list[dict] | None = None, patience_s: float = 1800, **changed: object) -> str:
    pulse = Pulse()
    pulse.patience_s = patience_s
    return pulse.trouble(MOVING | changed, others)


def test_a_dead_or_stopped_or_sleeping_rank_ends_all_within_30_seconds() -> None:
    # A sleeper is found after IDLE_S, a frozen process after SILENCE_S; then a beat, the grace, and a beat to hear it.
    found_s = max(pulses.IDLE_S, heartbeat.SILENCE_S) + 2 * heartbeat.BEAT_S
    assert found_s + heartbeat.GRACE_S + heartbeat.FAREWELL_S < 30
    # A rank that has said why it fails waits for the verdict.
    assert heartbeat.GRACE_S + heartbeat.FAREWELL_S + heartbeat.BEAT_S < heartbeat.LAST_WORDS_S


@pytest.fixture
def group() -> Iterator[None]:
    """This process is rank 0, and no other one is there."""
    with distributed.as_before():
        distributed.start(60)
        yield


@pytest.mark.usefixtures("group")
def test_the_only_rank_says_below_its_progress_bar_how_the_run_goes_on(capsys: pytest.CaptureFixture) -> None:
    heartbeat.start(60)
    last_words.advise("step-5 is saved")
    pulses.pulse.enter("rollout", 7)
    assert heartbeat.fail("error: no space", 1) == 1
    assert capsys.readouterr().err == "\nerror: no space\nstep-5 is saved\n"


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("lasts_s", [0.0, 100.0], ids=["quick", "never done"])
def test_before_a_verdict_ends_this_rank_it_says_farewell_for_some_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, lasts_s: float
) -> None:
    class Exit(Exception):
        pass

    def end(code: int) -> None:
        raise Exit(code)

    monkeypatch.setattr(heartbeat, "FAREWELL_S", 0.3)
    monkeypatch.setattr(heartbeat.os, "_exit", end)
    here, there = socket.socketpair()
    there.setblocking(False)
    heart, heard = heartbeat.Heart(), []
    heart.wires = [heartbeat.Wire(here, 1, ("host", 8))]
    monkeypatch.setattr(heartbeat, "_heart", heart)

    def farewell() -> None:
        with pytest.raises(BlockingIOError):
            there.recv(1)  # nobody has been told yet
        heard.append("farewell")
        time.sleep(lasts_s)

    heartbeat.before_end(farewell)
    start = time.monotonic()
    with pytest.raises(Exit):
        heart._end({"rank": 1, "text": "error: [rank 1 step 2 update] is dead", "code": 1})
    assert heard == ["farewell"] and time.monotonic() - start < 10
    assert b"verdict" in there.recv(4096) and "is dead" in capsys.readouterr().err
    here.close()
    there.close()


def test_a_rank_that_computes_is_left_alone_however_long_it_takes() -> None:
    assert trouble() == "" and trouble(quiet_s=1799.0) == ""


def test_a_rank_that_does_nothing_is_to_blame_unless_it_waits_for_others_or_for_a_disk() -> None:
    assert trouble(idle_s=21.0) == "stands still: nothing has moved for 20 s at a.py:1 in f"
    assert trouble(idle_s=19.0) == "" and trouble(idle_s=21.0, waits=True) == ""
    assert trouble(idle_s=21.0, phase="save") == "" and trouble(idle_s=21.0, phase="start") == ""


def test_an_endless_loop_ends_with_the_patience() -> None:
    assert "no progress for ddp_timeout=60 s at a.py:1" in trouble(quiet_s=61.0, patience_s=60)
    assert trouble(quiet_s=61.0, patience_s=60, waits=True) == "", "others are late"


def test_all_waiting_for_each_other_is_a_deadlock_and_one_that_computes_is_none() -> None:
    waiting = MOVING | {"rank": 1, "waits": True, "idle_s": 25.0, "place": "b.py:2 in g"}
    said = trouble([waiting], idle_s=22.0, waits=True)
    assert said == "at a.py:1 in f: all ranks wait for each other: [rank 1 step 3 rollout] at b.py:2 in g"
    assert trouble([waiting | {"waits": False, "idle_s": 0.0}], idle_s=22.0, waits=True) == ""


def test_a_pulse_sees_progress_and_work_and_their_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [100.0], [5.0]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pulses.time, "process_time", lambda: used[0])
    pulse = Pulse()
    pulse.enter("update", 4)
    now[0] += 10  # ten seconds, half a second of work: 5 % of a core
    used[0] += 0.5
    assert (pulse.take()["quiet_s"], pulse.take()["idle_s"]) == (0.0, 0.0), "entering the phase was progress"
    now[0] += 10
    used[0] += 0.5
    said = pulse.take()
    assert (said["quiet_s"], said["idle_s"], said["step"], said["phase"]) == (10.0, 0.0, 4, "update")
    now[0] += 10
    used[0] += 0.1  # 1 %: that is the heartbeat
    assert (pulse.take()["quiet_s"], pulse.take()["idle_s"]) == (20.0, 10.0)
    assert not said["waits"]


def test_a_process_that_was_stopped_as_a_whole_has_not_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pulses.time, "process_time", lambda: 5.0)
    pulse = Pulse()
    pulse.patience_s = 1800.0
    pulse.enter("update", 4)
    pulse.take()
    now[0] += 2000  # SIGSTOP, as schedulers suspend a job: the heartbeat's thread, too, has not looked
    assert pulse.trouble(pulse.take()) == ""
    for _ in range(21):
        now[0] += 1
        said = pulse.take()
    assert pulse.trouble(said).startswith("stands still: nothing has moved for 20 s")


def test_messages_name_rank_step_and_phase() -> None:
    assert describe({"rank": 3, "step": 0, "phase": "reward"}) == "[rank 3 step 0 reward]"
    assert describe({"rank": 1}) == "[rank 1 start]"
    assert last_words.words(SystemExit("error: said already")) == "error: said already"
    assert last_words.words(OSError(28, "No space left on device", "x")).startswith("error: [rank ")
    assert "Traceback" not in last_words.words(OSError(28, "No space left on device"))
    try:
        raise KeyError("k")
    except KeyError as error:
        *trace, last = last_words.words(error).splitlines()
    assert trace[0].startswith("Traceback") and last.endswith("] KeyError: 'k'")


def test_a_line_that_is_cut_off_costs_itself_alone() -> None:
    here, there = socket.socketpair()
    wire = heartbeat.Wire(here, 1, ["host", 7])
    there.sendall(b'{"pulse": {"rank": 1}}\n{"pulse": {"ra{"pulse": {}}\n["pulse"]\n\xff\n{"failed": 1}\n{"pul')
    assert wire.receive() == [{"pulse": {"rank": 1}}, {"failed": 1}]
    heartbeat.Wire(there, 0, ["host", 8]).send({"verdict": {"code": 1}})  # behind what its time-out has cut off
    assert wire.receive() == [{"verdict": {"code": 1}}]
    there.close()
    assert wire.receive() is None
    here.close()


def test_a_log_with_broken_lines_is_continued_without_them(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n\xff\xfe\n{"step": 1, "x": \n[]\n{"step": 2}\n{"step": 3}\n{"ste')
    JsonLines(path, 3).append([{"step": 3, "x": float("inf")}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0}, {"step": 2}, {"step": 3, "x": None}]


def test_the_message_is_the_end_of_torchrun_s_page(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    last_words.say("error: max_steps=0 must be -1 or at least 1; nearest valid value: 1")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    *_, before_border, border = str(ChildFailedError("train.py", {0: failure})).strip().splitlines()
    assert before_border == "  traceback : error: max_steps=0 must be -1 or at least 1; nearest valid value: 1"
    assert set(border) == {"="} and "max_steps=0" in capsys.readouterr().err
