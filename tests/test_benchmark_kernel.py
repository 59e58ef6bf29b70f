"""benchmarks.kernel at a tiny size: every row has numbers or a reason, and peak_bytes counts right. 3 seconds.

Passes with and without the peers installed.
"""

import json
import math

import pytest
import torch

from benchmarks.kernel import TASKS, main, markdown, number
from benchmarks.memory import peak_bytes
from benchmarks.peers import PROVIDERS

MIB = 2**20
SIZES = "--tokens 8 --hidden 32 --vocab 64 --dtype float32".split()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(the JSON read back, the Markdown) of one run on the CPU."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
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
