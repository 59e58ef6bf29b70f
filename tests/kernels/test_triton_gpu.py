"""The Triton kernels compiled, at the sizes and in the tiles they are made for; all of it needs a GPU."""

import gc
import warnings

import pytest
import torch
from kernel_cases import MODES, compute, draw, errors, exactly, whole_logits

from benchmarks.memory import peak_bytes
from kernels import fused_logprob
from kernels.gpu import tiles

pytestmark = pytest.mark.gpu
both = pytest.mark.parametrize("impl", ["triton", "hybrid"])
SPECIALIZED = tiles.Tile(128, 128, 64, num_warps=4, num_stages=3, descriptors=True, warp_specialize=True)
ONE_SUM = {"hopper": tiles.HOPPER, "hopper, few rows": tiles.HOPPER_FEW_ROWS, "specialized": SPECIALIZED}
TWO_SUMS = {"hopper, two sums": tiles.HOPPER_TWO_SUMS, "plain": tiles.PLAIN, "plain, two sums": tiles.PLAIN_TWO_SUMS}
TILES = ONE_SUM | TWO_SUMS


def skip_without_descriptors():
    if tiles.architecture(torch.device("cuda")) not in ("sm_90", "sm_100"):
        pytest.skip("tensor descriptors are Hopper's")


def random_rows(num_tokens, num_words, hidden_size):
    """bfloat16 hidden states and head whose logits are normal with a standard deviation of 1.5, and tokens."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden_LH = torch.randn(num_tokens, hidden_size, generator=generator, device="cuda")
    weight_VH = torch.randn(num_words, hidden_size, generator=generator, device="cuda") * 1.5 / hidden_size ** 0.5
    token_L = torch.randint(num_words, (num_tokens,), generator=generator, device="cuda")
    return hidden_LH.bfloat16(), weight_VH.bfloat16(), token_L


@both
def test_a_language_models_size_is_right_and_the_same_with_and_without_gradient(impl):
    hidden_LH, weight_VH, token_L = random_rows(2048, 151_936, 896)
    leaf_LH = hidden_LH.clone().requires_grad_()
    logprob_L = fused_logprob(leaf_LH, weight_VH, token_L, impl=impl).logprob_L
    assert torch.equal(fused_logprob(hidden_LH, weight_VH, token_L, impl=impl).logprob_L, logprob_L)
    (found_LH,) = torch.autograd.grad(logprob_L.sum(), leaf_LH)
    some_KH = hidden_LH[::8].double().requires_grad_()
    right_K = whole_logits(some_KH, weight_VH.double(), token_L[::8]).logprob_L
    (right_KH,) = torch.autograd.grad(right_K.sum(), some_KH)
    assert (logprob_L[::8] - right_K).abs().max().item() <= 2e-5
    assert ((found_LH[::8] - right_KH).norm() / right_KH.norm()).item() <= 2e-3


@pytest.mark.parametrize("name", TILES)
def test_every_tile_computes_the_same(name, monkeypatch):
    tile = TILES[name]
    if tile.descriptors:
        skip_without_descriptors()
    monkeypatch.setattr("kernels.gpu.launch.tile_of", lambda *args, **options: tile)
    modes = ["no gradient", "frozen head", "trained head"]
    modes += ["exact", "exact, two heads"] if name in TWO_SUMS else []
    case = draw(300, 5000, 128).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that warp specialisation is off, where it is
        for mode in modes:
            found = errors(compute(case, MODES[mode], "triton"), exactly(case, MODES[mode]))
            assert all(error <= (1e-2 if output in ("hidden_LH", "weight_VH") else 1e-5)
                       for output, error in found.items()), (mode, found)


def test_warp_specialisation_is_tried_before_it_is_trusted():
    from kernels.gpu import launch

    skip_without_descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert isinstance(launch.specialises(torch.device("cuda"), torch.bfloat16, 896, SPECIALIZED), bool)


@both
@pytest.mark.parametrize("num_tokens", [1, 63, 300, 4097])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gradient_changes_no_bit_of_the_score(impl, num_tokens, dtype):
    case = draw(num_tokens, 5003, 136, scale=8).to(dtype)  # in some of the rows the token is improbable
    without, stashed, trained = (
        compute(case, MODES[name], impl)["logprob_L"] for name in ("no gradient", "frozen head", "trained head")
    )
    assert torch.equal(without, stashed) and torch.equal(without, trained)


@pytest.mark.parametrize("impl", ["triton", "hybrid"])
def test_memory_is_what_the_docstring_says(impl):
    # L 8,192, H 512, 16 spans: sums 12 L 16, D 2 L H, U 4096 4 H, E 2 TILE, and cuBLAS's products 4 TILE.
    hidden_LH, weight_VH, token_L = random_rows(8192, 65_536, 512)
    leaf_LH = hidden_LH.clone().requires_grad_()
    sums, tile = 12 * 8192 * 16, 2 ** 24
    products = 4 * tile * (impl == "hybrid")
    stash = 2 * 8192 * 512 + 4096 * 4 * 512 + 2 * tile
    for hidden, bound in ((hidden_LH, sums + products), (leaf_LH, sums + products + stash)):
        fused_logprob(hidden, weight_VH, token_L, impl=impl)  # cuBLAS takes its workspace at its first call
        gc.collect()
        assert peak_bytes(lambda: fused_logprob(hidden, weight_VH, token_L, impl=impl), "cuda") <= 1.1 * bound + 2 ** 20
