"""Checks of what the ranks share: who holds what, and that every way to share gives the same numbers."""

import bitsandbytes as bnb
import torch
import torch.distributed as dist

from grpo.distributed import rank, world_size
from grpo.memory.plan import ledger_of
from tests.trainer.checks.cases import (
    begin,
    config,
    dtype_of,
    engine_logprobs,
    engine_of,
    parts,
    rollout,
    train_steps,
)


def check_4bit_bytes_survive_and_are_sharded() -> None:
    """Packed bytes before and after the engine took over are equal, and each rank holds about half of them."""
    for dtype in (torch.float32, torch.bfloat16):
        run = config(load_in_4bit=True, torch_dtype=str(dtype).removeprefix("torch."))
        policy = parts(run).policy
        packed = {n: p for n, p in policy.named_parameters() if isinstance(p, bnb.nn.Params4bit)}
        before = {name: parameter.data.clone() for name, parameter in packed.items()}
        assert all(parameter.dtype == dtype for parameter in packed.values())
        engine = engine_of(run, policy)
        held = sum(parameter.ds_tensor.numel() * parameter.ds_tensor.element_size() for parameter in packed.values())
        whole = sum(tensor.numel() * tensor.element_size() for tensor in before.values())
        assert whole / world_size() <= held <= whole / world_size() * 1.02, (whole, held)
        with engine.gathered(packed.values()):
            for name, parameter in packed.items():
                assert torch.equal(parameter.data.view(torch.uint8), before[name].view(torch.uint8)), name
        absmax = torch.cat([parameter.quant_state.absmax.flatten().double() for parameter in packed.values()]).sum()
        both = [torch.zeros_like(absmax) for _ in range(world_size())]
        dist.all_gather(both, absmax)
        assert both[0] == both[1]


def check_eval_forward_leaves_the_4bit_weights_alone() -> None:
    """bitsandbytes repacks weights in an eval-mode forward on some CPUs, and ZeRO-3 then gathers the old packing."""
    run = config(load_in_4bit=True)
    policy = parts(run).policy
    engine, whole = engine_of(run, policy), rollout(seed=2)
    before_NT = engine_logprobs(engine, whole, run)
    engine.deepspeed.eval()
    engine_logprobs(engine, whole, run)
    engine_logprobs(engine, whole, run)
    engine.deepspeed.train()
    assert torch.equal(engine_logprobs(engine, whole, run), before_NT)
    for module in policy.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)


def check_nothing_stays_gathered() -> None:
    """After a step every parameter is a shard; while a layer is computed, little more than that layer is whole."""
    run = config(gradient_checkpointing="true")
    policy, decoder, _ = parts(run)
    engine = engine_of(run, policy)
    layers = list(policy.model.model.layers)
    peak = 0

    def watch(*_: object) -> None:
        nonlocal peak
        peak = max(peak, sum(p.numel() for layer in layers for p in layer.parameters()))

    for module in (module for layer in layers for module in layer.modules()):
        module.register_forward_pre_hook(watch)  # after ZeRO's own, and again when the backward pass recomputes
    train_steps(engine, decoder, run, 1)
    one_layer = sum(p.ds_numel for p in layers[0].parameters())
    assert 0 < peak <= one_layer, (peak, one_layer)
    assert all(p.ds_status.name == "NOT_AVAILABLE" for p in policy.parameters())


def check_lora_start_is_rank_0s() -> None:
    """Ranks that draw different LoRA weights end with those of rank 0."""
    run = config(seed=100 + rank())
    policy = parts(run).policy
    name, parameter = next((n, p) for n, p in policy.named_parameters() if "lora_A" in n)
    drawn = [torch.empty_like(parameter.data) for _ in range(world_size())]
    dist.all_gather(drawn, parameter.data.contiguous())
    assert not torch.equal(drawn[0], drawn[1])
    engine = engine_of(run, policy)
    with engine.gathered([parameter]):
        assert torch.equal(parameter.data, drawn[0]), name


def check_stages_agree() -> None:
    """ZeRO 0, 1, 2 and 3 give the same losses, KLs and gradient norms over two steps."""
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 3e-2)):
        results = []
        for stage in range(4):
            run = config(zero_stage=stage, max_grad_norm=0.05, torch_dtype=dtype)
            results.append(train_steps(*begin(run), run, 2, rate=1e-3))
        for other in results[1:]:
            for expected, found in zip(results[0], other, strict=True):
                for name in ("loss", "kl", "grad_norm"):
                    assert abs(expected[name] - found[name]) < tolerance * max(abs(expected[name]), 0.1), (dtype, name)


def check_the_ledger_agrees_with_what_ranks_hold() -> None:
    """Weights, gradients, optimizer, bucket and sampler of a rank against their formulas: NF4, copies, stages."""
    half = dict(torch_dtype="bfloat16", load_in_4bit=True)
    for options in (half, dict(half, zero_stage=2), dict(zero_stage=1), dict(model="untied", load_in_4bit=True),
                    dict(model="untied", lora_modules_to_save=["lm_head"]), dict(use_peft=False, zero_stage=3),
                    dict(adapter_name_or_path="elsewhere")):
        run = config(**options)
        policy, decoder, _ = parts(run)
        engine, dtype = engine_of(run, policy), dtype_of(run)
        ledger = ledger_of(
            run, policy.model.config, num_ranks=world_size(), dtype=dtype, rollout_dtype=decoder.dtype, on_gpu=False)
        train_steps(engine, decoder, run, 1, rate=1e-4)
        wrapper, moments = engine.deepspeed.optimizer, 0
        for master, state in engine._adamw().state.items():
            is_weight = dtype == torch.float32 and run.zero_stage == 3
            moments += sum(state[key].nbytes for key in ("exp_avg", "exp_avg_sq")) + (0 if is_weight else master.nbytes)
        found = {"weights": engine.held_bytes(), "num_trained": engine.num_trained(), "optimizer": moments,
                 "rollout_copy": decoder.nbytes()}
        if run.zero_stage == 3:
            found["gradients"] = wrapper.grad_partitions_flat_buffer.nbytes
            found["bucket"] = sum(bucket.buffer.nbytes for bucket in wrapper.ipg_buckets.values())
        for name, measured in found.items():
            formula = getattr(ledger, name)()
            assert abs(formula - measured) <= 0.1 * measured, (options, name, formula, measured)
