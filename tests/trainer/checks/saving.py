"""Checks of what is written: exports that others load, and checkpoints that a run goes on from."""

from pathlib import Path

from peft import PeftModel

from grpo.loading.model import load_base
from grpo.saving import checkpoint
from tests.trainer.checks.cases import (
    ALL_LINEAR,
    CPU,
    HEAD,
    base_of,
    begin,
    config,
    dtype_of,
    engine_logprobs,
    engine_of,
    padded_logprobs,
    parts,
    rollout,
    train_steps,
)


def check_export_loads_in_plain_peft() -> None:
    """Straight after a step: no empty tensor, and plain peft computes the engine's log-probs; tied head trained too."""
    for options in (dict(load_in_4bit=True), dict(lora_modules_to_save=HEAD), dict(adapter_name_or_path="elsewhere")):
        run, whole = config(**options, lora_target_modules=ALL_LINEAR), rollout(seed=3)
        policy, decoder, peft_config = parts(run)
        engine = engine_of(run, policy)
        train_steps(engine, decoder, run, 1)
        trained_NT = engine_logprobs(engine, whole, run)
        folder = checkpoint.export(engine, Path(f"export_{next(iter(options))}"), peft_config)
        plain = PeftModel.from_pretrained(base_of(run), str(folder))
        gap = (padded_logprobs(plain.train(), whole) - trained_NT).abs().max()
        assert gap < 1e-5, (options, gap)


def check_a_full_fine_tune_exports_a_model() -> None:
    """Without an adapter every weight trains, and the export is a model folder that transformers loads."""
    run, whole = config(use_peft=False), rollout(seed=3)
    engine, decoder = begin(run)
    train_steps(engine, decoder, run, 1)
    trained_NT = engine_logprobs(engine, whole, run)
    folder = checkpoint.export(engine, Path("full"), None)
    plain = load_base(str(folder), load_in_4bit=False, dtype=dtype_of(run), device=CPU)
    assert (padded_logprobs(plain, whole) - trained_NT).abs().max() < 1e-5
    assert (padded_logprobs(base_of(run), whole) - trained_NT).abs().max() > 1e-3


def check_resume_equals_the_uninterrupted_run() -> None:
    """Save after 1 of 3 steps; another engine with other LoRA weights restores and repeats steps 2 and 3 exactly."""
    for options in (dict(zero_stage=0), dict(torch_dtype="bfloat16"),  # tests/saving/test_resume.py has NF4 and a head
                    dict(torch_dtype="bfloat16", zero_stage=1), dict(torch_dtype="bfloat16", zero_stage=0)):
        run, other = config(**options), config(**options, seed=99)
        folder = Path(f"resume_{'_'.join(options)}{run.zero_stage}")
        policy, decoder, peft_config = parts(run)
        engine = engine_of(run, policy)
        train_steps(engine, decoder, run, 1)
        assert checkpoint.save(engine, folder, step=1, peft_config=peft_config, facts={}) == ""
        expected = train_steps(engine, decoder, run, 2, first=1)
        policy, decoder, _ = parts(other)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1)
        engine = engine_of(other, policy)
        assert checkpoint.restore(engine, checkpoint.find(folder)[0]) == 1
        found = train_steps(engine, decoder, run, 2, first=1)
        for name in ("loss", "kl", "grad_norm", "entropy"):
            assert [m[name] for m in found] == [m[name] for m in expected], (options, name, found, expected)
