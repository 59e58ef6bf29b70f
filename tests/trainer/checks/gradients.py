"""Checks of the gradients: two ranks, packed, against plain PyTorch. The cases are in cases.py."""

from collections.abc import Callable
from functools import partial

import deepspeed
import pytest
import torch
from quick_interpreter import hasten

from grpo.config import Config
from grpo.distributed import gather_objects, rank
from grpo.loss import kl_divergence, loss_denominator, policy_loss
from grpo.packing import filler
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import REFERENCE, Policy, active_adapter
from grpo.types import Rollout
from tests.trainer.checks.cases import (
    ALL_LINEAR,
    CPU,
    HEAD,
    LONGEST,
    advantages,
    begin,
    config,
    engine_of,
    limit_of,
    move,
    padded_distributions,
    parts,
    rollout,
    work_of,
)

HALVES = [(0, 2), (2, 4)]  # prompts of rank 0 and of rank 1


def truth(run: Config, whole: Rollout) -> dict[str, torch.Tensor]:
    """The gradient of the global batch by plain PyTorch: padded, one process, no DeepSpeed."""
    model = parts(run).policy.model
    with torch.no_grad(), active_adapter(model, REFERENCE):
        ref_NTV = padded_distributions(model, whole)
    logprob_NTV = padded_distributions(model, whole)
    logprob_NT, ref_NT = (x.gather(-1, whole.token_NT[..., None])[..., 0] for x in (logprob_NTV, ref_NTV))
    if run.kl_estimator == "exact":
        kl_NT = (logprob_NTV.exp() * (logprob_NTV - ref_NTV)).sum(-1)
    else:
        kl_NT = kl_divergence(logprob_NT, ref_NT, estimator=run.kl_estimator)
    mask_NT = torch.arange(LONGEST) < whole.length_N[:, None]
    denominator = loss_denominator(
        run.loss_type, num_tokens=int(mask_NT.sum()), num_sequences=len(mask_NT), max_completion_length=LONGEST
    )
    loss = policy_loss(
        logprob_NT, None, advantages(whole), mask_NT, loss_type=run.loss_type, epsilon=0.2, epsilon_high=0.2,
        denominator=denominator, kl_NT=kl_NT, beta=run.beta,
    )
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def engine_gradient(
    run: Config, whole: Rollout, split: list[tuple[int, int]] = HALVES, *, limit: TokenLimit | None = None,
    prepare: Callable[[Policy], None] = lambda policy: None,
) -> dict[str, torch.Tensor]:
    """The same gradient by the sharded engine, where rank r has the prompts split[r]."""
    policy = parts(run).policy
    prepare(policy)
    engine = engine_of(run, policy)
    captured: dict[str, torch.Tensor] = {}

    def capture(learning_rate: float) -> float:
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                captured[name] = deepspeed.utils.safe_get_full_grad(parameter).clone()
        return Engine.step(engine, learning_rate)

    engine.step = capture
    move(engine, run, work_of(run, whole, split[rank()], limit=limit), 0.0)
    return captured


def assert_equal_gradients(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], what: object, tolerance: float = 1e-6
) -> None:
    """Equal to 1e-6 in every entry (of the norm, if above 1), and to twice that all in all: float32 leaves 1.4e-6."""
    assert found.keys() == expected.keys(), (sorted(found)[:3], sorted(expected)[:3])
    error = sum((found[name] - expected[name]).square().sum() for name in expected)
    norm = float(sum(tensor.square().sum() for tensor in expected.values()).sqrt())
    relative = float(error.sqrt()) / norm
    largest = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert largest < tolerance * max(norm, 1.0) and relative < 2 * tolerance, (what, largest, relative)


def check_gradients_equal_plain_pytorch() -> None:
    """Every loss type, estimator, head and checkpointing choice: two ranks, packed, against padded completions."""
    for options in (
        dict(model="tied", gradient_checkpointing="true", lora_target_modules=ALL_LINEAR),
        dict(model="untied", loss_type="grpo", kl_estimator="k3"),
        dict(model="tied", lora_modules_to_save=HEAD, loss_type="dr_grpo", kl_estimator="k2"),
        dict(model="untied", lora_modules_to_save=HEAD, kl_estimator="k1", gradient_checkpointing="true"),
        dict(model="tied", lora_modules_to_save=HEAD, kl_estimator="exact", beta=0.5),
        dict(model="untied", kl_estimator="exact", beta=0.5, gradient_checkpointing="true"),
        dict(model="tied", load_in_4bit=True, gradient_checkpointing="true"),
        dict(model="untied", load_in_4bit=True, lora_target_modules=ALL_LINEAR),
    ):
        run, whole = config(**options), rollout()
        assert_equal_gradients(engine_gradient(run, whole), truth(run, whole), options)


def check_uneven_micro_batches_with_fillers() -> None:
    """Rank 0 has three prompts, rank 1 has one: rank 1 fills up, and the gradient is that of the whole."""
    run, whole = config(micro_batch_tokens=30), rollout()
    assert_equal_gradients(engine_gradient(run, whole, [(0, 3), (3, 4)]), truth(run, whole), "3 + 1 prompts")
    assert not filler(whole).mask_UT.any()


def check_memory_short_on_one_rank_shortens_the_rows_on_both() -> None:
    """Rank 1 cannot have the memory of 25 tokens or more: both ranks pack again, and the gradient is the same."""
    for options in (dict(), dict(kl_estimator="exact", beta=0.5)):
        run, whole = config(**options), rollout()
        limit = TokenLimit(60, needed=lambda length: 2**60 * (rank() == 1 and length > 25), device=CPU)
        assert_equal_gradients(engine_gradient(run, whole, limit=limit), truth(run, whole), options)
        learnt = gather_objects(limit.max_tokens)  # it stays, and is the same everywhere
        assert 10 <= learnt[0] == learnt[-1] <= 25, learnt


def alone_check_survives_the_end_of_memory() -> None:
    """In a forward, in a backward, in the second micro-batch: the same iteration is done again with shorter rows."""
    def fails_once(kind: str, at: int) -> Callable[[Policy], None]:
        def prepare(policy: Policy) -> None:
            calls = []

            def raising(*_) -> None:
                if torch.is_grad_enabled() or kind == "backward":
                    calls.append(kind)
                    if len(calls) == at:
                        raise torch.OutOfMemoryError("simulated")

            module = policy.model.model.layers[-1].mlp
            (module.register_forward_hook if kind == "forward" else module.register_full_backward_hook)(raising)

        return prepare

    late, checkpointed = (("backward", 2),), dict(gradient_checkpointing="true")
    for options, places in (
        (checkpointed, (("forward", 1), ("forward", 2), ("backward", 1))), (checkpointed | dict(zero_stage=0), late),
        (checkpointed | dict(kl_estimator="exact", beta=0.5), late), (dict(), late),
    ):
        run, whole = config(**options), rollout()
        expected = truth(run, whole)
        for kind, at in places:
            limit = limit_of(run)
            found = engine_gradient(run, whole, [(0, 4)], limit=limit, prepare=fails_once(kind, at))
            assert_equal_gradients(found, expected, (options, kind, at))
            assert limit.max_tokens <= 30, (options, kind, at)
    for stage in (1, 2):  # where DeepSpeed would count the second micro-batch's predecessors twice
        run = config(**checkpointed, zero_stage=stage)
        with pytest.raises(SystemExit, match="out of memory with a packed batch of .* micro_batch_tokens="):
            engine_gradient(run, rollout(), [(0, 4)], limit=limit_of(run), prepare=fails_once("forward", 2))


def check_many_micro_batches_in_bfloat16_add_up_in_float32() -> None:
    """The same data 16 times, over 16 times the denominator (a power of two rounds nothing): the gradient of once."""
    norms, gradients = [], []
    for times in (1, 16):
        run = config(torch_dtype="bfloat16", micro_batch_tokens=2000, beta=0.0)
        engine, _ = begin(run)
        work = work_of(run, rollout())
        work.micro_batches, work.denominator = work.micro_batches * times, work.denominator * times
        engine.backward = partial(keep_last_gradient, engine, gradients, Engine.backward)
        norms.append(move(engine, run, work, 0.0)["grad_norm"])
    once, often = gradients
    assert abs(norms[1] / norms[0] - 1) < 1e-3, norms
    assert (often - once).norm() < 1e-3 * once.norm(), (often - once).norm() / once.norm()


def keep_last_gradient(engine: Engine, kept: list[torch.Tensor], backward: Callable, loss: torch.Tensor, *, last: bool):
    """A backward that keeps the whole gradient behind the last one, as one float32 vector."""
    backward(engine, loss, last=last)
    if last:
        found = [deepspeed.utils.safe_get_full_grad(parameter) for parameter in engine.trainable.values()]
        kept.append(torch.cat([tensor.float().flatten() for tensor in found]))


def alone_check_triton_kernels_run_inside_the_engine() -> None:
    """A frozen tied head over NF4 with checkpointing, a trained one with an exact KL: gradients pass ZeRO's hooks."""
    hasten(pytest.MonkeyPatch())  # for good: the rank ends after its checks
    for options in (
        dict(logprob_impl="triton", model="tied", gradient_checkpointing="true", load_in_4bit=True),
        dict(logprob_impl="hybrid", model="untied", lora_modules_to_save=HEAD, kl_estimator="exact", beta=0.5),
    ):
        run, whole = config(**options, micro_batch_tokens=400), rollout()  # one batch: the interpreter is slow
        assert_equal_gradients(engine_gradient(run, whole, [(0, 4)]), truth(run, whole), options, tolerance=1e-5)
