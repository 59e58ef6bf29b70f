"""Attention of a decode step on a CPU: each completion's newest token to the prefix, its prompt's rest and itself.

On a GPU one kernel does all of this, `kernels/decode_attention.py`.

Axes besides those of `grpo/sampler/kv_cache.py`: Z parts, N texts of a part, X seats or queries.
"""

import numpy as np
import torch

from grpo.sampler.attention import attend, join

Stored = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [N, J, L, D] of each layer


class Seating:
    """Numbered seats for the slots of each place, so that the queries to a place form one rectangle.

    slot_X is the int64 slot in each seat, X = A * seats of a place, with A places up to the last one in use.
    """

    def __init__(self, place_M: torch.Tensor) -> None:
        place = place_M.numpy()
        order = np.argsort(place, kind="stable")
        count = np.bincount(place)
        rank = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
        self.num_places, num_seats = len(count), int(count.max())
        seat = np.empty_like(place)
        seat[order] = place[order] * num_seats + rank
        slot = np.zeros(self.num_places * num_seats, dtype=np.int64)  # of an empty seat: nobody reads its result
        slot[seat] = np.arange(len(place))
        self.slot_X, self.seat_M = torch.from_numpy(slot), torch.from_numpy(seat)
        # There is no empty seat, and slot m has seat m.
        self.in_order = len(slot) == len(seat) and bool((seat == np.arange(len(seat))).all())


class PartAttention:
    """Attention of all slots to one part: N texts, each read by the same number of seats.

    Each layer's queries are read from query_JMFD, its lse written to lse_MFJ. Without seats, slots keep their order.
    """

    def __init__(
        self, query_JMFD: torch.Tensor, lse_MFJ: torch.Tensor, num_texts: int, stored: Stored,
        *, bias: torch.Tensor | None = None, seats: Seating | None = None,
    ) -> None:
        # With few completions a call costs more than its work: all views are made once for all layers.
        self.stored, self.bias, self.seats = stored, bias, seats
        self.query_JMFD, self.lse_MFJ = query_JMFD, lse_MFJ
        self.seated_JXFD = query_JMFD if seats is None else query_JMFD[:, seats.slot_X]
        self.seated_lse_XFJ = lse_MFJ if seats is None else lse_MFJ[seats.slot_X]
        self.query_NJXD = self.seated_JXFD.unflatten(1, (num_texts, -1)).flatten(2, 3).transpose(0, 1)
        self.lse_NXJ = self.seated_lse_XFJ.unflatten(0, (num_texts, -1)).flatten(1, 2)
        self.shape_XFJD = (-1, *lse_MFJ.shape[1:], query_JMFD.shape[-1])

    def attend(self, layer: int) -> torch.Tensor:
        """[M, F, J, D] attention within this part; writes its lse."""
        if self.seats is not None:
            torch.index_select(self.query_JMFD, 1, self.seats.slot_X, out=self.seated_JXFD)
        out_NXJD, lse_NXJ = attend(self.query_NJXD, *self.stored[layer], bias=self.bias)
        self.lse_NXJ.copy_(lse_NXJ)
        out_XFJD = out_NXJD.reshape(self.shape_XFJD)
        if self.seats is None:
            return out_XFJD
        torch.index_select(self.seated_lse_XFJ, 0, self.seats.seat_M, out=self.lse_MFJ)
        return out_XFJD[self.seats.seat_M]


class TreeAttention:
    """Attention of M slots to all three parts, for the steps in which completions keep their slots.

    num_heads is (J * F, J). The prefix is one text, the rests are A texts; either list may be empty. `bias_A11Q` hides
    what lies behind the end of a rest.
    """

    def __init__(
        self, seats: Seating, num_heads: tuple[int, int], head_size: int, dtype: torch.dtype,
        *, prefix: Stored, rest: Stored, bias_A11Q: torch.Tensor,
    ) -> None:
        self.num_slots, num_kv, num_shared = len(seats.seat_M), num_heads[1], num_heads[0] // num_heads[1]
        self.query_JMFD = torch.empty(num_kv, self.num_slots, num_shared, head_size, dtype=dtype)
        self.joined_MJFD = torch.empty(self.num_slots, num_kv, num_shared, head_size)
        self.lse_ZMFJ = torch.empty(1 + bool(rest) + bool(prefix), self.num_slots, num_shared, num_kv)
        lse = iter(self.lse_ZMFJ)
        # The completions' own tokens: `stored` and `bias` change every step.
        self.own = PartAttention(self.query_JMFD, next(lse), self.num_slots, [])
        self.parts = [self.own]
        if rest:
            whose = None if seats.in_order else seats
            self.parts.append(
                PartAttention(self.query_JMFD, next(lse), seats.num_places, rest, bias=bias_A11Q, seats=whose))
        if prefix:
            self.parts.append(PartAttention(self.query_JMFD, next(lse), 1, prefix))

    def __call__(self, layer: int, query_MJFD: torch.Tensor) -> torch.Tensor:
        """[M, J*F*D] float32; the next call overwrites it."""
        self.query_JMFD.copy_(query_MJFD.transpose(0, 1))
        outs = [part.attend(layer) for part in self.parts]
        join(outs, self.lse_ZMFJ, into=self.joined_MJFD.transpose(1, 2))
        return self.joined_MJFD.flatten(1)
