"""Checks of updates that are special: skipped, empty, without a reference, after an error; and of what is compared."""

import math
from types import SimpleNamespace

import torch
from tiny_models import tiny_tokenizer

from grpo.advantage import group_advantages, reward_terms
from grpo.distributed import gather_objects, rank
from grpo.run.groups import Groups
from grpo.sampler.generate import generate
from grpo.step import compare
from rewards.workers.pool import Scored
from tests.trainer.checks.cases import (
    advantages,
    begin,
    config,
    copied,
    move,
    part_of,
    rollout,
    sync,
    train_steps,
    work_of,
)


def check_groups_compare_on_two_ranks_as_on_one() -> None:
    """With the std of the batch, which spans the ranks, for rewards summed first and for rewards normalised first."""
    part_FBG = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(8))
    part_FBG[:, 2:] *= 50  # the second rank's groups
    part_FBG[1, 1, 0] = torch.nan
    weights, mine = [1.0, 0.5], slice(2 * rank(), 2 * rank() + 2)
    reward_BG = (torch.tensor(weights)[:, None, None] * part_FBG).nansum(dim=0)
    total = reward_BG[mine].flatten().tolist()
    parts = dict(zip(("correctness", "format"), part_FBG[:, mine].flatten(1).tolist()))
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        run = config(multi_objective_aggregation=aggregation, scale_rewards="batch")
        groups = Groups(
            problems={0: 0, 1: 1}, rollout=part_of(rollout(), 0, 2), scored=Scored(total, parts, {}))
        advantage_BG, metrics = compare(
            SimpleNamespace(config=run, rewards=SimpleNamespace(weights=weights)), groups, num_sampled=6)
        term_FBG = reward_terms(
            part_FBG, torch.tensor(weights), torch.ones(4, 3, dtype=torch.bool), aggregation=aggregation)
        whole_BG = group_advantages(term_FBG.sum(dim=0), scale="batch")
        torch.testing.assert_close(torch.cat(gather_objects(advantage_BG)), whole_BG, atol=1e-6, rtol=1e-5)
        shares = [metrics[f"phantom_advantage_share/{name}"] for name in parts]
        assert abs(sum(shares) - metrics["phantom_advantage_share"]) < 1e-9, metrics
        assert len({tuple(metrics.items()) for metrics in gather_objects(metrics)}) == 1


def check_nan_on_one_rank_skips_the_step_on_both() -> None:
    """A gradient that is not finite moves nothing anywhere, is counted, and the next step works."""
    for options in (dict(), dict(zero_stage=2), dict(zero_stage=0), dict(torch_dtype="bfloat16"),
                    dict(torch_dtype="bfloat16", zero_stage=0)):
        run = config(**options)
        engine, decoder = begin(run)
        sync(engine, decoder)
        before, whole = copied(decoder), rollout(seed=6)
        advantage_N = advantages(whole)
        if rank() == 1:
            advantage_N[-1] = float("nan")  # of a completion that is its own
        metrics = move(engine, run, work_of(run, whole, advantage_N=advantage_N), 1e-2)
        assert metrics["grad_norm"] == float("inf") and engine.skipped_steps == 1, (options, metrics)
        sync(engine, decoder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.tensors().items()), options
        metrics = train_steps(engine, decoder, run, 1)[0]
        assert metrics["grad_norm"] < 1e6 and engine.skipped_steps == 1, options


def check_a_step_in_which_nothing_counts_has_loss_0() -> None:
    """All completions truncated and masked: every rank still runs the same number of forwards, and nothing moves."""
    run, whole = config(mask_truncated_completions=True), rollout()
    engine, decoder = begin(run)
    sync(engine, decoder)
    start = copied(decoder)
    whole.truncated_N.fill_(True)
    metrics = move(engine, run, work_of(run, whole), 1e-2)
    sync(engine, decoder)
    assert metrics["loss"] == metrics["grad_norm"] == metrics["num_tokens"] == 0.0, metrics
    assert math.isnan(metrics["kl"]) and math.isnan(metrics["entropy"]), metrics  # else beta would move by them
    assert all(torch.equal(tensor, start[name]) for name, tensor in decoder.tensors().items())


def check_without_beta_no_reference_is_asked() -> None:
    """With beta 0 there is no reference pass, and the KL is not a number rather than a false 0."""
    run = config(beta=0.0)
    engine, decoder = begin(run)
    for metrics in train_steps(engine, decoder, run, 2):
        assert metrics["kl"] != metrics["kl"] and metrics["grad_norm"] > 0, metrics


def check_learning_rate_takes_effect() -> None:
    """Rate 0 moves nothing; a rate moves."""
    run = config()
    engine, decoder = begin(run)
    sync(engine, decoder)
    start = copied(decoder)
    for rate, moves in ((0.0, False), (1e-2, True)):
        train_steps(engine, decoder, run, 1, rate=rate)
        sync(engine, decoder)
        moved = any(not torch.equal(tensor, start[name]) for name, tensor in decoder.tensors().items())
        assert moved == moves, rate


def check_what_is_trained_whole_has_its_own_rate() -> None:
    """AdamW's first step has the size of the rate: 1/8 of it for the head, under ZeRO-3."""
    run = config(model="untied", lora_modules_to_save=["lm_head"], learning_rate=0.08,
                 lora_modules_to_save_learning_rate=0.01)
    engine, decoder = begin(run)
    sync(engine, decoder)
    start = copied(decoder)
    train_steps(engine, decoder, run, 1, rate=0.04)  # half of the peak, as in a warm-up
    sync(engine, decoder)
    moved = {name: float((tensor - start[name]).abs().max()) for name, tensor in decoder.tensors().items()}
    assert abs(moved["lm_head.weight"] / 0.005 - 1) < 1e-2, moved["lm_head.weight"]
    assert abs(moved["model.layers.0.self_attn.q_proj.lora_B.weight"] / 0.04 - 1) < 1e-2


def check_an_error_in_the_rollout_leaves_the_engine_whole() -> None:
    """The rollout touches no engine hook, so a caught error inside it costs nothing."""
    run = config()
    engine, decoder = begin(run)
    sync(engine, decoder)
    try:
        generate(decoder, [[]], tokenizer=tiny_tokenizer(), num_generations=2, max_completion_length=3, temperature=1.0,
                 stop_token_ids=set(), stop_strings=[], seed=0, step=0, prompt_index=[0])
        raise AssertionError("an empty prompt was accepted")
    except ValueError:
        pass
    metrics = train_steps(engine, decoder, run, 2)
    assert all(m["grad_norm"] > 0 for m in metrics) and metrics[0]["sampler_gap_max"] >= 0
