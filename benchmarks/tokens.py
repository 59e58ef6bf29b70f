"""What keeping tokens costs: CPU seconds of an update and of the record, and bytes; `python -m benchmarks.tokens`.

The shipped model with LoRA on a quarter of the default run's batch (4 prompts of 16 completions, 25 tokens drawn at
random), one rank without ZeRO. CPU seconds of the process, since a busy machine changes wall seconds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.record import RESULTS, ROOT, commit, machine
from grpo import distributed
from grpo.config import Config
from grpo.loading.adapter import add_adapter
from grpo.report.json_lines import JsonLines
from grpo.report.tokens.record import lines
from grpo.run.build import build_engine
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import Policy
from grpo.types import Rollout
from grpo.update import ask_reference, move, prepare

KEPT, NUM_REPEATS, LENGTH = (0, 1, 4), 5, 25
BATCH = {"prompts_per_step": 4, "num_generations": 16, "zero_stage": 0, "load_in_4bit": False}


def drawn(config: Config) -> Rollout:
    generator = torch.Generator().manual_seed(0)
    number = config.prompts_per_step * config.num_generations
    token_NT = torch.randint(3, 300, (number, LENGTH), generator=generator)
    return Rollout(
        prompt_ids=torch.randint(3, 300, (config.prompts_per_step, 30), generator=generator).tolist(),
        token_NT=token_NT, length_N=torch.full((number,), LENGTH), text=[""] * number,
        sampler_logprob_NT=torch.full(token_NT.shape, -5.0), truncated_N=torch.zeros(number, dtype=torch.bool))


def measured(
    engine: Engine, config: Config, decode: Callable[[list[int]], str], folder: Path
) -> tuple[float, float, int]:
    """CPU seconds of an update, of what becomes of its record, and the bytes of its lines."""
    rollout, limit = drawn(config), TokenLimit(2048, needed=lambda number: 0, device=torch.device("cpu"))
    advantage_N = torch.randn(len(rollout.text), generator=torch.Generator().manual_seed(1))
    names = ("question", "reward", "rewards", "advantage", "truncated")
    columns = dict.fromkeys(names, [0.0] * len(rollout.text))
    began = time.process_time()
    work = prepare(rollout, advantage_N, torch.ones(len(advantage_N), dtype=torch.bool), config, limit)
    ask_reference(engine, work, config)
    move(engine, work, config, 1e-5)
    moved = time.process_time()
    file = JsonLines(folder / "tokens.jsonl", 0)
    if config.keep_tokens:
        rows = lines(work.tokens.kept_N, [work.tokens.part()], [columns], rollout, decode)
        file.append([{"step": 0, **row} for row in rows])
    return moved - began, time.process_time() - moved, file.path.stat().st_size


def main() -> None:
    """Measure and write the page."""
    distributed.start(60)
    torch.set_num_threads(1)
    path, base = str(ROOT / "data" / "tiny_qwen2"), Config(**BATCH)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    add_adapter(model, base, torch.float32)
    engine = build_engine(Policy(model).train(), base, torch.float32)
    configs = {kept: Config(**BATCH, keep_tokens=kept) for kept in KEPT}
    found: dict[int, list] = {kept: [] for kept in KEPT}
    with tempfile.TemporaryDirectory() as folder:
        measured(engine, configs[0], tokenizer.decode, Path(folder))  # the first time is slower
        for _ in range(NUM_REPEATS):
            for kept, config in configs.items():  # in turn, so that a slow minute falls on all
                found[kept].append(measured(engine, config, tokenizer.decode, Path(folder)))
    rows = [f"| {kept} | {' | '.join(f'{statistics.median(column):.3f}' for column in list(zip(*each))[:2])} | "
            f"{each[0][2]:,} | {each[0][2] / max(1, kept * 16 * LENGTH):.0f} |" for kept, each in found.items()]
    page = f"""# What keeping tokens costs

`python -m benchmarks.tokens`, commit {commit()}, {machine()}.
The shipped model in float32 with LoRA, 4 prompts of 16 completions of {LENGTH} tokens, one rank, one thread. Medians of
{NUM_REPEATS} in CPU seconds of the process.

| keep_tokens | update, s | lines and file, s | bytes of a step | bytes of a token |
|---|---|---|---|---|
{chr(10).join(rows)}

The update's row without tokens is the comparison: what the others take more is the derivative of the loss by each
log-probability, a few products per token. On a GPU: not measured; `update_s` of two runs would say it, one of
them with `--keep_tokens 1`.
"""
    (RESULTS / "tokens.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
