"""Packed batches against a padded one in transformers, on one process: same loss, same gradients to 1e-6. 10 seconds.

Prompts, completions and lengths are drawn; the model is a random Qwen2 with float64 weights, whose norms and softmax
compute in float32 all the same.
"""

import pytest
import torch
from tiny_models import tiny_qwen2

from grpo.loss import kl_divergence, loss_denominator, policy_loss
from grpo.packing import common_prefix_length, filler, merge, pack, pack_batch, plan
from grpo.trainer.policy import Policy
from grpo.types import Rollout

G, T = 3, 7


def drawn_rollout() -> Rollout:
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(3, 320, (length,), generator=generator).tolist()

    prefix = draw(5)
    length_N = torch.tensor([7, 1, 4, 2, 7, 3, 5, 5, 1, 6, 2, 7])
    token_NT = torch.zeros(12, T, dtype=torch.int64)
    for n, length in enumerate(length_N.tolist()):
        token_NT[n, :length] = torch.tensor(draw(length))
    return Rollout(
        prompt_ids=[prefix + draw(2 + b) for b in range(4)], token_NT=token_NT, length_N=length_N,
        sampler_logprob_NT=torch.zeros(12, T), truncated_N=torch.zeros(12, dtype=torch.bool), text=[""] * 12,
    )


def padded_logprobs(model: torch.nn.Module, rollout: Rollout) -> torch.Tensor:
    """[N, T] one right-padded batch through plain transformers, full logits."""
    rows = [rollout.prompt_ids[n // G] + rollout.token_NT[n, : rollout.length_N[n]].tolist() for n in range(12)]
    width = max(map(len, rows))
    token_NS = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask_NS = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    logprob_NSV = model(input_ids=token_NS, attention_mask=mask_NS).logits.double().log_softmax(-1)
    logprob_NT = []
    for n in range(12):
        start = len(rollout.prompt_ids[n // G]) - 1
        logprob_TV = logprob_NSV[n, start : start + T]
        logprob_TV = torch.nn.functional.pad(logprob_TV, (0, 0, 0, T - len(logprob_TV)))
        logprob_NT.append(logprob_TV.gather(-1, rollout.token_NT[n, :, None])[:, 0])
    return torch.stack(logprob_NT)


def loss_of(logprob_NT: torch.Tensor, rollout: Rollout, mask_NT: torch.Tensor, loss_type: str, keep_U: torch.Tensor):
    """What the masked tokens contribute to the loss of the global batch."""
    counted = int(rollout.length_N[keep_U].sum())
    return policy_loss(
        logprob_NT, None, torch.linspace(-1, 1, 12, dtype=torch.float64), mask_NT, loss_type=loss_type, epsilon=0.2,
        epsilon_high=0.2, beta=0.1,
        denominator=loss_denominator(loss_type, num_tokens=counted, num_sequences=12, max_completion_length=T),
        kl_NT=kl_divergence(logprob_NT, torch.full_like(logprob_NT, -5.0), estimator="k3_unbiased"),
    )


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("keep_all", [True, False])
def test_splitting_packing_and_sharing_change_no_gradient(loss_type: str, keep_all: bool) -> None:
    model, rollout = tiny_qwen2().double().train(), drawn_rollout()
    keep_U = torch.ones(12, dtype=torch.bool) if keep_all else torch.arange(12) % 5 > 0
    mask_NT = (torch.arange(T) < rollout.length_N[:, None]) & keep_U[:, None]
    expected_loss = loss_of(padded_logprobs(model, rollout), rollout, mask_NT, loss_type, keep_U)
    expected_loss.backward()
    expected = gradients(model)
    policy, num_batches = Policy(model), set()
    for max_tokens in (1000, 60, 40, 20):
        unshared = plan(rollout, keep_U, max_tokens=max_tokens, prefix=0)[0]
        for batches in (pack(rollout, keep_U, max_tokens=max_tokens),
                        [pack_batch(rollout, completions, prefix=0) for completions in unshared]):
            num_batches.add(len(batches))
            loss = 0.0
            for batch in [*batches, filler(rollout)]:
                logprob_NT = batch.scatter(policy(batch).logprob_K)
                part = loss_of(logprob_NT, rollout, batch.mask_UT, loss_type, keep_U)
                part.backward()
                loss += float(part)
            assert loss == pytest.approx(float(expected_loss), abs=1e-6)
            for name, gradient in gradients(model).items():
                assert torch.allclose(gradient, expected[name], rtol=0, atol=1e-6), (max_tokens, len(batches), name)
    assert len(num_batches) >= 3, "the budgets split the batch in different ways"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_masks_of_the_packed_batches_are_a_partition(num_ranks: int) -> None:
    rollout = drawn_rollout()
    keep_U = torch.arange(12) != 4
    ranks = [pack(rollout, keep_U, max_tokens=25, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    counts_UT = sum(batch.mask_UT.int() for rank in ranks for batch in rank)
    assert torch.equal(counts_UT, ((torch.arange(T) < rollout.length_N[:, None]) & keep_U[:, None]).int())


def test_a_rank_runs_a_filler_where_no_completion_is_kept() -> None:
    (batch,) = pack(drawn_rollout(), torch.zeros(12, dtype=torch.bool), max_tokens=25)
    assert len(batch.token_L) == 1 and not batch.mask_UT.any()


def test_a_packed_batch_by_hand() -> None:
    # One prompt [9 | 8], 9 shared; completions [1, 2] and [3]. Packed: 9, 8, 1, 2, 3; the 3 must not see 1 and 2.
    rollout = Rollout(
        prompt_ids=[[9, 8], [9, 7]], token_NT=torch.tensor([[1, 2], [3, 0], [4, 0], [5, 0]]),
        length_N=torch.tensor([2, 1, 1, 1]), sampler_logprob_NT=torch.zeros(4, 2),
        truncated_N=torch.zeros(4, dtype=torch.bool), text=[""] * 4,
    )
    (batch,) = pack(rollout, torch.tensor([True, True, False, False]), max_tokens=99)
    assert batch.token_L.tolist() == [9, 8, 1, 2, 3]
    assert batch.position_L.tolist() == [0, 1, 2, 3, 2]
    assert batch.source_K.tolist() == [1, 2, 1]  # the prompt's last token predicts both first tokens
    assert batch.target_K.tolist() == [1, 2, 3]
    assert batch.segment_L.tolist() == [0, 1, 2, 2, 3]
    assert batch.parent_L.tolist() == [0, 0, 1, 1, 1]


def test_groups_stay_together_within_the_budget() -> None:
    # Prompts of 2 own tokens behind a prefix of 1; completions of 3. A group costs 2 + 2 * 3 = 8, two groups 1 + 16.
    rollout = Rollout(
        prompt_ids=[[9, 1, 1], [9, 2, 2], [9, 3, 3]], token_NT=torch.ones(6, 3, dtype=torch.int64),
        length_N=torch.full((6,), 3), sampler_logprob_NT=torch.zeros(6, 3),
        truncated_N=torch.zeros(6, dtype=torch.bool), text=[""] * 6,
    )
    everything = torch.ones(6, dtype=torch.bool)
    assert plan(rollout, everything, max_tokens=17, prefix=1) == [[[0, 1, 4, 5], [2, 3]]]
    assert plan(rollout, everything, max_tokens=16, prefix=1) == [[[0, 1], [2, 3], [4, 5]]]
    assert plan(rollout, everything, max_tokens=9, prefix=1) == [[[0, 1], [2, 3], [4, 5]]]
    assert plan(rollout, everything, max_tokens=8, prefix=1) == [[[0], [1], [2], [3], [4], [5]]]  # 9 do not fit
    assert plan(rollout, everything, max_tokens=3, prefix=1) == [[[0], [1], [2], [3], [4], [5]]]  # none is cut
    assert plan(rollout, ~everything, max_tokens=17, prefix=1, num_ranks=2) == [[], []]


def test_a_group_is_divided_into_as_few_parts_as_the_budget_allows() -> None:
    # A prompt of 1 and four completions of 3: two of them make 7.
    rollout = Rollout(
        prompt_ids=[[9]], token_NT=torch.ones(4, 3, dtype=torch.int64), length_N=torch.full((4,), 3),
        sampler_logprob_NT=torch.zeros(4, 3), truncated_N=torch.zeros(4, dtype=torch.bool), text=[""] * 4,
    )
    assert plan(rollout, torch.ones(4, dtype=torch.bool), max_tokens=7, prefix=0) == [[[0, 1], [2, 3]]]


def test_rollouts_of_ranks_are_merged_completion_by_completion() -> None:
    one, other = (
        Rollout(prompt_ids=[[prompt]], token_NT=torch.tensor([tokens]), length_N=torch.tensor([len(tokens)]),
                sampler_logprob_NT=-torch.tensor([tokens]) / 2, truncated_N=torch.tensor([prompt == 9]), text=[text])
        for prompt, tokens, text in ((8, [1, 2], "a"), (9, [3, 4, 5], "b"))
    )
    merged = merge([one, other])
    assert merged.prompt_ids == [[8], [9]] and merged.text == ["a", "b"]
    assert merged.token_NT.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert merged.sampler_logprob_NT.tolist() == [[-0.5, -1.0, 0.0], [-1.5, -2.0, -2.5]]
    assert merged.length_N.tolist() == [2, 3] and merged.truncated_N.tolist() == [False, True]


def drawn_lengths(num_prompts: int, longest: int) -> Rollout:
    generator = torch.Generator().manual_seed(3)
    length_N = torch.randint(1, longest + 1, (4 * num_prompts,), generator=generator)
    return Rollout(
        prompt_ids=[[9] * 50 + [b] * (1 + b % 7) for b in range(num_prompts)], token_NT=torch.ones(len(length_N), 1),
        length_N=length_N, sampler_logprob_NT=torch.zeros(len(length_N), 1), truncated_N=length_N < 0,
        text=[""] * len(length_N),
    )


def test_ranks_share_the_work_evenly_and_in_equal_numbers() -> None:
    # Groups cost 1 3 2 7 4 5; the longest are placed first, each where most room is left: 7 + 1 | 5 + 2 | 4 + 3.
    rollout = Rollout(
        prompt_ids=[[1], [2], [3], [4], [5], [6]], token_NT=torch.ones(6, 6), length_N=torch.tensor([0, 2, 1, 6, 3, 4]),
        sampler_logprob_NT=torch.zeros(6, 6), truncated_N=torch.zeros(6, dtype=torch.bool), text=[""] * 6)
    keep_U = torch.ones(6, dtype=torch.bool)
    assert plan(rollout, keep_U, max_tokens=99, prefix=0, num_ranks=3) == [[[0, 3]], [[2, 5]], [[1, 4]]]
    rollout = drawn_lengths(40, 300)
    keep_U = torch.arange(160) % 11 > 0

    def cost(some: list[int]) -> int:
        return int(rollout.length_N[some].sum()) + sum(len(rollout.prompt_ids[b]) - 50 for b in {n // 4 for n in some})

    for num_ranks, max_tokens in ((1, 4096), (2, 4096), (3, 1500), (8, 2048), (8, 100_000)):
        shares = plan(rollout, keep_U, max_tokens=max_tokens, prefix=50, num_ranks=num_ranks)
        assert len({len(share) for share in shares}) == 1
        planned = [n for share in shares for batch in share for n in batch]
        assert sorted(planned) == torch.nonzero(keep_U)[:, 0].tolist()
        costs = [[cost(batch) for batch in share] for share in shares]
        assert max(map(max, costs)) + 50 <= max_tokens
        longest_group = max(cost(list(range(4 * b, 4 * b + 4))) for b in range(40))
        for together in zip(*costs):
            assert max(together) - min(together) <= longest_group
        totals = list(map(sum, costs))
        assert max(totals) <= 1.15 * min(totals), (num_ranks, max_tokens, totals)


def test_a_piece_too_long_costs_no_further_batches() -> None:
    rollout = drawn_lengths(3, 10)
    rollout.length_N[5] = 5000
    shares = plan(rollout, rollout.length_N > 0, max_tokens=150, prefix=50, num_ranks=1)
    assert [5] in shares[0] and len(shares[0]) == 2


def test_common_prefix_leaves_every_prompt_a_token() -> None:
    assert common_prefix_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 4]]) == 1
    assert common_prefix_length([[5], [6]]) == 0
    assert common_prefix_length([[1, 2, 3], [1, 9, 3], [1, 2, 4]]) == 1
