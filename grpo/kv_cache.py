"""The keys and values of a rollout in three parts, and the attention that reads them.

A text is the prefix that all prompts share, then the rest of its prompt, then its own sampled tokens. The prefix is
stored once, a prompt's rest once per group, own tokens once per row, so memory grows with what was sampled and not with
rows times prompt. Attention to each part is computed apart and joined by log-sum-exp, which is exact:

    softmax([s₁ s₂]) [v₁ v₂] = Σᵢ exp(lseᵢ − lse) · softmax(sᵢ) vᵢ,    lse = log Σᵢ exp(lseᵢ)

Axes beside those of `grpo/types.py`: J key/value heads, F query heads per key/value head (query head h = j·F + f),
D head size, P prefix tokens, Q prompt tokens beyond the prefix (right-padded), S padded slots, X any batch, M queries.
"""

import torch
import torch.nn.functional as F

OWN_BLOCK = 64  # tokens by which the room for own tokens grows


class KVCache:
    """Keys and values of one rollout phase; its `*_attention` methods store a layer's new ones and attend to all.

    The three methods take the layer's index, query [batch, J*F, tokens, D], and key and value [batch, J, tokens, D],
    rotated, and return the attention output in the query's shape. Layers come in order.

    Args:
        prefix_length: P, may be 0.
        length_B: [B] int64 number of tokens of each prompt beyond the prefix, at least 1.
        num_generations: G rows per prompt.
    """

    def __init__(self, *, prefix_length: int, length_B: torch.Tensor, num_generations: int) -> None:
        self.prefix: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer: key, value [J, P, D]
        self.prompt: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer: key, value [B, J, Q, D]
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer: key, value [N, J, room, D]
        self.num_own = 0  # own tokens stored by every row
        self.position_N = (prefix_length + length_B).repeat_interleave(num_generations)  # of the next token
        column_Q = torch.arange(int(length_B.max()), device=length_B.device)
        self.padding_BQ = column_Q >= length_B[:, None]
        self._seat(torch.arange(len(length_B), device=length_B.device).repeat_interleave(num_generations))

    def prefix_attention(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention within the prefix (batch 1)."""
        self.prefix.append((key[0], value[0]))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    def prompt_attention(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attention of the prompts' rests to the prefix and to themselves (batch B).

        Causality alone hides the padding from real tokens, which all lie left of it.
        """
        self.prompt.append((key, value))
        no_tokens = key.new_empty(len(self.position_N), key.shape[1], 0, key.shape[3])
        self.own.append((no_tokens, no_tokens))
        num_prefix, num_query = 0, key.shape[2]
        if self.prefix:
            prefix_key, prefix_value = self.prefix[layer]
            num_prefix = prefix_key.shape[1]
            key = torch.cat([prefix_key.expand(len(key), -1, -1, -1), key], dim=2)
            value = torch.cat([prefix_value.expand(len(value), -1, -1, -1), value], dim=2)
        seen = torch.ones(num_query, num_prefix + num_query, dtype=torch.bool, device=key.device).tril(num_prefix)
        # Heads are repeated here because a mask together with enable_gqa has no memory-efficient kernel on GPUs.
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)

    def own_attention(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of each row's newest token to the three parts (batch N, one token)."""
        query_NJFD = query.view(len(query), key.shape[1], -1, query.shape[-1])
        parts = [self._attend_own(layer, query_NJFD, key, value), self._attend_prompt(layer, query_NJFD)]
        if self.prefix:
            parts.append(self._attend_prefix(layer, query_NJFD))
        return join(parts).to(query.dtype).view_as(query)

    def advance(self) -> None:
        """Count the token that every layer has stored by now."""
        self.num_own += 1
        self.position_N = self.position_N + 1

    def keep(self, row_M: torch.Tensor) -> None:
        """Forget all rows but these (ascending indices), and the prompts that no row continues."""
        self.own = [(key[row_M], value[row_M]) for key, value in self.own]
        self.position_N = self.position_N[row_M]
        group_B, group_N = self.group_N[row_M].unique(return_inverse=True)
        if len(group_B) < len(self.padding_BQ):
            self.prompt = [(key[group_B], value[group_B]) for key, value in self.prompt]
            self.padding_BQ = self.padding_BQ[group_B]
        self._seat(group_N)

    def _seat(self, group_N: torch.Tensor) -> None:
        """Give the rows of each group numbered seats, so that a group's queries form one rectangular matmul."""
        self.group_N = group_N
        rank_N = torch.arange(len(group_N), device=group_N.device) - torch.searchsorted(group_N, group_N)
        self.num_seats = int(rank_N.max()) + 1
        self.seat_N = group_N * self.num_seats + rank_N

    def _attend_prefix(self, layer: int, query_NJFD: torch.Tensor) -> list[torch.Tensor]:
        num_rows, num_kv, num_shared, _ = query_NJFD.shape
        parts = attend(query_NJFD.transpose(0, 1).flatten(1, 2), *self.prefix[layer])
        return [part.view(num_kv, num_rows, num_shared, -1).transpose(0, 1) for part in parts]

    def _attend_prompt(self, layer: int, query_NJFD: torch.Tensor) -> list[torch.Tensor]:
        _, num_kv, num_shared, head_size = query_NJFD.shape
        num_groups = len(self.padding_BQ)
        seated_SJFD = query_NJFD.new_zeros(num_groups * self.num_seats, num_kv, num_shared, head_size)
        seated_SJFD[self.seat_N] = query_NJFD
        query_XMD = seated_SJFD.unflatten(0, (num_groups, self.num_seats)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        key, value = self.prompt[layer]
        padding_X1Q = self.padding_BQ.repeat_interleave(num_kv, dim=0)[:, None]
        parts = attend(query_XMD, key.flatten(0, 1), value.flatten(0, 1), padding_X1Q)
        shape = (num_groups, num_kv, self.num_seats, num_shared)
        return [part.view(*shape, -1).transpose(1, 2).flatten(0, 1)[self.seat_N] for part in parts]

    def _attend_own(
        self, layer: int, query_NJFD: torch.Tensor, key_NJ1D: torch.Tensor, value_NJ1D: torch.Tensor
    ) -> list[torch.Tensor]:
        key, value = self.own[layer]
        if self.num_own == key.shape[2]:
            room = key.new_empty(*key.shape[:2], OWN_BLOCK, key.shape[3])
            key, value = self.own[layer] = torch.cat([key, room], dim=2), torch.cat([value, room], dim=2)
        key[:, :, self.num_own], value[:, :, self.num_own] = key_NJ1D[:, :, 0], value_NJ1D[:, :, 0]
        filled = slice(0, self.num_own + 1)
        parts = attend(query_NJFD.flatten(0, 1), key[:, :, filled].flatten(0, 1), value[:, :, filled].flatten(0, 1))
        return [part.view(*query_NJFD.shape[:3], -1) for part in parts]


def attend(
    query_XMD: torch.Tensor, key_XLD: torch.Tensor, value_XLD: torch.Tensor, padding_X1L: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to one part: `softmax(q kᵀ / √D) v` and the `log Σ exp` of its scores, which `join` needs.

    Args:
        query_XMD: [X, M, D] queries.
        key_XLD: [X, L, D] keys.
        value_XLD: [X, L, D] values.
        padding_X1L: [X, 1, L] bool, True where there is no key; None where all L count.

    Returns:
        out [X, M, D] and lse [X, M, 1], nats, both float32.
    """
    score_XML = matmul_float32(query_XMD, key_XLD.mT) * query_XMD.shape[-1] ** -0.5
    if padding_X1L is not None:
        score_XML = score_XML.masked_fill(padding_X1L, -torch.inf)
    peak_XM1 = score_XML.amax(-1, keepdim=True)
    weight_XML = (score_XML - peak_XM1).exp_()
    total_XM1 = weight_XML.sum(-1, keepdim=True)
    return torch.bmm(weight_XML.to(value_XLD.dtype), value_XLD) / total_XM1, peak_XM1 + total_XM1.log()


def join(parts: list[list[torch.Tensor]]) -> torch.Tensor:
    """Attention over all parts from attention over each, `Σᵢ exp(lseᵢ − lse) outᵢ`, in float32.

    Args:
        parts: (out [..., D], lse [..., 1]) of each part, as `attend` returns them.

    Returns:
        Float32 [..., D].
    """
    outs, lses = zip(*parts)
    share = torch.stack(lses).softmax(0)
    return (share * torch.stack(outs)).sum(0)


def matmul_float32(left_XML: torch.Tensor, right_XLD: torch.Tensor) -> torch.Tensor:
    """A batched product that keeps its float32 sums instead of rounding them to bfloat16."""
    if left_XML.is_cuda and left_XML.dtype != torch.float32:
        return torch.bmm(left_XML, right_XLD, out_dtype=torch.float32)
    return torch.bmm(left_XML.float(), right_XLD.float())
