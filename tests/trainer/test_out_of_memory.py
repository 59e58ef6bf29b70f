"""What a rank does that runs out of memory in an update: alone it packs again, beside others it ends. 2 seconds."""

from types import SimpleNamespace

import pytest
import torch

from grpo.trainer import out_of_memory
from grpo.trainer.out_of_memory import retry

BATCHES = [SimpleNamespace(token_L=torch.zeros(length), completion_K=torch.tensor([0, 1])) for length in (4, 6)]


@pytest.mark.parametrize(("num_ranks", "can_undo"), [(1, True), (2, True), (1, False)])
def test_only_a_rank_without_others_packs_again_so_its_completions_stay_its_own(num_ranks, can_undo, monkeypatch):
    # What was asked of the reference is stored by completion: with other ranks, one could get completions that it has
    # not asked about.
    monkeypatch.setattr(out_of_memory, "world_size", lambda: num_ranks)
    monkeypatch.setattr(out_of_memory, "rank", lambda: 0)
    shortened = []

    def attempt():
        if not shortened:
            raise torch.OutOfMemoryError("simulated")
        return torch.ones(1)

    def shorten(longest):
        shortened.append(longest)
        return BATCHES[:1]

    if num_ranks == 1 and can_undo:
        found = retry(attempt, shorten=shorten, batches=BATCHES, can_undo=True)
        assert found.tolist() == [1.0] and shortened == [6]
    else:
        with pytest.raises(SystemExit, match="packed batch of 6 tokens; nearest valid: micro_batch_tokens=3"):
            retry(attempt, shorten=shorten, batches=BATCHES, can_undo=can_undo)
        assert shortened == []
