"""Inference-only forward of the Qwen2 family: Qwen2, Qwen2.5, Qwen3 and Llama, told apart by their config.

The trainer's engine shards its weights and gathers them in every forward; sampling needs a forward without collectives.
This one works on plain tensors under their Hugging Face names, rounds in the order in which transformers rounds, and
keeps LoRA as a side branch in the order peft computes it, so that the sampler agrees with the trainer.

Axes beside those of `grpo/types.py`: J key/value heads, D head size, R LoRA rank, I inputs and O outputs of a module.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from grpo.kv_cache import KVCache, matmul_float32

MODEL_TYPES = ("qwen2", "qwen3", "llama")
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# (layer, query [N, J*F, L, D], key [N, J, L, D], value [N, J, L, D]) -> output like query
Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Decoder:
    """A causal language model for sampling; it owns copies of its tensors.

    Args:
        config: the transformers config of the model.
        weight: Hugging Face name to tensor; "lm_head.weight" is ignored on a tied model.
        lora: module name ("model.layers.0.self_attn.q_proj") to (A_RI, B_OR, scaling).

    Raises:
        ValueError: the config asks for what is not implemented here, or a LoRA module is none of the seven projections.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        weight: dict[str, torch.Tensor],
        lora: dict[str, tuple[torch.Tensor, torch.Tensor, float]],
    ) -> None:
        _check_supported(config, lora)
        assert all(f"{name}.weight" in weight for name in lora), f"LoRA without its module: {sorted(lora)[:3]}"
        self.config = config
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.head_name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        unused = "lm_head.weight" if config.tie_word_embeddings else None
        self.weight = {name: tensor.detach().clone() for name, tensor in weight.items() if name != unused}
        self.lora = {name: (A.detach().clone(), B.detach().clone(), scaling) for name, (A, B, scaling) in lora.items()}
        self.device = self.weight["model.embed_tokens.weight"].device
        self.frequency_D = rotary_frequencies(config, self.head_size).to(self.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that training can change, by name, for `copy_`: weights, and branches as "….lora_A.weight"."""
        branches = {}
        for name, (A_RI, B_OR, _) in self.lora.items():
            branches[f"{name}.lora_A.weight"] = A_RI
            branches[f"{name}.lora_B.weight"] = B_OR
        return self.weight | branches

    @torch.no_grad()
    def logits(self, token_NL: torch.Tensor) -> torch.Tensor:
        """Logits of plain texts, without a cache.

        Args:
            token_NL: [N, L] int64 tokens, position 0 first; anything may follow a text, it is causal.

        Returns:
            logits_NLV, [N, L, V] float32.
        """

        def attention(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

        position_NL = torch.arange(token_NL.shape[1], device=self.device).expand_as(token_NL)
        hidden_NLH = self._hidden(token_NL.to(self.device), position_NL, attention)
        return self._head(hidden_NLH.flatten(0, 1)).unflatten(0, token_NL.shape)

    @torch.no_grad()
    def prefill(
        self, prefix: list[int], rests: list[list[int]], *, num_generations: int
    ) -> tuple[KVCache, torch.Tensor]:
        """Read the prompts: the prefix once, each prompt's rest once.

        Args:
            prefix: tokens that all prompts start with, may be empty.
            rests: B lists of the tokens that follow it, none empty.
            num_generations: G rows that will continue each prompt.

        Returns:
            The cache that `step` goes on with, and logits_BV, [B, V] float32, of each prompt's first completion token.
        """
        length_B = torch.tensor([len(rest) for rest in rests], device=self.device)
        cache = KVCache(prefix_length=len(prefix), length_B=length_B, num_generations=num_generations)
        if prefix:
            token_1P = torch.tensor([prefix], device=self.device)
            position_1P = torch.arange(len(prefix), device=self.device)[None]
            self._hidden(token_1P, position_1P, cache.prefix_attention)
        longest = int(length_B.max())
        token_BQ = torch.tensor([rest + [0] * (longest - len(rest)) for rest in rests], device=self.device)
        position_BQ = (len(prefix) + torch.arange(longest, device=self.device)).expand_as(token_BQ)
        hidden_BQH = self._hidden(token_BQ, position_BQ, cache.prompt_attention)
        row_B = torch.arange(len(rests), device=self.device)
        return cache, self._head(hidden_BQH[row_B, length_B - 1])

    @torch.no_grad()
    def step(self, cache: KVCache, token_N: torch.Tensor) -> torch.Tensor:
        """Append one token to every row of the cache.

        Args:
            cache: from `prefill`, changed in place.
            token_N: [N] int64 tokens just sampled.

        Returns:
            logits_NV, [N, V] float32, of the next tokens.
        """
        hidden_N1H = self._hidden(token_N[:, None], cache.position_N[:, None], cache.own_attention)
        cache.advance()
        return self._head(hidden_N1H[:, 0])

    def _hidden(self, token_NL: torch.Tensor, position_NL: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Final hidden states [N, L, H]; what a token sees and what is remembered of it is `attention`'s affair."""
        hidden_NLH = F.embedding(token_NL, self.weight["model.embed_tokens.weight"])
        angle_N1LD = (position_NL[:, None, :, None] * self.frequency_D).repeat(1, 1, 1, 2)
        rotary = angle_N1LD.cos().to(hidden_NLH.dtype), angle_N1LD.sin().to(hidden_NLH.dtype)
        for layer in range(self.config.num_hidden_layers):
            name = f"model.layers.{layer}"
            normed_NLH = self._norm(f"{name}.input_layernorm", hidden_NLH)
            query, key, value = self._query_key_value(f"{name}.self_attn", normed_NLH, rotary)
            out_NLO = attention(layer, query, key, value).transpose(1, 2).flatten(2)
            hidden_NLH = hidden_NLH + self._linear(f"{name}.self_attn.o_proj", out_NLO)
            normed_NLH = self._norm(f"{name}.post_attention_layernorm", hidden_NLH)
            gate = F.silu(self._linear(f"{name}.mlp.gate_proj", normed_NLH))
            up = self._linear(f"{name}.mlp.up_proj", normed_NLH)
            hidden_NLH = hidden_NLH + self._linear(f"{name}.mlp.down_proj", gate * up)
        return self._norm("model.norm", hidden_NLH)

    def _query_key_value(
        self, name: str, normed_NLH: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [N, J*F, L, D], key and value [N, J, L, D]; query and key rotated, on Qwen3 normed first."""
        query, key, value = (
            self._linear(f"{name}.{module}", normed_NLH).unflatten(-1, (-1, self.head_size))
            for module in ("q_proj", "k_proj", "v_proj")
        )
        if self.config.model_type == "qwen3":
            query, key = self._norm(f"{name}.q_norm", query), self._norm(f"{name}.k_norm", key)
        return rotate(query.transpose(1, 2), *rotary), rotate(key.transpose(1, 2), *rotary), value.transpose(1, 2)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """`x Wᵀ + b + (x Aᵀ Bᵀ) · scaling`, peft's order; the branch runs in its own dtype, as in peft."""
        y = F.linear(x, self.weight[f"{name}.weight"], self.weight.get(f"{name}.bias"))
        if name in self.lora:
            A_RI, B_OR, scaling = self.lora[name]
            y = y + (F.linear(F.linear(x.to(A_RI.dtype), A_RI), B_OR) * scaling).to(y.dtype)
        return y

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm in float32, rounded before the weight is applied, as in transformers."""
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.config.rms_norm_eps)
        return self.weight[f"{name}.weight"] * normed.to(x.dtype)

    def _head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Float32 logits: rounded to bfloat16 they would move log-probabilities by more than a whole update does."""
        return matmul_float32(hidden_NH[None], self.weight[self.head_name].mT[None])[0]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in the half-split layout: `x · cos + (−x₂, x₁) · sin` (Su et al. 2021, equation 34)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rotary_frequencies(config: PretrainedConfig, head_size: int) -> torch.Tensor:
    """Radians per position, `theta^(−2d/D)`, with Llama 3.1's stretch of the slow ones where the config asks for it.

    Returns:
        [D / 2] float32.
    """
    rope = config.rope_parameters
    frequency_D = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    if rope["rope_type"] == "default":
        return frequency_D
    turns_D = rope["original_max_position_embeddings"] * frequency_D / (2 * math.pi)  # within the original context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep_D = ((turns_D - low) / (high - low)).clamp(0, 1)  # 1 for fast rotations, 0 for slow ones, linear between
    return frequency_D * (keep_D + (1 - keep_D) / rope["factor"])


def _check_supported(config: PretrainedConfig, lora: dict[str, tuple[torch.Tensor, torch.Tensor, float]]) -> None:
    """Refuse what this forward would silently compute wrong."""
    if config.model_type not in MODEL_TYPES:
        raise ValueError(f"model_type={config.model_type!r} is not one of {', '.join(MODEL_TYPES)}: no decoder for it")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError("use_sliding_window=True is not implemented in the decoder; set use_sliding_window to False")
    if config.rope_parameters["rope_type"] not in ("default", "llama3"):
        rope_type = config.rope_parameters["rope_type"]
        raise ValueError(f"rope_type={rope_type!r} is not implemented in the decoder; use 'default' or 'llama3'")
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act={config.hidden_act!r} is not implemented in the decoder; use 'silu'")
    for name in lora:
        if name.rpartition(".")[2] not in LORA_MODULES:
            raise ValueError(f"lora_target_modules: {name!r} is not one of {', '.join(LORA_MODULES)}")
