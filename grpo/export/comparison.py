"""Is the written model the one that was trained? Held-out problems answered by each form, and one's answers scored.

    gap = |log p_form(token) - log p_first(token)|, over the tokens of the first form's greedy answers

The log-probabilities are those of plain transformers and peft, not of our sampler.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.example import Example
from data.prompt_ids import all_prompt_ids, end_of_turn
from data.prompts import default_stop_strings
from grpo.distributed import free_bytes
from grpo.evaluation.answers import Answer, evaluate
from grpo.evaluation.statistics import summarize
from grpo.export.source import Source
from grpo.loading.adapter import read_adapter
from grpo.loading.model import build_decoder, dtype_of, load_base, stop_token_ids
from grpo.memory.concurrency import Lengths, choose_slots
from grpo.options.evaluation import MOST_SLOTS
from grpo.packing import common_prefix_length


@dataclass(frozen=True, kw_only=True)
class Row:
    """A form of the model beside the first one."""

    form: str
    answers: list[Answer]
    mean_gap: float  # nats
    max_gap: float


def forms(source: Source, written: Path) -> Iterator[tuple[str, PreTrainedModel]]:
    """What was trained, as it was trained and without NF4, and what was written; one at a time."""
    config = source.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = {"dtype": dtype_of(config.torch_dtype, device), "device": device}
    hub = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
    if source.adapter is None:
        yield "trained weights", load_base(str(source.model), load_in_4bit=False, **common)
    else:
        for load_in_4bit in [True, False] if config.load_in_4bit else [False]:
            model = load_base(source.base, load_in_4bit=load_in_4bit, **common, **hub)
            read_adapter(model, str(source.adapter), is_trainable=False)
            yield ("NF4" if load_in_4bit else "base") + " and adapter", model
            del model
            gc.collect()
    yield "this export", load_base(str(written), load_in_4bit=False, **common)


def compare(
    source: Source, written: Path, tokenizer: PreTrainedTokenizerBase, examples: list[Example]
) -> list[Row]:
    """A row for each form; the first one is what was trained."""
    variables = source.config.chat_template_kwargs
    prompts = all_prompt_ids(tokenizer, [example.prompt for example in examples], variables)
    rows, first, texts = [], None, None
    for form, model in forms(source, written):
        model.eval()
        answers = _answers(source, model, tokenizer, examples, prompts)
        if texts is None:
            texts = [tokenizer.encode(answer.completion, add_special_tokens=False) for answer in answers]
        logprob_K = torch.cat([logprobs(model, *pair) for pair in zip(prompts, texts)])
        first = logprob_K if first is None else first
        gap_K = (logprob_K - first).abs()
        rows.append(Row(form=form, answers=answers, mean_gap=float(gap_K.mean()), max_gap=float(gap_K.max())))
    return rows


@torch.no_grad()
def logprobs(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[K] float32 log-probabilities, in nats, of an answer's tokens behind a prompt."""
    token_1L = torch.tensor([prompt + answer], device=model.device)
    kept = len(answer) + 1  # the last token of the prompt predicts the answer's first; its last predicts none of it
    logit_KV = model(input_ids=token_1L, use_cache=False, logits_to_keep=kept).logits[0, :-1].float()
    target_K = token_1L[0, len(prompt):]
    return (logit_KV.gather(1, target_K[:, None])[:, 0] - logit_KV.logsumexp(1)).cpu()


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """The rows as text under a header."""
    lines: list[tuple[str, ...]] = [("form", "strict accuracy", "mean gap [nats]", "largest")]
    for row in rows:
        found = summarize(row.answers)
        low, high = found["strict_interval"]
        lines.append((row.form, f"{100 * found['strict']:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
                      f"{row.mean_gap:.2g}", f"{row.max_gap:.2g}"))
    return lines


def _answers(source: Source, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example],
             prompts: list[list[int]]) -> list[Answer]:
    """Greedy answers by our sampler, as after the training."""
    config, decoder = source.config, build_decoder(model)
    prompt, strings, prefix = examples[0].prompt, config.stop_strings, common_prefix_length(prompts)
    if strings is None:
        strings = default_stop_strings(example.prompt for example in examples)
    lengths = Lengths(prefix, max(map(len, prompts)) - prefix, config.max_completion_length)
    room = choose_slots(config.rollout_slots, decoder, lengths, free=free_bytes(decoder.device),
                        num_rows=min(config.rollout_slots or MOST_SLOTS, len(examples)), num_generations=1)
    ends = stop_token_ids(model, tokenizer) | end_of_turn(tokenizer, prompt, config.chat_template_kwargs)
    return evaluate(
        decoder, tokenizer, examples, prompts, seed=config.seed, max_completion_length=config.max_completion_length,
        stop_token_ids=ends, stop_strings=strings, num_slots=room.num_slots, progress="answers")
