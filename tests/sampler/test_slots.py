"""Slots: dense, refilled at once, prompts read once, and the windows in which a GPU works. About 6 seconds on a CPU."""

import gc
import heapq
import random
import weakref

import pytest
import torch
from rollout_cases import (
    EOS,
    JUNK,
    PREFIX,
    PROMPTS,
    STOPPING,
    TOKENIZER,
    Bar,
    assert_same_rows,
    sample_rows,
    script,
)
from tiny_models import decoder_of, tiny_qwen2

from grpo.packing import common_prefix_length
from grpo.sampler import generate
from grpo.sampler.cuda_graph import Replay
from grpo.sampler.decoder import Decoder
from grpo.sampler.kv_cache import KVCache
from grpo.sampler.slots import Slots, Window


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of(tiny_qwen2())


@pytest.fixture(scope="module")
def small() -> Decoder:
    """For tests in which only the course of events matters."""
    return decoder_of(tiny_qwen2(num_hidden_layers=1, hidden_size=32, num_attention_heads=2))


def slots_of(decoder: Decoder, num_prompts: int, *, num_slots: int, num_generations: int = 2) -> Slots:
    """Slots for prompts (40 + b, 6, 20 + b), the noise of completion n is n; nothing admitted yet."""
    return Slots(
        decoder, [[40 + b, 6, 20 + b] for b in range(num_prompts)], num_slots=num_slots,
        num_generations=num_generations, room=8, noise=lambda index_X: index_X[:, None].double().expand(-1, 8),
        sample=lambda logits_MV, uniform_M: (logits_MV.argmax(-1), uniform_M.float()))


def test_the_last_row_moves_into_the_gap_and_the_next_pending_one_follows_it(small):
    slots = slots_of(small, 4, num_slots=4)  # rows 0, 1 continue prompt 0, rows 2, 3 prompt 1, and so on
    slots.admit()
    assert slots.completions == [0, 1, 2, 3] and slots.places == [0, 1]
    slots.release([1])
    assert slots.completions == [0, 3, 2] and slots.places == [0, 1]
    slots.admit()
    assert slots.completions == [0, 3, 2, 4] and slots.places == [0, 1, 2]
    slots.release([0])  # nobody continues prompt 0 any more: prompt 2 moves into its place
    assert slots.completions == [4, 3, 2] and slots.places == [2, 1]
    assert slots.cache.place_S[:3].tolist() == [0, 1, 1]
    slots.admit()
    assert slots.completions == [4, 3, 2, 5] and slots.places == [2, 1] and list(slots.pending) == [6, 7]
    assert slots.cache.place_S[:4].tolist() == [0, 1, 1, 0]


def test_a_new_row_starts_at_its_prompts_last_token_and_a_moved_one_where_it_was(small):
    slots = slots_of(small, 4, num_slots=3)
    slots.admit()
    assert slots.token_S.tolist() == [20, 20, 21] and slots.cache.positions(3).tolist() == [2, 2, 2]
    said_WM = slots.run(3).token_WM
    slots.release([0])
    slots.admit()
    assert slots.completions == [2, 1, 3] and slots.token_S.tolist() == [int(said_WM[-1, 2]), int(said_WM[-1, 1]), 21]
    assert slots.cache.positions(3).tolist() == [5, 5, 2]
    assert slots.uniform_ST[:, 0].tolist() == [2.0, 1.0, 3.0]


def assert_in_order(slots: Slots) -> None:
    """Rows and prompts lie side by side, each row at its own prompt, with its own noise; no place for idle prompts."""
    groups = [row // slots.num_generations for row in slots.completions]
    assert len(slots.completions) == min(slots.num_slots, sum(slots.unfinished)), "full as long as rows are pending"
    assert sorted(slots.places) == sorted(set(groups)), "exactly the prompts that a row continues"
    assert slots.cache.place_S[: len(groups)].tolist() == [slots.places.index(group) for group in groups]
    assert slots.uniform_ST[: len(groups), 0].tolist() == slots.completions
    assert slots.cache.length_A[: len(slots.places)].tolist() == [2] * len(slots.places)


@pytest.mark.parametrize(("num_slots", "num_generations"), [(1, 3), (4, 1), (5, 3), (7, 4), (40, 2)])
def test_slots_and_places_stay_dense_however_rows_finish(small, num_slots, num_generations):
    slots = slots_of(small, 12, num_slots=num_slots, num_generations=num_generations)
    draw, seen = random.Random(0), []
    while sum(slots.unfinished):
        slots.admit()
        assert_in_order(slots)
        seen += [row for row in slots.completions if row not in seen]
        slots.run(1)
        slots.release(draw.sample(slots.completions, draw.randint(0, len(slots.completions))))
    assert sorted(seen) == list(range(12 * num_generations)) and seen == sorted(seen)
    assert not slots.completions and not slots.places
    assert slots.cache.rest_YCAJQD.shape[2] == min(num_slots, 12)


def geometric_lengths(count: int, mean: float) -> list[int]:
    """Tokens of rows that end after each one with probability 1 / mean."""
    uniform_N = torch.rand(count, generator=torch.Generator().manual_seed(0))
    return (1 + (uniform_N.log() / torch.tensor(1 - 1 / mean).log()).floor()).int().tolist()


def steps_if_no_slot_waits(lengths: list[int], num_slots: int) -> int:
    """Steps when each row in turn takes the slot that is free first."""
    free = [0] * num_slots
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def test_no_freed_slot_waits_and_the_batch_stays_full(small, monkeypatch):
    lengths = geometric_lengths(512, mean=9)
    script(monkeypatch, [[5] * (length - 1) + [EOS] for length in lengths])
    prompts = [PROMPTS[b % 4] for b in range(128)]
    rows = sample_rows(
        small, prompts, num_generations=4, num_slots=16, max_completion_length=100, stop_token_ids={EOS})
    assert rows.length_N.tolist() == lengths
    assert rows.cost.num_steps == steps_if_no_slot_waits(lengths, 16)
    occupancy = sum(lengths) / (16 * rows.cost.num_steps)
    # A static batch of 16 lasts as long as its longest row: about 1 + 1/2 + ... + 1/16 = 3.4 times the mean.
    static = sum(lengths) / (16 * sum(max(lengths[n : n + 16]) for n in range(0, 512, 16)))
    assert occupancy > 0.8 and occupancy > 2 * static, (occupancy, static)


@pytest.mark.parametrize("num_slots", [1, 3, 8, 64])
def test_every_prompt_is_read_once_and_the_prefix_once(decoder, monkeypatch, num_slots):
    prefixes, rests, places = [], [], set()
    read_prefix, read_rests = decoder.read_prefix, decoder.read_rests

    def spy_on_rests(cache, where, what):
        rests.extend(what)
        places.update(where)
        assert cache.rest_YCAJQD.shape[2] == min(num_slots, 9)
        read_rests(cache, where, what)

    def spy_on_prefix(cache, prefix):
        prefixes.append(prefix)
        read_prefix(cache, prefix)

    monkeypatch.setattr(decoder, "read_prefix", spy_on_prefix)
    monkeypatch.setattr(decoder, "read_rests", spy_on_rests)
    prompts = [TOKENIZER.encode(f"{PREFIX}{'x' * b}{b}?") for b in range(9)]
    sample_rows(decoder, prompts, num_generations=4, num_slots=num_slots, **STOPPING)
    shared = common_prefix_length(prompts)
    assert prefixes == [prompts[0][:shared]] and shared >= len(TOKENIZER.encode(PREFIX))
    # A prompt's last token is not read with it: it is the first own token of each of its rows.
    assert sorted(rests) == sorted(prompt[shared:-1] for prompt in prompts)
    assert places <= set(range(min(num_slots, 9)))


@pytest.mark.parametrize(("steps", "ahead"), [(4, 0), (1, 1), (4, 1), (8, 1), (7, 2), (1, 3), (20, 1)])
@pytest.mark.parametrize("num_slots", [5, 12])
def test_windows_under_way_while_one_is_looked_at_change_nothing(decoder, monkeypatch, steps, ahead, num_slots):
    # The longest allowed, 13, is no multiple of any window.
    options = {"stop_token_ids": set(range(0, 320, 19)), "stop_strings": ["e", "12"], "max_completion_length": 13}
    whole = sample_rows(decoder, **options)
    assert 1 < int(whole.truncated_N.sum()) < 12 and len(set(whole.length_N.tolist())) > 5
    under_way, most = set(), 0
    run, wait = Slots.run, Window.wait

    def spy_on_run(slots, num_steps):
        nonlocal most
        assert num_steps == steps
        window = run(slots, num_steps)
        under_way.add(id(window.token_WM))
        most = max(most, len(under_way))
        return window

    monkeypatch.setattr(Slots, "run", spy_on_run)
    monkeypatch.setattr(Window, "wait", lambda window: under_way.discard(id(window.token_WM)) or wait(window))
    monkeypatch.setitem(generate.STEPS, "cpu", steps)
    monkeypatch.setitem(generate.AHEAD, "cpu", ahead)
    windowed = sample_rows(decoder, num_slots=num_slots, **options)
    assert most == ahead + 1
    assert_same_rows(whole, windowed, list(range(12)))
    assert torch.equal(whole.token_NT, windowed.token_NT), "zeros beyond each row's end"
    assert torch.equal(whole.sampler_logprob_NT != 0, windowed.sampler_logprob_NT != 0)


@pytest.mark.parametrize(("steps", "ahead"), [(1, 0), (4, 1), (8, 1), (3, 2)])
def test_what_a_row_says_beyond_its_end_is_cut(small, monkeypatch, steps, ahead):
    """Rows end at the start, in the middle and at the end of windows of 4; the longest allowed, 10, is no multiple."""
    said = [[5] * (length - 1) + [EOS] for length in (1, 4, 5, 8, 10)] + [[5, 6] * 20, [33, 33, *TOKENIZER.encode("A")]]
    said.append([7])  # and then junk
    monkeypatch.setitem(generate.STEPS, "cpu", steps)
    monkeypatch.setitem(generate.AHEAD, "cpu", ahead)
    script(monkeypatch, said)
    bar = Bar(8)
    rows = sample_rows(
        small, num_generations=2, num_slots=3, max_completion_length=10, stop_token_ids={EOS}, stop_strings=["A"],
        bar=bar)
    assert rows.length_N.tolist() == [1, 4, 5, 8, 10, 10, 3, 10]
    assert rows.truncated_N.tolist() == [False] * 5 + [True, False, True]
    expected = [tokens[:10] for tokens in said[:-1]] + [[7] + [JUNK] * 9]
    assert rows.token_NT.tolist() == [tokens + [0] * (10 - len(tokens)) for tokens in expected]
    # The script's log-prob is minus the number of the token it was asked for: row * 1000 + column.
    columns = [[-1000 * n - t if t < length else 0 for t in range(10)] for n, length in enumerate(rows.length_N)]
    assert rows.sampler_logprob_NT.tolist() == columns
    assert rows.text[0] == "" and rows.text[6] == TOKENIZER.decode([33, 33]) and len(rows.text[5]) == 10
    assert bar.seen[-1] == (1 + 4 + 5 + 8 + 10 + 10 + 3 + 10, 8)


def test_a_gpu_records_few_widths_and_a_cpu_takes_any():
    gpu, cpu = (Replay(torch.device("cpu")) for _ in range(2))
    gpu.records = True
    widths = [gpu.width(num_rows, 1024) for num_rows in range(1, 1025)]
    assert sorted(set(widths)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    for num_slots in (1, 7, 8, 65, 100, 1000):
        for num_rows in range(1, num_slots + 1):
            assert num_rows <= gpu.width(num_rows, num_slots) <= num_slots
            assert cpu.width(num_rows, num_slots) == num_rows


def test_a_step_wider_than_the_rows_leaves_them_as_they_are(decoder, monkeypatch):
    """On a GPU the slots beyond the rows are computed too, with whatever an earlier row left there."""
    whole = sample_rows(decoder, **STOPPING)
    widths = []
    monkeypatch.setattr(Replay, "width", lambda _, num_rows, num_slots: widths.append(num_slots) or num_slots)
    assert_same_rows(whole, sample_rows(decoder, num_slots=5, **STOPPING), list(range(12)))
    assert set(widths) == {5}


def test_keys_and_values_are_gone_when_a_rollout_has_ended(small, monkeypatch):
    caches, new_cache = [], Decoder.new_cache

    def remember(*args, **sizes) -> KVCache:
        cache = new_cache(*args, **sizes)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(Decoder, "new_cache", remember)
    gc.disable()  # a cycle of references would keep them through the update, until Python happens to look for cycles
    try:
        sample_rows(small)
        assert [cache() for cache in caches] == [None]
    finally:
        gc.enable()
