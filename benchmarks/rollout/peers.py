"""What `benchmarks.rollout` measures: our sampler and what transformers has for the same work, one small adapter each.

An adapter loads a model folder, and continues prompts: it takes a `Case` and returns `Sampled`. Every engine runs in
its own process, see worker.py.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, DynamicCache, GenerationConfig, PreTrainedModel, Qwen2ForCausalLM

from grpo.packing import common_prefix_length
from grpo.sampler.decoder import LORA_MODULES, Decoder
from grpo.sampler.generate import generate

RANK = 16  # of the LoRA branches
PAGE_TOKENS, BATCH_TOKENS = 256, 1024  # of continuous batching: transformers' page size; tokens of one forward
PAD = 0


class Case(NamedTuple):
    """What an engine is asked for.

    Args:
        prompts: B lists of token ids.
        prompt_index: B keys of our noise.
        num_generations: G completions of each.
        max_new_tokens: the length at which a row is cut.
        stop_ids: tokens that end a row; none of them: every row is cut.
        at_once: rows continued at once; None: all of them. transformers' `generate` always continues all.
        temperature: 1, or 0 for the most likely tokens.
    """

    prompts: list[list[int]]
    prompt_index: list[int]
    num_generations: int
    max_new_tokens: int
    stop_ids: list[int]
    at_once: int | None = None
    temperature: float = 1.0


class Sampled(NamedTuple):
    """What an engine gave.

    Args:
        tokens: the B * G rows, prompt-major, each up to its stop token.
        texts: the same rows as text, where the engine makes it.
        slot_steps: rows that the decoder steps went over, ended ones included; None where that is not known.
        prefill_s: seconds of reading the prompts; None where they are not counted apart.
    """

    tokens: list[list[int]]
    texts: list[str]
    slot_steps: int | None = None
    prefill_s: float | None = None


class Engine(NamedTuple):
    """One way to continue prompts.

    Args:
        says: what it is, in one clause.
        load: from a model folder and a device to what `run` takes.
        run: from that and a case to the rows.
        compiles: its first run at a new size compiles, so the whole case is run once before it is timed.
    """

    says: str
    load: Callable[[Path, str], Any]
    run: Callable[[Any, Case], Sampled]
    compiles: bool = False


def load_model(folder: Path, device: str) -> PreTrainedModel:
    """The transformers model: float32 on a CPU, bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def load_ours(folder: Path, device: str, *, form: str | None = None) -> tuple[Decoder, Any]:
    """Our decoder and the tokenizer; `form` None is without LoRA. The transformers model is dropped."""
    model = load_model(folder, device)
    lora = {}
    if form is not None:
        torch.manual_seed(0)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in LORA_MODULES:
                num_outputs, num_inputs = module.weight.shape
                A_RI, B_OR = torch.randn(RANK, num_inputs) / num_inputs**0.5, torch.randn(num_outputs, RANK) / RANK
                lora[name] = (A_RI.to(module.weight), B_OR.to(module.weight), 1.0)
    decoder = Decoder(model.config, dict(model.named_parameters()), lora, form=form or "lora", trained=set())
    return decoder, AutoTokenizer.from_pretrained(folder)


def ours(loaded: tuple[Decoder, Any], case: Case) -> Sampled:
    """`grpo.sampler.generate.generate`."""
    decoder, tokenizer = loaded
    rollout = generate(
        decoder, case.prompts, tokenizer=tokenizer, num_generations=case.num_generations,
        max_completion_length=case.max_new_tokens, temperature=case.temperature, stop_token_ids=set(case.stop_ids),
        stop_strings=[], seed=0, step=0, prompt_index=case.prompt_index, num_slots=case.at_once)
    tokens = [token_T[:length].tolist() for token_T, length in zip(rollout.token_NT, rollout.length_N.tolist())]
    cost = rollout.cost
    return Sampled(tokens, rollout.text, slot_steps=cost.num_slots * cost.num_steps, prefill_s=cost.prefill_s)


def sampling(case: Case, **options: Any) -> GenerationConfig:
    """Plain sampling: at temperature 1 no processor of the logits is on."""
    noise = {"do_sample": True, "temperature": 1.0, "top_k": 0 if case.temperature else 1, "top_p": 1.0}
    stop = {"eos_token_id": case.stop_ids} if case.stop_ids else {}
    return GenerationConfig(max_new_tokens=case.max_new_tokens, pad_token_id=PAD, **noise, **stop, **options)


def padded(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, padded on the left."""
    longest = max(map(len, rows))
    token_NL = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], dtype=torch.int64, device=device)
    mask_NL = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return token_NL.reshape(len(rows), longest), mask_NL.reshape(len(rows), longest).long()


def trimmed(token_NT: torch.Tensor, case: Case) -> Sampled:
    """The rows of `generate`, which goes on with ended rows until all have ended."""
    stop_ids, tokens = set(case.stop_ids), []
    for row in token_NT.tolist():
        ends = (index for index, token in enumerate(row) if token in stop_ids)
        tokens.append(row[: next(ends, len(row)) + 1])
    return Sampled(tokens, [], slot_steps=token_NT.numel())


def hugging_face(model: PreTrainedModel, case: Case, *, compiled: bool = False, **options: Any) -> Sampled:
    """`model.generate`; `compiled` asks for it on a CPU as well, where transformers does not by itself."""
    if compiled:
        from transformers.generation import CompileConfig  # here: two seconds that only this engine needs

        options["compile_config"] = CompileConfig()
        options["compile_config"]._compile_all_devices = True
    token_BL, mask_BL = padded(case.prompts, model.device)
    config = sampling(case, num_return_sequences=case.num_generations, **options)
    token_NL = model.generate(token_BL, attention_mask=mask_BL, generation_config=config)
    return trimmed(token_NL[:, token_BL.shape[1] :], case)


@torch.no_grad()
def read_once(model: PreTrainedModel, case: Case) -> Sampled:
    """`model.generate` that continues a cache: what all prompts share is read once, the rest of each prompt once."""
    prompts, device, start = case.prompts, model.device, time.perf_counter()
    shared = common_prefix_length(prompts)
    cache = DynamicCache(config=model.config)
    if shared:
        model.model(torch.tensor([prompts[0][:shared]], device=device), past_key_values=cache)
        cache.batch_repeat_interleave(len(prompts))
    # Padding lies between the prefix and the rests, where the mask hides it and positions do not count it.
    rest_BL, mask_BL = padded([prompt[shared:-1] for prompt in prompts], device)
    mask_BL = torch.cat([mask_BL.new_ones(len(prompts), shared), mask_BL], dim=1)
    if rest_BL.shape[1]:
        position_BL = (mask_BL.cumsum(1) - 1)[:, shared:].clamp(min=0)
        model.model(rest_BL, attention_mask=mask_BL, position_ids=position_BL, past_key_values=cache)
    cache.batch_repeat_interleave(case.num_generations)
    last_B1 = torch.tensor([prompt[-1:] for prompt in prompts], device=device)
    prefix_BL = torch.tensor(prompts[0][:shared], dtype=torch.int64, device=device).expand(len(prompts), -1)
    token_BL = torch.cat([prefix_BL, rest_BL, last_B1], dim=1)
    mask_BL = torch.cat([mask_BL, torch.ones_like(last_B1)], dim=1)
    token_NL, mask_NL = (tensor.repeat_interleave(case.num_generations, 0) for tensor in (token_BL, mask_BL))
    read_s = time.perf_counter() - start if device.type == "cpu" else None
    token_NT = model.generate(
        token_NL, attention_mask=mask_NL, past_key_values=cache, generation_config=sampling(case))
    return trimmed(token_NT[:, token_NL.shape[1] :], case)._replace(prefill_s=read_s)


def continuous(model: PreTrainedModel, case: Case, *, at_once: int | None = None) -> Sampled:
    """`model.generate_batch`; room in its cache for as many whole rows as go on at once."""
    from transformers.generation import ContinuousBatchingConfig  # here: two seconds that only this engine needs

    num_rows = len(case.prompts) * case.num_generations
    at_once = min(at_once or case.at_once or num_rows, num_rows)
    pages = -(-(max(map(len, case.prompts)) + case.max_new_tokens) // PAGE_TOKENS)
    sizes = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS, num_blocks=at_once * pages, max_batch_tokens=max(BATCH_TOKENS, at_once),
        max_requests_per_batch=at_once, safety_margin=0.0, seed=0)
    config = sampling(case, num_return_sequences=case.num_generations)
    if not case.stop_ids:
        config.eos_token_id = -1  # none; unset would say so in a warning
    outputs = model.generate_batch(case.prompts, generation_config=config, continuous_batching_config=sizes)
    failed = [output.error for output in outputs.values() if output.error is not None]
    if failed:
        raise RuntimeError(failed[0])
    return Sampled([output.generated_tokens for output in outputs.values()], [])


def _generate(says: str, **options: Any) -> Engine:
    compiles = options.get("compiled", False)
    return Engine(says, load_model, functools.partial(hugging_face, **options), compiles)


def _continuous(says: str, **options: Any) -> Engine:
    return Engine(says, load_model, functools.partial(continuous, **options))


ENGINES = {
    "ours": Engine("`grpo.sampler.generate.generate`, no LoRA", load_ours, ours),
    "ours, LoRA merged": Engine(
        f"the same with LoRA of rank {RANK} on all seven projections, added into the weights",
        functools.partial(load_ours, form="merged"), ours),
    "ours, LoRA beside": Engine(
        "the same LoRA as side branches, as in training", functools.partial(load_ours, form="lora"), ours),
    "dynamic cache": _generate("`model.generate` as it comes, `num_return_sequences` completions for each prompt"),
    "dynamic cache, prompts read once": Engine(
        "`model.generate` that continues a `DynamicCache`, into which we read the shared prefix once and each prompt's "
        "rest once, before it is copied for each row", load_model, read_once),
    "static cache": _generate(
        "`model.generate` with `cache_implementation=\"static\"`, not compiled, which is the default on a CPU",
        cache_implementation="static", disable_compile=True),
    "static cache, compiled": _generate(
        "the same with torch.compile, which on a CPU takes a private switch; the whole phase is run once before it is "
        "timed, and every new size would compile again", cache_implementation="static", compiled=True),
    "continuous batching": _continuous(
        "`model.generate_batch`, all rows at once; its cache has room for that many rows of full length, a forward "
        f"takes at most {BATCH_TOKENS:,} tokens"),
    "continuous batching, 16 at once": _continuous("the same with at most 16 rows at once", at_once=16),
    "continuous batching, 8 at once": _continuous("the same with at most 8 rows at once", at_once=8),
}
