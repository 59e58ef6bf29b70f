"""The keys and values of sampling in three parts, and the attention that stores and reads them.

A text is the prefix that all prompts share, then the rest of its prompt, then its own tokens: the prompt's last one and
the sampled ones. The prefix is stored once, a rest once for each prompt, own tokens once for each completion. So memory
grows with the sampled tokens, not with completions times prompt. A slot is where a completion is decoded; a place is
where a prompt's rest is stored.

Axes besides those of `grpo/sampler/decoder.py`: Y layers, P prefix tokens, A places, Q room of a rest, S slots, M slots
in use (always the first ones), T room of a completion's own tokens, C = 2 key and value.
"""

from collections.abc import Callable
from types import ModuleType

import torch

from grpo.sampler.attention import Part, attend, attend_causally, causal_attention, join
from grpo.sampler.cpu_attention import Seating, Stored, TreeAttention

HIDDEN = -1e9  # added to the score of a hidden key; finite, because all keys of a rest may be hidden

Attention = Callable[[int, torch.Tensor], torch.Tensor]  # (layer, heads_XED rotated) -> attention output [X, J*F*D]


class KVCache:
    """Keys and values of one phase of sampling. Each `*_attention` stores a layer's new ones, then attends.

    num_heads is (J * F, J); P (prefix_length) and Q (rest_room) may be 0.
    """

    def __init__(
        self, *, num_layers: int, num_heads: tuple[int, int], head_size: int, dtype: torch.dtype, device: torch.device,
        prefix_length: int, num_places: int, rest_room: int, num_slots: int, own_room: int,
    ) -> None:
        self.num_heads, self.num_kv_heads, self.prefix_length = num_heads, num_heads[1], prefix_length
        where = {"dtype": dtype, "device": device}
        self.prefix_YCJPD = torch.empty(num_layers, 2, self.num_kv_heads, prefix_length, head_size, **where)
        self.rest_YCAJQD = torch.zeros(num_layers, 2, num_places, self.num_kv_heads, rest_room, head_size, **where)
        self.own_YCSJTD = torch.empty(num_layers, 2, num_slots, self.num_kv_heads, own_room, head_size, **where)
        self.prefix = _by_layer(self.prefix_YCJPD[:, :, None]) if prefix_length else []
        self.fused = device.type == "cuda"  # attend with the Triton kernel
        self.num_clean = own_room if self.fused else 0  # columns of own_YCSJTD that hold no NaN
        self.length_A = torch.zeros(num_places, dtype=torch.int64, device=device)  # tokens of the rests
        self.slot_S = torch.arange(num_slots, device=device)
        self.place_S = torch.zeros_like(self.slot_S)
        self.column_S = torch.zeros_like(self.slot_S)  # the next own token's
        self.tree: TreeAttention | None = None  # until a slot or a place changes

    def nbytes(self) -> int:
        return self.prefix_YCJPD.nbytes + self.rest_YCAJQD.nbytes + self.own_YCSJTD.nbytes

    def seat(self, slot_X: torch.Tensor, place_X: torch.Tensor) -> None:
        """Start new completions in these slots, of the prompts in these places."""
        self.place_S[slot_X] = place_X
        self.column_S[slot_X] = 0
        self.tree = None

    def move_slot(self, source: int, target: int) -> None:
        own_YCSJTD = self.own_YCSJTD[..., : self.num_clean, :]
        own_YCSJTD[:, :, target] = own_YCSJTD[:, :, source]
        self.place_S[target], self.column_S[target] = self.place_S[source], self.column_S[source]
        self.tree = None

    def move_place(self, source: int, target: int) -> None:
        """Give a prompt's rest another place; its completions follow it."""
        self.rest_YCAJQD[:, :, target] = self.rest_YCAJQD[:, :, source]
        self.length_A[target] = self.length_A[source]
        self.place_S.masked_fill_(self.place_S == source, target)
        self.tree = None

    def positions(self, num_slots: int) -> torch.Tensor:
        """[M] int64 position of each completion's next own token."""
        return self.prefix_length + self.length_A[self.place_S[:num_slots]] + self.column_S[:num_slots]

    def advance(self, num_slots: int) -> None:
        """Count the token that every layer has stored; a completion without room stays at its last column."""
        self.column_S[:num_slots].add_(1).clamp_(max=self.own_YCSJTD.shape[4] - 1)

    def prefix_attention(self, layer: int, heads_XED: torch.Tensor) -> torch.Tensor:
        """Store the prefix without the padding after it; causal attention within it."""
        self.prefix_YCJPD[layer] = self._split(heads_XED[: self.prefix_length])[1].movedim(0, 2)
        return causal_attention(heads_XED, 1, self.num_kv_heads)

    def rest_attention(self, place_X: torch.Tensor) -> Attention:
        """Attention for rests padded to one length, stored in these places: to the prefix and to themselves."""

        def attention(layer: int, heads_XED: torch.Tensor) -> torch.Tensor:
            query_XJFD, pair_XCJD = self._split(heads_XED)
            # Padding comes last: causality hides it from real tokens, and what has no room is not stored.
            pair_CAJQD = pair_XCJD.unflatten(0, (len(place_X), -1)).permute(2, 0, 3, 1, 4)
            num_shared, room = query_XJFD.shape[2], self.rest_YCAJQD.shape[4]
            self.rest_YCAJQD[layer][:, place_X, :, : pair_CAJQD.shape[3]] = pair_CAJQD[..., :room, :]
            query_AHQD = query_XJFD.flatten(1, 2).unflatten(0, (len(place_X), -1)).transpose(1, 2)
            key, value = pair_CAJQD.repeat_interleave(num_shared, dim=2)
            within = (attend_causally(query_AHQD, key, value) if self.fused
                      else attend(query_AHQD, key, value, causal=True))
            itself = (part.flatten(0, 1).unflatten(1, (self.num_kv_heads, -1)).transpose(1, 2) for part in within)
            outs, lse = zip(tuple(itself), *self._attend_prefix(layer, query_XJFD))
            joined_XFJD = join(outs, torch.stack(lse))
            return joined_XFJD.to(heads_XED.dtype).transpose(1, 2).flatten(1)

        return attention

    def own_attention(self, num_slots: int) -> Attention:
        """Attention of the newest token of each of the first M slots to all three parts."""
        slot_M, column_M, place_M = (tensor[:num_slots] for tensor in (self.slot_S, self.column_S, self.place_S))
        if self.fused:
            return lambda layer, heads_MED: kernel().attend_tree(
                *self._split(heads_MED), prefix_CJPD=self.prefix_YCJPD[layer], rest_CAJQD=self.rest_YCAJQD[layer],
                length_A=self.length_A, place_M=place_M, own_CSJTD=self.own_YCSJTD[layer], column_M=column_M,
            ).flatten(1)
        if self.tree is None or self.tree.num_slots != num_slots:
            self.tree = self._new_tree(place_M)
        tree = self.tree
        tree.own.bias, num_own = self._visible(column_M)
        own_YCMJTD = self.own_YCSJTD[:, :, :num_slots, :, :num_own]
        tree.own.stored = _by_layer(own_YCMJTD)
        newest = own_YCMJTD[..., -1, :].transpose(1, 2).unbind()

        def attention(layer: int, heads_MED: torch.Tensor) -> torch.Tensor:
            query_MJFD, pair_MCJD = self._split(heads_MED)
            if tree.own.bias is None:
                newest[layer].copy_(pair_MCJD)
            else:
                self.own_YCSJTD[layer][:, slot_M, :, column_M] = pair_MCJD
            return tree(layer, query_MJFD).to(heads_MED.dtype)

        return attention

    def _visible(self, column_M: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        """The bias that hides columns not reached yet (None: all slots are at the same one), and the longest length."""
        num_own = int(column_M.max()) + 1
        if num_own > self.num_clean:  # a hidden column has weight 0, but 0 times NaN is NaN
            self.own_YCSJTD[..., self.num_clean : num_own, :].zero_()
            self.num_clean = num_own
        if int(column_M.min()) + 1 == num_own:
            return None, num_own
        hidden_MT = torch.arange(num_own) > column_M[:, None]
        return (hidden_MT * HIDDEN).to(self.own_YCSJTD.dtype)[:, None, None], num_own

    def _split(self, heads_XED: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views [X, J, F, D] of the query heads and [X, C, J, D] of the keys and values."""
        num_query = heads_XED.shape[1] - 2 * self.num_kv_heads
        query_XJFD = heads_XED[:, :num_query].unflatten(1, (self.num_kv_heads, -1))
        return query_XJFD, heads_XED[:, num_query:].unflatten(1, (2, -1))

    def _attend_prefix(self, layer: int, query_XJFD: torch.Tensor) -> list[Part]:
        """Parts with out [X, F, J, D] and lse [X, F, J]; none without a prefix."""
        if not self.prefix_length:
            return []
        if self.fused:
            out_NXJFD, lse_NXJF = kernel().attend_shared(query_XJFD, self.prefix_YCJPD[layer])
            return list(zip(out_NXJFD.transpose(2, 3), lse_NXJF.transpose(2, 3)))
        out, lse = attend(query_XJFD.transpose(0, 1).flatten(1, 2)[None], *self.prefix[layer])
        shape = (len(query_XJFD), -1)
        return [(out[0].unflatten(0, shape), lse[0].unflatten(0, shape))]

    def _new_tree(self, place_M: torch.Tensor) -> TreeAttention:
        seats = Seating(place_M)
        padding_AQ = torch.arange(self.rest_YCAJQD.shape[4]) >= self.length_A[: seats.num_places, None]
        return TreeAttention(
            seats, self.num_heads, self.prefix_YCJPD.shape[-1], self.prefix_YCJPD.dtype, prefix=self.prefix,
            rest=_by_layer(self.rest_YCAJQD[:, :, : seats.num_places]) if padding_AQ.shape[1] else [],
            bias_A11Q=(padding_AQ * HIDDEN).to(self.prefix_YCJPD.dtype)[:, None, None])


def _by_layer(pair_YCXJLD: torch.Tensor) -> Stored:
    """Views [X, J, L, D] of each layer's keys and values, of X texts with L tokens."""
    return [tuple(pair_CXJLD.unbind()) for pair_CXJLD in pair_YCXJLD.unbind()]


def kernel() -> ModuleType:
    from kernels import decode_attention  # late: a machine without a GPU may lack Triton

    return decode_attention
