"""How many slots fit, by hand for a tiny model, and what is refused in one line. About 2 seconds on a CPU."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import decoder_of, tiny_qwen2

from grpo import distributed
from grpo.distributed import free_bytes
from grpo.memory.concurrency import Lengths, choose_slots, slot_bytes
from grpo.sampler.decoder import Decoder
from grpo.sampler.slots import Slots

CPU = torch.device("cpu")
# Float32 keys and values in 3 layers, 2 heads of size 16: 3 * 2 * 2 * 16 * 4 bytes.
TOKEN = 768
# What reading 4,096 tokens takes beside them: 16 bytes for each of 64 hidden and 128 inner numbers a token.
READING = 4096 * 16 * (64 + 128)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of(tiny_qwen2(num_hidden_layers=3))


def test_a_slot_is_its_tokens_its_logits_its_noise_and_its_activations(decoder):
    assert decoder.token_bytes() == TOKEN
    # 20 own tokens; 3 float32 rows of the 320 logits; 8 bytes of noise, 8 of token and 4 of log-prob for each of 20
    # tokens; 16 bytes for each of 64 hidden and 128 inner numbers.
    expected = 20 * TOKEN + 12 * 320 + 20 * 20 + 16 * (64 + 128)
    assert slot_bytes(decoder, 20) == expected == 22_672
    assert slot_bytes(decoder, 21) == expected + TOKEN + 20


def cache_bytes(decoder: Decoder, prompts: list[list[int]], *, num_slots: int, num_generations: int) -> int:
    """Bytes of keys and values that a rollout with room for 20 tokens makes room for."""
    slots = Slots(
        decoder, prompts, num_slots=num_slots, num_generations=num_generations, room=20,
        noise=lambda row_X: torch.zeros(len(row_X), 20), sample=lambda *_: None)
    return slots.cache.nbytes()


@pytest.mark.parametrize("num_slots", [1, 8, 32, 64, 256])
def test_a_rollout_makes_room_for_a_rest_for_each_slot_until_every_prompt_has_one(decoder, num_slots):
    prompts = [[5, 6, 7, 8 + b] + [9] * 10 for b in range(32)]  # 3 shared tokens, 11 own; the last is a row's own
    found = cache_bytes(decoder, prompts, num_slots=num_slots, num_generations=8)
    assert found == (3 + min(num_slots, 32) * 10 + num_slots * 20) * TOKEN


LENGTHS = Lengths(prefix=30, rest=10, completion=20)
EACH = 22_672  # as above
FIXED = 30 * TOKEN + READING  # the shared prefix, and reading
PLACE = 10 * TOKEN


def bytes_of(num_slots: float) -> int:
    """What so many slots take; 100 rows in groups of 4 have 25 prompts."""
    return round(FIXED + num_slots * EACH + min(num_slots, 25) * PLACE)


def choose(decoder: Decoder, asked: int | None, fit: float, num_rows: int = 100) -> tuple[int, str]:
    """With so much free that half of it holds `fit` slots."""
    return choose_slots(
        asked, decoder, LENGTHS, free=2 * bytes_of(fit), num_rows=num_rows, num_generations=4)


def test_unset_takes_one_slot_for_each_completion_or_as_many_as_fit(decoder):
    assert choose(decoder, None, 1000)[0] == 100
    assert choose(decoder, None, 100)[0] == 100
    assert choose(decoder, None, 99.99)[0] == 99
    assert choose(decoder, None, 25)[0] == 25
    assert choose(decoder, None, 24.9)[0] == 24
    assert choose(decoder, None, 7.5)[0] == 7
    assert choose(decoder, None, 1)[0] == 1


def test_asked_is_taken_up_to_the_completions(decoder):
    assert choose(decoder, 7, 7)[0] == 7
    assert choose(decoder, 7, 1000)[0] == 7
    assert choose(decoder, 500, 1000)[0] == 100


def test_it_says_what_the_slots_take_and_how_many_would_fit(decoder):
    # 100 slots of 22,672 bytes, 25 rests of 7,680, the prefix and reading: 2.3 + 0.2 + 12.6 million = 14.4 MiB.
    assert choose(decoder, None, 2345)[1] == (
        "100 slots for 100 completions, 0.02 MiB each, 14 MiB with the prompts; 2,345 would fit in half of the free "
        "memory")


def test_more_than_fit_is_refused_in_one_line_with_the_number_that_fits(decoder):
    with pytest.raises(ValueError) as error:
        choose(decoder, 8, 7.9)
    assert re.fullmatch(r"rollout_slots=8 .*free; nearest valid value: 7", str(error.value))
    assert choose(decoder, 7, 7.9)[0] == 7


@pytest.mark.parametrize("asked", [None, 1, 50])
@pytest.mark.parametrize("fit", [0.99, 0.0, -4.0])
def test_a_completion_that_does_not_fit_once_is_refused_in_one_line(decoder, asked, fit):
    with pytest.raises(ValueError) as error:
        choose(decoder, asked, fit)
    assert re.fullmatch(
        r"max_completion_length=20 with prompts of 40 tokens needs .*; nearest valid value: fewer tokens.*",
        str(error.value))


@pytest.fixture
def machine(monkeypatch, tmp_path: Path) -> Path:
    """A machine with 1,000,000 bytes free, one rank, and no container; the folder holds a container's limits."""
    monkeypatch.setattr(distributed.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000))
    monkeypatch.setattr(distributed, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


def limit(folder: Path, most: str, current: int) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text("anon 7\ninactive_file 50000\nactive_file 9\n")


def test_the_ranks_of_a_machine_share_what_it_has_free(machine, monkeypatch):
    assert free_bytes(CPU) == 1_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert free_bytes(CPU) == 125_000


@pytest.mark.parametrize(
    ("most", "current", "free"),
    [("700000", 100_000, 650_000), ("5000000", 100_000, 1_000_000), ("max", 100_000, 1_000_000)],
)
def test_a_container_s_limit_counts_where_it_is_lower(machine, monkeypatch, most, current, free):
    limit(machine, most, current)
    assert free_bytes(CPU) == free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(CPU) == free // 2


def test_this_machine_has_some_memory_free():
    assert 0 < free_bytes(CPU) < 2**50
