"""Attention to prefix, prompt and own tokens against one float64 softmax over all tokens of a completion.

On a GPU the kernels run compiled; without one in Triton's interpreter: 8 seconds on one core. In every case all that a
completion must not see is NaN: what lies beyond a length, idle slots, unused places, new memory.
"""

import math
import pkgutil

import pytest
import torch
from kernel_cases import COMPILED, DEVICE, full_of_nan
from quick_interpreter import hasten

from kernels import decode_attention
from kernels.decode_attention import attend_shared, attend_tree

# Tokens of the prefix, of each prompt's rest and of each completion: around the border of a block of 64, and none.
LENGTHS = [0, 1, 63, 64, 65, 130]
PARTS = ["prefix_CJPD", "rest_CAJQD", "own_CSJTD"]


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """New memory is NaN; a quicker interpreter."""
    if not COMPILED:
        hasten(monkeypatch)
    for name in ("torch.empty", "torch.empty_like", "torch.Tensor.new_empty"):
        monkeypatch.setattr(name, full_of_nan(pkgutil.resolve_name(name)))


def indices(*numbers):
    return torch.tensor(numbers, device=DEVICE)


def draw(prefix=70, rest=(65, 3), place=(1, 0, 1), column=(2, 64, 0), *, heads=(2, 3), size=16, dtype=torch.float32):
    """Arguments of attend_tree; scores are normal with a standard deviation of 2."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    num_kv, num_shared = heads
    query_MED = normal(len(place), num_kv * num_shared + 2 * num_kv, size)  # as one projection writes it
    prefix_CJPD = normal(2, num_kv, prefix + 5, size)
    rest_CAJQD = normal(2, len(rest) + 1, num_kv, max(rest) + 5, size)
    own_CSJTD = normal(2, len(place) + 2, num_kv, max(column) + 6, size)
    prefix_CJPD[:, :, prefix:] = rest_CAJQD[:, len(rest):] = own_CSJTD[:, len(place):] = torch.nan
    for room, lengths in ((rest_CAJQD, rest), (own_CSJTD, column)):  # the newest token is not there yet
        for index, length in enumerate(lengths):
            room[:, index, :, length:] = torch.nan
    query_MED = query_MED.to(dtype)
    return {
        "query_MJFD": (2 * query_MED)[:, :num_kv * num_shared].unflatten(1, heads),
        "pair_MCJD": query_MED[:, num_kv * num_shared:].unflatten(1, (2, num_kv)),
        "prefix_CJPD": prefix_CJPD[:, :, :prefix].to(dtype),
        "rest_CAJQD": rest_CAJQD.to(dtype),
        "length_A": indices(*rest, max(rest) + 5),
        "place_M": indices(*place),
        "own_CSJTD": own_CSJTD.to(dtype),
        "column_M": indices(*column),
    }


def attend(case):
    case = dict(case)
    return attend_tree(case.pop("query_MJFD"), case.pop("pair_MCJD"), **case)


def exactly(case, *, magnitude=False):
    """The same by definition, in float64; of the values' magnitudes if asked."""
    return torch.stack([plain(query_JFD, tokens_of(case, m), magnitude)[0]
                        for m, query_JFD in enumerate(case["query_MJFD"])])


def tokens_of(case, m):
    """[C, J, L, D]: all that completion m sees, its newest token last."""
    group = case["place_M"][m]
    rest = case["rest_CAJQD"][:, group, :, :case["length_A"][group]]
    own = case["own_CSJTD"][:, m, :, :case["column_M"][m]]
    return torch.cat([case["prefix_CJPD"], rest, own, case["pair_MCJD"][m][:, :, None]], dim=2)


def plain(query_JFD, kv_CJLD, magnitude=False):
    """Output and log-sum-exp of one softmax."""
    key_JLD, value_JLD = kv_CJLD.double()
    score_JFL = query_JFD.double() @ key_JLD.mT / math.sqrt(query_JFD.shape[-1])
    return score_JFL.softmax(-1) @ (value_JLD.abs() if magnitude else value_JLD), score_JFL.logsumexp(-1)


def error(case):
    """The largest difference; infinite where something is NaN."""
    return (attend(case) - exactly(case)).abs().nan_to_num(nan=torch.inf).max().item()


def is_within_two_roundings(out_MJFD, case):
    """Weights are rounded, by up to half an eps of each, then the output is: together one eps of Σ wᵢ |vᵢ|.

    The interpreter truncates bfloat16 where a GPU rounds, by up to twice as much. 1e-5: float16 is coarser below 2^-14.
    """
    eps = torch.finfo(out_MJFD.dtype).eps * (1 if COMPILED or out_MJFD.dtype == torch.float16 else 2)
    difference = (out_MJFD - exactly(case)).abs().nan_to_num(nan=torch.inf)
    return (difference <= eps * exactly(case, magnitude=True) + 1e-5).all()


@pytest.mark.parametrize("view", [
    lambda query: query,  # part of a wider projection
    lambda query: query.contiguous(),
    lambda query: query.transpose(0, 2).contiguous().transpose(0, 2),
], ids=["part", "contiguous", "transposed"])
def test_equals_one_softmax_over_all_tokens_for_any_strides_of_the_query(view):
    case = draw()
    case["query_MJFD"] = view(case["query_MJFD"])
    out_MJFD = attend(case)
    assert (out_MJFD.dtype, out_MJFD.shape, out_MJFD.is_contiguous()) == (torch.float32, (3, 2, 3, 16), True)
    assert error(case) <= 1e-5


@pytest.mark.parametrize("prefix", LENGTHS)
def test_lengths_around_the_borders_of_blocks(prefix):
    # Six completions of five prompts: each length once as rest and once as own tokens, with every prefix.
    case = draw(prefix, LENGTHS[:-1], (0, 1, 2, 3, 4, 0), [max(0, length - 1) for length in reversed(LENGTHS)],
                heads=(1, 2))
    assert error(case) <= 1e-5


@pytest.mark.parametrize(("prefix", "rest", "column"), [(0, 0, 0), (0, 0, 70), (0, 70, 0), (70, 0, 0), (1, 0, 0)])
def test_parts_may_be_empty(prefix, rest, column):
    case = draw(prefix, (rest,), (0, 0), (column, 0))
    assert error(case) <= 1e-5
    if prefix == rest == column == 0:  # one token: its value is the output
        value_MJ1D = case["pair_MCJD"][:, 1, :, None]
        assert torch.equal(attend(case), value_MJ1D.expand(-1, -1, 3, -1))


@pytest.mark.parametrize("size", [8, 64, 80, 128])
@pytest.mark.parametrize("heads", [(1, 1), (1, 7), (2, 7), (4, 1), (1, 20)], ids=str)
def test_heads_and_head_sizes(heads, size):
    assert error(draw(heads=heads, size=size)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [64, 80])
def test_16_bits_err_by_no_more_than_two_roundings(size, dtype):
    case = draw(130, heads=(2, 7), size=size, dtype=dtype)
    out_MJFD = attend(case)
    assert out_MJFD.dtype == dtype and is_within_two_roundings(out_MJFD, case)


@pytest.mark.parametrize("offset", [1e3, -1e3])
@pytest.mark.parametrize("prefix", [0, 70])
def test_large_scores_neither_overflow_nor_vanish(prefix, offset):
    # exp(1e3) overflows and exp(-1e3) is 0. A float32 score of 1e3 is off by 6e-5, and so is its weight.
    case = draw(prefix)
    case["query_MJFD"][..., 0] = offset * 4  # √16
    for name in PARTS:
        case[name][0, ..., 0] = 1
    case["pair_MCJD"][:, 0, :, 0] = 1
    assert error(case) <= 5e-4


@pytest.mark.parametrize("winner", ["pair_MCJD", *PARTS])
def test_one_part_may_outweigh_the_others_by_a_thousand(winner):
    case = draw()
    case["query_MJFD"][..., 0] = 4e3
    for name in PARTS:
        case[name][0, ..., 0] = name == winner
    case["pair_MCJD"][:, 0, :, 0] = winner == "pair_MCJD"
    assert error(case) <= 5e-4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_completion_that_is_nan_spoils_no_other():
    clean, spoilt = draw(), draw()
    spoilt["query_MJFD"][1] = spoilt["own_CSJTD"][:, 1] = torch.nan
    expected_MJFD, found_MJFD = attend(clean), attend(spoilt)
    assert found_MJFD[1].isnan().all() and torch.equal(found_MJFD[[0, 2]], expected_MJFD[[0, 2]])


@pytest.mark.parametrize(("name", "axis"), [
    ("query_MJFD", 0), ("pair_MCJD", 0), ("prefix_CJPD", 0), ("rest_CAJQD", 1), ("own_CSJTD", 0), ("own_CSJTD", 1)])
def test_offsets_may_exceed_32_bits(name, axis, monkeypatch):
    # The last row or place, or all values, start 2^31 numbers after the first: 4 GiB, of which little is ever touched.
    monkeypatch.undo()
    case = draw(3, (3, 2, 1), (1, 0, 2), (2, 1, 0), heads=(1, 2), dtype=torch.float16)
    close = case[name].narrow(axis, 0, min(3, case[name].shape[axis]))
    step = 2**31 // (close.shape[axis] - 1) + 8
    strides = [step if index == axis else stride for index, stride in enumerate(close.stride())]
    room = torch.empty(step * close.shape[axis] + close.numel(), dtype=torch.float16, device=DEVICE)
    case[name] = room.as_strided(close.shape, strides).copy_(close)
    assert is_within_two_roundings(attend(case), case)


def test_the_newest_token_is_stored_where_it_belongs_and_nothing_else_is():
    case = draw()
    before_CSJTD = case["own_CSJTD"].clone()
    attend(case)
    for m, column in enumerate(case["column_M"].tolist()):
        before_CSJTD[:, m, :, column] = case["pair_MCJD"][m]
    assert torch.equal(case["own_CSJTD"].nan_to_num(nan=7e7), before_CSJTD.nan_to_num(nan=7e7))


def test_the_same_tensors_with_other_contents_give_the_new_answer():
    # What a replayed graph does: new lengths, places and tokens in the old memory.
    case, later = draw(), draw(rest=(65, 40), place=(0, 1, 1), column=(64, 3, 1))
    attend(case)
    for name in ("length_A", "place_M", "column_M", "own_CSJTD", "rest_CAJQD", "pair_MCJD"):
        case[name].copy_(later[name].flip(-1) if name == "own_CSJTD" else later[name])
    assert error(case) <= 1e-5


def test_launches_follow_from_shapes_alone(monkeypatch):
    # Meta tensors have no contents: reading a length on the host would raise.
    grids = []
    meta = {name: tensor.to("meta") for name, tensor in draw(heads=(2, 7), dtype=torch.bfloat16).items()}

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    monkeypatch.setattr(decode_attention, "_shared", Recorder())
    monkeypatch.setattr(decode_attention, "_own", Recorder())
    assert attend(meta).shape == (3, 2, 7, 16)
    assert grids == [(2, 2, 1), (3, 2)]  # 3 completions of 7 heads are two blocks of 16
    # 1,000 tokens in up to 8 spans of 128: four programs are far from 256, and 600 rows of 7 heads in blocks of 64,
    # 66 times 2 heads, want two spans each. 10,000 rows want one.
    prefix_CJPD = meta["prefix_CJPD"].new_empty(2, 2, 1000, 16)
    for num_queries in (3, 600, 10_000):
        out_NXJFD, lse_NXJF = attend_shared(meta["query_MJFD"][:1].expand(num_queries, -1, -1, -1), prefix_CJPD)
        assert out_NXJFD.shape == (*lse_NXJF.shape, 16)
    assert grids[2:] == [(2, 2, 8), (66, 2, 2), (1094, 2, 1)]


@pytest.mark.parametrize(("num_queries", "num_tokens", "num_spans", "dtype"), [
    (3, 65, 1, torch.float32), (3, 128, 1, torch.float32), (3, 129, 2, torch.float32), (3, 300, 3, torch.float32),
    (80, 65, 1, torch.float16), (80, 0, 0, torch.float16)])
def test_attend_shared_gives_output_and_log_sum_exp_of_each_span(num_queries, num_tokens, num_spans, dtype):
    # 80 queries of 2 x 7 heads take blocks of 64 rows, because 80 x 7 >= 512; 3 take blocks of 16.
    generator = torch.Generator().manual_seed(0)
    query_XJFD = 2 * torch.randn(num_queries, 2, 7, 16, generator=generator).to(DEVICE, dtype)
    kv_CJPD = torch.randn(2, 2, num_tokens + 3, 16, generator=generator).to(DEVICE, dtype)[:, :, :num_tokens]
    out_NXJFD, lse_NXJF = attend_shared(query_XJFD, kv_CJPD)
    assert out_NXJFD.dtype == lse_NXJF.dtype == torch.float32 and len(out_NXJFD) == len(lse_NXJF) == num_spans
    if num_spans:
        share_NXJF = lse_NXJF.double().softmax(0)
        out_XJFD, lse_XJF = (share_NXJF[..., None] * out_NXJFD).sum(0), lse_NXJF.double().logsumexp(0)
        right = [plain(query_JFD, kv_CJPD) for query_JFD in query_XJFD]
        # Weights are rounded to float16, by 2^-11 of each; values are below 4.
        tolerance = 1e-5 if dtype == torch.float32 else 4 * 2**-11
        assert (out_XJFD - torch.stack([out for out, _ in right])).abs().max().item() <= tolerance
        assert (lse_XJF - torch.stack([lse for _, lse in right])).abs().max().item() <= 1e-5


@pytest.mark.parametrize("change", [
    {"prefix_CJPD": lambda kv: kv.bfloat16()},
    {"rest_CAJQD": lambda kv: kv.transpose(-3, -2).contiguous().transpose(-3, -2)},
    {"own_CSJTD": lambda kv: kv[:, :, :1]},
    {"pair_MCJD": lambda kv: kv.mT.contiguous().mT},
    {"query_MJFD": lambda query: query.mT.contiguous().mT},
], ids=lambda change: next(iter(change)))
def test_what_would_be_read_wrongly_is_refused(change):
    case = draw()
    (name, function), = change.items()
    with pytest.raises(ValueError, match="strid|keys and values"):
        attend(case | {name: function(case[name])})


@pytest.mark.gpu
def test_a_captured_graph_answers_for_what_its_tensors_hold_at_replay():
    sizes = {"heads": (2, 7), "size": 64, "dtype": torch.bfloat16}
    case = draw(130, **sizes)
    attend(case)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_MJFD = attend(case)
    later = draw(130, (65, 40), (0, 1, 1), (64, 3, 1), **sizes)
    for name, tensor in later.items():
        case[name].copy_(tensor)
    graph.replay()
    assert is_within_two_roundings(out_MJFD, case)
