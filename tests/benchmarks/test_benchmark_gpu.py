"""What the benchmarks for a GPU say of what they measure, worked out by hand. Two seconds; no GPU takes part."""

import pytest
import torch
from tiny_models import tiny_qwen2
from transformers import Qwen2Config

from benchmarks.rollout.bandwidth import branches, bytes_per_step
from benchmarks.step.gpu import PEAK_FLOPS, arithmetic, derive, markdown
from grpo.sampler.decoder import Decoder
from grpo.types import Rollout, RolloutCost

# A layer's weights: query 8 x 8, key and value 8 x 4, output 8 x 8 are 192; gate, up and down 8 x 16 are 384.
CONFIG = Qwen2Config(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, vocab_size=10)
ROW = {"engine": "ours", "why": None, "seconds": [2.0, 4.0, 3.0], "total_bytes": 2**30, "profile": "gemm 1 ms",
       "parts": {"rollout_s": 0.5, "reference_s": 1.0, "update_s": 2.0}}


def test_arithmetic_counts_shared_tokens_once_and_in_padded_rows_each_time():
    """2 prompts of 3 and 4 tokens, the first 2 shared, 2 completions of 3 tokens each."""
    found = arithmetic(CONFIG, [[1, 2, 3], [1, 2, 4, 5]], num_generations=2, length=3)
    assert (found["packed_tokens"], found["padded_tokens"]) == (2 + 1 + 2 + 12, 4 * (4 + 3))
    head = 2 * 8 * 10 * 12
    assert found["packed_flops"] == 3 * (2 * 2 * 576 * 17 + head)
    assert found["padded_flops"] == 3 * (2 * 2 * 576 * 28 + head)


def test_a_row_is_judged_by_its_own_arithmetic_and_one_that_fails_says_why():
    work = {"packed_flops": 6 * PEAK_FLOPS / 10, "padded_flops": 6 * PEAK_FLOPS}
    work |= {"packed_tokens": 17, "padded_tokens": 28}
    ours, theirs = (derive(ROW | {"engine": name}, work, num_tokens=12) for name in ("ours", "TRL"))
    assert (ours["step_s"], ours["tokens_per_s"]) == (3.0, 4.0)
    assert (ours["mfu"], theirs["mfu"]) == pytest.approx((0.2, 2.0)) and theirs["useful_mfu"] == pytest.approx(0.2)
    failed = derive({"engine": "TRL", "why": "raises OutOfMemoryError"}, work, num_tokens=12)
    page = markdown({
        "model": "m", "device": "d", "commit": "c", "versions": {"torch": "2"}, "num_prompts": 2, "num_generations": 2,
        "length": 3, "arithmetic": work, "prompt_tokens": {"min": 3, "max": 4, "shared": 2}, "rows": [ours, failed]})
    assert "| ours | 3.00 | 0.50 | 1.00 | 2.00 | 4 | 20 % | 1.0 |" in page and "gemm 1 ms" in page
    assert "| TRL | raises OutOfMemoryError |" in page


def test_a_step_reads_each_weight_once_and_merged_branches_not_at_all():
    model = tiny_qwen2(tied=False)
    weight, lora = dict(model.named_parameters()), branches(model, rank=2)
    cost = RolloutCost(num_slots=4, num_steps=6, prefill_s=0.0, warmup_s=0.0, seconds=1.0)
    rollout = Rollout(
        prompt_ids=[[1]], token_NT=torch.zeros(4, 6, dtype=torch.int64), length_N=torch.full((4,), 6),
        sampler_logprob_NT=torch.zeros(4, 6), truncated_N=torch.zeros(4, dtype=torch.bool), text=[""] * 4, cost=cost)
    decoders = {form: Decoder(model.config, weight, lora, form=form) for form in ("lora", "merged")}
    read = {form: bytes_per_step(decoder, rollout, num_slots=4) for form, decoder in decoders.items()}
    weights = sum(tensor.nbytes for name, tensor in weight.items() if name != "model.embed_tokens.weight")
    own = 4 * 3 * decoders["merged"].token_bytes()
    # Where projections are joined, their B lie in a matrix with zeros beside the blocks, and that is read.
    inner = sum(linear.A_IR.nbytes + linear.B_RO.nbytes for linear in decoders["lora"].linears())
    inner += len(decoders["lora"].layers) * 3 * 2 * 4  # zeros for the columns of A behind the bias of q, k and v
    assert read == {"lora": weights + own + inner, "merged": weights + own}
