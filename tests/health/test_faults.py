"""Accidents in the middle of a run, each planted into real ranks: what a user sees, how it ends, and what is lost.

tests/faults.md is the table. No launcher helps here: the ranks end by themselves, within seconds, with one message,
and the run goes on from the step before as if nothing had been. 150 seconds.
"""

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from fault_runs import lines, numbers, options, prepare, texts
from faults import MOST_S, Warm, torchrun
from safetensors.torch import load_file

from grpo.saving.sealed_folder import damage

STEP = 2  # the step that the accident happens in: checkpoints step-1 and step-2 are there, step-3 is not
WRITING = ("writing", "written", "sealed", "published")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, warm: Warm) -> Path:
    """The run that nothing happens to."""
    assert warm.run(*options(folder, "whole")).codes == [0, 0]
    return folder / "whole"


@pytest.fixture(autouse=True)
def nobody_is_left_behind(warm: Warm) -> Iterator[None]:
    yield
    assert psutil.Process(warm.process).children(recursive=True) == []


def assert_goes_on(folder: Path, warm: Warm, whole: Path, output: str) -> None:
    """Resumed, the run ends with the texts and numbers of the one that nothing happened to."""
    assert warm.run(*options(folder, output), "--resume").codes == [0, 0]
    assert texts(folder / output) == texts(whole) and numbers(folder / output) == numbers(whole)


@pytest.mark.parametrize(
    ("where", "phase", "rank"),
    [("rollout", "rollout", 0), ("rollout", "rollout", 1), ("reward", "reward", 1), ("forward", "update", 1),
     ("backward", "update", 0), ("optimizer", "update", 0), ("optimizer", "update", 1)])
def test_a_rank_that_is_killed_ends_both_and_costs_one_step(
    folder: Path, warm: Warm, whole: Path, where: str, phase: str, rank: int
) -> None:
    output = f"{where}{rank}"
    stage = 3 if where in ("forward", "backward") else 2  # where the other rank waits for this one's weights
    ended = warm.run(*options(folder, output, zero_stage=stage), plant=f"kill('{where}', rank={rank}, step={STEP})")
    assert ended.codes[rank] == -signal.SIGKILL and ended.codes[1 - rank] == 1 and ended.seconds < MOST_S
    assert ended.messages() == [f"error: [rank {rank} step {STEP} {phase}] is dead: its process has ended"]
    assert f"step-{STEP} is saved: go on with the same command and --resume" in ended.err[1 - rank]
    assert "Traceback" not in "".join(ended.err)
    assert len(lines(folder / output / "metrics.jsonl")) == STEP
    if where == "optimizer":
        assert_goes_on(folder, warm, whole, output)


@pytest.mark.parametrize("where", WRITING)
def test_a_kill_in_the_middle_of_writing_a_checkpoint_leaves_the_one_before(
    folder: Path, warm: Warm, whole: Path, where: str
) -> None:
    ended = warm.run(
        *options(folder, where, save_total_limit=1), plant=f"kill('{where}', rank=0, step={STEP})")
    assert ended.codes == [-signal.SIGKILL, 1]
    assert ended.messages() == [f"error: [rank 0 step {STEP} save] is dead: its process has ended"]
    found = {path.name for path in (folder / where / "checkpoints").glob("step-*") if not damage(path)}
    assert found == ({"step-2", "step-3"} if where == "published" else {"step-2"})
    assert_goes_on(folder, warm, whole, where)
    assert not list((folder / where / "checkpoints").glob(".*"))


def test_an_error_that_nobody_expects_is_told_once_with_its_traceback(folder: Path, warm: Warm) -> None:
    ended = warm.run(*options(folder, "raises"), plant=f"fail('reference', rank=1, step={STEP})")
    assert ended.codes == [1, 1]
    assert ended.messages() == [f"error: [rank 1 step {STEP} reference] KeyError: 'planted'"]
    assert ended.err[0].count("Traceback") == 1 and "Traceback" not in ended.err[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_sleeps_is_told_from_the_one_that_waits_for_it(folder: Path, warm: Warm, rank: int) -> None:
    store, reports = folder / f"store{rank}", importlib.util.find_spec("mlflow") and rank == 1
    plant = (f"(quick(), sleep('reference', rank={rank}, step={STEP}), "
             f"environ(MLFLOW_TRACKING_URI='file:{store}', MLFLOW_ALLOW_FILE_STORE='true'))")
    ended = warm.run(*options(folder, f"sleeps{rank}", **({"report_to": "mlflow"} if reports else {})), plant=plant)
    assert ended.codes == [1, 1]
    (message,) = ended.messages()
    assert message.startswith(f"error: [rank {rank} step {STEP} reference] stands still: nothing has moved for 3 s at ")
    assert "plants.py" in message
    if reports:  # rank 0 did not fail, it waits: its heartbeat has told
        (run,) = store.glob("*/*/meta.yaml")
        assert yaml.safe_load(run.read_text())["status"] == 4, "MLflow's number for FAILED; 1 is RUNNING"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_frozen_is_found_and_killed(folder: Path, warm: Warm, rank: int) -> None:
    ended = warm.run(*options(folder, f"frozen{rank}"),
                     plant=f"(quick(), freeze('update', rank={rank}, step={STEP}))")
    assert ended.codes[rank] == -signal.SIGKILL and ended.codes[1 - rank] == 1
    (message,) = ended.messages()
    assert message.startswith(f"error: [rank {rank} step {STEP} update] has said nothing for 4 s")


def test_ranks_that_wait_for_each_other_are_named_with_the_places(folder: Path, warm: Warm) -> None:
    ended = warm.run(*options(folder, "deadlock"), plant=f"(quick(), deadlock('reference', rank=1, step={STEP}))")
    assert ended.codes == [1, 1]
    (message,) = ended.messages()
    assert "all ranks wait for each other: [rank 1" in message and message.count("distributed_c10d.py") == 2, message


def test_a_clock_that_jumps_changes_nothing(folder: Path, warm: Warm, whole: Path) -> None:
    assert warm.run(*options(folder, "clock"), plant="jump('reference', rank=1, step=1)").codes == [0, 0]
    assert texts(folder / "clock") == texts(whole) and numbers(folder / "clock") == numbers(whole)


def test_only_the_newest_checkpoints_are_kept(folder: Path, warm: Warm) -> None:
    assert warm.run(*options(folder, "few", save_total_limit=2), num_ranks=1).codes == [0]
    assert sorted(path.name for path in (folder / "few" / "checkpoints").iterdir()) == ["step-3", "step-4"]


def test_gradients_that_are_not_finite_skip_the_step_on_both_and_keep_the_batch(folder: Path, warm: Warm) -> None:
    ended = warm.run(*options(folder, "skips"), plant="poison(rank=1, first=1, last=2)")
    assert ended.codes == [0, 0]
    assert [row["skipped_steps"] for row in lines(folder / "skips" / "metrics.jsonl")] == [0, 1, 2, 2]
    kept = load_file(folder / "skips" / "skipped" / "step-1.safetensors")
    assert kept["token_NT"].shape[0] == kept["advantage_N"].shape[0] == 4
    assert len(json.loads((folder / "skips" / "skipped" / "step-1.json").read_text())["completion"]) == 4


def test_too_many_skipped_steps_in_a_row_end_the_run(folder: Path, warm: Warm) -> None:
    ended = warm.run(*options(folder, "poisoned", max_skipped_steps=1), plant="poison(rank=0, first=1, last=9)")
    assert ended.codes == [1, 1]
    (message,) = ended.messages()
    assert "step 2" in message and "max_skipped_steps=1" in message and "learning_rate" in message
    (start,) = json.loads((folder / "poisoned" / "run.json").read_text())
    # Both ranks end of it, and either may be the first to say so; the file has the words of rank 0.
    said, written = (text.partition("] ")[2] for text in (message, start["reason"]))
    assert start["ending"] == "failed" and written and said.startswith(written)


def test_a_weight_that_is_no_number_ends_the_run_with_what_to_do(folder: Path, warm: Warm) -> None:
    ended = warm.run(*options(folder, "spoilt"), plant=f"spoil(step={STEP})")
    assert ended.codes == [1, 1]
    (message,) = ended.messages()
    assert f"step {STEP} sync] FloatingPointError: a trained weight is not finite: lower learning_rate" in message


def test_a_rank_that_is_killed_while_it_loads_ends_both(folder: Path, warm: Warm) -> None:
    ended = warm.run(*options(folder, "unborn"), plant="kill('loading', rank=1, step=None)")
    assert ended.codes == [1, -signal.SIGKILL] and ended.seconds < MOST_S
    assert ended.messages() == ["error: [rank 1 start] is dead: its process has ended"]
    assert not (folder / "unborn").exists()


def test_strangers_at_the_port_before_the_last_rank_neither_end_nor_delay_the_run(folder: Path, warm: Warm) -> None:
    start = time.monotonic()
    ended = warm.run(*options(folder, "strangers", max_steps=1), plant="strangers()")
    assert ended.codes == [0, 0] and ended.messages() == [] and time.monotonic() - start < 60


def test_a_second_interrupt_ends_both_now_with_one_line(folder: Path, warm: Warm) -> None:
    pids = warm.begin(*options(folder, "interrupted"), plant="linger('update', step=2, seconds=20)")
    warm.wait_for("lingers")
    for _ in range(2):
        time.sleep(0.2)
        for pid in pids:
            os.kill(pid, signal.SIGINT)
    start = time.monotonic()
    ended = warm.end()
    assert time.monotonic() - start < 15
    assert "SIGINT: stops and saves; an update is finished first; Ctrl-C again ends it now" in ended.err[0]
    (message,) = ended.messages()
    assert ended.codes == [1, 1] and message.endswith("KeyboardInterrupt") and "Traceback" not in "".join(ended.err)
    assert "is saved: go on with the same command and --resume" in ended.err[0]


@pytest.mark.parametrize("how", ["truncated", "flipped", "unlisted"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    folder: Path, warm: Warm, whole: Path, tmp_path: Path, how: str
) -> None:
    output = f"damaged_{how}"
    subprocess.run(["cp", "-r", str(whole), str(folder / output)], check=True)
    newest = folder / output / "checkpoints" / "step-4"
    state = newest / "state.safetensors"
    content = bytearray(state.read_bytes())
    if how == "truncated":
        state.write_bytes(content[:-100])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        (newest / "SHA256SUMS").unlink()
    ended = warm.run(*options(folder, output), "--resume")
    assert ended.codes == [0, 0]
    expected = "SHA256SUMS is missing" if how == "unlisted" else "state.safetensors is not what was written"
    assert f"step-4 is damaged and passed over: {expected}" in ended.out[0]
    assert "step-3" in ended.out[0] and numbers(folder / output) == numbers(whole)
    for path in (folder / output / "checkpoints").iterdir():
        assert not damage(path), path


def test_a_run_without_a_whole_checkpoint_is_refused(folder: Path, warm: Warm, whole: Path) -> None:
    subprocess.run(["cp", "-r", str(whole), str(folder / "hopeless")], check=True)
    for path in (folder / "hopeless" / "checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    ended = warm.run(*options(folder, "hopeless"), "--resume")
    assert ended.codes == [2, 2]
    (message,) = ended.messages()
    assert "resume=True needs a whole checkpoint" in message and message.count("is damaged") == 4


def test_torchrun_ends_within_30_seconds_of_a_rank_s_death(folder: Path) -> None:
    process, ranks = torchrun(folder / "launched", *options(folder, "launched", max_steps=1000))
    start = time.monotonic()
    ranks[1].kill()
    err = process.communicate()[1]
    assert process.returncode != 0 and time.monotonic() - start < 30
    assert len([line for line in err.splitlines() if line.startswith("error: ") and "is dead" in line]) == 1
    assert not any(rank.is_running() for rank in ranks)
