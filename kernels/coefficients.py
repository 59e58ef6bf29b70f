"""The gradient of log-prob, entropy and KL with respect to the logits, as one line with four numbers a row."""

from typing import NamedTuple

import torch


class Coefficients(NamedTuple):
    """What one row weighs the terms of its gradient by.

    With logp = log softmax(z), p = exp(logp), logq and q of the reference, and upstream gradients g of logprob, e of
    entropy and k of kl, the gradient with respect to z_v is, over the temperature,

        p (a + b logp + c logq) + g 1[v = y]     a = -g - e entropy - k kl   b = k - e   c = -k

    Args:
        a_L, b_L, c_L, g_L: [L] float32 (or float64), each already over the temperature.
    """

    a_L: torch.Tensor
    b_L: torch.Tensor
    c_L: torch.Tensor
    g_L: torch.Tensor


def coefficients(
    grads: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    entropy_L: torch.Tensor | None,
    kl_L: torch.Tensor | None,
    like_L: torch.Tensor,
    *,
    temperature: float,
) -> Coefficients:
    """The four numbers of each row.

    Args:
        grads: upstream gradients [L] of logprob, entropy and kl; None means 0.
        entropy_L: [L] nats; needed with a gradient of it.
        kl_L: [L] nats; the same.
        like_L: [L] tells type and device.
        temperature: divides the logits.
    """
    zero_L = torch.zeros_like(like_L)
    g_L, e_L, k_L = (zero_L if grad is None else grad for grad in grads)
    entropy_L, kl_L = (zero_L if value_L is None else value_L for value_L in (entropy_L, kl_L))
    a_L = -g_L - e_L * entropy_L - k_L * kl_L
    return Coefficients(*(x_L / temperature for x_L in (a_L, k_L - e_L, -k_L, g_L)))
