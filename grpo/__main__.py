#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""The command `grpo`, also `python -m grpo`: the programs of this project from any folder.

    grpo train --config recipes/qwen2.5-0.5b-gsm8k.yaml    # on every GPU of this machine
"""

import argparse
import importlib.metadata
import os
import runpy
import sys
from contextlib import suppress

from grpo.config import Config
from grpo.options import evaluation, export
from grpo.options.option import options
from grpo.options.surroundings import PROJECT
from grpo.run.command import asked

COMMANDS = {
    "train": ("train a model, on every GPU of this machine; --nproc_per_node N: in N processes", Config),
    "eval": ("score a model, or an adapter on it", evaluation.Settings),
    "export": ("make a model that serves of what a run trained", export.Settings),
    "report": ("write the page of a run again", None),
}


def parser() -> argparse.ArgumentParser:
    """The commands, and the names of their options for a shell that completes them."""
    parser = argparse.ArgumentParser(prog="grpo", description="GRPO on answers that programs can check.")
    parser.add_argument("--version", action="version", version=f"grpo {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (what, cls) in COMMANDS.items():
        command = commands.add_parser(name, help=what, add_help=False)
        for one in options(cls) if cls else []:
            command.add_argument(f"--{one}", nargs="*", help=argparse.SUPPRESS)
    return parser


def version() -> str:
    try:
        return importlib.metadata.version("grpo")
    except importlib.metadata.PackageNotFoundError:  # a checkout
        return "0.1.0, a checkout"


def train(argv: list[str]) -> None:
    """Check the options, then start one process for each GPU; two on a CPU. Does not return."""
    if "RANK" not in os.environ:  # else a launcher has started this process already
        given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        given.add_argument("--nproc_per_node", type=int)
        chosen, argv = given.parse_known_args(argv)
        # A mistake ends here, in one line and not in one for each process; before the GPUs are counted, which is slow.
        check(argv, chosen.nproc_per_node or 1)
        number = chosen.nproc_per_node or gpus() or 2
        check(argv, number)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        os.execv(sys.executable, [sys.executable, *launcher, str(PROJECT / "train.py"), *argv])
    start(str(PROJECT / "train.py"), argv)


def check(argv: list[str], number: int) -> None:
    """Refuse what is wrong with the options of a run in so many processes; `--help` and `--plan` end here too."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(number)}
    asked(argv)
    for name in ("RANK", "WORLD_SIZE"):
        del os.environ[name]


def gpus() -> int:
    import torch  # here: the other commands answer without it

    return torch.cuda.device_count()


def start(program: str, argv: list[str]) -> None:
    """Run a file as Python would."""
    sys.argv = [program, *argv]
    runpy.run_path(program, run_name="__main__")


def main() -> None:
    """The command line of this process."""
    with suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser())
    parser().parse_args(sys.argv[1:2])
    command, argv = sys.argv[1], sys.argv[2:]
    if command == "train":
        train(argv)
    elif command == "eval":
        start(str(PROJECT / "eval.py"), argv)
    else:
        sys.argv[1:] = argv
        runpy.run_module({"export": "grpo.export", "report": "grpo.report.page"}[command], run_name="__main__",
                         alter_sys=True)


if __name__ == "__main__":
    main()
