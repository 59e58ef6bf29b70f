"""Linear modules that read the same input, as one matrix product, with their LoRA branches beside it.

A decoder step at small batch is bound by how many products it runs and how many bytes of weights it reads, so the
projections to query, key and value are one product, and so are gate and up; the A of their branches are further columns
of it. They are stored as [I, O], not as transformers stores them: for few rows a CPU multiplies that up to a third
faster. What is frozen is stored on a CPU as oneDNN reads it, which is faster again (`Reordered`).

Axes beside those of `grpo/types.py`: I inputs, O outputs of all modules together, R rank of all branches together,
Z = O + R, X any batch.
"""

from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
import torch.nn.functional as F


class PackedWeight(NamedTuple):
    """A weight [O, I] in 4 bits: its bytes, bitsandbytes' scales, and the type it unpacks to."""

    data: torch.Tensor
    quant_state: Any
    dtype: torch.dtype

    def unpack(self) -> torch.Tensor:
        """[O, I] what the bytes stand for."""
        return bnb.functional.dequantize_4bit(self.data, self.quant_state).to(self.dtype)


class Reordered:
    """A frozen float32 weight in the order of oneDNN's own kernels, for products with few rows on a CPU.

    Measured with 16 rows: 1.1 to 1.25 times as fast as [I, O] for a layer's weights, twice for a head of 8,192 x 256.
    A row's product has the same bits whatever other rows there are, which PyTorch's product does not promise. oneDNN
    compiles a product for each number of rows and keeps half a MiB for it: numbers are rounded up to multiples of ROWS.

    Args:
        weight_OI: [O, I] float32 on the CPU.
    """

    ROWS = 8

    def __init__(self, weight_OI: torch.Tensor) -> None:
        self.weight_OI = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous())
        self.nbytes = weight_OI.nbytes

    @staticmethod
    def serves(weight: torch.Tensor) -> bool:
        """Can this tensor be reordered?"""
        return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()

    def product(self, x_XI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
        """[X, O] `x Wᵀ + b`."""
        num_rows = len(x_XI)
        if spare := -num_rows % self.ROWS:
            x_XI = F.pad(x_XI, (0, 0, 0, spare))
        return torch.ops.mkldnn._linear_pointwise(x_XI, self.weight_OI, bias_O, "none", [], "")[:num_rows]


Weight = torch.Tensor | PackedWeight  # of one module
FORMS = ("lora", "merged", "nf4")
STACKED = ("weight_IZ", "merged_IO", "bias_Z", "B_RO")  # attributes of a JoinedLinear
Branch = tuple[torch.Tensor, torch.Tensor, float]  # A [R, I], B [O, R] and the scaling of one module


class JoinedLinear:
    """`y = x Wᵀ + b + scaling · (x Aᵀ) Bᵀ`, W and A stacked over the modules, B block-diagonal. Owns its tensors.

    Args:
        names: modules in the order of their outputs.
        weight: "<module>.weight" and, where it has one, "<module>.bias" of each.
        lora: branches by module, all of one scaling; modules without one are left out.
        form: "lora" as above. "merged": `x (W + scaling · B A)ᵀ + b`, computed anew by `merge`: one product, but W is
            held twice, and in bfloat16 the sum is rounded. "nf4": packed weights stay packed and are unpacked in every
            forward: slower, and small.
        frozen: the weights never change, so they need no place in `tensors()` and may be reordered.
    """

    def __init__(
        self, names: list[str], weight: dict[str, Weight], lora: dict[str, Branch], *, form: str, frozen: bool = False
    ) -> None:
        assert form in FORMS, form
        parts = [weight[f"{name}.weight"] for name in names]
        whole = [part.unpack() if isinstance(part, PackedWeight) else part for part in parts]
        self.packed, self.reordered = [], None
        if form == "nf4" and isinstance(parts[0], PackedWeight):
            self.packed = [part._replace(data=part.data.clone()) for part in parts]
        elif frozen and form == "lora" and Reordered.serves(whole[0]):
            self.reordered = Reordered(torch.cat(whole))
        self.row = dict(zip(names, _slices([len(part) for part in whole])))
        self.num_inputs, self.num_outputs = whole[0].shape[1], sum(map(len, whole))
        lora = {name: lora[name] for name in names if name in lora}
        self.holds_weight = not self.packed and self.reordered is None
        columns = [*(whole if self.holds_weight else []), *(A_RI for A_RI, _, _ in lora.values())]
        self.weight_IZ = torch.cat(columns).T.contiguous() if columns else None  # only A where W is held otherwise
        self.has_bias = {name for name in names if f"{name}.bias" in weight}
        self.bias_Z = None
        if self.has_bias:
            self.bias_Z = whole[0].new_zeros(self.weight_IZ.shape[1] if self.holds_weight else self.num_outputs)
            for name in self.has_bias:
                self.bias_Z[self.row[name]] = weight[f"{name}.bias"]
        self._join_outputs(lora)
        self.merged_IO = self.weight_IO.contiguous() if form == "merged" and lora else None
        self.merge()

    def _join_outputs(self, lora: dict[str, Branch]) -> None:
        self.rank = dict(zip(lora, _slices([len(A_RI) for A_RI, _, _ in lora.values()])))
        self.B_RO = None
        if lora:
            self.scaling, = {scaling for _, _, scaling in lora.values()}
            self.B_RO = self.weight_IZ.new_zeros(self.A_IR.shape[1], self.num_outputs)
        for name, (_, B_OR, _) in lora.items():
            self.B_RO[self.rank[name], self.row[name]] = B_OR.T

    @property
    def weight_IO(self) -> torch.Tensor:
        """W, where `weight_IZ` holds it."""
        return self.weight_IZ[:, : self.num_outputs]

    @property
    def A_IR(self) -> torch.Tensor:
        """A of all branches."""
        return self.weight_IZ[:, self.num_outputs if self.holds_weight else 0 :]

    def __call__(self, x_XI: torch.Tensor) -> torch.Tensor:
        """[X, O], maybe a view of a wider tensor."""
        if self.merged_IO is not None:
            return _product(x_XI, self.merged_IO, None if self.bias_Z is None else self.bias_Z[: self.num_outputs])
        if self.holds_weight:
            y_XZ = _product(x_XI, self.weight_IZ, self.bias_Z)
            if self.B_RO is None:
                return y_XZ
            y_XO, inner_XR = y_XZ[:, : self.num_outputs], y_XZ[:, self.num_outputs :]
        else:
            if self.reordered is not None:
                y_XO = self.reordered.product(x_XI, self.bias_Z)
            else:
                y_XO = _product(x_XI, torch.cat([part.unpack() for part in self.packed]).T, self.bias_Z)
            if self.B_RO is None:
                return y_XO
            inner_XR = x_XI @ self.weight_IZ
        return y_XO.addmm_(inner_XR, self.B_RO, alpha=self.scaling)

    def merge(self) -> None:
        """Take over what has been copied into `tensors()`, in the merged form."""
        if self.merged_IO is not None:
            factors = (self.A_IR.float(), self.B_RO.float())
            self.merged_IO.copy_(torch.addmm(self.weight_IO.float(), *factors, alpha=self.scaling))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of each module's own tensors by name, branches as "<module>.lora_A.weight", for `copy_`."""
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
        """Bytes of everything held."""
        held = [getattr(self, name) for name in STACKED] + [part.data for part in self.packed] + [self.reordered]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def move(self, device: torch.device | str) -> None:
        """Move the stacked tensors; packed and reordered weights stay where they are."""
        for name in STACKED:
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))


def _product(x_XI: torch.Tensor, weight_IO: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    return x_XI @ weight_IO if bias_O is None else torch.addmm(bias_O, x_XI, weight_IO)


def _slices(lengths: list[int]) -> list[slice]:
    """Consecutive slices of these lengths."""
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths)]
