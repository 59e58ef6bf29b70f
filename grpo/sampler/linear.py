"""Linear modules that read the same input, as one matrix product, with their LoRA branches.

With few slots a step costs what the number of its products and the bytes of its weights cost. So query, key and value
are one product, and so are gate and up; the A of their branches are more columns of it.

Axes besides those of `grpo/types.py`: I inputs, O outputs of all modules together, R rank of all branches together,
Z = O + R, X any batch.
"""

from typing import Any, NamedTuple, TypeAlias

import bitsandbytes as bnb
import torch
import torch.nn.functional as F


class PackedWeight(NamedTuple):
    """A weight [O, I] in 4 bits, as bitsandbytes stores it; `dtype` of the unpacked weight."""

    data: torch.Tensor
    quant_state: Any
    dtype: torch.dtype

    def unpack(self) -> torch.Tensor:
        return bnb.functional.dequantize_4bit(self.data, self.quant_state).to(self.dtype)


# On a CPU the inputs of a product are padded to a multiple: up to 128, a result's bits then do not depend on how many
# others there are (observed with MKL, not guaranteed).
ROWS = 8


class Reordered:
    """A large frozen float32 weight, stored once for all in the order that oneDNN multiplies in on a CPU.

    MKL orders a plain weight anew in each product. With a weight of Qwen2.5-0.5B and two cores oneDNN is 3 times as
    fast for 8 inputs, 1.5 to 2.2 times for 32, and 1.3 times for 128; a result's bits do not depend on how many inputs
    there are (seen for 1 to 256).
    """

    FEWEST = 2**18  # elements; a call takes 45 us more than one of MKL
    TYPICAL = 32  # inputs that the order is chosen for; it serves other numbers as well

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), self.TYPICAL)
        self.nbytes = weight_OI.nbytes

    @classmethod
    def serves(cls, device: torch.device, dtype: torch.dtype, num_elements: int) -> bool:
        """Whether a weight is faster so."""
        known = device.type == "cpu" and torch.backends.mkldnn.is_available()
        return known and dtype == torch.float32 and num_elements >= cls.FEWEST

    def product(self, x_XI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
        """[X, O] `x Wᵀ + b`."""
        return torch.ops.mkldnn._linear_pointwise(x_XI, self.weight, bias_O, "none", [], "")


Weight: TypeAlias = torch.Tensor | PackedWeight  # of one module
FORMS = ("lora", "merged", "nf4")
STACKED = ("weight_IZ", "merged_IO", "bias_Z", "B_RO")  # attributes of a JoinedLinear
Branch = tuple[torch.Tensor, torch.Tensor, float]  # A [R, I], B [O, R] and the scaling of one module


class JoinedLinear:
    """`y = x Wᵀ + b + scaling · (x Aᵀ) Bᵀ` (Hu et al. 2021, arXiv 2106.09685), W and A stacked, B block-diagonal.

    Args:
        names: modules in the order of their outputs; `weight` has "<module>.weight" and, for some, "<module>.bias".
        lora: branches by module.
        form: "lora" as above. "merged": `x (W + scaling · B A)ᵀ + b` is one product, but W is stored twice, and in
            bfloat16 the sum is rounded. "nf4": packed weights are unpacked in every forward: slow but small.
        frozen: the weights never change, so `tensors()` leaves them out and they may be stored in another order.
    """

    def __init__(
        self, names: list[str], weight: dict[str, Weight], lora: dict[str, Branch], *, form: str, frozen: bool
    ) -> None:
        assert form in FORMS, form
        parts = [weight[f"{name}.weight"] for name in names]
        whole = [part.unpack() if isinstance(part, PackedWeight) else part for part in parts]
        self.packed, self.reordered, width = [], None, sum(map(len, whole))
        if form == "nf4" and isinstance(parts[0], PackedWeight):
            self.packed = [part._replace(data=part.data.clone()) for part in parts]
        elif frozen and form == "lora" and Reordered.serves(
                whole[0].device, whole[0].dtype, sum(map(torch.numel, whole))):
            self.reordered = Reordered(torch.cat(whole))
        self.row = dict(zip(names, _slices([len(part) for part in whole])))
        self.num_inputs, self.num_outputs = whole[0].shape[1], width
        lora = {name: lora[name] for name in names if name in lora}
        self.holds_weight = not self.packed and self.reordered is None
        # Stored as [I, O], which a CPU multiplies with few inputs up to a third faster than [O, I].
        columns = [*(whole if self.holds_weight else []), *(A_RI for A_RI, _, _ in lora.values())]
        self.weight_IZ = torch.cat(columns).T.contiguous() if columns else None  # only A where W is elsewhere
        self.has_bias = {name for name in names if f"{name}.bias" in weight}
        self.bias_Z = None
        if self.has_bias:
            self.bias_Z = whole[0].new_zeros(width + sum(len(A_RI) for A_RI, _, _ in lora.values()))
        for name in self.has_bias:
            self.bias_Z[self.row[name]] = weight[f"{name}.bias"]
        self.rank = dict(zip(lora, _slices([len(A_RI) for A_RI, _, _ in lora.values()])))
        self.B_RO = None
        # One factor for all is free inside the product with B. Several, of an alpha_pattern or rank_pattern, come
        # before it, in float32, because bfloat16 would round them.
        self.scaling, self.scaling_R, factors = 1.0, None, {scaling for _, _, scaling in lora.values()}
        if len(factors) == 1:
            self.scaling, = factors
        elif factors:
            self.scaling_R = torch.cat([A_RI.new_full((len(A_RI),), scaling, dtype=torch.float32)
                                        for A_RI, _, scaling in lora.values()])
        if lora:
            self.B_RO = self.weight_IZ.new_zeros(self.A_IR.shape[1], self.num_outputs)
        for name, (_, B_OR, _) in lora.items():
            self.B_RO[self.rank[name], self.row[name]] = B_OR.T
        self.merged_IO = self.weight_IO.contiguous() if form == "merged" and lora else None
        self.merge()

    @property
    def weight_IO(self) -> torch.Tensor:
        """W, where `holds_weight`."""
        return self.weight_IZ[:, : self.num_outputs]

    @property
    def A_IR(self) -> torch.Tensor:
        return self.weight_IZ[:, self.num_outputs if self.holds_weight else 0 :]

    def __call__(self, x_XI: torch.Tensor) -> torch.Tensor:
        """[X, O], possibly a view of a wider tensor."""
        if self.holds_weight and self.merged_IO is None:
            y_XO = _product(x_XI, self.weight_IZ, self.bias_Z)
        else:
            bias_O = None if self.bias_Z is None else self.bias_Z[: self.num_outputs]
            if self.merged_IO is not None:
                return _product(x_XI, self.merged_IO, bias_O)
            if self.reordered is not None:
                y_XO = self.reordered.product(x_XI, bias_O)
            else:
                y_XO = _product(x_XI, torch.cat([part.unpack() for part in self.packed]).T, bias_O)
        if self.B_RO is None:
            return y_XO
        inner_XR = y_XO[:, self.num_outputs :] if self.holds_weight else _product(x_XI, self.weight_IZ, None)
        if self.scaling_R is not None:
            inner_XR = (inner_XR * self.scaling_R).to(inner_XR.dtype)
        return y_XO[:, : self.num_outputs].addmm_(inner_XR, self.B_RO, alpha=self.scaling)

    def merge(self) -> None:
        if self.merged_IO is not None:
            A_IR = self.A_IR.float() if self.scaling_R is None else self.A_IR.float() * self.scaling_R
            self.merged_IO.copy_(torch.addmm(self.weight_IO.float(), A_IR, self.B_RO.float(), alpha=self.scaling))

    def tensors(self) -> dict[str, torch.Tensor]:
        views = {}
        for name, row in self.row.items():
            if self.holds_weight:
                views[f"{name}.weight"] = self.weight_IO[:, row].T
            if name in self.has_bias:
                views[f"{name}.bias"] = self.bias_Z[row]
        for name, rank in self.rank.items():
            views[f"{name}.lora_A.weight"] = self.A_IR[:, rank].T
            views[f"{name}.lora_B.weight"] = self.B_RO[rank, self.row[name]].T
        return views

    def nbytes(self) -> int:
        stored = [getattr(self, name) for name in STACKED] + [part.data for part in self.packed] + [self.reordered]
        return sum(tensor.nbytes for tensor in stored if tensor is not None)

    def move(self, device: torch.device | str) -> None:
        """Move the stacked tensors; packed and reordered weights stay where they are."""
        for name in (*STACKED, "scaling_R"):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))


def _product(x_XI: torch.Tensor, weight_IO: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    rows_XI = padded(x_XI)
    y_XO = rows_XI @ weight_IO if bias_O is None else torch.addmm(bias_O, rows_XI, weight_IO)
    return y_XO[: len(x_XI)]


def padded(x_XI: torch.Tensor) -> torch.Tensor:
    """The inputs, on a CPU with zeros up to a multiple of ROWS."""
    spare = -len(x_XI) % ROWS if x_XI.device.type == "cpu" else 0
    return F.pad(x_XI, (0, 0, 0, spare)) if spare else x_XI


def _slices(lengths: list[int]) -> list[slice]:
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths)]
