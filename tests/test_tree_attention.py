"""Attention to prefix, prompt and own tokens against one float64 softmax over a row's tokens laid end to end.

On a GPU the kernels run compiled; without one in Triton's interpreter: 8 seconds on one core. In every case all that a
row must not see is NaN: what lies beyond a length, idle slots, unused places, new memory.
"""

import math
import pkgutil

import pytest
import torch

from kernels import tree_attention
from kernels.tree_attention import attend_shared, attend_tree
from triton_cases import COMPILED, DEVICE, full_of_nan

# Tokens of the prefix, of each prompt's rest and of each row: around the border of a block of 64, and none.
LENGTHS = [0, 1, 63, 64, 65, 130]


@pytest.fixture(autouse=True)
def new_memory_is_nan(monkeypatch):
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
    room_PCJD = normal(prefix + 5, 2, num_kv, size)
    prompt_AQCJD = normal(len(rest) + 1, max(rest) + 5, 2, num_kv, size)
    own_STCJD = normal(len(place) + 2, max(column) + 6, 2, num_kv, size)
    room_PCJD[prefix:] = prompt_AQCJD[len(rest):] = own_STCJD[len(place):] = torch.nan
    for tokens, length in [*zip(prompt_AQCJD, rest), *zip(own_STCJD, [c + 1 for c in column])]:
        tokens[length:] = torch.nan
    return {
        "query_MJFD": (2 * query_MED.to(dtype))[:, :num_kv * num_shared].unflatten(1, heads),
        "prefix_PCJD": room_PCJD[:prefix].to(dtype),
        "prompt_AQCJD": prompt_AQCJD.to(dtype),
        "rest_A": indices(*rest, max(rest) + 5),
        "place_M": indices(*place),
        "own_STCJD": own_STCJD.to(dtype),
        "column_M": indices(*column),
    }


def attend(case):
    case = dict(case)
    return attend_tree(case.pop("query_MJFD"), **case)


def exactly(case, *, magnitude=False):
    """The same by definition, in float64; of the values' magnitudes if asked."""
    return torch.stack([plain(query_JFD, tokens_of(case, m), magnitude)[0]
                        for m, query_JFD in enumerate(case["query_MJFD"])])


def tokens_of(case, m):
    """[L, C, J, D]: all that row m sees."""
    group = case["place_M"][m]
    prompt = case["prompt_AQCJD"][group, :case["rest_A"][group]]
    return torch.cat([case["prefix_PCJD"], prompt, case["own_STCJD"][m, :case["column_M"][m] + 1]])


def plain(query_JFD, kv_LCJD, magnitude=False):
    """Output and log-sum-exp of one softmax."""
    key_JLD, value_JLD = kv_LCJD.double().permute(1, 2, 0, 3)
    score_JFL = query_JFD.double() @ key_JLD.mT / math.sqrt(query_JFD.shape[-1])
    return score_JFL.softmax(-1) @ (value_JLD.abs() if magnitude else value_JLD), score_JFL.logsumexp(-1)


def error(case):
    """The largest difference; infinite where something is NaN."""
    return (attend(case) - exactly(case)).abs().nan_to_num(nan=torch.inf).max().item()


def is_within_two_roundings(out_MJFD, case):
    """Weights are rounded, by up to half an eps of each, then the output is: together one eps of Σ wᵢ |vᵢ|.

    The interpreter cuts bfloat16 off where a GPU rounds, by up to twice as much. 1e-5: float16 is coarser below 2^-14.
    """
    eps = torch.finfo(out_MJFD.dtype).eps * (1 if COMPILED or out_MJFD.dtype == torch.float16 else 2)
    difference = (out_MJFD - exactly(case)).abs().nan_to_num(nan=torch.inf)
    return (difference <= eps * exactly(case, magnitude=True) + 1e-5).all()


@pytest.mark.parametrize("view", [
    lambda query: query,  # cut from a wider projection
    lambda query: query.contiguous(),
    lambda query: query.transpose(0, 2).contiguous().transpose(0, 2),
], ids=["cut", "contiguous", "transposed"])
def test_equals_one_softmax_over_all_tokens_for_any_strides_of_the_query(view):
    case = draw()
    case["query_MJFD"] = view(case["query_MJFD"])
    out_MJFD = attend(case)
    assert (out_MJFD.dtype, out_MJFD.shape, out_MJFD.is_contiguous()) == (torch.float32, (3, 2, 3, 16), True)
    assert error(case) <= 1e-5


@pytest.mark.parametrize("prefix", LENGTHS)
def test_lengths_around_the_borders_of_blocks(prefix):
    # Six rows of five groups: each length once as rest and once as own tokens, with every prefix.
    case = draw(prefix, LENGTHS[:-1], (0, 1, 2, 3, 4, 0), [max(0, length - 1) for length in reversed(LENGTHS)],
                heads=(1, 2))
    assert error(case) <= 1e-5


@pytest.mark.parametrize(("prefix", "rest", "column"), [(0, 0, 0), (0, 0, 70), (0, 70, 0), (70, 0, 0), (1, 0, 0)])
def test_parts_may_be_empty(prefix, rest, column):
    case = draw(prefix, (rest,), (0, 0), (column, 0))
    assert error(case) <= 1e-5
    if prefix == rest == column == 0:  # one token: its value is the output
        value_M1JD = case["own_STCJD"][:2, :1, 1].squeeze(1)[:, :, None]
        assert torch.equal(attend(case), value_M1JD.expand(-1, -1, 3, -1))


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
    for name in ("prefix_PCJD", "prompt_AQCJD", "own_STCJD"):
        case[name][..., 0, :, 0] = 1
    assert error(case) <= 5e-4


@pytest.mark.parametrize("winner", ["prefix_PCJD", "prompt_AQCJD", "own_STCJD"])
def test_one_part_may_outweigh_the_others_by_a_thousand(winner):
    case = draw()
    case["query_MJFD"][..., 0] = 4e3
    for name in ("prefix_PCJD", "prompt_AQCJD", "own_STCJD"):
        case[name][..., 0, :, 0] = name == winner
    assert error(case) <= 5e-4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_row_stays_in_its_row():
    clean, spoilt = draw(), draw()
    spoilt["query_MJFD"][1] = spoilt["own_STCJD"][1] = torch.nan
    expected_MJFD, found_MJFD = attend(clean), attend(spoilt)
    assert found_MJFD[1].isnan().all() and torch.equal(found_MJFD[[0, 2]], expected_MJFD[[0, 2]])


@pytest.mark.parametrize("name", ["query_MJFD", "prefix_PCJD", "prompt_AQCJD", "own_STCJD"])
def test_offsets_may_exceed_32_bits(name, monkeypatch):
    # The last row, token or place starts 2^31 numbers after the first: 4 GiB, of which little is ever touched.
    monkeypatch.undo()
    case = draw(3, (3, 2, 1), (1, 0, 2), (2, 1, 0), heads=(1, 2), dtype=torch.float16)
    close = case[name][:3]
    step = 2**31 // (len(close) - 1) + 8
    room = torch.empty(step * (len(close) - 1) + close[0].numel(), dtype=torch.float16, device=DEVICE)
    far = room.as_strided(close.shape, (step, *close.stride()[1:])).copy_(close)
    case[name] = far
    assert is_within_two_roundings(attend(case), case)


def test_the_same_tensors_with_other_contents_give_the_new_answer():
    # What a replayed graph does: new lengths, places and tokens in the old memory.
    case, later = draw(), draw(rest=(65, 40), place=(0, 1, 1), column=(64, 3, 1))
    attend(case)
    for name in ("rest_A", "place_M", "column_M", "own_STCJD", "prompt_AQCJD"):
        case[name].copy_(later[name].flip(-1) if name == "own_STCJD" else later[name])
    assert error(case) <= 1e-5


def test_launches_follow_from_shapes_alone(monkeypatch):
    # Meta tensors have no contents: reading a length on the host would raise.
    grids = []
    meta = {name: tensor.to("meta") for name, tensor in draw(heads=(2, 7), dtype=torch.bfloat16).items()}

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    monkeypatch.setattr(tree_attention, "_shared", Recorder())
    monkeypatch.setattr(tree_attention, "_own", Recorder())
    assert attend(meta).shape == (3, 2, 7, 16)
    assert grids == [(2, 2), (3, 2)]  # 3 rows of 7 heads are two blocks of 16
    attend_shared(meta["query_MJFD"][:1].expand(600, -1, -1, -1), meta["prefix_PCJD"])
    assert grids[2] == (66, 2)  # 600 rows of 7 heads are 66 blocks of 64


@pytest.mark.parametrize(("num_queries", "dtype"), [(3, torch.float32), (600, torch.float16)])
def test_attend_shared_gives_output_and_log_sum_exp(num_queries, dtype):
    # 600 queries of 2 x 7 heads take blocks of 64 rows, 3 take blocks of 16.
    generator = torch.Generator().manual_seed(0)
    qkv_XED = torch.randn(num_queries, 2 * 7 + 2 * 2, 16, generator=generator).to(DEVICE, dtype)
    query_XJFD = 2 * qkv_XED[:, :14].unflatten(1, (2, 7))
    kv_PCJD = qkv_XED[:, 14:].unflatten(1, (2, 2))[:65]  # strided: its tokens are 18 heads apart
    out_XJFD, lse_XJF = attend_shared(query_XJFD, kv_PCJD)
    right = [plain(query_JFD, kv_PCJD) for query_JFD in query_XJFD]
    assert out_XJFD.dtype == lse_XJF.dtype == torch.float32
    # Weights are rounded to float16, by 2^-11 of each; values are below 4.
    tolerance = 1e-5 if dtype == torch.float32 else 4 * 2**-11
    assert (out_XJFD - torch.stack([out for out, _ in right])).abs().max().item() <= tolerance
    assert (lse_XJF - torch.stack([lse for _, lse in right])).abs().max().item() <= 1e-5


@pytest.mark.parametrize("change", [
    {"prefix_PCJD": lambda kv: kv.bfloat16()},
    {"prompt_AQCJD": lambda kv: kv.transpose(-3, -2).contiguous().transpose(-3, -2)},
    {"own_STCJD": lambda kv: kv[..., :1, :]},
    {"query_MJFD": lambda query: query.mT.contiguous().mT},
], ids=lambda change: next(iter(change)))
def test_what_would_be_read_wrongly_is_refused(change):
    case = draw()
    (name, function), = change.items()
    with pytest.raises(ValueError, match="strid|keys and values"):
        attend(case | {name: function(case[name])})


def test_attention_to_nothing_is_refused():
    case = draw(0)
    with pytest.raises(ValueError, match="no token"):
        attend_shared(case["query_MJFD"], case["prefix_PCJD"])


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
