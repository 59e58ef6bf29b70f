"""What the tests of the sampler share: prompts, a call with defaults, comparisons, completions by script."""

import io

import pytest
import torch
from tiny_models import tiny_tokenizer
from tqdm import tqdm

from grpo.sampler import generate, slots
from grpo.sampler.decoder import Decoder
from grpo.types import Rollout

TOKENIZER = tiny_tokenizer()
PAD, EOS, END = 0, 1, 2  # TOKENIZER's special tokens
PREFIX = "Question: 12 + 30?\nSolution: 42\n"
PROMPTS = [
    TOKENIZER.encode(PREFIX + text) for text in ("Question: 60 * 4?", "Tom has 12 apples", "A", "How far? 30 miles")
]
STOPPING = {"stop_token_ids": set(range(0, 320, 9)), "max_completion_length": 30}  # a ninth of the vocabulary stops
JUNK = 319  # what a scripted completion says after its script


class Bar(tqdm):
    """Notes (tokens, completions) at each look."""

    def __init__(self, total: int) -> None:
        super().__init__(total=total, file=io.StringIO())
        self.seen: list[tuple[int, int]] = []

    def update(self, number: float = 1) -> None:
        super().update(number)
        self.seen.append((int(self.postfix.removeprefix("tokens=")), self.n))


def sample_rows(decoder: Decoder, prompts: list[list[int]] = PROMPTS, **options) -> Rollout:
    """Completions at temperature 1 that never stop, unless the options say otherwise."""
    defaults = {
        "tokenizer": TOKENIZER, "num_generations": 3, "max_completion_length": 12, "temperature": 1.0,
        "stop_token_ids": set(), "stop_strings": [], "seed": 5, "step": 2, "prompt_index": list(range(len(prompts))),
    }
    return generate.generate(decoder, prompts, **defaults | options)


def share_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt is read whole, whatever it has in common with the others."""
    monkeypatch.setattr(slots, "common_prefix_length", lambda prompts: 0)


def assert_same_rows(left: Rollout, right: Rollout, rows: list[int]) -> None:
    """These completions of `left` equal all those of `right`; either may be padded further than the other."""
    assert len(rows) == len(right.text)
    for n, m in enumerate(rows):
        length = int(left.length_N[m])
        assert int(right.length_N[n]) == length
        assert torch.equal(left.token_NT[m, :length], right.token_NT[n, :length])
        torch.testing.assert_close(
            left.sampler_logprob_NT[m, :length], right.sampler_logprob_NT[n, :length], atol=1e-4, rtol=0)
        assert left.text[m] == right.text[n] and left.truncated_N[m] == right.truncated_N[n]


def assert_scored_as_plain_text(decoder: Decoder, rows: Rollout, *, temperature: float = 1.0) -> None:
    """The sampler's log-probs are those of a forward over the whole text without a cache."""
    num_generations = len(rows.text) // len(rows.prompt_ids)
    for n, (token_T, length) in enumerate(zip(rows.token_NT, rows.length_N.tolist())):
        prompt = rows.prompt_ids[n // num_generations]
        logits_LV = decoder.logits(torch.tensor([prompt + token_T[:length].tolist()]))[0, len(prompt) - 1 : -1]
        expected_T = (logits_LV / temperature).log_softmax(-1).gather(-1, token_T[:length, None])[:, 0]
        torch.testing.assert_close(rows.sampler_logprob_NT[n, :length], expected_T, atol=1e-4, rtol=0)


def script(monkeypatch: pytest.MonkeyPatch, said: list[list[int]]) -> None:
    """Completion n says `said[n]`, whatever the model's logits are; the noise tells `sample` whose token it draws.

    All but the choice of the token is the sampler's own: slots, cache, stopping, and which noise a completion gets.
    """

    def noise(_seed, _step, _prompt_index_B, _num_generations, index_X, room):
        return (index_X[:, None] * 1000 + torch.arange(room)).double()

    def sample(_logits_MV, uniform_M, **_):
        keys = (divmod(key, 1000) for key in uniform_M.long().tolist())
        tokens = [said[n][column] if column < len(said[n]) else JUNK for n, column in keys]
        return torch.tensor(tokens), -uniform_M.float()

    monkeypatch.setattr(generate, "_noise", noise)
    monkeypatch.setattr(generate, "sample", sample)
