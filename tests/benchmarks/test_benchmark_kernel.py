"""benchmarks.kernel at a tiny size: every row has numbers or a reason, and peak_bytes counts right; --compile, --tune.

5 seconds. Passes with and without the peers installed.
"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.kernel import tune
from benchmarks.kernel.command import main
from benchmarks.kernel.page import markdown
from benchmarks.kernel.peers import PROVIDERS
from benchmarks.kernel.tasks import TASKS
from benchmarks.kernel.tune import SPECIALISED, Candidate
from benchmarks.memory import peak_bytes
from benchmarks.record import ROOT, number
from kernels.gpu import tiles
from kernels.gpu.tiles import HOPPER, PLAIN

MIB = 2**20
SIZES = "--tokens 8 --hidden 32 --vocab 64 --dtype float32".split()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the JSON read back, the Markdown) of one run on the CPU."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.delenv("TRITON_INTERPRET", raising=False)  # which would take most of the time
        main([*SIZES, "--output", str(folder)])
    return json.loads((folder / "kernel.json").read_text()), (folder / "kernel.md").read_text()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("provider", ["ours (auto)", "ours (reference)", "eager"])
def test_ours_and_eager_do_every_task_right(written, name, provider):
    (case,) = written[0]["cases"]
    row = next(row for row in case["tasks"][name] if row["provider"] == provider)
    assert math.isfinite(row["ms"]) and row["ms"] > 0 and row["peak_bytes"] > 0
    assert list(row["errors"]) == TASKS[name].errors()
    # The gradient of a tiny KL is a small difference of logits, which float32 rounds at 1e-6.
    limit = {"hidden_LH": 2e-3} if name == "exact-grad" else {}
    assert all(error < limit.get(key, 1e-5) for key, error in row["errors"].items()), row["errors"]


def test_no_provider_is_skipped_silently(written):
    for rows in written[0]["cases"][0]["tasks"].values():
        assert [row["provider"] for row in rows] == [peer.name for peer in PROVIDERS]
        for row in rows:
            assert row["why"] or math.isfinite(row["ms"]), row
            assert not row["why"] or "ms" not in row, row


def test_markdown_says_what_the_json_says(written):
    result, page = written
    assert markdown(result) == page
    assert "GPU: not measured" in page and f"`{result['command']}`" in page
    starts = tuple(f"| {peer.name} |" for peer in PROVIDERS)
    lines = [line for line in page.splitlines() if line.startswith(starts)]
    rows = [row for rows in result["cases"][0]["tasks"].values() for row in rows]
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:]]
        assert cells[:2] == [row["provider"], row["why"] or number(row["ms"])]
        assert {f"{error:.1e}" for error in row.get("errors", {}).values()} <= set(cells)


def test_peak_bytes_of_three_tensors_of_which_two_live_at_once():
    def function():
        first = torch.zeros(MIB // 4)
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(function, "cpu") == 2 * MIB


def test_peak_bytes_ignores_inputs_and_views():
    old = torch.zeros(MIB // 4)
    assert peak_bytes(lambda: old.add_(1).view(2, -1)[0], "cpu") == 0
    assert peak_bytes(lambda: (old + 1).view(2, -1).flatten(), "cpu") == MIB


class Scratch(torch.autograd.Function):
    """x -> x with 3 MiB of scratch memory in forward and 5 MiB in backward."""

    @staticmethod
    def forward(ctx, x):
        torch.zeros(3 * MIB // 4)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        torch.zeros(5 * MIB // 4)
        return grad.clone()


def test_peak_bytes_sees_into_autograd_functions_and_the_backward_pass():
    x = torch.zeros(MIB // 4, requires_grad=True)
    upstream = torch.ones(MIB // 4)
    assert peak_bytes(lambda: Scratch.apply(x), "cpu") == 3 * MIB
    # The output of 1 MiB lives until the call ends.
    assert peak_bytes(lambda: torch.autograd.grad(Scratch.apply(x), x, upstream), "cpu") >= 5 * MIB

    def keep_the_output():
        y = Scratch.apply(x)
        return y, torch.autograd.grad(y, x, upstream)

    assert peak_bytes(keep_the_output, "cpu") == 6 * MIB


def timed(candidate, score, frozen, why=None):
    return {"candidate": candidate, "why": why, "ms": {} if why else {"score": score, "frozen": frozen}}


def test_tuning_takes_the_least_sum_of_both_passes_and_none_that_does_not_count():
    plain, fast = timed(Candidate(PLAIN), 3, 6), timed(Candidate(HOPPER), 4, 4)
    wrong = timed(Candidate(SPECIALISED), 1, 1, why="logprob_L off by 1.0e+00")
    assert tune.choose([plain, fast, wrong]) == {"tile": list(HOPPER), "hybrid": False}
    assert tune.choose([plain, timed(Candidate(HOPPER), 5, 5)]) == {"tile": list(PLAIN), "hybrid": False}


@pytest.mark.parametrize("score, hybrid", [(3.9, False), (3, True), (5, False)])
def test_tuning_takes_cublas_only_if_it_is_clearly_faster(score, hybrid):
    rows = [timed(Candidate(PLAIN), 5, 5), timed(Candidate(HOPPER), 4, 4)]
    rows.append(timed(Candidate(PLAIN, hybrid=True), score, 4))
    assert tune.choose(rows) == {"tile": list(HOPPER), "hybrid": hybrid}


def test_tuning_measures_what_the_table_of_tiles_says(monkeypatch):
    """On the CPU, where every tile is the same reference: one raises, one is wrong, two count."""
    table, seen = {}, []
    monkeypatch.setattr(tiles, "tuned", lambda: table)
    right = tune.call

    def call(peer, task, inputs, upstream_L):
        (entry,) = table.values()
        seen.append(entry)
        if entry["tile"] == list(SPECIALISED):
            raise RuntimeError
        result = right(peer, task, inputs, upstream_L)
        return result if entry["tile"] != list(HOPPER) else {name: 1.1 * tensor for name, tensor in result.items()}

    monkeypatch.setattr(tune, "call", call)
    offered = [Candidate(PLAIN), Candidate(SPECIALISED), Candidate(HOPPER), Candidate(PLAIN, hybrid=True)]
    rows = tune.measure((8, 32, 64), offered, "cpu", 0)
    assert list(table) == ["cpu H32 N8"] and all(candidate.entry() in seen for candidate in offered)
    assert [row["candidate"] for row in rows] == offered
    assert [list(row["ms"]) for row in rows] == [["score", "frozen"], [], [], ["score", "frozen"]]
    assert rows[1]["why"] == "raises RuntimeError" and rows[2]["why"].startswith("logprob_L off by")


def test_a_wrong_gradient_does_not_count():
    right = {"logprob_L": torch.ones(3), "hidden_LH": torch.ones(3, 2)}
    assert tune.disagrees(right, right) is None
    wrong = right | {"hidden_LH": torch.full((3, 2), 1.1)}
    assert tune.disagrees(wrong, right) == "gradient of hidden_LH off by 1.0e-01"
    assert tune.disagrees({**right, "logprob_L": torch.full((3,), math.nan)}, right) == "logprob_L off by nan"


def test_tuned_entries_join_those_of_other_sizes_and_are_read_back(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    monkeypatch.setattr(tiles, "TUNED", path)
    tune.merge({"sm_80 H896 N64": Candidate(HOPPER).entry()}, path)
    tune.merge({"sm_80 H896 N16384": Candidate(PLAIN).entry()}, path)
    tune.merge({"sm_80 H896 N64": Candidate(SPECIALISED, hybrid=True).entry()}, path)
    monkeypatch.setattr(tiles, "tuned", tiles.tuned.__wrapped__)
    assert list(tiles.tuned()) == ["sm_80 H896 N16384", "sm_80 H896 N64"]
    assert tiles.tile_of("sm_80", torch.bfloat16, 896, 33) == SPECIALISED
    assert tiles.prefers_hybrid("sm_80", torch.bfloat16, 896, 33)[0]


def test_tuning_without_a_gpu_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        main(["--tune"])
    assert exit_.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_kernel_compiles_for_a_gpu_that_is_not_there_and_spills_nothing():
    pytest.importorskip("triton")
    code = """if True:
        from benchmarks.kernel.compiled import compile_kernel
        from kernels.gpu.tiles import Tile
        print(compile_kernel("sweep (no gradient)", Tile(32, 32, 32, num_warps=4, num_stages=2), 64, "sm_80"))
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "'spilled_bytes': 0," in found.stdout and "'threads': 128" in found.stdout, found.stderr


def test_a_kernel_that_needs_more_shared_memory_than_its_card_has_is_refused():
    compiled = pytest.importorskip("benchmarks.kernel.compiled")
    fits, too_big = ({"shared_bytes": 1024 * kib} for kib in (99, 100))
    row = {"arch": "sm_120", "kernel": "slope", "H": 896, "tile": list(PLAIN), "any": fits}
    compiled.check([row | {"aligned": fits}, row | {"aligned": {"why": "does not compile: RuntimeError"}}])
    with pytest.raises(SystemExit, match="slope on sm_120 at H 896.* needs 102,400 bytes of shared memory"):
        compiled.check([row | {"aligned": too_big}])
