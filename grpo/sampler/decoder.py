"""Inference-only forward of the Qwen2 family: Qwen2, Qwen2.5, Qwen3 and Llama, told apart by their config.

The trainer shards its weights and gathers them in every forward; sampling needs a forward without collective calls.
So that both agree, this one rounds where transformers rounds, and keeps LoRA apart unless told to merge it.

Axes besides those of grpo/types.py: X any batch of tokens, J key/value heads, F query heads per key/value head, D head
size, E = J * F + 2 * J heads: query (head h = j * F + f), key and value side by side.
"""

import math
from collections.abc import Container, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from grpo.sampler.attention import causal_attention, matmul_float32
from grpo.sampler.kv_cache import Attention, KVCache
from grpo.sampler.linear import Branch, JoinedLinear, Reordered, Weight, padded
from grpo.sampler.pointwise import add_norm, rms_norm, rotate, swiglu
from grpo.sampler.supported import LORA_MODULES, PREFILL_TOKENS, check_supported

NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
PAD_TOKENS = 32  # prompts are padded to a multiple: few shapes, because a CPU compiles its products by shape


class Layer(NamedTuple):
    """The matrix products of one transformer layer, and the full names of its norms by their short names."""

    query_key_value: JoinedLinear
    output: JoinedLinear
    gate_up: JoinedLinear
    down: JoinedLinear
    norms: dict[str, str]


class Decoder:
    """A causal language model for sampling; it owns copies of its tensors.

    Args:
        weight: tensors by their Hugging Face names; without "lm_head.weight" the embedding is the head too.
        lora: branches by module name ("model.layers.0.self_attn.q_proj").
        form: see `JoinedLinear`.
        trained: names of the weights that `tensors()` must offer; a CPU may store others in another order. None: all.

    Raises:
        ValueError: the config needs what is not implemented here, or a LoRA module is none of the seven projections.
    """

    def __init__(
        self, config: PretrainedConfig, weight: dict[str, Weight], lora: dict[str, Branch],
        *, form: str = "lora", trained: Container[str] | None = None,
    ) -> None:
        check_supported(config)
        for name in lora:
            if name.rpartition(".")[2] not in LORA_MODULES:
                raise ValueError(f"lora_target_modules: {name!r} is not one of {', '.join(LORA_MODULES)}")
        assert all(f"{name}.weight" in weight for name in lora), f"LoRA without its module: {sorted(lora)[:3]}"
        self.config = config
        self.num_heads = (config.num_attention_heads, config.num_key_value_heads)
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        names = [name for name in weight if "_proj." not in name]
        self.plain = {name: weight[name].detach().clone() for name in names}  # norms, embeddings, head
        head_name = "lm_head.weight" if "lm_head.weight" in weight else "model.embed_tokens.weight"
        self.trained = weight if trained is None else trained
        names = [f"model.layers.{index}" for index in range(config.num_hidden_layers)]
        self.layers = [self._layer(name, weight, lora, form) for name in names]
        self.head_name, self.head = head_name, None
        self._reorder_head()
        if self.head is not None and head_name not in self.trained:
            self.plain.pop("lm_head.weight", None)
        self.frequency_D = rotary_frequencies(config, self.head_size).to(self.device)
        self.eps = torch.tensor(config.rms_norm_eps, device=self.device)  # a plain number would cost a call more

    def _layer(self, name: str, weight: dict[str, Weight], lora: dict[str, Branch], form: str) -> Layer:
        def joined(*modules: str) -> JoinedLinear:
            names = [f"{name}.{one}" for one in modules]
            frozen = not any(f"{one}.weight" in self.trained for one in names)
            return JoinedLinear(names, weight, lora, form=form, frozen=frozen)

        norms = {norm: f"{name}.{norm}.weight" for norm in NORMS if f"{name}.{norm}.weight" in self.plain}
        return Layer(
            query_key_value=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output=joined("self_attn.o_proj"), gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
            down=joined("mlp.down_proj"), norms=norms)

    @property
    def device(self) -> torch.device:
        return self.plain["model.embed_tokens.weight"].device

    @property
    def dtype(self) -> torch.dtype:
        return self.plain["model.embed_tokens.weight"].dtype

    def linears(self) -> Iterator[JoinedLinear]:
        return (linear for layer in self.layers for linear in layer[:4])  # all but the norms

    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.config.num_hidden_layers * 2 * self.num_heads[1] * self.head_size * self.dtype.itemsize

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views by name of every tensor that training may change, for `copy_`; branches as "….lora_A.weight"."""
        views = dict(self.plain)
        for linear in self.linears():
            views |= linear.tensors()
        return views

    def merge(self) -> None:
        """Merge and reorder again, after new values were copied into `tensors()`."""
        for linear in self.linears():
            linear.merge()
        if self.head_name in self.trained:
            self._reorder_head()

    def _reorder_head(self) -> None:
        weight_VH, self.head = self.plain[self.head_name], None  # not two at a time
        if Reordered.serves(self.device, self.dtype, weight_VH.numel()):
            self.head = Reordered(weight_VH)

    def nbytes(self) -> int:
        stored = [*self.plain.values(), *([self.head] if self.head else [])]
        return sum(tensor.nbytes for tensor in stored) + sum(linear.nbytes() for linear in self.linears())

    def move(self, device: torch.device | str) -> None:
        """Move all tensors to another device, for instance out of the GPU during an update."""
        self.plain = {name: tensor.to(device) for name, tensor in self.plain.items()}
        self.frequency_D, self.eps = self.frequency_D.to(device), self.eps.to(device)
        for linear in self.linears():
            linear.move(device)

    @torch.no_grad()
    def logits(self, token_NL: torch.Tensor) -> torch.Tensor:
        """Logits [N, L, V] float32 of plain texts, without a cache."""
        num_texts, length = token_NL.shape

        def attention(layer: int, heads_XED: torch.Tensor) -> torch.Tensor:
            return causal_attention(heads_XED, num_texts, self.config.num_key_value_heads)

        position_X = torch.arange(length, device=self.device).repeat(num_texts)
        hidden_XH = self._hidden(token_NL.flatten().to(self.device), position_X, attention)
        return self._head(hidden_XH).unflatten(0, (num_texts, length))

    def new_cache(self, **sizes: int) -> KVCache:
        """An empty cache; `sizes` as `KVCache` takes them."""
        return KVCache(num_layers=self.config.num_hidden_layers, num_heads=self.num_heads, head_size=self.head_size,
                       dtype=self.dtype, device=self.device, **sizes)

    @torch.inference_mode()
    def read_prefix(self, cache: KVCache, prefix: list[int]) -> None:
        """Store what all prompts start with: P tokens."""
        token_X = torch.tensor(prefix + [0] * (-len(prefix) % PAD_TOKENS), device=self.device)
        self._hidden(token_X, torch.arange(len(token_X), device=self.device), cache.prefix_attention, stores=True)

    @torch.inference_mode()
    def read_rests(self, cache: KVCache, places: list[int], rests: list[list[int]]) -> None:
        """Store what follows the prefix in some prompts, each in its place; it may be empty."""
        place_A = torch.tensor(places, device=self.device)
        cache.length_A[place_A] = torch.tensor([len(rest) for rest in rests], device=self.device)
        at_once = max(1, PREFILL_TOKENS // max(1, *map(len, rests)))
        for start in range(0, len(rests), at_once):
            part = slice(start, start + at_once)
            longest = max(map(len, rests[part]))
            if longest:
                longest += -longest % PAD_TOKENS
                token_AQ = torch.tensor([rest + [0] * (longest - len(rest)) for rest in rests[part]])
                position_X = cache.prefix_length + torch.arange(longest, device=self.device).repeat(len(token_AQ))
                attention = cache.rest_attention(place_A[part])
                self._hidden(token_AQ.flatten().to(self.device), position_X, attention, stores=True)

    @torch.no_grad()
    def step(self, cache: KVCache, token_M: torch.Tensor) -> torch.Tensor:
        """Append a token to each of the first M slots; the logits [M, V] float32 of the next ones."""
        num_slots = len(token_M)
        hidden_MH = self._hidden(token_M, cache.positions(num_slots), cache.own_attention(num_slots))
        cache.advance(num_slots)
        return self._head(hidden_MH)

    def _hidden(
        self, token_X: torch.Tensor, position_X: torch.Tensor, attention: Attention, *, stores: bool = False
    ) -> torch.Tensor | None:
        """Final hidden states [X, H]; with `stores` None, and nothing after the last layer's attention is computed."""
        hidden_XH = F.embedding(token_X, self.plain["model.embed_tokens.weight"])
        angle_X1D = (position_X[:, None] * self.frequency_D)[:, None]
        cos, sin = angle_X1D.cos(), angle_X1D.sin()
        cos_X1D, signed_sin_X1D = (torch.cat(pair, dim=-1).to(self.dtype) for pair in ((cos, cos), (-sin, sin)))
        update_XH = torch.zeros_like(hidden_XH)
        for index, layer in enumerate(self.layers):
            hidden_XH, normed_XH = self._add_norm(hidden_XH, update_XH, layer.norms["input_layernorm"])
            heads_XED = self._heads(layer, normed_XH, cos_X1D, signed_sin_X1D)
            attended_XO = attention(index, heads_XED)
            if stores and layer is self.layers[-1]:
                return None
            update_XH = layer.output(attended_XO)
            hidden_XH, normed_XH = self._add_norm(hidden_XH, update_XH, layer.norms["post_attention_layernorm"])
            update_XH = layer.down(swiglu(layer.gate_up(normed_XH)))
        return self._add_norm(hidden_XH, update_XH, "model.norm.weight")[1]

    def _heads(
        self, layer: Layer, normed_XH: torch.Tensor, cos_X1D: torch.Tensor, signed_sin_X1D: torch.Tensor
    ) -> torch.Tensor:
        """Query, key and value heads [X, E, D]; query and key rotated, on Qwen3 normed first."""
        heads_XED = layer.query_key_value(normed_XH).unflatten(-1, (-1, self.head_size))
        num_query, num_kv = self.num_heads
        if "self_attn.q_norm" in layer.norms:
            for norm, part in (("q_norm", slice(num_query)), ("k_norm", slice(num_query, num_query + num_kv))):
                weight_D = self.plain[layer.norms[f"self_attn.{norm}"]]
                heads_XED[:, part] = rms_norm(heads_XED[:, part], weight_D, self.eps)
        return rotate(heads_XED, cos_X1D, signed_sin_X1D, num_kv)

    def _add_norm(
        self, hidden_XH: torch.Tensor, update_XH: torch.Tensor, name: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_norm(hidden_XH, update_XH, self.plain[name], self.eps)

    def _head(self, hidden_XH: torch.Tensor) -> torch.Tensor:
        # Float32: rounding logits to bfloat16 would change log-probabilities by more than an update does.
        if self.head is not None:
            return self.head.product(hidden_XH)
        return matmul_float32(padded(hidden_XH)[None], self.plain[self.head_name].mT[None])[0, : len(hidden_XH)]


def rotary_frequencies(config: PretrainedConfig, head_size: int) -> torch.Tensor:
    """[D / 2] float32 radians per position, `theta^(−2d/D)`; with rope_type llama3 the slow ones are divided."""
    rope = config.rope_parameters
    frequency_D = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    if rope["rope_type"] == "default":
        return frequency_D
    # By the number of turns within the original context, as in transformers' modeling_rope_utils.
    turns_D = rope["original_max_position_embeddings"] * frequency_D / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep_D = ((turns_D - low) / (high - low)).clamp(0, 1)  # 1 for fast rotations, 0 for slow ones, linear between
    return frequency_D * (keep_D + (1 - keep_D) / rope["factor"])
