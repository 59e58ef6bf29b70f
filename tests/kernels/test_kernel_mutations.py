"""Each thing that a Triton kernel could forget makes a difference above 1e-3: test_kernels.py would see it.

A mutation is a copy of the kernels' source with one text replaced, run by the launches as they are; 10 seconds.
"""

import importlib.util
import sys

import pytest
from kernel_cases import MODES, SPAN, draw, improbable, shrink, wrong
from ranks import ROOT

from kernels.gpu import launch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SEEN_BY = ["no gradient", "frozen head", "exact", "exact, two heads"]
MUTATIONS = [  # name, module, old, new
    ("temperature", "logits", "sum_RW * scale", "sum_RW * 1.4426950408889634"),
    ("temperature of the token's logit", "forward", "tl.sum(sum_I) * scale", "tl.sum(sum_I) * 1.4426950408889634"),
    ("temperature of the stash", "backward", "/ sums_R[:, None]) * scale", "/ sums_R[:, None])"),
    ("end of the vocabulary", "logits", "return tl.where((word + tl.arange(0, WORDS) < stop)[None, :], logit_RW, LOW)",
     "return logit_RW"),
    ("first span", "forward", "first = tl.program_id(1) * group", "first = tl.program_id(1) * group + 1"),
    ("token's own logit", "forward", "((logit_y - top) - log_sum)", "(-top - log_sum)"),
    ("token's own row of the head", "backward", "(own.to(tl.float32) - mean_v", "(-mean_v"),
    ("one-hot of the token", "backward", "tl.where(own_RW, slope_RW + g_R[:, None], slope_RW)", "slope_RW"),
    ("one sum of two that are made together", "forward", "    return a + c, b + d", "    return a + c, a + d"),
    ("rescaling where spans are merged", "forward", "  sums = old_scale * sums + part_scale * part_sum",
     "  sums = sums + part_sum"),
    ("the same of the moment", "forward", "old_scale * (moment + (top - new) * sums) +", "moment +"),
    ("the same of the reference", "forward", "ref_old_scale * ref_sums + ref_part_scale * ref_part_sum",
     "ref_sums + ref_part_sum"),
    ("the same of the KL", "forward", "= old_scale * cross + part_scale * part_cross", "= cross + part_cross"),
    ("shrinking of the running sum", "forward", " sum_R = shrink_R * sum_R + tile_sum_R",
     " sum_R = sum_R + tile_sum_R"),
    ("shrinking of the running moment", "forward", "moment_R = shrink_R * (moment_R + (top_R - new_R) * sum_R)",
     "pass"),
    ("shrinking of the reference's sum", "forward", "ref_sum_R = ref_shrink_R * ref_sum_R", "ref_sum_R = ref_sum_R"),
    ("shrinking of the running KL", "forward", "cross_R = shrink_R * cross_R", "cross_R = cross_R"),
    ("sign of a KL", "forward", "(cross / sums - lead)", "(lead - cross / sums)"),
    ("sign of the KL's sum", "forward", "(logit_RW - ref_RW)", "(ref_RW - logit_RW)"),
    ("sign of the KL's gradient", "backward", "(slope_RW + c_R[:, None]", "(slope_RW - c_R[:, None]"),
    ("logarithm to the base e", "backward", "(log2p_RW * LN2)", "log2p_RW"),
    ("own log-sum-exp of a row", "backward", "logit_RW - lse_R[:, None]", "logit_RW - tl.min(lse_R)"),
]


def mutate(patch, folder, module, old, new):
    """Launch copies of the kernels; in one module, the only place that says `old` says `new`."""
    for name in ("logits", "forward", "backward"):
        source = (ROOT / "kernels" / "gpu" / f"{name}.py").read_text()
        if name == module:
            assert source.count(old) == 1, f"kernels/gpu/{name}.py says {source.count(old)} times: {old}"
            source = source.replace(old, new)
        path = folder / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"kernels.gpu.{name}", path)
        copy = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, copy)  # where the next one's `from kernels.gpu.logits import` finds it
        spec.loader.exec_module(copy)
    patch.setattr(launch, "forward", sys.modules["kernels.gpu.forward"])
    patch.setattr(launch, "backward", sys.modules["kernels.gpu.backward"])


def seen(tolerance, names):
    # Two spans, of which the second ends inside a tile; row 1 goes through the running maximum, row 2 the reference's.
    case = improbable(draw(5, SPAN + 36, 8), [1], [1, 2])
    return {name: found for name in names if (found := wrong(tolerance, case, MODES[name], "triton"))}


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    shrink(monkeypatch)


def test_without_a_mutation_nothing_is_wrong(monkeypatch, tmp_path):
    mutate(monkeypatch, tmp_path, None, None, None)
    assert seen(1e-4, SEEN_BY) == {}


@pytest.mark.parametrize(("module", "old", "new"), [row[1:] for row in MUTATIONS], ids=[row[0] for row in MUTATIONS])
def test_a_kernel_that_forgets_something_is_caught(monkeypatch, tmp_path, module, old, new):
    mutate(monkeypatch, tmp_path, module, old, new)
    assert any(seen(1e-3, [name]) for name in SEEN_BY)
