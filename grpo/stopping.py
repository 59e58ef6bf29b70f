"""When a completion ends and where its text does: end-of-sequence tokens and stop strings.

Base models ramble into the next question, so a text such as "\\nQuestion:" must end a completion as well as a token
does. A stop string may span tokens, and a token may reach beyond it, so the text decides. Decoding every row after
every token would cost more than a small model's forward: only rows whose newest token can complete a stop string are
decoded, and only their tails.
"""

from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerBase


class StopRule:
    """Decides which rows end.

    Args:
        tokenizer: decodes the completions.
        stop_token_ids: every end-of-sequence id.
        stop_strings: texts that end a completion.
        vocab_size: V of the model, which may exceed the tokenizer's.
        device: of the sampled tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: set[int], stop_strings: list[str], *,
        vocab_size: int, device: torch.device,
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        self.stop_ids = torch.tensor(sorted(stop_token_ids), dtype=torch.int64, device=device)
        if stop_strings:
            self.completes_V = _completing_tokens(tokenizer, tuple(stop_strings), vocab_size).to(device)
            # Every token that shows in the text adds at least one byte; one more for what the first one cuts off.
            self.tail = max(len(stop.encode()) for stop in stop_strings) + 1

    def ended(self, token_NL: torch.Tensor, row_M: torch.Tensor) -> torch.Tensor:
        """Which of the given rows end with their last token.

        Args:
            token_NL: [N, L] int64 tokens sampled so far.
            row_M: [M] int64 indices of the unfinished rows.

        Returns:
            [M] bool.
        """
        last_M = token_NL[row_M, -1]
        ended_M = torch.isin(last_M, self.stop_ids)
        if self.stop_strings:
            suspect = (self.completes_V[last_M] & ~ended_M).nonzero()[:, 0]
            if len(suspect):
                tails = self._decode(token_NL[row_M[suspect], -self.tail:].tolist())
                ended_M[suspect] = torch.tensor([self.cut(tail) != tail for tail in tails], device=ended_M.device)
        return ended_M

    def texts(self, completions: list[list[int]]) -> list[str]:
        """The completions as the rewards read them: without special tokens, cut before the first stop string."""
        return [self.cut(text) for text in self._decode(completions)]

    def cut(self, text: str) -> str:
        """The text before the first stop string in it."""
        return text[: min((text.find(stop) for stop in self.stop_strings if stop in text), default=len(text))]

    def _decode(self, completions: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(completions, skip_special_tokens=True)


@lru_cache(maxsize=4)
def _completing_tokens(
    tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...], vocab_size: int
) -> torch.Tensor:
    """[V] bool, on the CPU: tokens whose text holds the last character of a stop string, or a piece of a character."""
    endings = {stop[-1] for stop in stop_strings}
    if " " in endings:  # which tokens bring a space cannot be told: some tokenizers drop it at the start of a text
        return torch.ones(vocab_size, dtype=torch.bool)
    pieces = tokenizer.batch_decode([[token] for token in range(vocab_size)], skip_special_tokens=True)
    return torch.tensor([not endings.isdisjoint(piece) or "\ufffd" in piece for piece in pieces])
