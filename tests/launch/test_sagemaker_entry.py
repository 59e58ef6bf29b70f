"""What runs in a container of a SageMaker job, in a folder that stands for /opt/ml. 10 seconds."""

import importlib.util
import json
import os
import shlex
from pathlib import Path

import fault_runs
import pytest
from faults import Warm
from ranks import ROOT

from grpo.run.command import load
from recipes.launch import sagemaker_entry
from recipes.launch.sagemaker_entry import hand_over, options

ENTRY = "recipes/launch/sagemaker_entry.py"
VENV = Path(os.environ.get("SAGEMAKER_PYTHON", ROOT / ".venv-sagemaker" / "bin" / "python")).parents[1]
(SDK,) = [*VENV.glob("lib/python3.*/site-packages/sagemaker/train")] or [None]


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """The variables of a container whose channels hold a file each."""
    env = {"CONFIG_PATH": "recipes/qwen2.5-0.5b-gsm8k.yaml", "CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
           "SM_MODEL_DIR": str(tmp_path / "handed")}
    for channel, name in (("TRAIN", "train"), ("VAL", "validation")):
        folder = tmp_path / "input" / "data" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.json").write_text(json.dumps([{"prompt": "1 + 1 =", "final_answer": "2"}] * 20))
        env[f"SM_CHANNEL_{channel}"] = str(folder)
    return env


def test_the_channels_are_the_data_and_options_of_the_job_come_last(container: dict[str, str], tmp_path: Path) -> None:
    given = options(["--options", "--run_name 'two words' --report_to none"], container)
    assert given == [
        "--config", "recipes/qwen2.5-0.5b-gsm8k.yaml", "--output_dir", str(tmp_path / "checkpoints" / "run"),
        "--train_dataset_id_or_path", str(tmp_path / "input/data/train/train.json"),
        "--test_dataset_id_or_path", str(tmp_path / "input/data/validation/validation.json"),
        "--run_name", "two words", "--report_to", "none"]
    config = load(given)
    assert (config.num_shots, config.run_name, config.learning_rate) == (8, "two words", 1.84e-4)
    del container["SM_CHANNEL_VAL"], container["SM_CHANNEL_TRAIN"]
    assert options([], container)[4:] == []  # the recipe's own data
    assert options([], {"CONFIG_PATH": "a.yaml"})[3] == "/opt/ml/checkpoints/run"


def test_a_job_that_starts_again_resumes_only_where_a_checkpoint_is(container: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "run"
    (run / "checkpoints").mkdir(parents=True)
    assert "--resume" not in options([], container)
    (run / "checkpoints" / "step-50").mkdir()
    assert "--resume" in options([], container)


@pytest.mark.parametrize(("env", "line"), [
    ({"CONFIG_PATH": ""}, "error: CONFIG_PATH='' must name a recipe in the job's environment; nearest valid value: "
     "recipes/qwen2.5-0.5b-gsm8k.yaml\n"),
    ({"CONFIG_PATH": "recipes/toi.yaml"}, "error: config='recipes/toi.yaml' must be a recipe file; nearest valid "
     "value: recipes/toy.yaml\n"),
    ({"SM_CHANNEL_TRAIN": "{tmp}"}, "error: SM_CHANNEL_TRAIN='{tmp}' must hold one file, and holds 2; nearest valid "
     "value: the S3 address of a file\n"),
    ({"CHECKPOINT_DIR": "{tmp}/a"}, "error: output_dir='{tmp}/a/run' cannot be made: {tmp}/a is no folder; nearest "
     "valid value: {tmp}/a-2\n"),
], ids=["no recipe", "no such recipe", "two files", "checkpoints cannot be written"])
def test_what_is_wrong_with_a_container_is_one_line(
    container: dict[str, str], tmp_path: Path, env: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    for name, value in (container | env).items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sagemaker_entry.main(["--options", "--report_to none"]) == 2
    assert capsys.readouterr().err == line.format(tmp=tmp_path)


def test_a_lost_spot_machine_costs_the_step_in_flight_and_the_model_is_handed_over(tmp_path: Path, warm: Warm) -> None:
    fault_runs.prepare(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "data.json").rename(tmp_path / "train" / "data.json")
    argv = fault_runs.options(tmp_path, "checkpoints/run", max_steps=2)
    for name in ("--train_dataset_id_or_path", "--output_dir"):
        place = argv.index(name)
        del argv[place:place + 2]  # the container says it
    (tmp_path / "recipe.yaml").write_text("beta: 0.5\n")
    env = {"CONFIG_PATH": str(tmp_path / "recipe.yaml"), "CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
           "SM_CHANNEL_TRAIN": str(tmp_path / "train"), "SM_MODEL_DIR": str(tmp_path / "handed")}
    job = ["--options", shlex.join(argv)]
    start = f"os.environ.update({env!r})"
    lost = warm.run(*job, num_ranks=1, program="recipes.launch.sagemaker_entry",
                    plant=f"({start}, kill('rollout', rank=0, step=1))")
    assert lost.codes == [-9] and not (tmp_path / "handed").exists(), lost.err[0]
    ended = warm.run(*job, num_ranks=1, program="recipes.launch.sagemaker_entry", plant=start)
    assert ended.codes == [0], ended.err[0]
    run = tmp_path / "checkpoints" / "run"
    assert f"goes on from {run / 'checkpoints' / 'step-1'}" in ended.out[0]
    assert [row["step"] for row in fault_runs.lines(run / "metrics.jsonl")] == [0, 1]
    handed = {path.name for path in (tmp_path / "handed").iterdir()}
    assert handed == {"adapter", "summary.json", "report.html", "config.yaml"}
    weights = Path("adapter", "adapter_model.safetensors")
    assert (tmp_path / "handed" / weights).read_bytes() == (run / weights).read_bytes()


@pytest.mark.parametrize("word", ["--output_dir", "--resume=true", "--train_dataset_id_or_path"])
def test_an_option_that_the_job_gives_itself_is_refused(container: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=f"{word}' is given by the job itself"):
        options(["--options", f"--beta 0 {word} x"], container)


def test_weights_of_all_are_handed_over_as_well(container: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "model.safetensors").write_text("weights")
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    hand_over(container)
    assert [path.name for path in (tmp_path / "handed").rglob("*")] == ["model", "model.safetensors"]


@pytest.mark.skipif(SDK is None, reason="needs .venv-sagemaker (tests/launch/test_sagemaker_job.py)")
def test_the_driver_of_the_job_starts_this_file_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own code, which the container runs: two machines of eight GPUs."""
    drivers = SDK / "container_drivers"
    monkeypatch.syspath_prepend(drivers)
    spec = importlib.util.spec_from_file_location("driver", drivers / "distributed_drivers" / "torchrun_driver.py")
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    for name, value in {
        "SM_ENTRY_SCRIPT": ENTRY, "SM_DISTRIBUTED_CONFIG": '{"process_count_per_node": 8}', "SM_HOST_COUNT": "2",
        "SM_HPS": json.dumps({"options": "--max_steps 2"}), "SM_MASTER_ADDR": "algo-1", "SM_MASTER_PORT": "7777",
        "SM_CURRENT_HOST_RANK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert driver.create_commands() == [
        "torchrun", "--nnodes=2", "--nproc_per_node=8", "--master_addr=algo-1", "--master_port=7777", "--node_rank=1",
        ENTRY, "--options", "--max_steps 2"]
