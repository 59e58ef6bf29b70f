"""Each thing that a Triton kernel could forget makes a difference above 1e-3: the comparison of test_triton.py sees it.

A mutation is a copy of the kernels' source with one text replaced, run by the launches as they are; 10 seconds.
"""

import importlib.util
import sys

import pytest

from kernels import launch
from ranks import ROOT
from triton_cases import MODES, SPAN, draw, improbable, shrink, wrong

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SEEN_BY = ["no gradient", "frozen head", "exact", "exact, two heads"]
MUTATIONS = [  # name, module, old, new
    ("temperature", "logits", "sum_RW * scale", "sum_RW * 1.4426950408889634"),
    ("temperature of the token's logit", "sweep", "tl.sum(sum_I) * scale", "tl.sum(sum_I) * 1.4426950408889634"),
    ("temperature of the stash", "slope", "/ sums_R[:, None]) * scale", "/ sums_R[:, None])"),
    ("end of the vocabulary", "logits", "return tl.where((word + tl.arange(0, WORDS) < stop)[None, :], logit_RW, LOW)",
     "return logit_RW"),
    ("first span", "sweep", "first = tl.program_id(1) * group", "first = tl.program_id(1) * group + 1"),
    ("token's own logit", "sweep", "((logit_y - top) - log_sum)", "(-top - log_sum)"),
    ("token's own row of the head", "slope", "(own.to(tl.float32) - mean_v", "(-mean_v"),
    ("one-hot of the token", "slope", "tl.where(own_RW, slope_RW + g_R[:, None], slope_RW)", "slope_RW"),
    ("rescaling where spans are merged", "sweep", "  sums = old_scale * sums + part_scale * part_sum",
     "  sums = sums + part_sum"),
    ("the same of the moment", "sweep", "old_scale * (moment + (top - new) * sums) +", "moment +"),
    ("the same of the reference", "sweep", "ref_old_scale * ref_sums + ref_part_scale * ref_part_sum",
     "ref_sums + ref_part_sum"),
    ("the same of the KL", "sweep", "= old_scale * cross + part_scale * part_cross", "= cross + part_cross"),
    ("shrinking of the running sum", "sweep", " sum_R = shrink_R * sum_R + tile_sum_R", " sum_R = sum_R + tile_sum_R"),
    ("shrinking of the running moment", "sweep", "moment_R = shrink_R * (moment_R + (top_R - new_R) * sum_R)", "pass"),
    ("shrinking of the reference's sum", "sweep", "ref_sum_R = ref_shrink_R * ref_sum_R", "ref_sum_R = ref_sum_R"),
    ("shrinking of the running KL", "sweep", "cross_R = shrink_R * cross_R", "cross_R = cross_R"),
    ("sign of a KL", "sweep", "(cross / sums - lead)", "(lead - cross / sums)"),
    ("sign of the KL's sum", "sweep", "(logit_RW - ref_RW)", "(ref_RW - logit_RW)"),
    ("sign of the KL's gradient", "slope", "(slope_RW + c_R[:, None]", "(slope_RW - c_R[:, None]"),
    ("logarithm to the base e", "slope", "(log2p_RW * LN2)", "log2p_RW"),
    ("own log-sum-exp of a row", "slope", "logit_RW - lse_R[:, None]", "logit_RW - tl.min(lse_R)"),
]


def mutate(patch, folder, module, old, new):
    """Launch copies of the kernels; in one module, the only place that says `old` says `new`."""
    for name in ("logits", "sweep", "slope"):
        source = (ROOT / "kernels" / f"{name}.py").read_text()
        if name == module:
            assert source.count(old) == 1, f"kernels/{name}.py says {source.count(old)} times: {old}"
            source = source.replace(old, new)
        path = folder / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"kernels.{name}", path)
        copy = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, copy)  # where the next one's `from kernels.logits import` finds it
        spec.loader.exec_module(copy)
    patch.setattr(launch, "forward", sys.modules["kernels.sweep"])
    patch.setattr(launch, "backward", sys.modules["kernels.slope"])


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
