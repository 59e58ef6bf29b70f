"""Linear modules that read the same input, as one matrix product, with their LoRA branches beside it.

A decoder step at small batch is bound by how many products it runs and how many bytes of weights it reads, so the
projections to query, key and value are one product, and so are gate and up; their branches' A is one product too.

Axes beside those of `grpo/types.py`: I inputs, O outputs of all modules together, R rank of all branches together,
X any batch.
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


Weight = torch.Tensor | PackedWeight  # of one module
FORMS = ("lora", "merged", "nf4")
STACKED = ("weight_OI", "merged_OI", "bias_O", "A_RI", "B_OR", "scaling_R")  # attributes of a JoinedLinear
Branch = tuple[torch.Tensor, torch.Tensor, float]  # A [R, I], B [O, R] and the scaling of one module


class JoinedLinear:
    """`y = x Wᵀ + b + ((x Aᵀ) · scaling) Bᵀ`, W and A stacked over the modules, B block-diagonal. Owns its tensors.

    Args:
        names: modules in the order of their outputs.
        weight: "<module>.weight" and, where it has one, "<module>.bias" of each.
        lora: branches by module; modules without one are left out.
        form: "lora" as above. "merged": `x (W + B · scaling A)ᵀ + b`, computed anew by `merge`: one product, but W is
            held twice, and in bfloat16 the sum is rounded. "nf4": packed weights stay packed and are unpacked in every
            forward: slower, and small.
    """

    def __init__(self, names: list[str], weight: dict[str, Weight], lora: dict[str, Branch], *, form: str) -> None:
        assert form in FORMS, form
        parts = [weight[f"{name}.weight"] for name in names]
        whole = [part.unpack() if isinstance(part, PackedWeight) else part for part in parts]
        self.packed = []
        if form == "nf4" and isinstance(parts[0], PackedWeight):
            self.packed = [part._replace(data=part.data.clone()) for part in parts]
        self.row = dict(zip(names, _slices([len(part) for part in whole])))
        self.weight_OI = None if self.packed else torch.cat(whole)
        self.has_bias = {name for name in names if f"{name}.bias" in weight}
        self.bias_O = None
        if self.has_bias:
            zeros = [part.new_zeros(len(part)) for part in whole]
            self.bias_O = torch.cat([weight.get(f"{name}.bias", zero) for name, zero in zip(names, zeros)])
        self._join_branches({name: lora[name] for name in names if name in lora})
        self.merged_OI = torch.empty_like(self.weight_OI) if form == "merged" and self.A_RI is not None else None
        self.merge()

    def _join_branches(self, lora: dict[str, Branch]) -> None:
        self.rank = dict(zip(lora, _slices([len(A_RI) for A_RI, _, _ in lora.values()])))
        self.A_RI = self.B_OR = self.scaling_R = None
        if not lora:
            return
        self.A_RI = torch.cat([A_RI for A_RI, _, _ in lora.values()])
        self.B_OR = self.A_RI.new_zeros(max(row.stop for row in self.row.values()), len(self.A_RI))
        for name, (_, B_OR, _) in lora.items():
            self.B_OR[self.row[name], self.rank[name]] = B_OR
        if any(scaling != 1 for _, _, scaling in lora.values()):
            scalings = [A_RI.new_full((len(A_RI),), scaling) for A_RI, _, scaling in lora.values()]
            self.scaling_R = torch.cat(scalings)

    def __call__(self, x_XI: torch.Tensor) -> torch.Tensor:
        """[X, O]."""
        if self.merged_OI is not None:
            return F.linear(x_XI, self.merged_OI, self.bias_O)
        weight_OI = torch.cat([part.unpack() for part in self.packed]) if self.packed else self.weight_OI
        y_XO = F.linear(x_XI, weight_OI, self.bias_O)
        if self.A_RI is None:
            return y_XO
        inner_XR = F.linear(x_XI, self.A_RI)
        if self.scaling_R is not None:
            inner_XR = inner_XR * self.scaling_R
        return y_XO.addmm_(inner_XR, self.B_OR.T)

    def merge(self) -> None:
        """Take over what has been copied into `tensors()`, in the merged form."""
        if self.merged_OI is not None:
            scaled_OR = self.B_OR if self.scaling_R is None else self.B_OR * self.scaling_R
            self.merged_OI.copy_(torch.addmm(self.weight_OI.float(), scaled_OR.float(), self.A_RI.float()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of each module's own tensors by name, branches as "<module>.lora_A.weight", for `copy_`."""
        views = {}
        for name, row in self.row.items():
            if self.weight_OI is not None:
                views[f"{name}.weight"] = self.weight_OI[row]
            if name in self.has_bias:
                views[f"{name}.bias"] = self.bias_O[row]
        for name, rank in self.rank.items():
            views[f"{name}.lora_A.weight"] = self.A_RI[rank]
            views[f"{name}.lora_B.weight"] = self.B_OR[self.row[name], rank]
        return views

    def nbytes(self) -> int:
        """Bytes of everything held."""
        held = [getattr(self, name) for name in STACKED] + [part.data for part in self.packed]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def move(self, device: torch.device | str) -> None:
        """Move the stacked tensors; packed weights stay where they are."""
        for name in STACKED:
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))


def _slices(lengths: list[int]) -> list[slice]:
    """Consecutive slices of these lengths."""
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [slice(end - length, end) for end, length in zip(ends, lengths)]
