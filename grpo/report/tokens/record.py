"""What the update used of some completions, token by token: noted while it runs, then lines of tokens.jsonl."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from grpo.types import Batch, Rollout


def chosen(advantage_U: torch.Tensor, num_groups: int, num_generations: int) -> torch.Tensor:
    """The completions of the first groups that have an advantage, and of the first others where those are too few."""
    has_B = advantage_U.view(-1, num_generations).any(dim=1).tolist()
    groups = sorted(sorted(range(len(has_B)), key=lambda b: not has_B[b])[:num_groups])
    return torch.tensor([b * num_generations + g for b in groups for g in range(num_generations)], dtype=torch.int64)


class TokenRecord:
    """Notes what each token of the completions `kept_N` was worth in an update; without any it does nothing.

    Per optimizer update (an iteration) and token: its log-probability, and its pull, -d loss / d logprob, by which the
    update raises (positive) or lowers it. It is the derivative of the very loss that is differentiated, so clip, mask,
    correction weight and divisors are in it. The pull is the sum of the policy loss's and the KL's; that of the exact
    KL, which pulls on all tokens of the vocabulary at once, is left out. From the first iteration: KL, entropy,
    correction weight.

    Nothing is collective, and the tensors stay on the device until `part`.
    """

    def __init__(self, kept_N: torch.Tensor | None = None) -> None:
        self.kept_N = torch.empty(0, dtype=torch.int64) if kept_N is None else kept_N
        self.iterations: list[dict[str, torch.Tensor]] = []

    def begin(self) -> None:
        """The next iteration begins."""
        self.iterations.append({})

    def start_again(self) -> None:
        """Forget the iteration, which ran out of memory: it is done again from its first micro-batch."""
        self.iterations[-1] = {}

    def add(self, batch: Batch, loss: torch.Tensor, logprob_UT: torch.Tensor, *, kl_UT: torch.Tensor | None,
            entropy_K: torch.Tensor | None, weight_UT: torch.Tensor | None) -> None:
        """Note a micro-batch before its backward; the last three may be None."""
        if not len(self.kept_N):
            return
        sources = [logprob_UT] if kl_UT is None else [logprob_UT, kl_UT]
        # From the loss to the log-probabilities: a few products per token, nothing of the model is run.
        slope_UT, *kl_slope_UT = torch.autograd.grad(loss, sources, retain_graph=True)
        kl_part_UT = None
        if kl_slope_UT:
            kl_part_UT, = torch.autograd.grad(kl_UT, logprob_UT, kl_slope_UT, retain_graph=True, allow_unused=True)
        if kl_part_UT is None:
            kl_part_UT = torch.zeros_like(slope_UT)
        noted = {"logprob": logprob_UT.detach(), "policy_pull": kl_part_UT - slope_UT, "kl_pull": -kl_part_UT}
        if len(self.iterations) == 1:
            noted |= {name: value.detach() for name, value in {
                "kl": kl_UT, "weight": weight_UT, "entropy": None if entropy_K is None else batch.scatter(entropy_K),
            }.items() if value is not None}
        now, mask_NT = self.iterations[-1], batch.mask_UT[self.kept_N]
        for name, value_UT in noted.items():
            value_NT = torch.where(mask_NT, value_UT[self.kept_N], 0.0)
            now[name] = now[name] + value_NT if name in now else value_NT
        now["mask"] = now["mask"] | mask_NT if "mask" in now else mask_NT
        total = torch.where(batch.mask_UT, slope_UT, 0.0).abs().sum(dtype=torch.float64)
        now["total"] = now["total"] + total if "total" in now else total

    def part(self) -> list[dict[str, torch.Tensor]]:
        """This rank's part for `lines`, on the CPU: of each iteration only the completions in its batches."""
        if not len(self.kept_N):
            return []
        parts = []
        for now in self.iterations:
            part = {name: value.cpu() for name, value in now.items()}
            index = part["mask"].any(dim=1).nonzero()[:, 0]
            parts.append({name: value if name == "total" else value[index] for name, value in part.items()}
                         | {"index": index})
        return parts


def lines(kept_N: torch.Tensor, parts: Sequence[list[dict[str, torch.Tensor]]], columns: Sequence[dict[str, list[Any]]],
          rollout: Rollout, decode: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    """One object for each completion that is kept.

    Args:
        parts: `TokenRecord.part` of every rank.
        columns: of completions.jsonl, of every rank.
        rollout: the completions of all ranks.
        decode: the text of tokens.
    """
    num_generations = len(rollout.text) // len(rollout.prompt_ids)
    iterations = [_joined(len(kept_N), rollout.token_NT.shape[1], each) for each in zip(*parts)]
    shown = {name: [value for each in columns for value in each[name]]
             for name in ("question", "reward", "rewards", "advantage", "truncated")}
    rows = []
    for index, n in enumerate(kept_N.tolist()):
        length = int(rollout.length_N[n])
        ids, mask = rollout.token_NT[n, :length].tolist(), iterations[0]["mask"][index, :length].tolist()

        def values(value_NT: torch.Tensor) -> list[float | None]:
            """Six digits of each; None for a token that does not count, which nothing was computed for."""
            return [float(f"{one:.6g}") if counts else None
                    for one, counts in zip(value_NT[index, :length].tolist(), mask)]

        rows.append({
            "group": n // num_generations, "completion": n % num_generations, "groups": len(rollout.prompt_ids),
            **{name: values_U[n] for name, values_U in shown.items()},
            "token": [decode([one]) for one in ids], "id": ids, "mask": [int(one) for one in mask],
            "sampler_logprob": [float(f"{one:.6g}") for one in rollout.sampler_logprob_NT[n, :length].tolist()],
            **{name: values(iterations[0][name]) for name in ("kl", "entropy", "weight") if name in iterations[0]},
            **{name: [values(now[name]) for now in iterations] for name in ("logprob", "policy_pull", "kl_pull")},
            "total_pull": [float(now["total"]) for now in iterations]})
    return rows


def _joined(num_completions: int, longest: int, parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One iteration of all ranks: each completion from the rank that had it in a batch."""
    names = dict.fromkeys(name for part in parts for name in part if name not in ("index", "total"))
    joined = {name: torch.zeros(num_completions, longest, dtype=parts[0][name].dtype) for name in names}
    for part in parts:
        for name in names:
            joined[name][part["index"]] = part[name]
    return joined | {"total": sum(part["total"] for part in parts)}
