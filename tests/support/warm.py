"""A process forked from the tests' own, which has imported everything, forks ranks: a start takes a second, not twelve.

No launcher watches the ranks: what ends them, they do themselves. They end with this process, as with torchrun. Reads
one job a line,

    {"program": "train", "argv": [...], "num_ranks": 2, "num_nodes": 1, "plant": "kill('rollout', rank=1, step=1)",
     "folder": "..."}

answers with the process ids, and when all have ended with the exit codes (minus the signal where one was killed) and
the seconds between the first end and the last. A program is a module whose `main` takes argv and returns an exit code.
A plant is a call of a function of plants.py, made in each rank.
"""

import faulthandler
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from typing import TextIO

import few_problems
import plants
import torch
from ranks import ROOT

import train  # noqa: F401 (what every rank needs is imported before the fork)
from data import load_examples, wordproblems
from grpo.distributed import deepspeed
from grpo.health import launcher
from grpo.loading.model import load_base, load_tokenizer
from grpo.saving import checkpoint

# What a rank would import when it comes to it.
LATER = ("deepspeed.comm.mori", "deepspeed.module_inject.auto_ep_layer", "deepspeed.ops.op_builder.all_ops",
         "deepspeed.runtime.superoffload.superoffload_stage3", "deepspeed.runtime.zero.muon.muon_optimizer",
         "peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion", "setuptools",
         "torch._subclasses.schema_check_mode", "torch.profiler._cupti_monitor", "torch.utils.serialization.config")
PORTS = range(20_000, 30_000)  # below those that a system gives to outgoing connections


def free_port() -> int:
    """A port that nobody listens on."""
    for port in range(PORTS.start + os.getpid() % len(PORTS), PORTS.stop):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise OSError("no free port")


def run_rank(job: dict, rank: int, port: int) -> None:
    """One rank, in the process that has just been forked for it; ends it."""
    renew_threads()
    os.setsid()
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(f"{job['folder']}/rank{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    on_node = job["num_ranks"] // job["num_nodes"]
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank % on_node), "WORLD_SIZE": str(job["num_ranks"]),
        "LOCAL_WORLD_SIZE": str(on_node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "warm"}
    launcher.end_with_it()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job passes on that it is ignored
    code = 70
    try:
        if job.get("plant"):
            eval(job["plant"], vars(plants))  # written by our own tests
        code = importlib.import_module(job["program"]).main(job["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def rehearse() -> None:
    """Do once what libraries keep for the next time: a rank has it from its first line on."""
    torch.set_printoptions(threshold=0, edgeitems=0)  # DeepSpeed spells out each parameter for log lines nobody reads
    for name in LATER:
        importlib.import_module(name)
    checkpoint.versions()
    assert deepspeed.ops.__compatible_ops__  # found by trying the compiler
    wordproblems.load = few_problems.load
    for split in ("train", "validation"):
        load_examples("wordproblems", split, num_shots=0, seed=42)
    shipped = str(ROOT / "data" / "tiny_qwen2")
    load_base(shipped, load_in_4bit=False, dtype=torch.float32, device=torch.device("cpu"))
    load_tokenizer(shipped)


def renew_threads() -> None:
    """Let PyTorch make its pool of threads again, which a fork loses, before two threads do it at the same time.

    They otherwise fail now and then with "Invalid thread pool": transformers loads weights with several.
    """
    torch.set_num_threads(1)


def leave_pytest() -> None:
    """Give up what pytest has put in the place of a plain process's own."""
    renew_threads()
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    logging.root.handlers.clear()
    for logger in logging.root.manager.loggerDict.values():
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
    importlib.reload(warnings)
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and this process ends with them
    os.chdir(ROOT)


def serve(jobs: TextIO, answers: TextIO) -> None:
    """Do one job after the other until there are no more."""
    for number, line in enumerate(jobs):
        if number == 0:
            rehearse()
            gc.freeze()  # what was imported: no rank looks through it
        job, port = json.loads(line), free_port()
        pids = []
        for rank in range(job["num_ranks"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                run_rank(job, rank, port)
        print(json.dumps(pids), file=answers, flush=True)
        codes, ends = {}, []
        while len(codes) < len(pids):
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            ends.append(time.monotonic())
        print(json.dumps({"codes": [codes[pid] for pid in pids], "seconds": ends[-1] - ends[0]}), file=answers,
              flush=True)


def fork() -> tuple[int, TextIO, TextIO]:
    """Fork the process: its id, where it takes jobs, where it answers. It ends when there can be no more jobs."""
    jobs, answers = os.pipe(), os.pipe()
    pid = os.fork()
    if pid:
        os.close(jobs[0])
        os.close(answers[1])
        return pid, open(jobs[1], "w"), open(answers[0])
    try:
        os.close(jobs[1])
        os.close(answers[0])
        leave_pytest()
        serve(open(jobs[0]), open(answers[1], "w"))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
