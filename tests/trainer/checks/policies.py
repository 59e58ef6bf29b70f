"""Checks of the three policies: the one that trains, the copy that samples, and the reference."""

from pathlib import Path

import torch

from benchmarks.memory import peak_bytes
from grpo.sampler.decoder import Decoder
from grpo.saving import checkpoint
from grpo.types import Rollout
from tests.trainer.checks.cases import (
    ALL_LINEAR,
    HEAD,
    base_of,
    begin,
    config,
    distributions,
    engine_logprobs,
    engine_of,
    padded_logprobs,
    parts,
    rollout,
    sync,
    train_steps,
)


def decoder_logprobs(decoder: Decoder, whole: Rollout) -> torch.Tensor:
    """[N, T] what the sampler says of the rollout, from plain forwards."""
    return distributions(decoder.logits, whole).gather(-1, whole.token_NT[..., None])[..., 0]


def check_copy_equals_engine_after_updates() -> None:
    """The copy's weights are the engine's bit for bit, its log-probs to 1e-4; a copy not synced differs."""
    for options in (dict(load_in_4bit=True), dict(model="untied", lora_modules_to_save=HEAD),
                    dict(load_in_4bit=True, rollout_weights="nf4"), dict(rollout_weights="merged"),
                    dict(adapter_name_or_path="elsewhere")):
        run = config(**options, lora_target_modules=ALL_LINEAR)
        engine, decoder = begin(run)
        # Whole trained tensors, in float32, and for the merged form one layer's largest product twice: nothing else.
        trained = 4 * engine.num_trained()
        most = 1.1 * trained + 60_000 * ("rollout_weights" in options)
        assert peak_bytes(lambda: sync(engine, decoder), "cpu") < most
        for step in range(2 if "rollout_weights" in options else 1):  # a second product could be added to the first
            train_steps(engine, decoder, run, 1, first=step)
            whole = rollout(seed=77)
            stale = (decoder_logprobs(decoder, whole) - engine_logprobs(engine, whole, run)).abs().max()
            assert stale > 1e-3, (options, stale)
            sync(engine, decoder)
            with engine.gathered(engine.trainable.values()):
                for name, parameter in engine.trainable.items():
                    assert torch.equal(decoder.tensors()[name], parameter), name
            gap = (decoder_logprobs(decoder, whole) - engine_logprobs(engine, whole, run)).abs().max()
            assert gap < 1e-4, (options, gap)


def check_reference_is_the_untouched_base() -> None:
    """Before and after updates the reference is the base without the adapter, its head and embeddings the old ones."""
    for options in (dict(load_in_4bit=True), dict(lora_modules_to_save=HEAD),
                    dict(model="untied", lora_modules_to_save=HEAD), dict(use_peft=False)):
        run = config(**options)
        engine, decoder = begin(run)
        whole = rollout(seed=1)
        expected_NT = padded_logprobs(base_of(run), whole)
        for step in range(2):
            found_NT = engine_logprobs(engine, whole, run, reference=True)
            assert (found_NT - expected_NT).abs().max() < 1e-5, (options, step)
            train_steps(engine, decoder, run, 1, first=step)
        moved = (engine_logprobs(engine, whole, run) - expected_NT).abs().max()
        assert moved > 1e-2, (options, moved)


def check_kl_is_exactly_zero_at_step_0() -> None:
    """A fresh adapter, a start from an adapter, and a full fine-tune: KL 0.0, then not; by estimate and exactly."""
    plain, with_head = (dict(adapter_name_or_path=name) for name in ("start/adapter", "start_with_head/adapter"))
    for options, start in ((dict(), plain), (dict(lora_modules_to_save=HEAD), with_head)):
        run = config(**options)
        policy, decoder, peft_config = parts(run)
        engine = engine_of(run, policy)
        train_steps(engine, decoder, run, 1)
        checkpoint.export(engine, Path(start["adapter_name_or_path"]).parent, peft_config)
    for options in (dict(), plain, with_head, dict(with_head, torch_dtype="bfloat16", load_in_4bit=True),
                    dict(use_peft=False)):
        run, exact = config(**options), config(**options, kl_estimator="exact")
        engine, decoder = begin(run, drawn=False)
        for moved in (False, True):
            ways = ((exact, 0.0), (run, 1e-2))  # asked exactly, then by the estimate, after which the policy moves
            kls = [train_steps(engine, decoder, way, 1, rate=rate)[0]["kl"] for way, rate in ways]
            assert all(kl > 1e-6 if moved else kl == 0.0 for kl in kls), (options, moved, kls)
        if "adapter_name_or_path" in options:
            whole = rollout(seed=4)
            expected_NT = engine_logprobs(engine, whole, run, reference=True)
            gap = (expected_NT - padded_logprobs(base_of(run), whole)).abs().max()
            assert gap > 1e-2, "the reference is the start adapter, not the bare base"


def check_tied_head_stays_one_parameter() -> None:
    """modules_to_save on a tied model trains one matrix, not two that drift apart."""
    run = config(lora_modules_to_save=HEAD)
    policy, decoder, _ = parts(run)
    engine = engine_of(run, policy)
    train_steps(engine, decoder, run, 2)
    model = policy.model
    head, embedding = (module.modules_to_save["default"].weight for module in (model.lm_head, model.model.embed_tokens))
    assert head is embedding
    assert "lm_head.weight" not in engine.trainable and "model.embed_tokens.weight" in engine.trainable
