"""Where a completion ends and where its text does: end-of-sequence tokens and stop strings.

Base models continue with the next question, so a text such as "\\nQuestion:" must end a completion. A stop string may
span tokens, and a token may reach beyond it, so the decoded text decides.
"""

from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

GOES_ON, ENDS, SUSPECT = 0, 1, 2  # what a token does to its completion; a suspect may complete a stop string


class StopRule:
    """Decides which completions end; vocab_size is the model's, which may exceed the tokenizer's."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: set[int], stop_strings: list[str], *, vocab_size: int
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        kind_V, self.silent_V = _kinds(tokenizer, tuple(stop_strings), vocab_size)
        self.kind_V = kind_V.copy()
        self.kind_V[[token for token in stop_token_ids if token < vocab_size]] = ENDS  # others are never sampled
        # A token that shows anything adds at least one byte. One token more, as the first may start inside a character.
        self.tail = max((len(stop.encode()) for stop in stop_strings), default=0) + 1

    def ended(self, token_NT: np.ndarray, index_M: np.ndarray, column_M: np.ndarray) -> np.ndarray:
        """[M] bool: which of the completions index_M, not ended before, end with their token in column_M."""
        kind_M = self.kind_V[token_NT[index_M, column_M]]
        ended_M = kind_M == ENDS
        # To decode all completions after every token would cost more than a small model's forward.
        for suspect in (kind_M == SUSPECT).nonzero()[0]:
            ended_M[suspect] = self._completes(token_NT[index_M[suspect], : column_M[suspect] + 1])
        return ended_M

    def _completes(self, token_T: np.ndarray) -> bool:
        """Whether a stop string ends with these tokens."""
        tail = token_T[-self.tail :].tolist()
        text = self._decode([tail])[0]
        # The tail is too short if it starts inside a character or if its tokens show nothing.
        if "\ufffd" in text or self.silent_V[tail].any():
            text = self._decode([token_T.tolist()])[0]
        return self.cut(text) != text

    def texts(self, completions: list[list[int]]) -> list[str]:
        """The texts that rewards read: without special tokens and the token that ends it, up to a stop string."""
        # Some tokenizers do not call the end of their template's turn special.
        ended = [ids[:-1] if ids and self.kind_V[ids[-1]] == ENDS else ids for ids in completions]
        return [self.cut(text) for text in self._decode(ended)]

    def cut(self, text: str) -> str:
        """The text before its first stop string."""
        return text[: min((text.find(stop) for stop in self.stop_strings if stop in text), default=len(text))]

    def _decode(self, completions: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(completions, skip_special_tokens=True)


@lru_cache(maxsize=4)
def _kinds(
    tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...], vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """[V] uint8 kind of each token, and [V] bool: whether it shows nothing in the text."""
    endings = {stop[-1] for stop in stop_strings}
    if not endings:
        return np.full(vocab_size, GOES_ON, dtype=np.uint8), np.zeros(vocab_size, dtype=bool)
    pieces = tokenizer.batch_decode([[token] for token in range(vocab_size)], skip_special_tokens=True)
    anywhere = " " in endings  # any token may bring a space: some tokenizers drop it at a text's start
    # A suspect has the last character of a stop string, or a piece of a character.
    suspect = [anywhere or not endings.isdisjoint(piece) or "\ufffd" in piece for piece in pieces]
    return np.array(suspect, dtype=np.uint8) * SUSPECT, np.array([not piece for piece in pieces])
