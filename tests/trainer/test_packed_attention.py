"""Attention over the tree of a packed row."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from grpo.trainer.packed_attention import (
    BLOCK,
    Part,
    Tree,
    _Attention,
    _compiled,
    block_mask,
    padded_length,
    parts,
    tree_attention,
)
from grpo.types import Batch

TREES = {
    # (length, segment, parent) of each run
    "a prefix, two prompts, five completions": [
        (9, 0, 0), (3, 1, 0), (4, 2, 1), (1, 3, 1), (2, 4, 0), (5, 5, 4), (5, 6, 4), (2, 7, 4)],
    "no prefix": [(3, 1, 0), (4, 2, 1), (6, 3, 1), (1, 4, 0), (2, 5, 4)],
    "a prefix alone": [(7, 0, 0)],
    "one token": [(1, 1, 0)],
    "padding behind it": [(5, 0, 0), (2, 1, 0), (3, 2, 1), (6, -1, -1)],
    "long": [(140, 0, 0), (20, 1, 0), (40, 2, 1), (10, 3, 1), (300, 4, 0), (250, 5, 4), (8, 6, 4)],
}


def tree(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    lengths, segments, parents = (torch.tensor(column) for column in zip(*TREES[name]))
    return segments.repeat_interleave(lengths), parents.repeat_interleave(lengths)


def dense(segment_L: torch.Tensor, parent_L: torch.Tensor) -> torch.Tensor:
    """The rule of grpo/trainer/packed_attention.py, entry by entry."""
    index_L = torch.arange(len(segment_L))
    sees_LL = (segment_L[:, None] == segment_L) | (parent_L[:, None] == segment_L) | (segment_L == 0)
    return (index_L[:, None] >= index_L) & sees_LL


def plain(query_JFLD, key_JLD, value_JLD, mask_LL, scaling):
    score = torch.einsum("jfld,jmd->jflm", query_JFLD, key_JLD) * scaling
    return score.masked_fill(~mask_LL, -torch.inf).softmax(-1) @ value_JLD[:, None]


def test_the_parts_of_a_small_tree_by_hand():
    # 9 | 8 | 1 2 | 3: a prefix, its prompt, two completions.
    segment_L, parent_L = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([0, 0, 1, 1, 1])
    assert parts(segment_L, parent_L) == [
        Part(slice(0, 1), slice(0, 1), True), Part(slice(1, 2), slice(1, 2), True),
        Part(slice(2, 4), slice(2, 4), True), Part(slice(4, 5), slice(4, 5), True),
        Part(slice(1, 5), slice(0, 1), False),  # everything behind the prefix sees it
        Part(slice(2, 5), slice(1, 2), False),  # both completions see their prompt
    ]


@pytest.mark.parametrize("name", [name for name in TREES if "padding" not in name])
def test_the_parts_cover_what_the_rule_says_once(name):
    segment_L, parent_L = tree(name)
    count_LL = torch.zeros(len(segment_L), len(segment_L), dtype=torch.int64)
    for part in parts(segment_L, parent_L):
        size = part.query.stop - part.query.start
        everything = torch.ones(size, part.key.stop - part.key.start, dtype=torch.int64)
        count_LL[part.query, part.key] += everything.tril() if part.causal else everything
    assert torch.equal(count_LL, dense(segment_L, parent_L).long())


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradients_equal_a_dense_mask(name, dtype):
    segment_L, parent_L = tree(name)
    torch.manual_seed(0)
    length, scaling = len(segment_L), 0.3
    shapes = ((2, 3, length, 16), (2, length, 16), (2, length, 16), (2, 3, length, 16))
    *inputs, grad_JFLD = (torch.randn(shape, dtype=dtype) for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in inputs]
    got = _Attention.apply(*inputs, parts(segment_L, parent_L), scaling)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    real_L = segment_L >= 0  # what padding sees is nobody's affair
    mask_LL = dense(segment_L, parent_L)
    mask_LL[~real_L] = torch.eye(length, dtype=torch.bool)[~real_L]
    grad_JFLD[:, :, ~real_L] = 0
    got_grads = torch.autograd.grad(got, inputs, grad_JFLD)
    expected = plain(*exact, mask_LL, scaling)
    expected_grads = torch.autograd.grad(expected, exact, grad_JFLD.double())
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got[:, :, real_L].double(), expected[:, :, real_L], atol=tolerance, rtol=tolerance)
    for got_grad, expected_grad in zip(got_grads, expected_grads):
        scale = float(expected_grad.abs().max()) or 1.0
        assert float((got_grad.double() - expected_grad).abs().max()) <= tolerance * scale


def test_nothing_of_the_size_of_a_mask_is_saved():
    segment_L, parent_L = tree("long")
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in ((1, 2, 768, 8), (1, 768, 8), (1, 768, 8)))
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        _Attention.apply(query, key, value, parts(segment_L, parent_L), 1.0)
    # q, k, v, out of [.., 768, 8] for 2, 1, 1, 2 heads, and lse of [2, 768].
    assert sum(tensor.numel() for tensor in saved) == 768 * (8 * (2 + 1 + 1 + 2) + 2)


@pytest.mark.parametrize("name", ["long", "padded long"])
def test_the_blocks_of_a_gpu_hold_every_pair_and_full_ones_nothing_else(name):
    segment_L, parent_L = tree("long")
    zeros = torch.zeros_like(segment_L)
    batch = Batch(token_L=zeros, position_L=zeros, segment_L=segment_L, parent_L=parent_L, source_K=zeros,
                  target_K=zeros, completion_K=zeros, place_K=zeros, mask_UT=zeros[None].bool())
    batch = batch.padded(1024 if name == "padded long" else 768)
    segment_L, parent_L = batch.segment_L, batch.parent_L
    mask = block_mask(parts(segment_L, parent_L), segment_L, parent_L)
    seen_LL = dense(segment_L, parent_L)
    count = len(segment_L) // BLOCK
    some, full = torch.zeros(2, count, count, dtype=torch.bool)
    lists = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    for kind, (num, index) in zip((some, full), lists):
        for row in range(count):
            kind[row, index[0, 0, row, : num[0, 0, row]].long()] = True
    assert not (some & full).any()
    real = segment_L >= 0
    for i in range(count):
        for j in range(count):
            here = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            block = seen_LL[here][real[here[0]]]
            assert bool(block.any()) <= bool(some[i, j] or full[i, j]), (i, j)
            assert not full[i, j] or bool(seen_LL[here].all()), (i, j)
    assert full.any() and not (some | full).all(), "some blocks are skipped, some need no mask"
    # FlexAttention's own evaluation of the rule, in plain PyTorch on a CPU, equals ours.
    whole = create_block_mask(mask.mask_mod, None, None, len(segment_L), len(segment_L), device="cpu")
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(segment_L), 16) for heads in (4, 2, 2))
    flex = flex_attention(query, key, value, block_mask=whole, scale=0.3, enable_gqa=True)
    ours = _Attention.apply(query[0].unflatten(0, (2, 2)), key[0], value[0], parts(segment_L, parent_L), 0.3)
    torch.testing.assert_close(flex[0][:, real], ours.flatten(0, 1)[:, real], atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["long", "a prefix, two prompts, five completions"])
def test_a_gpu_gives_the_output_and_gradients_of_a_cpu(name, monkeypatch):
    monkeypatch.setattr("grpo.trainer.packed_attention.rank", lambda: 0)  # says that it compiles
    segment_L, parent_L = tree(name)
    torch.manual_seed(0)
    zeros = torch.zeros_like(segment_L)
    batch = Batch(token_L=zeros, position_L=zeros, segment_L=segment_L, parent_L=parent_L, source_K=zeros,
                  target_K=zeros, completion_K=zeros, place_K=zeros, mask_UT=zeros[None].bool())
    num_real, batch = len(segment_L), batch.padded(padded_length(len(segment_L)))
    inputs = [torch.randn(1, heads, len(batch.segment_L), 64) for heads in (4, 2, 2)]
    found = {}
    for device in ("cpu", "cuda"):
        there = [tensor.to(device).requires_grad_() for tensor in inputs]
        out, _ = tree_attention(None, *there, None, scaling=0.3, tree=Tree(batch.to(device)))
        grads = torch.autograd.grad(out[:, :num_real].square().sum(), there)
        found[device] = [out[:, :num_real].cpu(), *(grad.cpu() for grad in grads)]
    for on_cpu, on_gpu in zip(*found.values()):
        torch.testing.assert_close(on_gpu, on_cpu, atol=2e-2 * float(on_cpu.abs().max()), rtol=0)


def test_lengths_are_rounded_up_to_few():
    assert [padded_length(length) for length in (1, 128, 129, 1100, 3285, 16385)] == [128, 128, 256, 1152, 3328, 18432]
    lengths = {padded_length(length) for length in range(1, 32769)}
    assert len(lengths) <= 50
    assert all(padded_length(length) <= max(1.125 * length, length + BLOCK) for length in range(1, 32769, 7))


def test_attention_of_a_gpu_is_not_run_where_the_compiler_is_turned_off(monkeypatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(RuntimeError, match="^TORCHDYNAMO_DISABLE=1 in the environment: attention has to be compiled"):
        _compiled(128)
