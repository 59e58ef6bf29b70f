"""The numbers of one token of tokens.jsonl, as a reader wants them: probabilities, clip, share of the gradient."""

import math
from typing import Any, NamedTuple


class Token(NamedTuple):
    """One token; None where it does not count in the loss, so that nothing was computed."""

    place: int  # in the completion, from 1
    text: str
    sampler: float  # probability under the distribution that it was drawn from
    old: float | None  # probability for the policy in the step's first update
    new: float | None  # and in its last, before that update moved it
    ratio: float | None  # new / old
    clip: str  # why the policy loss has no gradient here: "above", "below", "weight 0", or ""
    kl: float | None  # nats, to the reference, in the first update
    entropy: float | None  # nats, in the first update
    policy: float | None  # -d (policy loss) / d logprob
    kl_pull: float | None  # -d (beta KL) / d logprob
    share: float | None  # of the sum of |policy + kl_pull| over all tokens of the step; negative: lowers the token

    @property
    def counts(self) -> bool:
        """Is it in the loss?"""
        return self.new is not None


def tokens_of(row: dict[str, Any], *, epsilon: float, epsilon_high: float) -> list[Token]:
    """The tokens of a completion, a line of tokens.jsonl, in the last iteration of its step."""
    old, new = row["logprob"][0], row["logprob"][-1]
    nothing, total = [None] * len(old), row["total_pull"][-1] or 1.0
    kl, entropy, weight = (row.get(name, nothing) for name in ("kl", "entropy", "weight"))
    found = []
    for index, text in enumerate(row["token"]):
        policy, kl_pull = row["policy_pull"][-1][index], row["kl_pull"][-1][index]
        ratio = share = None
        if new[index] is not None and old[index] is not None:
            ratio = math.exp(new[index] - old[index])
        if policy is not None and kl_pull is not None:
            share = (policy + kl_pull) / total
        clip = ""
        if policy == 0 and ratio is not None and row["advantage"]:
            if row["advantage"] > 0 and ratio > 1 + epsilon_high:
                clip = "above"
            elif row["advantage"] < 0 and ratio < 1 - epsilon:
                clip = "below"
            elif weight[index] == 0:
                clip = "weight 0"
        found.append(Token(
            index + 1, text, math.exp(row["sampler_logprob"][index]), _exp(old[index]), _exp(new[index]), ratio, clip,
            kl[index], entropy[index], policy, kl_pull, share))
    return found


def _exp(logprob: float | None) -> float | None:
    return None if logprob is None else math.exp(logprob)
