"""Attention in joined parts against one softmax over everything. Under 2 seconds on a CPU."""

import torch

from grpo.kv_cache import KVCache, attend, join


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_joined_parts_equal_one_softmax_over_all_keys():
    # Queries of norm about 4·√16 make the parts' weights very unequal, as they are in a trained model.
    query, key, value = 4 * draw(6, 3, 16, seed=0), draw(6, 20, 16, seed=1), draw(6, 20, 16, seed=2)
    parts = [attend(query, key[:, part], value[:, part]) for part in (slice(0, 7), slice(7, 8), slice(8, 20))]
    plain = (query @ key.mT / 4).softmax(-1) @ value
    torch.testing.assert_close(join(parts), plain, atol=1e-5, rtol=0)


def test_padding_keys_take_no_part_in_the_join():
    query, key, value = draw(2, 3, 16, seed=0), draw(2, 9, 16, seed=1), draw(2, 9, 16, seed=2)
    padding = torch.zeros(2, 1, 9, dtype=torch.bool)
    padding[0, :, 4:7] = padding[1, :, 5:7] = True
    joined = join([attend(query, key[:, :7], value[:, :7], padding[..., :7]), attend(query, key[:, 7:], value[:, 7:])])
    score = (query @ key.mT / 4).masked_fill(padding, -torch.inf)
    torch.testing.assert_close(joined, score.softmax(-1) @ value, atol=1e-5, rtol=0)


def test_extreme_scores_do_not_overflow():
    query, key, value = 1e3 * draw(2, 3, 16, seed=0), 1e3 * draw(2, 8, 16, seed=1), draw(2, 8, 16, seed=2)
    joined = join([attend(query, key[:, :4], value[:, :4]), attend(query, key[:, 4:], value[:, 4:])])
    # One score wins by thousands: the output is its value.
    winner = (query @ key.mT).argmax(-1)
    torch.testing.assert_close(joined, value.gather(1, winner[..., None].expand(-1, -1, 16)))


def test_each_part_is_stored_once_for_all_that_share_it():
    cache = KVCache(prefix_length=5, length_B=torch.tensor([3, 1]), num_generations=4)
    cache.prefix_attention(0, draw(1, 4, 5, 8, seed=0), draw(1, 2, 5, 8, seed=1), draw(1, 2, 5, 8, seed=2))
    cache.prompt_attention(0, draw(2, 4, 3, 8, seed=3), draw(2, 2, 3, 8, seed=4), draw(2, 2, 3, 8, seed=5))
    cache.own_attention(0, draw(8, 4, 1, 8, seed=6), draw(8, 2, 1, 8, seed=7), draw(8, 2, 1, 8, seed=8))
    assert cache.prefix[0][0].shape == (2, 5, 8)
    assert cache.prompt[0][0].shape == (2, 2, 3, 8)
    assert cache.own[0][0].shape[:2] == (8, 2)


def test_dropping_rows_drops_the_prompts_that_nobody_continues():
    cache = KVCache(prefix_length=0, length_B=torch.tensor([3, 1, 2]), num_generations=2)
    cache.prompt_attention(0, draw(3, 4, 3, 8, seed=3), draw(3, 2, 3, 8, seed=4), draw(3, 2, 3, 8, seed=5))
    key = cache.prompt[0][0]
    cache.keep(torch.tensor([1, 4, 5]))  # one row of prompt 0, both of prompt 2
    assert torch.equal(cache.prompt[0][0], key[[0, 2]])
    assert cache.position_N.tolist() == [3, 2, 2]
    assert cache.group_N.tolist() == [0, 1, 1]
