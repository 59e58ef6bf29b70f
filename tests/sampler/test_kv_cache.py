"""Attention in joined parts against one softmax over everything, and who sits where. Under 2 seconds on a CPU."""

import functools

import pytest
import torch

from grpo.sampler.attention import Part, attend, attend_causally, join
from grpo.sampler.cpu_attention import Seating
from grpo.sampler.kv_cache import KVCache


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def join_parts(*parts: Part) -> torch.Tensor:
    outs, lse = zip(*parts)
    return join(outs, torch.stack(lse))


def test_joined_parts_equal_one_softmax_over_all_keys():
    # Queries of norm about 4·√16 make the parts' weights very unequal, as they are in a trained model.
    query, key, value = 4 * draw(6, 2, 3, 16, seed=0), draw(6, 2, 20, 16, seed=1), draw(6, 2, 20, 16, seed=2)
    parts = [attend(query, key[:, :, part], value[:, :, part]) for part in (slice(0, 7), slice(7, 8), slice(8, 20))]
    plain = (query @ key.mT / 4).softmax(-1) @ value
    torch.testing.assert_close(join_parts(*parts), plain.transpose(1, 2), atol=1e-5, rtol=0)
    only = (query @ key[:, :, 7:8].mT / 4)[..., 0]
    torch.testing.assert_close(parts[1][1], only.transpose(1, 2), atol=1e-5, rtol=0)


def test_hidden_keys_take_no_part_in_the_join_even_if_a_part_is_hidden_whole():
    query, key, value = draw(2, 1, 3, 16, seed=0), draw(2, 1, 9, 16, seed=1), draw(2, 1, 9, 16, seed=2)
    hidden = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    hidden[0, ..., 4:7] = hidden[1, ..., :7] = True
    first = attend(query, key[:, :, :7], value[:, :, :7], bias=(hidden * -1e9)[..., :7])
    joined = join_parts(first, attend(query, key[:, :, 7:], value[:, :, 7:]))
    score = (query @ key.mT / 4).masked_fill(hidden, -torch.inf)
    torch.testing.assert_close(joined, (score.softmax(-1) @ value).transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attend", [functools.partial(attend, causal=True), attend_causally])
def test_causal_queries_see_nothing_later(attend):
    query, key, value = draw(2, 2, 5, 16, seed=0), draw(2, 2, 5, 16, seed=1), draw(2, 2, 5, 16, seed=2)
    out, lse = (part.transpose(1, 2) for part in attend(query, key, value))
    for m in range(5):
        score = query[:, :, m : m + 1] @ key[:, :, : m + 1].mT / 4
        torch.testing.assert_close(out[:, :, m : m + 1], score.softmax(-1) @ value[:, :, : m + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(lse[:, :, m : m + 1], score.logsumexp(-1), atol=1e-5, rtol=0)


def test_extreme_scores_do_not_overflow():
    query, key = 1e3 * draw(2, 1, 3, 16, seed=0), 1e3 * draw(2, 1, 8, 16, seed=1)
    value = draw(2, 1, 8, 16, seed=2)
    joined = join_parts(attend(query, key[:, :, :4], value[:, :, :4]), attend(query, key[:, :, 4:], value[:, :, 4:]))
    # One score wins by thousands: the output is its value.
    winner = (query @ key.mT).argmax(-1)
    expected = value.gather(2, winner[..., None].expand(-1, -1, -1, 16))
    torch.testing.assert_close(joined, expected.transpose(1, 2))


def cache_of(**sizes: int) -> KVCache:
    defaults = {"prefix_length": 5, "num_places": 3, "rest_room": 4, "num_slots": 6, "own_room": 10}
    return KVCache(num_layers=2, num_heads=(4, 2), head_size=8, dtype=torch.float32, device=torch.device("cpu"),
                   **defaults | sizes)


def test_memory_is_the_prefix_once_a_rest_once_a_group_and_own_tokens_once_a_row():
    # Floats: 2 layers x (5 prefix + 3 x 4 rests + 6 x 10 own tokens) x 2 (key, value) x 2 heads x 8.
    assert cache_of().nbytes() == 4 * 2 * (5 + 12 + 60) * 2 * 2 * 8
    # Eight times the rows add only their own tokens: a longer prompt costs no row anything.
    more = cache_of(num_slots=48).nbytes() - cache_of().nbytes()
    assert more == cache_of(num_slots=48, prefix_length=900).nbytes() - cache_of(prefix_length=900).nbytes()


@pytest.mark.parametrize("prefix_length", [0, 5])
def test_what_is_hidden_takes_no_part_however_low_the_scores_of_what_is_seen(prefix_length):
    # Rests of 4 and 1 tokens in room for 4, own tokens up to columns 2 and 0: the second row has 3 + 2 places to hide,
    # all keys 0. Every key that it may see scores 8 * 10 * -10 / sqrt(8) = -283, so it sees their values' mean.
    cache = cache_of(prefix_length=prefix_length, num_slots=2)
    for stored, length in ((cache.prefix_YCJPD, prefix_length), (cache.rest_YCAJQD[:, :, 0], 4),
                           (cache.rest_YCAJQD[:, :, 1], 1)):
        stored[:, 0, ..., :length, :], stored[:, 1, ..., :length, :] = -10.0, 7.0
    cache.length_A[:2] = torch.tensor([4, 1])
    cache.seat(torch.tensor([0, 1]), torch.tensor([0, 1]))
    cache.column_S[0] = 2
    cache.own_YCSJTD.zero_()
    heads_MED = torch.tensor([10.0] * 4 + [-10.0] * 2 + [7.0] * 2)[None, :, None].expand(2, 8, 8).contiguous()
    attended_ME = cache.own_attention(2)(0, heads_MED).view(2, 4, 8)
    torch.testing.assert_close(attended_ME[1], torch.full((4, 8), 7.0))


def test_rows_sit_in_one_rectangle_whatever_their_order():
    # Slots 0..4 continue the prompts in places 2, 0, 2, 2, 0; place 1 is empty.
    seating = Seating(torch.tensor([2, 0, 2, 2, 0]))
    assert seating.num_places == 3 and seating.slot_X.shape == (9,) and not seating.in_order
    assert seating.slot_X[seating.seat_M].tolist() == [0, 1, 2, 3, 4]
    assert (seating.seat_M // 3).tolist() == [2, 0, 2, 2, 0]
    assert Seating(torch.tensor([0, 0, 1, 1])).in_order and not Seating(torch.tensor([0, 1, 0, 1])).in_order
    assert not Seating(torch.tensor([0, 0, 1])).in_order


def test_a_row_that_moves_takes_its_entries_its_place_and_its_position_along():
    cache = cache_of()
    cache.length_A[:] = torch.tensor([4, 0, 2])
    cache.seat(torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert cache.positions(2).tolist() == [5 + 0, 5 + 2]
    for _ in range(3):
        cache.own_attention(2)(0, draw(2, 8, 8, seed=0))
        cache.advance(2)
    cache.seat(torch.tensor([0]), torch.tensor([0]))
    assert cache.positions(2).tolist() == [5 + 4, 5 + 2 + 3]
    entries = cache.own_YCSJTD[0, :, 1, :, :3].clone()
    cache.move_slot(1, 0)
    assert torch.equal(cache.own_YCSJTD[0, :, 0, :, :3], entries) and cache.positions(1).tolist() == [10]


def test_a_rest_that_moves_keeps_the_rows_that_continue_it():
    cache = cache_of()
    cache.length_A[:] = torch.tensor([4, 1, 2])
    cache.rest_YCAJQD[:, :, 2] = 7.0
    cache.prefix_YCJPD.zero_()
    cache.seat(torch.tensor([0, 1, 2]), torch.tensor([2, 1, 2]))
    attended = cache.own_attention(3)(0, draw(3, 8, 8, seed=0)).clone()
    cache.move_place(2, 0)
    assert cache.place_S[:3].tolist() == [0, 1, 0] and cache.length_A[0] == 2
    assert (cache.rest_YCAJQD[:, :, 0] == 7.0).all()
    cache.rest_YCAJQD[:, :, 2] = 9.0  # another prompt's now
    torch.testing.assert_close(cache.own_attention(3)(0, draw(3, 8, 8, seed=0)), attended)


def test_a_full_row_stays_at_its_last_column():
    cache = cache_of(own_room=2)
    cache.advance(6)
    cache.advance(6)
    assert cache.column_S.tolist() == [1] * 6
