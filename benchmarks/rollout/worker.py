"""One engine's measurement in a process of its own: `python -m benchmarks.rollout.worker JOB RESULT`, two JSON files.

`benchmarks.rollout` starts it; nobody else needs to.
"""

import functools
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Memory
from benchmarks.rollout.peers import ENGINES, Case, Engine, Sampled


def run(engine: Engine, loaded: Any, case: Case, batch: int | None) -> Sampled:
    """The case in one call, or in consecutive ones of `batch` prompts each."""
    parts = []
    for start in range(0, len(case.prompts), batch or len(case.prompts)):
        part = slice(start, start + (batch or len(case.prompts)))
        one = case._replace(prompts=case.prompts[part], prompt_index=case.prompt_index[part])
        torch.manual_seed(start)
        parts.append(engine.run(loaded, one))
    sums = {}
    for name in ("slot_steps", "prefill_s"):
        values = [getattr(part, name) for part in parts]
        sums[name] = None if None in values else sum(values)
    tokens, texts = ([row for part in parts for row in getattr(part, name)] for name in ("tokens", "texts"))
    return Sampled(tokens, texts, **sums)


def check(sampled: Sampled, case: Case) -> None:
    """Refuse rows that are missing, cut too early or not ended: such an engine has done less work.

    Raises:
        RuntimeError: says which.
    """
    expected = len(case.prompts) * case.num_generations
    if len(sampled.tokens) != expected:
        raise RuntimeError(f"gave {len(sampled.tokens)} rows instead of {expected}")
    stop_ids = set(case.stop_ids)
    for row in sampled.tokens:
        ended = bool(row) and row[-1] in stop_ids
        if len(row) > case.max_new_tokens or not (ended or len(row) == case.max_new_tokens):
            raise RuntimeError(f"gave a row of {len(row)} tokens that neither ended nor was cut")
        if not stop_ids.isdisjoint(row[:-1]):
            raise RuntimeError("gave a row that went on after a stop token")


def measure(engine: Engine, loaded: Any, case: Case, *, batch: int | None, repeats: int, enough_s: float, device: str):
    """Time one case up to `repeats` times, beginning none after `enough_s` seconds; the row of its table."""
    short = case._replace(prompts=[prompt[:8] for prompt in case.prompts[:2]], prompt_index=[0, 1], max_new_tokens=2)
    run(engine, loaded, short._replace(prompt_index=short.prompt_index[: len(short.prompts)]), None)
    row = {"why": None, "seconds": [], "prefills": []}
    if engine.compiles:
        start = time.perf_counter()
        run(engine, loaded, case, batch)
        row["first_s"] = time.perf_counter() - start
    memory, peaks = Memory(device), []
    while len(row["seconds"]) < repeats and sum(row["seconds"]) < enough_s:
        if peaks:
            memory.restart()
        start = time.perf_counter()
        sampled = run(engine, loaded, case, batch)
        row["seconds"].append(time.perf_counter() - start)
        row["prefills"].append(sampled.prefill_s)
        peaks.append(memory.peak())
        check(sampled, case)
    lengths = [len(tokens) for tokens in sampled.tokens]
    tokens = sum(lengths)
    return row | {
        "tokens": tokens,
        "tokens_per_s": tokens / min(row["seconds"]),
        "mean_length": tokens / len(lengths),
        "longest": max(lengths),
        "peak_bytes": max(peaks),
        "prefill_s": sampled.prefill_s,
        "occupancy": tokens / sampled.slot_steps if sampled.slot_steps else None,
        "digest": hashlib.sha256(json.dumps([sampled.tokens, sampled.texts]).encode()).hexdigest(),
    }


def main(job_path: str, result_path: str) -> None:
    """Do one job: load one engine, measure its cases in turn, write a row for each."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine, rows = ENGINES[job["engine"]], []
    loaded = engine.load(Path(job["folder"]), device)
    once = functools.partial(measure, engine, loaded, repeats=job["repeats"], enough_s=job["enough_s"], device=device)
    for case in job["cases"]:
        batch = case.pop("batch", None)
        try:
            rows.append(once(Case(**case), batch=batch))
        except Exception as reason:  # a peer may raise anything, and that is a result
            line = str(reason).strip().partition("\n")[0][:120]
            rows.append({"why": f"raises {type(reason).__name__}: {line}"})
        Path(result_path).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
