"""Calls an adapter's `rank_gradient` in two processes at once, forked from this one, joined by gloo."""

import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import torch.distributed as dist

from tests.conformance.adapter import Adapter

LIMIT_S = 120  # of all cases; ranks that wait for each other for ever end here


class Case(NamedTuple):
    """What one rank is given: [V] weights, [N, T] tokens, [N] advantages, [N, T] what counts."""

    weight: torch.Tensor
    tokens: torch.Tensor
    advantage: torch.Tensor
    mask: torch.Tensor


class Answer(NamedTuple):
    """What a rank said of a case: its gradient, or "error" or "not offered" and why."""

    kind: str
    words: str = ""
    gradient: torch.Tensor | None = None


NO_END = Answer("error", f"has not answered after {LIMIT_S} s: ranks wait for each other")
ENDED = Answer("error", "its process ended")
# A fork has no threads of gloo: to leave the group there can crash or wait for ever.
JOINED = Answer("not offered", "the adapter has joined a process group of its own; without it two ranks can be asked")


def in_processes(adapter: Adapter, cases: list[list[Case]], *, num_ranks: int) -> list[list[Answer]]:
    """For each case the answer of each rank; a case has one Case for each rank. After an error a rank ends."""
    if dist.is_initialized():
        return [[JOINED] * num_ranks for _ in cases]
    context = multiprocessing.get_context("fork")  # what the adapter has imported need not be imported again
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(num_ranks)]
        processes = [context.Process(target=_rank, daemon=True, args=(
            adapter, [case[rank] for case in cases], rank, num_ranks, port, folder, sender))
            for rank, (_, sender) in enumerate(pipes)]
        for process, (_, sender) in zip(processes, pipes):
            process.start()
            sender.close()
        end_s = time.monotonic() + LIMIT_S
        try:
            answers: list[list[Answer]] = []
            for _ in cases:
                before = answers[-1] if answers else [ENDED] * num_ranks
                answers.append([_answer(receiver, end_s, last) for (receiver, _), last in zip(pipes, before)])
        finally:
            for process in processes:
                process.kill()
                process.join()
    return answers


def _answer(receiver: Connection, end_s: float, before: Answer) -> Answer:
    try:
        if not receiver.poll(max(0.0, end_s - time.monotonic())):
            return NO_END
        answer = receiver.recv()
    except EOFError:
        return before if before.kind == "error" else ENDED  # why it ended in an earlier case
    return answer._replace(gradient=torch.tensor(answer.gradient))


def _rank(
    adapter: Adapter, cases: list[Case], rank: int, num_ranks: int, port: int, folder: str, sender: Connection
) -> None:
    """One rank: its answers go to `sender`, what libraries print nowhere."""
    torch.set_num_threads(1)  # a fork loses PyTorch's threads
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks),
                   "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        store = dist.FileStore(f"{folder}/store", num_ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
        for case in cases:
            sender.send(_ask(adapter, case))
        store.add("done", 1)
        store.wait(["done"])
        while store.add("done", 0) < num_ranks:  # the other rank may still be in a collective
            time.sleep(0.01)
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {' '.join(str(error).split())} ({frame.name}, line {frame.lineno})"
        sender.send(Answer("error", words, []))
    finally:
        os._exit(0)  # the parent's handlers are not this process's


def _ask(adapter: Adapter, case: Case) -> Answer:
    weight = case.weight.clone().requires_grad_()
    try:
        return Answer("gradient", "", adapter.rank_gradient(weight, *case[1:]).detach().tolist())
    except NotImplementedError as reason:
        return Answer("not offered", str(reason), [])
