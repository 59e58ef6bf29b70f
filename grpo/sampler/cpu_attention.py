"""A decode step's attention on a CPU: each row's newest token to the prefix, its prompt's rest and its own tokens.

For few rows a call costs more than its work, so everything but the work is prepared once for all layers and kept until
rows change places. On a GPU all of it is one kernel, `kernels/decode_attention.py`.

Axes beside those of `grpo/sampler/kv_cache.py`: K parts, N any batch of texts, X queries of a text, G seats of a place.
"""

import numpy as np
import torch

from grpo.sampler.attention import attend, weigh

Stored = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [N, J, L, D] of each layer


class Seating:
    """Numbered seats for the rows of each place, so that a place's queries form one rectangle.

    Args:
        place_M: [M] int64 place of each slot in use, on the CPU.

    Attributes:
        num_places: A, up to the last one in use.
        slot_X: [A * G] int64 slot in each seat; 0 in an empty one, whose result nobody reads.
        seat_M: [M] int64 index into A * G of each slot's seat.
        in_order: every seat is taken, by the slot of its own number.
    """

    def __init__(self, place_M: torch.Tensor) -> None:
        place = place_M.numpy()
        order = np.argsort(place, kind="stable")
        count = np.bincount(place)
        rank = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
        self.num_places, num_seats = len(count), int(count.max())
        seat = np.empty_like(place)
        seat[order] = place[order] * num_seats + rank
        slot = np.zeros(self.num_places * num_seats, dtype=np.int64)
        slot[seat] = np.arange(len(place))
        self.slot_X, self.seat_M = torch.from_numpy(slot), torch.from_numpy(seat)
        self.in_order = len(slot) == len(seat) and bool((seat == np.arange(len(seat))).all())


class PartAttention:
    """Attention of the rows to one part of the tree, with every view made once for all layers.

    Args:
        query_JMFD: where a layer's queries will be.
        lse_MFJ: where the logarithms of their sums of exponentials belong.
        num_texts: N, each read by as many rows as any other.
        stored: keys and values of the texts.
        bias: as `attend` takes it.
        seats: of the rows among the texts; None: in their own order.
    """

    def __init__(
        self, query_JMFD: torch.Tensor, lse_MFJ: torch.Tensor, num_texts: int, stored: Stored,
        *, bias: torch.Tensor | None = None, seats: Seating | None = None,
    ) -> None:
        self.stored, self.bias, self.seats = stored, bias, seats
        self.query_JMFD, self.lse_MFJ = query_JMFD, lse_MFJ
        self.seated_JXFD = query_JMFD if seats is None else query_JMFD[:, seats.slot_X]
        self.seated_lse_XFJ = lse_MFJ if seats is None else lse_MFJ[seats.slot_X]
        self.query_NJXD = self.seated_JXFD.unflatten(1, (num_texts, -1)).flatten(2, 3).transpose(0, 1)
        self.lse_NXJ = self.seated_lse_XFJ.unflatten(0, (num_texts, -1)).flatten(1, 2)
        self.shape_XFJD = (-1, *lse_MFJ.shape[1:], query_JMFD.shape[-1])

    def attend(self, layer: int) -> torch.Tensor:
        """[M, F, J, D] attention within this part; its lse goes where it belongs."""
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
    """Attention of M rows to all parts of the tree, for the steps in which they keep their slots.

    Args:
        seats: of the rows, by the place of their prompt's rest.
        num_heads: J * F of queries, J of keys.
        head_size: D.
        dtype: of queries, keys and values.
        prefix: keys and values of one text; empty where there is none.
        rest: those of A texts; empty where no prompt has a rest.
        bias_A11Q: hides what lies behind the end of a rest.

    Attributes:
        own: the part of the rows' own tokens; its `stored` and `bias` change every step.
    """

    def __init__(
        self, seats: Seating, num_heads: tuple[int, int], head_size: int, dtype: torch.dtype,
        *, prefix: Stored, rest: Stored, bias_A11Q: torch.Tensor,
    ) -> None:
        self.num_rows, num_kv, num_shared = len(seats.seat_M), num_heads[1], num_heads[0] // num_heads[1]
        self.query_JMFD = torch.empty(num_kv, self.num_rows, num_shared, head_size, dtype=dtype)
        self.joined_MJFD = torch.empty(self.num_rows, num_kv, num_shared, head_size)
        self.lse_KMFJ = torch.empty(1 + bool(rest) + bool(prefix), self.num_rows, num_shared, num_kv)
        lse = iter(self.lse_KMFJ)
        self.own = PartAttention(self.query_JMFD, next(lse), self.num_rows, [])
        self.parts = [self.own]
        if rest:
            self.parts.append(PartAttention(
                self.query_JMFD, next(lse), seats.num_places, rest, bias=bias_A11Q,
                seats=None if seats.in_order else seats))
        if prefix:
            self.parts.append(PartAttention(self.query_JMFD, next(lse), 1, prefix))

    def __call__(self, layer: int, query_MJFD: torch.Tensor) -> torch.Tensor:
        """[M, J*F*D] float32, the parts joined; valid until the next call."""
        self.query_JMFD.copy_(query_MJFD.transpose(0, 1))
        outs = [part.attend(layer) for part in self.parts]
        weigh(outs, self.lse_KMFJ, into=self.joined_MJFD.transpose(1, 2))
        return self.joined_MJFD.flatten(1)
