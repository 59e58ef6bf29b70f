"""The sampling loop against transformers' generate, against itself in other orders, and against exact probabilities.

About 12 seconds on a CPU. The real prompts are skipped where GSM8K is not at hand (folder GSM8K_DIR).
"""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from ranks import ROOT
from rollout_cases import (
    EOS,
    PROMPTS,
    STOPPING,
    TOKENIZER,
    Bar,
    assert_same_rows,
    assert_scored_as_plain_text,
    sample_rows,
    share_no_prefix,
)
from tiny_models import decoder_of, tiny_llama, tiny_qwen2, tiny_qwen3
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Tokenizer

from data import load_examples
from data.prompts import STOP_STRINGS
from grpo.packing import common_prefix_length
from grpo.sampler.decoder import Decoder
from grpo.types import Rollout

GSM8K = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared" / "data" / "gsm8k"))
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"no GSM8K at {GSM8K}; set GSM8K_DIR")
# How completions may be sampled: prompts shuffled or not, the prefix shared or not, the number of ranks and of slots.
WAYS = {
    "1 slot": (False, True, 1, 1),
    "4 slots": (False, True, 1, 4),
    "64 slots": (False, True, 1, 64),
    "two ranks": (False, True, 2, None),
    "shuffled": (True, True, 1, None),
    "prefix not shared": (False, False, 1, None),
    "all of these": (True, False, 2, 5),
}


def assert_same_in_another_way(
    way: str, monkeypatch: pytest.MonkeyPatch, whole: Rollout, decoder: Decoder, **options
) -> None:
    """The completions of `whole`, sampled in another way from the same prompts, are the same."""
    shuffle, share_prefix, num_ranks, num_slots = WAYS[way]
    if not share_prefix:
        share_no_prefix(monkeypatch)
    prompts, num_prompts = whole.prompt_ids, len(whole.prompt_ids)
    num_generations = len(whole.text) // num_prompts
    order = torch.randperm(num_prompts, generator=torch.Generator().manual_seed(1)).tolist()
    order = order if shuffle else list(range(num_prompts))
    for rank in range(num_ranks):
        mine = order[rank * num_prompts // num_ranks : (rank + 1) * num_prompts // num_ranks]
        part = sample_rows(
            decoder, [prompts[b] for b in mine], prompt_index=mine, num_generations=num_generations,
            num_slots=num_slots, **options)
        assert_same_rows(whole, part, [num_generations * b + g for b in mine for g in range(num_generations)])
        assert part.cost.num_slots == min(num_slots or len(part.text), len(part.text))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of(tiny_qwen2())


@pytest.fixture(scope="module")
def ragged(decoder: Decoder) -> tuple[Rollout, dict]:
    """80 rows of ragged prompts that share a prefix, ended by tokens, by strings and by their length; and how."""
    options = {"stop_token_ids": set(range(0, 320, 19)), "stop_strings": ["e", "12"], "max_completion_length": 18}
    return sample_rows(decoder, num_generations=20, **options), options


@pytest.mark.parametrize("way", WAYS)
def test_how_ragged_prompts_are_sampled_changes_nothing(monkeypatch, decoder, ragged, way):
    whole, options = ragged
    assert_same_in_another_way(way, monkeypatch, whole, decoder, **options)


def test_the_ragged_rows_end_in_every_way(ragged):
    whole, options = ragged
    last_N = whole.token_NT[torch.arange(80), whole.length_N - 1]
    by_token = sum(token in options["stop_token_ids"] for token in last_N.tolist())
    truncated = int(whole.truncated_N.sum())
    assert by_token > 10 and truncated > 3 and 80 - by_token - truncated > 10
    assert len(set(whole.length_N.tolist())) > 12 and len(set(map(len, PROMPTS))) == 4


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[list[int]]]:
    """A random tied Qwen2, a tokenizer trained on GSM8K, and 64 problems behind eight solved ones."""
    rows = [json.loads(line) for line in (GSM8K / "train.jsonl").read_text().splitlines()[:600]]
    texts = [row["question"] + "\n" + row["answer"] for row in rows]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=4096, show_progress=False)
    examples = load_examples(str(GSM8K), "test", num_shots=8, seed=0)[:64]
    model = tiny_qwen2(vocab_size=4096, num_hidden_layers=2)
    return model, tokenizer, [tokenizer.encode(example.prompt) for example in examples]


def generate_by_transformers(model: PreTrainedModel, prompts: list[list[int]], num_tokens: int) -> torch.Tensor:
    """[N, T] greedy tokens of ragged prompts, padded on the left."""
    padded = TOKENIZER.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    text = model.generate(
        input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], do_sample=False,
        max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0)
    return text[:, padded["input_ids"].shape[1] :]


@pytest.mark.parametrize("build", [tiny_qwen2, tiny_qwen3, tiny_llama])
def test_greedy_tokens_equal_transformers_generate_on_ragged_prompts(build):
    model = build()
    expected = generate_by_transformers(model, PROMPTS, 40)
    ours = sample_rows(decoder_of(model), num_generations=1, temperature=0.0, max_completion_length=40)
    assert torch.equal(ours.token_NT, expected)
    assert ours.text == TOKENIZER.batch_decode(expected, skip_special_tokens=True)


@needs_gsm8k
def test_greedy_text_of_32_real_prompts_equals_transformers_generate(real):
    model, tokenizer, prompts = real
    # Eight solved examples are shared, and every problem is its own.
    assert common_prefix_length(prompts) > 800 and len({tuple(prompt) for prompt in prompts}) == 64
    prompts = prompts[:32]
    ours = sample_rows(
        decoder_of(model), prompts, tokenizer=tokenizer, num_generations=1, temperature=0.0, max_completion_length=24,
        num_slots=24)
    expected = torch.cat([generate_by_transformers(model, prompts[n : n + 16], 24) for n in range(0, 32, 16)])
    assert torch.equal(ours.token_NT, expected)
    assert ours.text == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert len(set(ours.text)) == 32


@pytest.fixture(scope="module")
def real_rows(real) -> tuple[Rollout, Decoder, dict]:
    """72 rows of 18 real prompts with a few tokens each, how they were sampled, and by whom."""
    model, tokenizer, prompts = real
    options = {"tokenizer": tokenizer, "max_completion_length": 10, "stop_strings": [*STOP_STRINGS, "a"],
               "stop_token_ids": set(range(0, 4096, 19))}
    decoder = decoder_of(model)
    return sample_rows(decoder, prompts[:18], num_generations=4, **options), decoder, options


@needs_gsm8k
@pytest.mark.parametrize("way", WAYS)
def test_how_real_prompts_are_sampled_changes_nothing(monkeypatch, real_rows, way):
    whole, decoder, options = real_rows
    assert len(set(whole.length_N.tolist())) > 5 and len(set(whole.text)) > 40
    assert_same_in_another_way(way, monkeypatch, whole, decoder, **options)


def test_samples_seeds_steps_and_prompt_indices_differ(decoder):
    base = sample_rows(decoder)
    assert len(set(base.text)) == 12
    for change in ({"seed": 6}, {"step": 3}, {"prompt_index": [4, 5, 6, 7]}):
        assert not set(base.text) & set(sample_rows(decoder, **change).text)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_sampler_logprobs_equal_plain_rescoring(decoder, temperature):
    rows = sample_rows(decoder, temperature=temperature, num_slots=5, **STOPPING)
    assert_scored_as_plain_text(decoder, rows, temperature=temperature or 1.0)


def assert_follows(count_X: torch.Tensor, prob_X: torch.Tensor) -> None:
    """Counts of outcomes against their exact probabilities, by chi-square."""
    expected_X, num = prob_X * count_X.sum(), count_X.sum()
    assert (count_X[prob_X == 0] == 0).all() and abs(prob_X.sum() - 1) < 1e-6
    often = expected_X >= 5  # the rest in one cell, as the chi-square approximation needs
    expected = torch.cat([expected_X[often], num - expected_X[often].sum()[None]])
    count = torch.cat([count_X[often], num - count_X[often].sum()[None]])
    statistic, freedom = ((count - expected) ** 2 / expected).sum(), len(count) - 1
    # A chi-square has mean `freedom` and variance 2·freedom; 4 deviations are exceeded less than once in 1,000.
    assert freedom > 20 and abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5, (statistic, freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_of_10000_rows_follow_the_exact_probabilities(decoder, temperature):
    rows = sample_rows(
        decoder, PROMPTS[:2], num_generations=10_000, max_completion_length=1, temperature=temperature,
        num_slots=2000)
    for b in range(2):
        prob_V = (decoder.logits(torch.tensor([PROMPTS[b]]))[0, -1].double() / temperature).softmax(-1)
        count_V = torch.bincount(rows.token_NT[10_000 * b : 10_000 * (b + 1), 0], minlength=320).double()
        assert_follows(count_V, prob_V)


def test_whole_sequences_of_10000_rows_follow_the_exact_probabilities():
    """Of 6 tokens, up to 3 long, ended by token 1: 1 + 5 + 25 * 6 = 156 sequences, in 500 slots at temperature 0.7."""
    decoder = decoder_of(tiny_qwen2(vocab_size=6, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, seed=3))
    prompt = [3, 4, 2, 5]
    pairs = list(itertools.product(range(6), repeat=2))
    logits_NLV = decoder.logits(torch.tensor([[*prompt, *pair] for pair in pairs]))[:, 3:].double()
    prob_NLV = (logits_NLV / 0.7).softmax(-1)
    exact: dict[tuple[int, ...], float] = {}
    for (first, second), prob_LV in zip(pairs, prob_NLV):
        for third in range(6):
            said = (first, second, third)
            said = said[: said.index(EOS) + 1] if EOS in said else said
            exact[said] = float(prob_LV[range(len(said)), said].prod())
    assert len(exact) == 156
    rows = sample_rows(
        decoder, [prompt], num_generations=10_000, max_completion_length=3, temperature=0.7, stop_token_ids={EOS},
        num_slots=500)
    index = {said: place for place, said in enumerate(exact)}
    place_N = [index[tuple(token_T[:n])] for token_T, n in zip(rows.token_NT.tolist(), rows.length_N.tolist())]
    count_X = torch.bincount(torch.tensor(place_N), minlength=156).double()
    assert_follows(count_X, torch.tensor(list(exact.values()), dtype=torch.float64))
    assert rows.cost.num_steps < 3 * 10_000 / 500, "slots were refilled in the middle"


def test_rows_hold_their_stop_token_and_zeros_beyond_it(decoder):
    stops = STOPPING["stop_token_ids"]
    rows = sample_rows(decoder, **STOPPING)
    assert rows.token_NT.shape == (12, int(rows.length_N.max())) and not rows.truncated_N.all()
    for token_T, logprob_T, length, truncated in zip(
        rows.token_NT, rows.sampler_logprob_NT, rows.length_N.tolist(), rows.truncated_N.tolist()
    ):
        stopped = [int(token) in stops for token in token_T[:length]]
        assert not any(stopped[:-1]) and stopped[-1] == (not truncated)
        assert not truncated or length == 30
        assert (logprob_T[:length] < 0).all()
        assert (token_T[length:] == 0).all() and (logprob_T[length:] == 0).all()


def test_progress_counts_tokens_and_finished_rows(decoder):
    bar = Bar(12)
    rows = sample_rows(decoder, bar=bar, **STOPPING | {"max_completion_length": 6})
    assert 0 < int(rows.truncated_N.sum()) < 12
    # All rows are in slots: step t is everybody's token t. At most 6 tokens, so all have ended after the sixth.
    assert bar.seen == [(int(rows.length_N.clamp(max=t).sum()), int((rows.length_N <= t).sum())) for t in range(1, 7)]


@pytest.mark.gpu
def test_a_gpu_samples_the_text_that_a_cpu_does(decoder):
    on_gpu = decoder_of(tiny_qwen2())
    on_gpu.move("cuda")
    assert_same_rows(sample_rows(decoder, **STOPPING), sample_rows(on_gpu, **STOPPING), list(range(12)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bfloat16_sampler_logprobs_stay_close_to_plain_rescoring(decoder, device):
    weight = {name: tensor.to(device).bfloat16() for name, tensor in decoder.tensors().items()}
    half = Decoder(decoder.config, weight, {})
    rows = sample_rows(half)
    for n, token_T in enumerate(rows.token_NT):
        prompt = rows.prompt_ids[n // 3]
        logits_LV = half.logits(torch.tensor([prompt + token_T.tolist()]))[0, len(prompt) - 1 : -1].cpu()
        gap_T = logits_LV.log_softmax(-1).gather(-1, token_T[:, None])[:, 0] - rows.sampler_logprob_NT[n]
        # Hidden states of bfloat16 carry 2⁻⁸ relative; logits of size 7 err by a few hundredths.
        assert gap_T.abs().mean() < 0.05
