"""Start a training job on SageMaker, with the data files that `python -m data.gsm8k` prepared:

    pip install sagemaker-train
    python -m data.gsm8k --output_dir prepared
    HF_TOKEN=... python recipes/launch/sagemaker_job.py --config recipes/qwen2.5-0.5b-gsm8k.yaml \\
        --train prepared/train.json --val prepared/validation.json --bucket my-bucket --role arn:aws:iam::...

Options that are not listed here go to train.py. What runs in the container: sagemaker_entry.py.
"""

import argparse
import os
import re
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)  # in place of this file's folder

import boto3  # noqa: E402
from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402

from grpo.options.refusal import refuse, told  # noqa: E402
from grpo.run.command import load  # noqa: E402
from recipes.launch.sagemaker_entry import check_options  # noqa: E402

# PyTorch 2.11 with CUDA 13, from AWS's registry in the job's region.
IMAGE = "763104351884.dkr.ecr.{}.amazonaws.com/huggingface-pytorch-training:2.11.0-transformers5.13.1-cu130-amzn2023"
NETWORK = {"FI_PROVIDER": "efa", "NCCL_PROTO": "simple", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "WARN"}
# Of the caller's environment. A job's description shows them to everybody who may read it, HF_TOKEN too.
PASSED = ("HF_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TAGS")
# The container needs none of these.
LEFT_OUT = [".git", ".venv*", ".ci", ".*_cache", "__pycache__", "outputs", "tests", "benchmarks", "docs", "prepared"]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--config", required=True, help="recipe, a path within the project")
    add("--train", required=True, help="data file to train on, here or on S3")
    add("--val", help="data file of the evaluation; none: the held-out part of the other")
    add("--bucket", required=True, help="S3 bucket for code, data, checkpoints and the model")
    add("--name", default="grpo", help="what the job's name and its keys in the bucket start with")
    add("--role", help="ARN of the job's role; none: that of the notebook this runs in")
    add("--instance_type", default="ml.g6.48xlarge", help="machine")
    add("--instance_count", type=int, default=1, help="number of machines")
    add("--nproc_per_node", type=int, default=8, help="GPUs of a machine")
    add("--image", help="address of a container image with PyTorch 2.11 or newer; none: AWS's")
    add("--max_runtime", type=int, default=18000, help="seconds after which the job is ended")
    add("--keep_alive", type=int, default=3600, help="seconds that machines wait for another job; 0 with --spot")
    add("--spot", action="store_true", help="use machines that may be taken away; the job then waits and resumes")
    add("--checkpoints", help="S3 folder with the checkpoints of an earlier job, to continue it; none: a new one")
    add("--wait", action="store_true", help="show the job's log until its end")
    return parser


def environment(given: argparse.Namespace) -> dict[str, str]:
    """The variables that a container gets."""
    return {**NETWORK, "CONFIG_PATH": given.config, **{name: os.environ[name] for name in PASSED if name in os.environ}}


def check(given: argparse.Namespace, rest: list[str], session: boto3.Session) -> None:
    """Refuse with ValueError, before it costs anything, what the job would end with."""
    if Path(given.config).is_absolute() or not (ROOT / given.config).is_file():
        refuse("config", given.config, "must be a recipe within the project", "recipes/qwen2.5-0.5b-gsm8k.yaml")
    for name in ("train", "val"):
        path = getattr(given, name)
        if path and not path.startswith("s3://") and not Path(path).is_file():
            refuse(name, path, "must be a file, or an address that begins with s3://", "what data.gsm8k wrote")
    check_options(rest)
    gpus = given.nproc_per_node * given.instance_count
    config = load(["--config", str(ROOT / given.config), *rest, "--plan", str(gpus)])
    check_access(config.model_name_or_path)
    try:
        session.client("s3").head_bucket(Bucket=given.bucket)
    except (BotoCoreError, ClientError) as error:
        refuse("bucket", given.bucket, f"cannot be used: {error}", "a bucket of yours, in the region of the job")


def check_access(model: str) -> None:
    """Refuse a model of the Hub that the token in the environment, if any, may not read."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or (ROOT / model).exists():
        return
    token = os.environ.get("HF_TOKEN")
    request = urllib.request.Request(
        f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{model}/resolve/main/config.json", method="HEAD",
        headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            refuse("model_name_or_path", model, f"may not be read {'with this' if token else 'without an'} HF_TOKEN",
                   "HF_TOKEN=... in this environment, of an account that has been given access")
    except OSError:  # no Hub within reach of this machine; the job has its own
        pass


def start(given: argparse.Namespace, rest: list[str], session: boto3.Session) -> tuple[str, str]:
    """Put code and data on S3 and start the job; its name and the address of its checkpoints."""
    from sagemaker.core.helper.session_helper import Session  # here: the SDK takes five seconds to import
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer
    from sagemaker.train.distributed import Torchrun

    times = {"max_runtime_in_seconds": given.max_runtime}
    compute = {"instance_type": given.instance_type, "instance_count": given.instance_count, "volume_size_in_gb": 200}
    if given.spot:  # SageMaker offers no warm pool of such machines
        compute["enable_managed_spot_training"] = True
        times["max_wait_time_in_seconds"] = 2 * given.max_runtime
    elif given.keep_alive:
        compute["keep_alive_period_in_seconds"] = given.keep_alive
    job = ModelTrainer(
        sagemaker_session=Session(boto_session=session, default_bucket=given.bucket), role=given.role,
        base_job_name=given.name, training_image=given.image or IMAGE.format(session.region_name),
        source_code=configs.SourceCode(
            source_dir=str(ROOT), requirements="recipes/launch/sagemaker_requirements.txt",
            entry_script="recipes/launch/sagemaker_entry.py", ignore_patterns=LEFT_OUT),
        distributed=Torchrun(process_count_per_node=given.nproc_per_node),
        hyperparameters={"options": shlex.join(rest)} if rest else {},
        compute=configs.Compute(**compute), stopping_condition=configs.StoppingCondition(**times),
        environment=environment(given),
        output_data_config=configs.OutputDataConfig(s3_output_path=f"s3://{given.bucket}/{given.name}"),
        # Without an address it has the job's name in it: no other run's checkpoints are there.
        checkpoint_config=configs.CheckpointConfig(s3_uri=given.checkpoints, local_path="/opt/ml/checkpoints"))
    files = {"train": given.train, "val": given.val}
    job.train(input_data_config=[configs.InputData(channel_name=name, data_source=file)
                                 for name, file in files.items() if file], wait=given.wait)
    return job._latest_training_job.training_job_name, job.checkpoint_config.s3_uri


def main() -> int:
    """Start the job; the exit code."""
    given, rest = parser().parse_known_args()
    session = boto3.Session()
    try:
        check(given, rest, session)
    except ValueError as error:
        print(told(error), file=sys.stderr)
        return 2
    try:
        name, checkpoints = start(given, rest, session)
    except Exception as error:  # of boto3, of the SDK, of AWS
        print(f"error: the job was not started: {type(error).__name__}: {' '.join(str(error).split())}",
              file=sys.stderr)
        return 1
    print(f"job          {name}\ncheckpoints  {checkpoints}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
