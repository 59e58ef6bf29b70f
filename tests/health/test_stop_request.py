"""SIGTERM, SIGUSR1, Ctrl-C: what can be done again is left, an update is finished, then all is saved. A minute."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from fault_runs import numbers, options, prepare, texts
from faults import Warm

from grpo.health.stop_request import Stopped, StopRequest
from grpo.saving.sealed_folder import damage

MOST_S = 30.0  # until ranks that are asked have ended; what they would have gone on with takes 40 s and more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop")
    prepare(folder)
    return folder


def evaluated(folder: Path, output: str, **changed: object) -> list[str]:
    """The small run with four held-out problems; no checkpoint but the one of a stop."""
    return options(folder, output, test_dataset_id_or_path=folder / "data.json", eval_examples=4,
                   max_completion_length=16, save_strategy="no", **changed)


@pytest.fixture(scope="module")
def whole(folder: Path, warm: Warm) -> Path:
    """The run that nobody asks to stop."""
    ended = warm.run(*evaluated(folder, "whole"))
    assert ended.codes == [0, 0], ended.err[0]
    return folder / "whole"


@pytest.mark.parametrize(
    ("name", "to", "phase", "step", "done"),
    [("SIGTERM", [0, 1], "rollout", 2, 2), ("SIGINT", [0, 1], "rollout", 0, 0),
     ("SIGTERM", [0, 1], "evaluate", None, 0), ("SIGTERM", [0, 1], "evaluate", 3, 4),
     ("SIGUSR1", [1], "rollout", 2, 2)],
    ids=["sampling", "Ctrl-C in the first step", "the evaluation before", "the evaluation after", "one rank alone"])
def test_a_request_to_stop_leaves_what_can_be_done_again_saves_and_exits_with_0(
    folder: Path, warm: Warm, whole: Path, name: str, to: list[int], phase: str, step: int | None, done: int
) -> None:
    output = folder / f"{name}{phase}{step}"
    seconds = 2.5 if len(to) == 2 else 0.2  # a rank that nobody has told comes to the end of its 16 tokens first
    pids = warm.begin(*evaluated(folder, output.name), plant=f"linger('{phase}', step={step}, seconds={seconds})")
    warm.wait_for("lingers")
    start = time.monotonic()
    for rank in to:
        os.kill(pids[rank], getattr(signal, name))
    ended = warm.end()
    assert time.monotonic() - start < MOST_S
    assert ended.codes == [0, 0] and ended.messages() == [], ended.err[0]
    (saved,) = (output / "checkpoints").iterdir()
    assert saved.name == f"step-{done}" and not damage(saved)
    assert f"stopped as asked after {done} of 4 steps; step-{done} is saved: go on" in ended.out[0]
    assert (f"{name}: stops and saves; an update is finished first" in ended.err[0]) == (0 in to)
    headline = f"The run was stopped as asked {f'after {done} of 4 steps' if 0 < done < 4 else ''}"
    assert headline in (output / "report.html").read_text()
    ended = warm.run(*evaluated(folder, output.name), "--resume")
    assert ended.codes == [0, 0], ended.err[0]
    starts = json.loads((output / "run.json").read_text())
    assert [(start["first_step"], start["ending"]) for start in starts] == [(0, "stopped"), (done, "finished")]
    assert texts(output) == texts(whole) and numbers(output) == numbers(whole)
    for file in sorted((whole / "evaluation").iterdir()):
        assert (output / "evaluation" / file.name).read_bytes() == file.read_bytes()


def test_a_reward_that_takes_long_is_left_too(folder: Path, warm: Warm) -> None:
    (folder / "slow.py").write_text(
        "import time\n\ndef slow(completions, **columns):\n    time.sleep(50)\n    return [1.0] * len(completions)\n")
    changed = {"reward_funcs": f"{folder / 'slow.py'}:slow", "save_strategy": "no"}
    pids = warm.begin(*options(folder, "slow", **changed), plant="tell('reward', step=0)")
    warm.wait_for("lingers")
    start = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    ended = warm.end()
    assert ended.codes == [0, 0] and time.monotonic() - start < MOST_S, ended.err[0]
    assert [path.name for path in (folder / "slow" / "checkpoints").iterdir()] == ["step-0"]


def test_what_is_saved_is_not_saved_again(folder: Path, warm: Warm) -> None:
    pids = warm.begin(*options(folder, "once"), plant="linger('rollout', step=2)")
    warm.wait_for("lingers")
    state = folder / "once" / "checkpoints" / "step-2" / "state.json"
    written_ns = state.stat().st_mtime_ns
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert warm.end().codes == [0, 0]
    assert state.stat().st_mtime_ns == written_ns


def test_signals_do_again_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    request = StopRequest()
    with request.listening():
        request.leave()  # nobody has asked
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped):
            request.leave()
    request.leave()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_second_interrupt_is_one_whatever_signals_come_between() -> None:
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
