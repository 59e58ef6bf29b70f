"""Checks of the sampler inside two ranks, in a folder that holds `model` and `data.json`; see rank_checks.py."""

import dataclasses
import time
from functools import cache

import torch.distributed as dist
from ranks import SHARD_EVERYTHING
from rollout_cases import sample_rows
from torch.distributed import distributed_c10d

from grpo.config import Config
from grpo.distributed import gather_objects, rank
from grpo.report.measures import Clock
from grpo.run.build import build
from grpo.run.parts import Run
from grpo.step import grpo_step

EVERY_TOKEN = set(range(320))
LONGEST = 60


def collectives() -> int:
    """Collectives that this rank has started so far, by the process groups' own count."""
    return sum(group._get_sequence_number_for_group() for group in distributed_c10d._world.pg_map)


@cache
def small_run() -> Run:
    """A sharded run of 4 prompts by 3 completions, whose completions end at once on rank 0 and never on rank 1."""
    run = build(Config(
        model_name_or_path="model", train_dataset_id_or_path="data.json", output_dir="run", torch_dtype="float32",
        load_in_4bit=False, lora_r=4, prompts_per_step=4, num_generations=3, rollout_slots=4,
        max_completion_length=LONGEST, micro_batch_tokens=LONGEST + 50, max_steps=2, eval_examples=0,
        save_strategy="no", deepspeed=SHARD_EVERYTHING))
    return dataclasses.replace(run, stop_token_ids=EVERY_TOKEN if rank() == 0 else set())


def check_a_rank_whose_completions_end_at_once_does_not_wait() -> None:
    """8 completions in 4 slots: rank 0 has sampled 1 token of each, and is done, long before rank 1 has sampled 60."""
    run = small_run()
    options = {"num_generations": 2, "num_slots": 4, "max_completion_length": LONGEST,
               "stop_token_ids": run.stop_token_ids}
    sample_rows(run.decoder, **options | {"max_completion_length": 1})  # whatever a first call takes
    dist.barrier()
    before, start = collectives(), time.time()
    rows = sample_rows(run.decoder, **options)
    end, started = time.time(), collectives() - before
    assert started == 0, f"{started} collectives inside"
    assert rows.length_N.tolist() == ([1] * 8 if rank() == 0 else [LONGEST] * 8)
    assert rows.cost.num_steps == (2 if rank() == 0 else 2 * LONGEST)
    (_, end_0), (start_1, end_1) = gather_objects((start, end))
    assert end_0 < start_1 + (end_1 - start_1) / 2, (end_0 - start_1, end_1 - start_1)


def check_both_ranks_start_the_same_collectives_in_every_phase_of_a_step() -> None:
    """None in sampling; elsewhere as many on the rank with 6 sampled tokens as on the rank with 360."""
    run, enter = small_run(), Clock.enter
    for step in range(2):
        counts, seen = {}, collectives()

        def count(clock: Clock, phase: str) -> None:
            nonlocal seen
            counts[clock.phase], seen = collectives() - seen, collectives()
            enter(clock, phase)

        Clock.enter = count
        try:
            columns = grpo_step(run, step).collected.columns()
        finally:
            Clock.enter = enter
        counts["rest"] = collectives() - seen
        assert columns["length"] == ([1] * 6 if rank() == 0 else [LONGEST] * 6), columns["length"]
        assert counts["rollout"] == 0 and counts["sync"] > 0 and counts["update"] > 0, counts
        mine, other = gather_objects(counts)
        assert mine == other, (mine, other)
