"""Which implementation, tile and span a call gets: plain tables, for GPUs that need not be there. 1 second."""

import importlib.util
import json

import pytest
import torch

from kernels import choose
from kernels.gpu import tiles
from kernels.gpu.tiles import (
    FLOAT32,
    FOLD,
    HOPPER,
    HOPPER_FEW_ROWS,
    HOPPER_TWO_SUMS,
    INTERPRETER,
    PLAIN,
    PLAIN_TWO_SUMS,
    Tile,
    key,
    prefers_hybrid,
    span_of,
    tile_of,
)

FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
MEASURED = {"sm_90 H896 N1024": {"hybrid": True, "tile": [64, 128, 64, 4, 2]}, "sm_90 H3584 N2048": {"hybrid": False}}


def choice(impl="auto", device="cuda", *, dtype=BRAIN, hidden_size=896, num_tokens=16_384):
    return choose(impl, device, dtype=dtype, hidden_size=hidden_size, num_tokens=num_tokens)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("kernels.choice.architecture", lambda device: "sm_90")
    monkeypatch.setattr("kernels.gpu.tiles.tuned", dict)


@pytest.mark.parametrize("impl", ["triton", "hybrid"])
def test_triton_on_a_cpu_is_refused_unless_it_is_interpreted(impl, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choice(impl, "cpu") == (impl, "asked for")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError) as caught:
        choice(impl, "cpu")
    reason = "it needs a GPU, or TRITON_INTERPRET=1"
    assert str(caught.value) == f"impl='{impl}' cannot run: {reason}; nearest valid value: reference"


@pytest.mark.parametrize("impl", ["triton", "hybrid"])
def test_triton_is_refused_for_float64_and_where_it_is_not_installed(impl, monkeypatch):
    with pytest.raises(ValueError, match=f"^impl='{impl}' cannot run: Triton kernels have no float64; nearest"):
        choice(impl, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"^impl='{impl}' cannot run: there is no Triton on mps; nearest"):
        choice(impl, "mps")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"^impl='{impl}' cannot run: Triton is not installed; nearest"):
        choice(impl)


def test_auto_says_what_it_takes_and_why(hopper, monkeypatch):
    assert choice() == ("triton", "one kernel; small hidden size: writing logits would cost as much as multiplying")
    assert choice(num_tokens=8) == ("triton", "one kernel; few tokens: the head is read once")
    name, reason = choice(hidden_size=3584)
    assert name == "hybrid" and reason.startswith("cuBLAS multiplies, Triton folds; large hidden size")
    assert choice(device="cpu") == ("reference", "PyTorch in tiles, on the CPU")
    assert choice("reference", "cpu") == ("reference", "asked for")
    assert choice(dtype=torch.float64) == ("reference", "PyTorch in tiles: Triton kernels have no float64")
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert choice() == ("reference", "PyTorch in tiles: this GPU's tensor cores have no bfloat16")


@pytest.mark.parametrize(("dtype", "num_tokens", "hidden_size", "hybrid", "why"), [
    (FLOAT, 1, 64, True, "tensor cores have no float32"),
    (FLOAT, 16_384, 3584, True, "tensor cores have no float32"),
    (BRAIN, 2047, 8192, False, "few tokens"),
    (HALF, 2048, 2047, False, "small hidden size"),
    (BRAIN, 2048, 2048, True, "large hidden size"),
])
def test_each_line_of_the_table_of_who_multiplies(dtype, num_tokens, hidden_size, hybrid, why, monkeypatch):
    monkeypatch.setattr("kernels.gpu.tiles.tuned", dict)
    found, reason = prefers_hybrid("sm_90", dtype, hidden_size, num_tokens)
    assert found is hybrid and reason.startswith(why)


def test_key_rounds_tokens_up_to_a_power_of_two():
    assert [key("sm_90", 896, n) for n in (1, 2, 3)] == ["sm_90 H896 N1", "sm_90 H896 N2", "sm_90 H896 N4"]
    assert key("hip", 64, 1024) == "hip H64 N1024" and key("sm_80", 64, 1025) == "sm_80 H64 N2048"


@pytest.mark.parametrize(("arch", "dtype", "hidden_size", "num_tokens", "one_sum", "two_sums"), [
    ("sm_90", BRAIN, 896, 65, HOPPER, HOPPER_TWO_SUMS),
    ("sm_90", HALF, 896, 64, HOPPER_FEW_ROWS, HOPPER_TWO_SUMS),
    ("sm_100", BRAIN, 896, 16_384, HOPPER, HOPPER_TWO_SUMS),
    ("sm_90", BRAIN, 900, 16_384, PLAIN, PLAIN_TWO_SUMS),  # 1,800 bytes a row: no multiple of 16
    ("sm_80", BRAIN, 896, 16_384, PLAIN, PLAIN_TWO_SUMS),
    ("sm_120", BRAIN, 896, 16_384, PLAIN, PLAIN_TWO_SUMS),
    ("hip", HALF, 896, 16_384, PLAIN, PLAIN_TWO_SUMS),
    ("sm_90", FLOAT, 896, 16_384, FLOAT32, FLOAT32),
    ("cpu", FLOAT, 896, 16_384, INTERPRETER, INTERPRETER),
])
def test_tile_of_an_architecture(arch, dtype, hidden_size, num_tokens, one_sum, two_sums, monkeypatch):
    monkeypatch.setattr("kernels.gpu.tiles.tuned", dict)
    assert tile_of(arch, dtype, hidden_size, num_tokens) == one_sum
    assert tile_of(arch, dtype, hidden_size, num_tokens, two_sums=True) == two_sums


def test_what_was_measured_overrides_the_tables(hopper, monkeypatch):
    monkeypatch.setattr("kernels.gpu.tiles.tuned", lambda: MEASURED)
    assert tile_of("sm_90", BRAIN, 896, 1000) == Tile(64, 128, 64, 4, 2)
    assert prefers_hybrid("sm_90", BRAIN, 896, 1000) == (True, "measured on this GPU")
    assert choice(num_tokens=1000) == ("hybrid", "cuBLAS multiplies, Triton folds; measured on this GPU")
    assert choice(num_tokens=2048, hidden_size=3584) == ("triton", "one kernel; measured on this GPU")
    assert tile_of("sm_90", BRAIN, 3584, 2048) == HOPPER  # no tile was measured there
    assert tile_of("sm_90", BRAIN, 896, 1000, two_sums=True) == HOPPER_TWO_SUMS
    assert tile_of("sm_90", FLOAT, 896, 1000) == FLOAT32
    assert prefers_hybrid("sm_90", FLOAT, 896, 1000) == (True, "tensor cores have no float32")
    assert tile_of("sm_90", BRAIN, 896, 1025) == HOPPER and tile_of("sm_80", BRAIN, 896, 1000) == PLAIN


def test_measured_shapes_are_read_from_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr("kernels.gpu.tiles.TUNED", tmp_path / "tuned.json")
    tiles.tuned.cache_clear()
    assert tiles.tuned() == {}
    (tmp_path / "tuned.json").write_text(json.dumps(MEASURED))
    tiles.tuned.cache_clear()
    assert tiles.tuned() == MEASURED
    tiles.tuned.cache_clear()


def test_a_span_is_whole_tiles():
    # Sums of single tiles are merged span by span; a span that ends inside a tile would be merged wrongly.
    assert [span_of(n) for n in (0, 255, 256, 2047, 2048, 10**6)] == [512, 512, 1024, 1024, 4096, 4096]
    shapes = (HOPPER, HOPPER_FEW_ROWS, HOPPER_TWO_SUMS, PLAIN, PLAIN_TWO_SUMS, FLOAT32, FOLD, INTERPRETER)
    assert all(span_of(n) % tile.words == 0 for n in (1, 256, 2048) for tile in shapes)
