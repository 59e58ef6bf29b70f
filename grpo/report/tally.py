"""What an update is measured by, added up over its micro-batches; no part of the gradient.

Everything stays on the device until the end of the update, so that no micro-batch waits for the host.
"""

import math

import torch

from grpo.config import Config
from grpo.distributed import global_max, global_sum
from grpo.loss import correction_weight, ratio_stats
from grpo.trainer.policy import Scores
from grpo.types import Batch


class Tally:
    """Sums and maxima over counted tokens.

    Args:
        advantage_N: [N] float32, of all ranks' completions; the micro-batches' masks say which are counted here.
        sampler_logprob_NT: [N, T] float32, nats, what the sampler reported.
        config: the run.
    """

    def __init__(self, advantage_N: torch.Tensor, sampler_logprob_NT: torch.Tensor, config: Config) -> None:
        self.advantage_N = advantage_N
        self.sampler_logprob_NT = sampler_logprob_NT
        self.config = config
        self.sums: dict[str, torch.Tensor] = {}
        self.maxima: dict[str, torch.Tensor] = {}

    def copy(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What has been added so far, for `restore`."""
        return dict(self.sums), dict(self.maxima)

    def restore(self, copy: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
        """Forget what was added since that copy."""
        self.sums, self.maxima = copy

    def add(
        self,
        batch: Batch,
        scores: Scores,
        loss: torch.Tensor,
        logprob_NT: torch.Tensor,
        old_logprob_NT: torch.Tensor | None,
        kl_NT: torch.Tensor | None,
        weight_NT: torch.Tensor | None,
    ) -> None:
        """Measure one micro-batch of one iteration; without an old policy it is the first iteration."""
        stats = ratio_stats(
            logprob_NT,
            old_logprob_NT,
            self.advantage_N,
            batch.mask_NT,
            epsilon=self.config.epsilon,
            epsilon_high=self.config.epsilon_high,
        )
        self._add("loss", loss)
        self._add("clip_share_low", stats.num_clipped_low)
        self._add("clip_share_high", stats.num_clipped_high)
        self._raise("ratio_max", stats.ratio_max)
        if old_logprob_NT is None:
            self._add_sampled(batch, scores, logprob_NT, kl_NT, weight_NT)

    def _add_sampled(
        self,
        batch: Batch,
        scores: Scores,
        logprob_NT: torch.Tensor,
        kl_NT: torch.Tensor | None,
        weight_NT: torch.Tensor | None,
    ) -> None:
        """What describes the policy that sampled the tokens, before the first update moves it."""
        def counted(value_NT: torch.Tensor) -> torch.Tensor:
            return torch.where(batch.mask_NT, value_NT, 0.0)

        gap_NT = counted((self.sampler_logprob_NT - logprob_NT).abs())
        advantage_NT = counted(self.advantage_N[:, None])
        if kl_NT is not None:
            self._add("kl", counted(kl_NT).sum())
        self._add("entropy", counted(batch.scatter(scores.entropy_K)).sum())
        self._add("surrogate", (advantage_NT * logprob_NT).sum())
        self._add("advantage_mass", advantage_NT.abs().sum())
        self._add("sampler_gap_mean", gap_NT.sum())
        self._raise("sampler_gap_max", gap_NT.max())
        if weight_NT is not None:
            uncapped_NT = correction_weight(
                logprob_NT, self.sampler_logprob_NT, batch.mask_NT, correction="truncated", cap=math.inf
            )
            self._add("correction_weight_mean", counted(weight_NT).sum())
            self._add("correction_capped_share", (weight_NT < uncapped_NT).sum())

    def metrics(self, num_tokens: float) -> dict[str, float]:
        """The values of the table in metrics.py, over all ranks; kl is NaN where no reference was asked, and
        the two of rollout_correction are there only where it is on.

        Args:
            num_tokens: counted tokens of all ranks.

        Collective: every rank, once per update.
        """
        sums = global_sum({name: float(value) for name, value in self.sums.items()})
        mass, iterations = sums.pop("advantage_mass"), self.config.num_iterations
        divisor = dict.fromkeys(sums, max(num_tokens, 1.0))
        divisor |= {"surrogate": mass or 1.0, "loss": iterations}
        divisor |= {name: divisor[name] * iterations for name in ("clip_share_low", "clip_share_high")}
        means = {name: sums[name] / divisor[name] for name in sums}
        return {"kl": math.nan} | means | global_max({name: float(value) for name, value in self.maxima.items()})

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _raise(self, name: str, value: torch.Tensor) -> None:
        value = value.detach().double()
        self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value
