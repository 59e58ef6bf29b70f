"""What the sampler stores and computes in, and where it waits; by whole short runs. About 30 seconds on a CPU."""

import json
from pathlib import Path

import pytest
import torch
from faults import Warm
from tiny_models import tiny_qwen2, tiny_tokenizer

from grpo.loading import model

OPTIONS = {
    "all at once": ["--rollout_keep", "false"],
    "three slots, merged": ["--rollout_slots", "3", "--rollout_weights", "merged"],
    "three slots, nf4": ["--rollout_slots", "3", "--rollout_weights", "nf4"],
}


@pytest.fixture(scope="module")
def runs(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict], str]]:
    """By name of the options: the metrics of two steps on one rank, and what the run printed."""
    folder = tmp_path_factory.mktemp("copy")
    tiny_qwen2(num_hidden_layers=1).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    common = {"model_name_or_path": folder / "model", "train_dataset_id_or_path": "wordproblems", "eval_examples": 0,
              "max_completion_length": 12, "prompts_per_step": 2, "num_generations": 4, "max_steps": 2,
              "learning_rate": 1e-2}
    words = [str(word) for name, value in common.items() for word in (f"--{name}", value)]
    found = {}
    for name, options in OPTIONS.items():
        output = folder / name.replace(" ", "_")
        ended = warm.run(*words, "--output_dir", str(output), *options, num_ranks=1)
        assert ended.codes == [0], ended.err[0][-3000:]
        lines = Path(output / "metrics.jsonl").read_text().splitlines()
        found[name] = [json.loads(line) for line in lines], ended.out[0]
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_every_form_samples_from_the_policy_that_is_trained(runs, name):
    for step in runs[name][0]:
        assert step["sampler_gap_max"] < 1e-4
        assert 0 < step["slot_occupancy"] <= 1 and 0 < step["prefill_share"] < 1
        assert step["rollout_tokens_per_s"] >= step["tokens_per_s"] and step["warmup_s"] == 0


@pytest.mark.parametrize("name", list(OPTIONS)[1:])
def test_neither_form_nor_slots_change_what_is_learnt(runs, name):
    for found, expected in zip(runs[name][0], runs["all at once"][0]):
        for metric in ("completion_length", "num_tokens", "loss", "grad_norm"):
            assert found[metric] == pytest.approx(expected[metric], abs=1e-4), metric


def test_the_start_says_how_the_rollout_runs(runs):
    assert "rollout    8 slots for 8 completions" in runs["all at once"][1]
    assert "rollout    3 slots for 8 completions" in runs["three slots, nf4"][1]
    assert "rollout    nf4 weights in float32 (as the trainer)" in runs["three slots, nf4"][1]
    assert "rollout_keep=False has no effect" in runs["all at once"][1]


@pytest.mark.parametrize(("slowdown", "expected"), [(1.0, torch.bfloat16), (1.6, torch.float32)])
def test_a_cpu_without_bfloat16_instructions_samples_in_float32(monkeypatch, slowdown, expected):
    times = iter([[1.0], [slowdown]])
    monkeypatch.setattr(model.timeit, "repeat", lambda *_, **__: next(times))
    monkeypatch.setattr(model, "global_max", lambda seconds: seconds)
    dtype, reason = model.sampling_dtype(tiny_qwen2().bfloat16())
    assert dtype == expected and f"{slowdown:.2g} times" in reason
    assert model.sampling_dtype(tiny_qwen2())[0] == torch.float32  # which is never rounded for speed
