"""What `benchmarks.kernel` and its tuning time: the tasks, one call of one, and the clock."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.kernel.peers import Inputs, Peer, Wanted


class Task(NamedTuple):
    """One thing to compute.

    Args:
        wanted: the outputs.
        gradients: the fields of `Inputs` to differentiate the log-probability, or the KL, with respect to.
        gemms: products of L x H x V that it needs at least, 2 L H V operations each.
        says: the task in words.
    """

    wanted: Wanted
    gradients: tuple[str, ...]
    gemms: int
    says: str

    def errors(self) -> list[str]:
        """The keys of ERRORS that it is checked by."""
        if self.wanted.exact:
            return ["kl_L", *self.gradients]
        return ["logprob_L", *(["entropy_L"] if self.wanted.entropy else []), *self.gradients]


TASKS = {
    "score": Task(Wanted(entropy=True), (), 1, "log-probability and entropy, forward"),
    "frozen": Task(Wanted(), ("hidden_LH",), 2, "log-probability, forward and backward to the hidden states"),
    "trained": Task(Wanted(), ("hidden_LH", "weight_VH"), 3, "the same, backward to hidden states and head"),
    "exact": Task(Wanted(exact=True), (), 2, "KL(policy || reference) over the vocabulary, forward"),
    "exact-grad": Task(Wanted(exact=True), ("hidden_LH",), 3, "the same KL, forward and backward to the hidden states"),
}


def call(peer: Peer, task: Task, inputs: Inputs, upstream_L: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one provider computes: outputs by their names in Outputs, gradients by those of the inputs."""
    leaves = {name: getattr(inputs, name).detach().requires_grad_() for name in task.gradients}
    with torch.set_grad_enabled(bool(leaves)):
        outputs = peer.adapter(inputs._replace(**leaves), task.wanted)
    result = {name: tensor.detach() for name, tensor in outputs._asdict().items() if tensor is not None}
    if leaves:
        output_L = outputs.kl_L if task.wanted.exact else outputs.logprob_L
        gradients = torch.autograd.grad(output_L, list(leaves.values()), upstream_L.to(output_L.dtype))
        result |= dict(zip(leaves, gradients))
    return result


def seconds(run: Callable[[], dict], scratch: torch.Tensor | None, device: str) -> float:
    """Of one call; writing the scratch memory before it empties a GPU's caches."""
    if scratch is not None:
        scratch.zero_()
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
