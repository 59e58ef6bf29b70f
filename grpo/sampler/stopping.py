"""When a completion ends and where its text does: end-of-sequence tokens and stop strings.

Base models ramble into the next question, so a text such as "\\nQuestion:" must end a completion as well as a token
does. A stop string may span tokens, and a token may reach beyond it, so the text decides. Decoding every row after
every token would cost more than a small model's forward: only rows whose newest token can complete a stop string are
decoded, and only their tails.
"""

from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

GOES_ON, ENDS, SUSPECT = 0, 1, 2  # what a token does to its row; a suspect may complete a stop string


class StopRule:
    """Decides which rows end.

    Args:
        tokenizer: decodes the completions.
        stop_token_ids: every end-of-sequence id.
        stop_strings: texts that end a completion.
        vocab_size: V of the model, which may exceed the tokenizer's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_token_ids: set[int], stop_strings: list[str], *, vocab_size: int
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = stop_strings
        kind_V, self.silent_V = _kinds(tokenizer, tuple(stop_strings), vocab_size)
        self.kind_V = kind_V.copy()
        self.kind_V[[token for token in sorted(stop_token_ids) if token < vocab_size]] = ENDS  # no other is sampled
        # Every token that is not silent adds at least one byte; one more for what the first one cuts off.
        self.tail = max((len(stop.encode()) for stop in stop_strings), default=0) + 1

    def ended(self, token_NT: np.ndarray, row_M: np.ndarray, column_M: np.ndarray) -> np.ndarray:
        """Which of the given rows end with the given token of theirs, having not ended before.

        Args:
            token_NT: [N, T] int64 sampled tokens.
            row_M: [M] int64 rows.
            column_M: [M] int64 the place of each row's newest token.

        Returns:
            [M] bool.
        """
        kind_M = self.kind_V[token_NT[row_M, column_M]]
        ended_M = kind_M == ENDS
        for suspect in (kind_M == SUSPECT).nonzero()[0]:
            ended_M[suspect] = self._completes(token_NT[row_M[suspect], : column_M[suspect] + 1])
        return ended_M

    def _completes(self, token_T: np.ndarray) -> bool:
        """Does a stop string stand at the end of these tokens? Their tail tells, unless it is not what it seems."""
        tail = token_T[-self.tail :].tolist()
        text = self._decode([tail])[0]
        # Cut inside a character, a tail may lose the text after it as well; silent tokens show no byte of theirs.
        if "\ufffd" in text or self.silent_V[tail].any():
            text = self._decode([token_T.tolist()])[0]
        return self.cut(text) != text

    def texts(self, completions: list[list[int]]) -> list[str]:
        """The completions as the rewards read them: without special tokens, cut before the first stop string."""
        return [self.cut(text) for text in self._decode(completions)]

    def cut(self, text: str) -> str:
        """The text before the first stop string in it."""
        return text[: min((text.find(stop) for stop in self.stop_strings if stop in text), default=len(text))]

    def _decode(self, completions: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(completions, skip_special_tokens=True)


@lru_cache(maxsize=4)
def _kinds(
    tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...], vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """[V] uint8: SUSPECT where a token's text holds the last character of a stop string, or a piece of a character.

    And [V] bool: is it silent? Special tokens and those that only the model has, beyond the tokenizer's, show nothing.
    """
    endings = {stop[-1] for stop in stop_strings}
    if not endings:
        return np.full(vocab_size, GOES_ON, dtype=np.uint8), np.zeros(vocab_size, dtype=bool)
    pieces = tokenizer.batch_decode([[token] for token in range(vocab_size)], skip_special_tokens=True)
    anywhere = " " in endings  # which tokens bring a space cannot be told: some tokenizers drop it at a text's start
    suspect = [anywhere or not endings.isdisjoint(piece) or "\ufffd" in piece for piece in pieces]
    return np.array(suspect, dtype=np.uint8) * SUSPECT, np.array([not piece for piece in pieces])
