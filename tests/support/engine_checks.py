"""Checks that run inside two ranks, one after the other, in one start; test_engine.py reports each as a test.

Run by torchrun with a folder that holds the models `tied` and `untied`; writes `results.json` there. The truth of every
gradient is computed on each rank with plain PyTorch: no DeepSpeed, no packing, all data in one process.
"""

import gc
import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bitsandbytes as bnb
import deepspeed
import torch
import torch.distributed as dist
from peft import PeftModel
from ranks import SHARD_EVERYTHING
from tiny_models import tiny_tokenizer

from benchmarks.memory import peak_bytes
from grpo import distributed, update
from grpo.config import Config
from grpo.distributed import gather_objects, rank, world_size
from grpo.loading.adapter import add_adapter
from grpo.loading.model import build_decoder, load_base
from grpo.loss import kl_divergence, loss_denominator, policy_loss
from grpo.memory.plan import ledger_of
from grpo.packing import filler
from grpo.run.build import build_engine
from grpo.sampler.decoder import Decoder
from grpo.sampler.generate import generate
from grpo.saving import checkpoint
from grpo.trainer.engine import Engine
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import REFERENCE, Policy, active_adapter
from grpo.types import Rollout

FOLDER = Path(sys.argv[1])
CPU = torch.device("cpu")
VOCAB = 320
NUM_PROMPTS, NUM_GENERATIONS, LONGEST = 4, 3, 7


def config(**options) -> Config:
    """A small sharded run; `model` is tied or untied."""
    model = options.pop("model", "tied")
    defaults = dict(
        model_name_or_path=str(FOLDER / model), torch_dtype="float32", load_in_4bit=False, lora_r=4, seed=3,
        micro_batch_tokens=60, gradient_checkpointing="true", max_completion_length=LONGEST,
        num_generations=NUM_GENERATIONS, max_grad_norm=0.0, deepspeed=SHARD_EVERYTHING,
    )
    return Config(**{**defaults, **options})


def parts(run: Config):
    """(policy, decoder, peft_config), LoRA's B drawn at random so that the adapter says something."""
    dtype = getattr(torch, run.torch_dtype)
    torch.manual_seed(run.seed)
    model = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=dtype, device=CPU)
    peft_config = add_adapter(model, run, dtype)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and ".reference" not in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).to(dtype)
    decoder = build_decoder(model, form=run.rollout_weights)
    if run.gradient_checkpointing == "true":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(model, impl=run.logprob_impl).train(), decoder, peft_config


def sync(engine: Engine, decoder: Decoder) -> None:
    """As `Run.sync`."""
    engine.copy_to(decoder.tensors())
    decoder.merge()


def rollout(num_prompts: int = NUM_PROMPTS, seed: int = 0) -> Rollout:
    """Completions of unequal length behind prompts that share a prefix."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    prefix = draw(5)
    num_rows = num_prompts * NUM_GENERATIONS
    length_N = torch.randint(1, LONGEST + 1, (num_rows,), generator=generator)
    token_NT = torch.zeros(num_rows, LONGEST, dtype=torch.int64)
    for n, length in enumerate(length_N):
        token_NT[n, :length] = torch.tensor(draw(int(length)))
    return Rollout(
        prompt_ids=[prefix + draw(2 + b) for b in range(num_prompts)], token_NT=token_NT, length_N=length_N,
        sampler_logprob_NT=torch.zeros(num_rows, LONGEST), truncated_N=torch.zeros(num_rows, dtype=torch.bool),
        text=[""] * num_rows,
    )


def limit_of(run: Config) -> TokenLimit:
    """The run's own, by a formula that always fits."""
    return TokenLimit(run.micro_batch_tokens, needed=lambda num_tokens: 0, device=CPU)


def part_of(whole: Rollout, first: int, last: int) -> Rollout:
    """The prompts first..last-1 with their completions."""
    rows = slice(first * NUM_GENERATIONS, last * NUM_GENERATIONS)
    return Rollout(
        prompt_ids=whole.prompt_ids[first:last], token_NT=whole.token_NT[rows], length_N=whole.length_N[rows],
        sampler_logprob_NT=whole.sampler_logprob_NT[rows], truncated_N=whole.truncated_N[rows], text=whole.text[rows],
    )


def advantages(whole: Rollout) -> torch.Tensor:
    """[N] fixed advantages."""
    return torch.randn(len(whole.text), generator=torch.Generator().manual_seed(9))


def padded_distributions(model, whole: Rollout) -> torch.Tensor:
    """[N, T, V] log-probabilities the plain way: one row at a time, full logits; 0.0 beyond a row's length."""
    model.set_attn_implementation("sdpa")  # a Policy has set its own
    logprob_NTV = []
    for n, length in enumerate(whole.length_N.tolist()):
        prompt = whole.prompt_ids[n // NUM_GENERATIONS]
        tokens = torch.tensor([prompt + whole.token_NT[n, :length].tolist()])
        logits_LV = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        logprob_NTV.append(torch.nn.functional.pad(logits_LV.log_softmax(-1), (0, 0, 0, LONGEST - length)))
    return torch.stack(logprob_NTV)


def padded_logprobs(model, whole: Rollout) -> torch.Tensor:
    """[N, T] log-probabilities of the rollout's tokens, likewise."""
    return padded_distributions(model, whole).gather(-1, whole.token_NT[..., None])[..., 0]


def truth(run: Config, whole: Rollout) -> dict[str, torch.Tensor]:
    """The gradient of the global batch by plain PyTorch: padded rows, one process, no DeepSpeed."""
    policy, _, _ = parts(run)
    model = policy.model
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
    run: Config, whole: Rollout, split: list[tuple[int, int]], *, limit: TokenLimit | None = None,
    prepare: Callable[[Policy], None] = lambda policy: None,
) -> dict[str, torch.Tensor]:
    """The same gradient by the sharded engine, where rank r has the prompts split[r]."""
    policy, _, _ = parts(run)
    prepare(policy)
    engine = build_engine(policy, run, getattr(torch, run.torch_dtype))
    first, last = split[rank()]
    mine = part_of(whole, first, last)
    rows = slice(first * NUM_GENERATIONS, last * NUM_GENERATIONS)
    work = update.prepare(mine, advantages(whole)[rows], run, limit or limit_of(run), CPU)
    update.ask_reference(engine, work, run)
    captured: dict[str, torch.Tensor] = {}

    def capture(learning_rate: float) -> float:
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                captured[name] = deepspeed.utils.safe_get_full_grad(parameter).clone()
        return Engine.step(engine, learning_rate)

    engine.step = capture
    update.move(engine, work, run, 0.0)
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
    """Every loss type, estimator, head and checkpointing choice: two ranks, packed, against padded rows."""
    head = ["lm_head", "embed_tokens"]
    for options in (
        dict(model="tied"),
        dict(model="untied", loss_type="grpo", kl_estimator="k3", gradient_checkpointing="false"),
        dict(model="tied", lora_modules_to_save=head, loss_type="dr_grpo", kl_estimator="k2"),
        dict(model="untied", lora_modules_to_save=head, kl_estimator="k1"),
        dict(model="tied", lora_modules_to_save=head, kl_estimator="exact", beta=0.5),
        dict(model="untied", kl_estimator="exact", beta=0.5),
        dict(model="tied", load_in_4bit=True, gradient_checkpointing="true"),
        dict(model="untied", load_in_4bit=True, gradient_checkpointing="false"),
    ):
        run, whole = config(**options), rollout()
        assert_equal_gradients(engine_gradient(run, whole, [(0, 2), (2, 4)]), truth(run, whole), options)


def check_uneven_micro_batches_with_fillers() -> None:
    """Rank 0 has three prompts, rank 1 has one: rank 1 fills up, and the gradient is that of the whole."""
    run, whole = config(micro_batch_tokens=30), rollout()
    assert_equal_gradients(engine_gradient(run, whole, [(0, 3), (3, 4)]), truth(run, whole), "3 + 1 prompts")
    assert not filler(whole).mask_NT.any()


def check_memory_short_on_one_rank_shortens_the_rows_on_both() -> None:
    """Rank 1 cannot have the memory of a row above 25 tokens: both pack anew, and the gradient is the same."""
    for options in (dict(), dict(kl_estimator="exact", beta=0.5)):
        run, whole = config(**options), rollout()
        limit = TokenLimit(60, needed=lambda length: 2**60 * (rank() == 1 and length > 25), device=CPU)
        found = engine_gradient(run, whole, [(0, 2), (2, 4)], limit=limit)
        assert_equal_gradients(found, truth(run, whole), options)
        learnt = gather_objects(limit.max_tokens)  # it stays, and is the same everywhere
        assert 10 <= learnt[0] == learnt[-1] <= 25, learnt


def check_many_micro_batches_in_bfloat16_add_up_in_float32() -> None:
    """The same data 16 times, over 16 times the denominator (a power of two rounds nothing): the gradient of once."""
    norms, gradients = [], []
    for times in (1, 16):
        run, whole = config(torch_dtype="bfloat16", micro_batch_tokens=2000), rollout()
        policy, _, _ = parts(run)
        engine = build_engine(policy, run, torch.bfloat16)
        mine, rows = part_of(whole, 2 * rank(), 2 * rank() + 2), slice(6 * rank(), 6 * rank() + 6)
        work = update.prepare(mine, advantages(whole)[rows], run, limit_of(run), CPU)
        update.ask_reference(engine, work, run)
        work.micro_batches, work.denominator = work.micro_batches * times, work.denominator * times
        engine.backward = partial(keep_last_gradient, engine, gradients, Engine.backward)
        norms.append(update.move(engine, work, run, 0.0)["grad_norm"])
    once, often = gradients
    assert abs(norms[1] / norms[0] - 1) < 1e-3, norms
    assert (often - once).norm() < 1e-3 * once.norm(), (often - once).norm() / once.norm()


def keep_last_gradient(engine: Engine, kept: list[torch.Tensor], backward: Callable, loss: torch.Tensor, *, last: bool):
    """A backward that keeps the whole gradient behind the last one, as one float32 vector."""
    backward(engine, loss, last=last)
    if last:
        found = [deepspeed.utils.safe_get_full_grad(parameter) for parameter in engine.trainable.values()]
        kept.append(torch.cat([tensor.float().flatten() for tensor in found]))


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

            module = policy.model.model.layers[1].mlp
            (module.register_forward_hook if kind == "forward" else module.register_full_backward_hook)(raising)

        return prepare

    everywhere, late = (("forward", 1), ("forward", 2), ("backward", 1), ("backward", 2)), (("backward", 2),)
    for options, places in (
        (dict(), everywhere), (dict(zero_stage=0), late), (dict(kl_estimator="exact", beta=0.5), late),
        (dict(gradient_checkpointing="false"), late),
    ):
        run, whole = config(**options), rollout()
        expected = truth(run, whole)
        for kind, at in places:
            limit = limit_of(config())
            found = engine_gradient(run, whole, [(0, 4)], limit=limit, prepare=fails_once(kind, at))
            assert_equal_gradients(found, expected, (options, kind, at))
            assert limit.max_tokens <= 30, (options, kind, at)


def check_triton_kernels_run_inside_the_engine() -> None:
    """A frozen tied head, a trained one with an exact KL, checkpointing, NF4: gradients pass through ZeRO's hooks."""
    head = ["lm_head", "embed_tokens"]
    for options in (
        dict(logprob_impl="triton", model="tied"),
        dict(logprob_impl="hybrid", model="untied", lora_modules_to_save=head, kl_estimator="exact", beta=0.5),
    ):
        run, whole = config(**options, micro_batch_tokens=200), rollout()  # few rows: the interpreter is slow
        found = engine_gradient(run, whole, [(0, 2), (2, 4)])
        assert_equal_gradients(found, truth(run, whole), options, tolerance=1e-5)
    run = config(logprob_impl="hybrid", torch_dtype="bfloat16", load_in_4bit=True, micro_batch_tokens=200)
    policy, decoder, _ = parts(run)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    engine = build_engine(policy, run, torch.bfloat16)
    sync(engine, decoder)
    before, after = (metrics["kl"] for metrics in train_steps(engine, decoder, run, 2))
    assert before == 0.0 and after > 1e-6, (before, after)


def train_steps(engine: Engine, decoder, run: Config, steps: int, rate: float = 1e-2, first: int = 0) -> list[dict]:
    """A few updates on drawn completions; the metrics of each."""
    metrics = []
    for step in range(first, first + steps):
        sync(engine, decoder)
        whole = rollout(seed=step)
        share = NUM_PROMPTS // world_size()
        mine = part_of(whole, rank() * share, (rank() + 1) * share)
        rows = slice(rank() * share * NUM_GENERATIONS, (rank() + 1) * share * NUM_GENERATIONS)
        work = update.prepare(mine, advantages(whole)[rows], run, limit_of(run), CPU)
        if run.beta > 0:
            update.ask_reference(engine, work, run)
        metrics.append(update.move(engine, work, run, rate))
    return metrics


def engine_logprobs(engine: Engine, whole: Rollout, run: Config, **options) -> torch.Tensor:
    """[N, T] what the engine says of the rollout; each rank scores its share, and all get the whole."""
    share = NUM_PROMPTS // world_size()
    rows = slice(rank() * share * NUM_GENERATIONS, (rank() + 1) * share * NUM_GENERATIONS)
    mine = part_of(whole, rank() * share, (rank() + 1) * share)
    work = update.prepare(mine, advantages(whole)[rows], run, limit_of(run), CPU)
    result_NT = torch.zeros_like(work.sampler_logprob_NT)
    with torch.no_grad():
        for batch in work.micro_batches:
            result_NT += batch.scatter(engine(batch, **options).logprob_K) * batch.mask_NT
    torch.distributed.all_reduce(result_NT)
    return result_NT


def decoder_logprobs(decoder, whole: Rollout) -> torch.Tensor:
    """[N, T] what the rollout copy says of it, from plain forwards."""
    logprob_NT = torch.zeros(whole.token_NT.shape)
    for n, length in enumerate(whole.length_N.tolist()):
        prompt = whole.prompt_ids[n // NUM_GENERATIONS]
        tokens = torch.tensor([prompt + whole.token_NT[n, :length].tolist()])
        logits_LV = decoder.logits(tokens)[0, len(prompt) - 1 : -1]
        logprob_NT[n, :length] = torch.log_softmax(logits_LV, -1).gather(-1, tokens[0, len(prompt) :, None])[:, 0]
    return logprob_NT


def check_copy_equals_engine_after_updates() -> None:
    """The copy's weights are the engine's bit for bit, its log-probs to 1e-4; a copy not synced differs."""
    head = ["lm_head", "embed_tokens"]
    for options in (dict(), dict(load_in_4bit=True), dict(model="untied", lora_modules_to_save=head),
                    dict(load_in_4bit=True, rollout_weights="nf4"), dict(rollout_weights="merged")):
        run = config(**options)
        policy, decoder, _ = parts(run)
        engine = build_engine(policy, run, torch.float32)
        # Whole trained tensors, in float32, and for the merged form one layer's largest product twice: nothing else.
        trained = 4 * engine.num_trained()
        most = 1.1 * trained + 60_000 * ("rollout_weights" in options)
        assert peak_bytes(lambda: sync(engine, decoder), "cpu") < most
        for step in range(2):
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
    head = ["lm_head", "embed_tokens"]
    for options in (dict(load_in_4bit=True), dict(lora_modules_to_save=head),
                    dict(model="untied", lora_modules_to_save=head), dict(use_peft=False)):
        run = config(**options)
        if run.use_peft:
            policy, decoder, _ = parts(run)
        else:
            model = load_base(run.model_name_or_path, load_in_4bit=False, dtype=torch.float32, device=CPU)
            decoder = build_decoder(model.requires_grad_(True))
            policy = Policy(model, frozen_copy=True)
        engine, whole = build_engine(policy, run, torch.float32), rollout(seed=1)
        base = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=torch.float32, device=CPU)
        with torch.no_grad():
            expected_NT = padded_logprobs(base, whole)
        for step in range(2):
            found_NT = engine_logprobs(engine, whole, run, reference=True)
            assert (found_NT - expected_NT).abs().max() < 1e-5, (options, step)
            train_steps(engine, decoder, run, 1, first=step)
        moved = (engine_logprobs(engine, whole, run) - expected_NT).abs().max()
        assert moved > 1e-2, (options, moved)


def check_kl_is_exactly_zero_at_step_0() -> None:
    """A fresh adapter, a start from an adapter, and a full fine-tune: KL 0.0, then not; by estimate and exactly."""
    run = config()
    policy, _, peft_config = parts(run)
    start = checkpoint.export(build_engine(policy, run, torch.float32), FOLDER / "start", peft_config)
    run = config(lora_modules_to_save=["lm_head", "embed_tokens"])
    policy, decoder, peft_config = parts(run)
    engine = build_engine(policy, run, torch.float32)
    train_steps(engine, decoder, run, 1)
    with_head = checkpoint.export(engine, FOLDER / "start_with_head", peft_config)
    for options in (dict(), dict(kl_estimator="exact"), dict(adapter_name_or_path=str(start)),
                    dict(adapter_name_or_path=str(start), kl_estimator="exact"),
                    dict(adapter_name_or_path=str(with_head)),
                    dict(adapter_name_or_path=str(with_head), kl_estimator="exact"),
                    dict(adapter_name_or_path=str(with_head), torch_dtype="bfloat16", load_in_4bit=True),
                    dict(use_peft=False), dict(use_peft=False, kl_estimator="exact")):
        run = config(**options)
        dtype = getattr(torch, run.torch_dtype)
        torch.manual_seed(0)
        model = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=dtype, device=CPU)
        if run.use_peft:
            add_adapter(model, run, dtype)
        else:
            model.requires_grad_(True)
        decoder = build_decoder(model)
        engine = build_engine(Policy(model, frozen_copy=not run.use_peft), run, dtype)
        before, after = (metrics["kl"] for metrics in train_steps(engine, decoder, run, 2))
        assert before == 0.0 and after > 1e-6, (options, before, after)
        if "adapter_name_or_path" in options:
            whole = rollout(seed=4)
            expected_NT = engine_logprobs(engine, whole, run, reference=True)
            base = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=dtype, device=CPU)
            with torch.no_grad():
                gap = (expected_NT - padded_logprobs(base, whole)).abs().max()
            assert gap > 1e-2, "the reference is the start adapter, not the bare base"


def check_ranks_decode_different_lengths() -> None:
    """One rank decodes 3 tokens, the other 40: no rank waits inside the rollout, and training goes on."""
    run = config()
    policy, decoder, _ = parts(run)
    engine = build_engine(policy, run, torch.float32)
    for step in range(2):
        sync(engine, decoder)
        result = generate(
            decoder, [[5, 6, 7]], tokenizer=tiny_tokenizer(), num_generations=2, temperature=1.0, stop_token_ids=set(),
            max_completion_length=3 if rank() == 0 else 40, stop_strings=[], seed=0, step=step, prompt_index=[rank()],
        )
        assert result.token_NT.shape[1] == (3 if rank() == 0 else 40)
        train_steps(engine, decoder, run, 1, first=step)


def check_eval_forward_leaves_the_4bit_weights_alone() -> None:
    """bitsandbytes repacks weights in an eval-mode forward on some CPUs, and ZeRO-3 then gathers the old packing."""
    run = config(load_in_4bit=True)
    policy, _, _ = parts(run)
    engine, whole = build_engine(policy, run, torch.float32), rollout(seed=2)
    before_NT = engine_logprobs(engine, whole, run)
    engine.deepspeed.eval()
    engine_logprobs(engine, whole, run)
    engine_logprobs(engine, whole, run)
    engine.deepspeed.train()
    assert torch.equal(engine_logprobs(engine, whole, run), before_NT)
    for module in policy.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)


def check_export_loads_in_plain_peft() -> None:
    """Straight after a step: no empty tensor, and plain peft computes the engine's log-probs; tied head trained too."""
    for options in (dict(load_in_4bit=True), dict(lora_modules_to_save=["lm_head", "embed_tokens"])):
        run, whole = config(**options), rollout(seed=3)
        policy, decoder, peft_config = parts(run)
        engine = build_engine(policy, run, torch.float32)
        train_steps(engine, decoder, run, 1)
        trained_NT = engine_logprobs(engine, whole, run)
        folder = checkpoint.export(engine, FOLDER / f"export_{next(iter(options))}", peft_config)
        base = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=torch.float32,
                         device=CPU)
        plain = PeftModel.from_pretrained(base, str(folder))
        with torch.no_grad():
            gap = (padded_logprobs(plain.train(), whole) - trained_NT).abs().max()
        assert gap < 1e-5, (options, gap)


def check_a_full_fine_tune_exports_a_model() -> None:
    """Without an adapter every weight trains, and the export is a model folder that transformers loads."""
    run, whole = config(use_peft=False), rollout(seed=3)
    model = load_base(run.model_name_or_path, load_in_4bit=False, dtype=torch.float32, device=CPU).requires_grad_(True)
    decoder = build_decoder(model)
    engine = build_engine(Policy(model, frozen_copy=True), run, torch.float32)
    train_steps(engine, decoder, run, 1)
    trained_NT = engine_logprobs(engine, whole, run)
    folder = checkpoint.export(engine, FOLDER / "full", None)
    with torch.no_grad():
        plain = load_base(str(folder), load_in_4bit=False, dtype=torch.float32, device=CPU)
        assert (padded_logprobs(plain, whole) - trained_NT).abs().max() < 1e-5
        base = load_base(run.model_name_or_path, load_in_4bit=False, dtype=torch.float32, device=CPU)
        assert (padded_logprobs(base, whole) - trained_NT).abs().max() > 1e-3


def check_resume_equals_the_uninterrupted_run() -> None:
    """Save after 2 of 4 steps; another engine with other LoRA weights restores and repeats steps 3 and 4 exactly."""
    for options in (dict(load_in_4bit=True), dict(lora_modules_to_save=["lm_head", "embed_tokens"]),
                    dict(zero_stage=0), dict(torch_dtype="bfloat16"),
                    dict(torch_dtype="bfloat16", zero_stage=1), dict(torch_dtype="bfloat16", zero_stage=0)):
        run = config(**options)
        dtype = getattr(torch, run.torch_dtype)
        folder = FOLDER / f"resume_{'_'.join(f'{k}' for k in options)}{run.zero_stage}"
        policy, decoder, peft_config = parts(run)
        engine = build_engine(policy, run, dtype)
        train_steps(engine, decoder, run, 2)
        assert checkpoint.save(engine, folder, step=2, peft_config=peft_config, facts={}) == ""
        expected = train_steps(engine, decoder, run, 2, first=2)
        other = config(**options, seed=99)
        policy, decoder, _ = parts(other)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1)
        engine = build_engine(policy, other, dtype)
        assert checkpoint.restore(engine, checkpoint.find(folder)[0]) == 2
        found = train_steps(engine, decoder, run, 2, first=2)
        for name in ("loss", "kl", "grad_norm", "entropy"):
            assert [m[name] for m in found] == [m[name] for m in expected], (options, name, found, expected)


def check_tied_head_stays_one_parameter() -> None:
    """modules_to_save on a tied model trains one matrix, not two that drift apart."""
    run = config(lora_modules_to_save=["lm_head", "embed_tokens"])
    policy, decoder, _ = parts(run)
    engine = build_engine(policy, run, torch.float32)
    train_steps(engine, decoder, run, 2)
    model = policy.model
    head, embedding = (module.modules_to_save["default"].weight for module in (model.lm_head, model.model.embed_tokens))
    assert head is embedding
    assert "lm_head.weight" not in engine.trainable and "model.embed_tokens.weight" in engine.trainable


def check_4bit_bytes_survive_and_are_sharded() -> None:
    """Packed bytes before and after the engine took over are equal, and each rank holds about half of them."""
    for dtype in (torch.float32, torch.bfloat16):
        run = config(load_in_4bit=True, torch_dtype=str(dtype).removeprefix("torch."))
        policy, _, _ = parts(run)
        packed = {n: p for n, p in policy.named_parameters() if isinstance(p, bnb.nn.Params4bit)}
        before = {name: parameter.data.clone() for name, parameter in packed.items()}
        assert all(parameter.dtype == dtype for parameter in packed.values())
        engine = build_engine(policy, run, dtype)
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


def check_nothing_stays_gathered() -> None:
    """After a step every parameter is a shard; while a layer is computed, little more than that layer is whole."""
    run = config()
    policy, decoder, _ = parts(run)
    engine = build_engine(policy, run, torch.float32)
    layers = [layer for layer in policy.model.model.layers]
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
    policy, _, _ = parts(run)
    name, parameter = next((n, p) for n, p in policy.named_parameters() if "lora_A" in n)
    drawn = [torch.empty_like(parameter.data) for _ in range(world_size())]
    dist.all_gather(drawn, parameter.data.contiguous())
    assert not torch.equal(drawn[0], drawn[1])
    engine = build_engine(policy, run, torch.float32)
    with engine.gathered([parameter]):
        assert torch.equal(parameter.data, drawn[0]), name


def check_nan_on_one_rank_skips_the_step_on_both() -> None:
    """A gradient that is not finite moves nothing anywhere, is counted, and the next step works."""
    for options in (dict(), dict(zero_stage=2), dict(zero_stage=0), dict(torch_dtype="bfloat16"),
                    dict(torch_dtype="bfloat16", zero_stage=0)):
        run = config(**options)
        policy, decoder, _ = parts(run)
        engine = build_engine(policy, run, getattr(torch, run.torch_dtype))
        sync(engine, decoder)
        before = {name: tensor.clone() for name, tensor in decoder.tensors().items()}
        whole = rollout(seed=6)
        advantage_N = advantages(whole)
        if rank() == 1:
            advantage_N[0] = float("nan")
        work = update.prepare(whole, advantage_N, run, limit_of(run), CPU)
        update.ask_reference(engine, work, run)
        metrics = update.move(engine, work, run, 1e-2)
        assert metrics["grad_norm"] == float("inf") and engine.skipped_steps == 1, (options, metrics)
        sync(engine, decoder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.tensors().items()), options
        metrics = train_steps(engine, decoder, run, 1)[0]
        assert metrics["grad_norm"] < 1e6 and engine.skipped_steps == 1, options


def check_a_step_in_which_nothing_counts_has_loss_0() -> None:
    """All completions truncated and masked: every rank still runs the same number of forwards, and nothing moves."""
    run = config(mask_truncated_completions=True)
    policy, decoder, _ = parts(run)
    engine, whole = build_engine(policy, run, torch.float32), rollout()
    sync(engine, decoder)
    start = {name: tensor.clone() for name, tensor in decoder.tensors().items()}
    whole.truncated_N.fill_(True)
    work = update.prepare(whole, advantages(whole), run, limit_of(run), CPU)
    update.ask_reference(engine, work, run)
    metrics = update.move(engine, work, run, 1e-2)
    sync(engine, decoder)
    assert metrics["loss"] == metrics["grad_norm"] == metrics["num_tokens"] == 0.0, metrics
    assert all(torch.equal(tensor, start[name]) for name, tensor in decoder.tensors().items())


def check_without_beta_no_reference_is_asked() -> None:
    """With beta 0 there is no reference pass, and the KL is not a number rather than a false 0."""
    run = config(beta=0.0)
    policy, decoder, _ = parts(run)
    metrics = train_steps(build_engine(policy, run, torch.float32), decoder, run, 2)
    assert all(m["kl"] != m["kl"] and m["grad_norm"] > 0 for m in metrics), metrics


def check_learning_rate_takes_effect() -> None:
    """Rate 0 moves nothing; a rate moves."""
    run = config()
    policy, decoder, _ = parts(run)
    engine = build_engine(policy, run, torch.float32)
    sync(engine, decoder)
    start = {name: tensor.clone() for name, tensor in decoder.tensors().items()}
    for rate, moves in ((0.0, False), (1e-2, True)):
        train_steps(engine, decoder, run, 1, rate=rate)
        sync(engine, decoder)
        moved = any(not torch.equal(tensor, start[name]) for name, tensor in decoder.tensors().items())
        assert moved == moves, rate


def check_an_error_in_the_rollout_leaves_the_engine_whole() -> None:
    """The rollout touches no engine hook, so a caught error inside it costs nothing."""
    run = config()
    policy, decoder, _ = parts(run)
    engine = build_engine(policy, run, torch.float32)
    sync(engine, decoder)
    try:
        generate(decoder, [[]], tokenizer=tiny_tokenizer(), num_generations=2, max_completion_length=3, temperature=1.0,
                 stop_token_ids=set(), stop_strings=[], seed=0, step=0, prompt_index=[0])
        raise AssertionError("an empty prompt was accepted")
    except ValueError:
        pass
    metrics = train_steps(engine, decoder, run, 2)
    assert all(m["grad_norm"] > 0 for m in metrics) and metrics[0]["sampler_gap_max"] >= 0


def check_stages_agree() -> None:
    """ZeRO 0, 1, 2 and 3 give the same losses, KLs and gradient norms over two steps."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        results = []
        for stage in range(4):
            run = config(zero_stage=stage, max_grad_norm=0.05, torch_dtype=str(dtype).removeprefix("torch."))
            policy, decoder, _ = parts(run)
            results.append(train_steps(build_engine(policy, run, dtype), decoder, run, 2, rate=1e-3))
        for other in results[1:]:
            for expected, found in zip(results[0], other, strict=True):
                for name in ("loss", "kl", "grad_norm"):
                    assert abs(expected[name] - found[name]) < tolerance * max(abs(expected[name]), 0.1), (dtype, name)


def check_the_ledger_agrees_with_what_ranks_hold() -> None:
    """Weights, gradients, optimizer, bucket and rollout copy of a rank against their formulas: NF4, copies, stages."""
    half = dict(torch_dtype="bfloat16", load_in_4bit=True)
    for options in (half, dict(half, zero_stage=2), dict(zero_stage=1), dict(model="untied", load_in_4bit=True),
                    dict(model="untied", lora_modules_to_save=["lm_head"]), dict(use_peft=False, zero_stage=3)):
        run = config(**options)
        dtype = getattr(torch, run.torch_dtype)
        torch.manual_seed(run.seed)
        model = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=dtype, device=CPU)
        if run.use_peft:
            add_adapter(model, run, dtype)
        else:
            model.requires_grad_(True)
        decoder = build_decoder(model)
        engine = build_engine(Policy(model, frozen_copy=not run.use_peft).train(), run, dtype)
        ledger = ledger_of(
            run, model.config, num_ranks=world_size(), dtype=dtype, rollout_dtype=decoder.dtype, on_gpu=False)
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


def main() -> None:
    distributed.start(120)
    gc.freeze()  # what was imported; each engine collects garbage twice
    chosen = sys.argv[2:]
    results = {}
    for name, check in list(globals().items()):
        if name in chosen or name.startswith("check_") and not chosen:
            try:
                check()
                results[name] = "ok"
            except Exception:
                results[name] = traceback.format_exc()
            worst = [None] * world_size()
            dist.all_gather_object(worst, results[name])
            results[name] = next((one for one in worst if one != "ok"), "ok")
    if rank() == 0:
        (FOLDER / "results.json").write_text(json.dumps(results))
    dist.barrier()


if __name__ == "__main__":
    main()
