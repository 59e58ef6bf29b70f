"""What a rank of a SageMaker training job runs: the job's driver starts this file with torchrun on each machine.

CONFIG_PATH is the recipe. The channels train and val are the data where they exist, options come as one argument of
`--options`. The run's folder is the one that SageMaker copies to S3 all the time, so a job that starts again resumes.
At its end the weights are in SM_MODEL_DIR, of which SageMaker makes model.tar.gz.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # where torchrun puts this file's folder

from grpo.health import last_words  # noqa: E402 (found there)
from grpo.options.refusal import refuse, told  # noqa: E402

TAKEN = ("config", "output_dir", "resume", "train_dataset_id_or_path", "test_dataset_id_or_path")
RESULTS = ("adapter", "model", "summary.json", "report.html", "config.yaml")


def output_dir(environ: Mapping[str, str]) -> Path:
    """The run's folder; CHECKPOINT_DIR where the checkpoint configuration of the job has another local path."""
    return Path(environ.get("CHECKPOINT_DIR", "/opt/ml/checkpoints"), "run")


def check_options(given: list[str]) -> None:
    """Refuse options of train.py that a job gives itself: ValueError. The run would leave the folder that is copied."""
    for word in given:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in TAKEN:
            refuse(name, word, "is given by the job itself", "leave it out: --config, --train and --val say the rest")


def options(argv: list[str], environ: Mapping[str, str]) -> list[str]:
    """The options of train.py in a container; `argv` is what the job's hyperparameters became.

    ValueError without CONFIG_PATH, if a channel does not hold one file, or as `check_options`.
    """
    if not environ.get("CONFIG_PATH"):
        refuse("CONFIG_PATH", environ.get("CONFIG_PATH"), "must name a recipe in the job's environment",
               "recipes/qwen2.5-0.5b-gsm8k.yaml")
    found = ["--config", environ["CONFIG_PATH"], "--output_dir", str(output_dir(environ))]
    for channel, name in (("TRAIN", "train_dataset_id_or_path"), ("VAL", "test_dataset_id_or_path")):
        if folder := environ.get(f"SM_CHANNEL_{channel}"):
            files = [path for path in Path(folder).glob("[!.]*") if path.is_file()]
            if len(files) != 1:
                refuse(f"SM_CHANNEL_{channel}", folder, f"must hold one file, and holds {len(files)}",
                       "the S3 address of a file")
            found += [f"--{name}", str(files[0])]
    if any(output_dir(environ).glob("checkpoints/step-*")):
        found.append("--resume")
    given = shlex.split(argv[1]) if argv[:1] == ["--options"] else argv
    check_options(given)
    return found + given


def hand_over(environ: Mapping[str, str]) -> None:
    """Copy what a finished run left to where SageMaker takes the model from."""
    for path in (output_dir(environ) / name for name in RESULTS):
        there = Path(environ.get("SM_MODEL_DIR", "/opt/ml/model"), path.name)
        if path.is_dir():
            shutil.copytree(path, there, dirs_exist_ok=True)
        elif path.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, there)


def main(argv: list[str]) -> int:
    """The run; the exit code of train.py."""
    try:
        given = options(argv, os.environ)
    except ValueError as error:
        return last_words.fail(told(error), 2)
    os.chdir(ROOT)  # where the recipe's paths start
    import train  # here: a mistake above ends without its eight seconds

    code = train.main(given)
    # After a stop that was asked for there is no summary, and the job that starts again needs no model.
    if code == 0 and os.environ.get("RANK", "0") == "0" and (output_dir(os.environ) / "summary.json").exists():
        hand_over(os.environ)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
