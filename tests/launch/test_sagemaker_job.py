"""The SageMaker job as AWS gets it: the SDK against a server of moto, which answers as AWS does. A minute.

The SDK needs older versions of packages that this project pins, so it has an environment of its own.
"""

import base64
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ranks import ROOT

PYTHON = Path(os.environ.get("SAGEMAKER_PYTHON", ROOT / ".venv-sagemaker" / "bin" / "python"))
ROLE = "arn:aws:iam::123456789012:role/grpo"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=(
    "needs python3 -m venv .venv-sagemaker && .venv-sagemaker/bin/pip install sagemaker-train 'moto[server]'"))
READ = """
import boto3, json
job = boto3.client("sagemaker")
(name,) = [one["TrainingJobName"] for one in job.list_training_jobs()["TrainingJobSummaries"]
           if one["TrainingJobName"].startswith({0!r} + "-")]
s3 = boto3.client("s3")
keys = [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket="mine") for one in page["Contents"]]
print(json.dumps({{"job": job.describe_training_job(TrainingJobName=name), "keys": keys}}, default=str))
"""


class Hub(BaseHTTPRequestHandler):
    """A Hub whose models of `gated` need a token."""

    def do_HEAD(self) -> None:
        denied = self.path.startswith("/gated/") and self.headers["Authorization"] != "Bearer hf_secret"
        self.send_response(401 if denied else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user with an account, a bucket `mine` and the data files in the working folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    folder = tmp_path_factory.mktemp("sagemaker")
    (folder / "sdk.yaml").write_text(
        "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n")
    row = {"prompt": "1 + 1 =", "final_answer": "2"}
    for name in ("train", "validation"):
        (folder / f"{name}.json").write_text(json.dumps([row] * 20))
    recorder = {"MOTO_ENABLE_RECORDING": "true", "MOTO_RECORDER_FILEPATH": str(folder / "recorded")}
    server = subprocess.Popen([PYTHON, "-m", "moto.server", "-p", str(port)], env={**os.environ, **recorder},
                              stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/")
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.1)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_", "MLFLOW_"))}
    env = {**own, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "HOME": str(folder),
           "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-west-2", "PWD": str(folder),
           "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "SAGEMAKER_USER_CONFIG_OVERRIDE": f"{folder}/sdk.yaml",
           "SAGEMAKER_VALIDATE_ROLE": "false"}  # moto does not simulate policies
    python("import boto3; boto3.client('s3').create_bucket(Bucket='mine', "
           "CreateBucketConfiguration={'LocationConstraint': 'us-west-2'})", env)
    yield env
    server.kill()
    server.wait()
    hub.shutdown()


def python(program: str, env: dict[str, str]) -> str:
    return subprocess.run([PYTHON, "-c", program], env=env, check=True, capture_output=True, text=True).stdout


def start(aws: dict[str, str], *argv: str, **env: str) -> subprocess.CompletedProcess:
    """The command; what argv gives comes last and so replaces what is given here."""
    given = ["--config", "recipes/qwen2.5-0.5b-gsm8k.yaml", "--train", "train.json", "--val", "validation.json",
             "--bucket", "mine", "--role", ROLE]
    return subprocess.run([PYTHON, ROOT / "recipes" / "launch" / "sagemaker_job.py", *given, *argv],
                          cwd=aws["PWD"], env=aws | env, capture_output=True, text=True)


def environment_sent(aws: dict[str, str], job: str) -> dict[str, str]:
    """The variables of a job as AWS was asked for them: moto's description leaves them out."""
    bodies = [base64.b64decode(one["body"]) for one in map(json.loads, Path(aws["PWD"], "recorded").open())
              if one["headers"].get("X-Amz-Target") == "SageMaker.CreateTrainingJob"]
    sent, = [body for body in map(json.loads, bodies) if body["TrainingJobName"] == job]
    return sent["Environment"]


def test_the_job_is_the_published_one_and_data_and_code_are_on_s3(aws: dict[str, str]) -> None:
    tags = '{"source.job": "sm-training-jobs"}'
    ended = start(aws, "--instance_count", "2", "--run_name", "two words", "--report_to", "mlflow",
                  HF_TOKEN="hf_secret", MLFLOW_TRACKING_URI="arn:aws:sagemaker:us-west-2:1:mlflow-tracking-server/one",
                  MLFLOW_EXPERIMENT_NAME="grpo-rlvr", MLFLOW_TAGS=tags)
    assert ended.returncode == 0, ended.stderr
    assert "hf_secret" not in ended.stdout + ended.stderr
    read = json.loads(python(READ.format("grpo"), aws))
    job, keys = read["job"], read["keys"]
    assert f"job          {job['TrainingJobName']}\n" in ended.stdout
    assert job["RoleArn"] == ROLE
    assert job["AlgorithmSpecification"]["TrainingImage"] == (
        "763104351884.dkr.ecr.us-west-2.amazonaws.com/huggingface-pytorch-training:"
        "2.11.0-transformers5.13.1-cu130-amzn2023")
    resources = job["ResourceConfig"]
    assert (resources["InstanceType"], resources["InstanceCount"]) == ("ml.g6.48xlarge", 2)
    assert resources["KeepAlivePeriodInSeconds"] == 3600
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 18000}
    start_of = f"s3://mine/grpo/{job['TrainingJobName']}"
    assert job["CheckpointConfig"] == {"S3Uri": f"{start_of}/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert job["OutputDataConfig"]["S3OutputPath"] == "s3://mine/grpo"
    assert job["HyperParameters"] == {"options": "--run_name 'two words' --report_to mlflow"}
    assert environment_sent(aws, job["TrainingJobName"]) == {
        "CONFIG_PATH": "recipes/qwen2.5-0.5b-gsm8k.yaml", "HF_TOKEN": "hf_secret", "FI_PROVIDER": "efa",
        "NCCL_PROTO": "simple", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "WARN",
        "MLFLOW_TRACKING_URI": "arn:aws:sagemaker:us-west-2:1:mlflow-tracking-server/one",
        "MLFLOW_EXPERIMENT_NAME": "grpo-rlvr", "MLFLOW_TAGS": tags}
    channels = {one["ChannelName"]: one["DataSource"]["S3DataSource"]["S3Uri"] for one in job["InputDataConfig"]}
    assert channels["train"] == f"{start_of}/input/train/train.json"
    assert channels["val"] == f"{start_of}/input/val/validation.json"
    assert channels.keys() == {"train", "val", "code", "sm_drivers"}
    place = channels["code"].removeprefix("s3://mine/").rstrip("/")
    code = {key.removeprefix(f"{place}/") for key in keys if key.startswith(place)}
    assert {"train.py", "recipes/qwen2.5-0.5b-gsm8k.yaml", "recipes/launch/sagemaker_entry.py",
            "recipes/launch/sagemaker_requirements.txt", "grpo/step.py", "data/tiny_qwen2/config.json",
            "rewards/math.py", "kernels/reference.py"} <= code
    assert not [name for name in code if name.startswith(("tests/", ".git/", ".venv", "outputs/", "benchmarks/"))]
    assert [key for key in keys if key.endswith("distributed_drivers/torchrun_driver.py")]
    assert "hf_secret" not in json.dumps(keys)


def test_a_spot_job_waits_for_machines_and_may_continue_an_earlier_one(aws: dict[str, str]) -> None:
    ended = start(aws, "--name", "spot", "--spot", "--checkpoints", "s3://mine/grpo/earlier/checkpoints",
                  "--max_runtime", "600", "--image", "1.dkr.ecr.us-west-2.amazonaws.com/mine:1",
                  "--train", "s3://mine/prepared/train.json")
    assert ended.returncode == 0, ended.stderr
    job = json.loads(python(READ.format("spot"), aws))["job"]
    assert job["EnableManagedSpotTraining"] is True and "KeepAlivePeriodInSeconds" not in job["ResourceConfig"]
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 1200}
    assert job["CheckpointConfig"]["S3Uri"] == "s3://mine/grpo/earlier/checkpoints"
    assert job["AlgorithmSpecification"]["TrainingImage"].endswith("/mine:1")
    assert "s3://mine/prepared/train.json" in json.dumps(job["InputDataConfig"])
    assert "HF_TOKEN" not in environment_sent(aws, job["TrainingJobName"])


@pytest.mark.parametrize(("argv", "line"), [
    (["--bucket", "nobodys"], "error: bucket='nobodys' cannot be used: "),
    (["--model_name_or_path", "gated/model"], "error: model_name_or_path='gated/model' may not be read without an "
     "HF_TOKEN; nearest valid value: HF_TOKEN=... in this environment, of an account that has been given access\n"),
    (["--config", "recipes/missing.yaml"], "error: config='recipes/missing.yaml' must be a recipe within the project"),
    (["--train", "missing.json"], "error: train='missing.json' must be a file, or an address that begins with s3://"),
    (["--beta", "-1"], "error: beta=-1"),
    (["--prompts_per_step", "12"], "error: prompts_per_step=12 must be a multiple of the 8 ranks"),
], ids=["bucket", "gated", "config", "train", "option", "ranks"])
def test_what_the_job_would_end_with_is_refused_in_one_line_before_it_costs_anything(
    aws: dict[str, str], argv: list[str], line: str
) -> None:
    ended = start(aws, *argv, "--name", "refused")
    assert ended.returncode == 2 and ended.stderr.startswith(line), ended.stderr
    assert ended.stderr.count("\n") == 1
