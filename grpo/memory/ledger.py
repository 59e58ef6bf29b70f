"""What a run costs in memory, as formulas from the model's config: bytes of one rank, item by item, before any weight.

Where a formula says what a library does, it was counted there: transformers' Qwen2 layer, peft's LoRA, bitsandbytes'
NF4 and DeepSpeed's ZeRO (test_ledger.py measures each). Bytes of a token in one layer that autograd saves for the
backward pass, with LoRA on all seven projections and c bytes a number:

    8 H + 8                    float32 inputs of both norms, and their scales
    2 c H                      what the adapters of q, k, v and of gate, up read
    c (3 Q + 2 K) + 4 heads    query, key, value, attention's output, twice: in rows it is what o reads; log-sum-exp
    4 c I                      gate, silu(gate), up, and their product, which down reads
    7 c r                      between A and B

Sizes beside those of `grpo/types.py`: I inner size of the MLP, Q and K all query and all key heads, Y layers, r rank of
a LoRA branch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

from grpo.config import Config
from grpo.loading.model import NF4_BLOCK
from grpo.sampler.linear import Blocks
from grpo.trainer.zero import zero_config
from kernels.reference import TILE_ELEMENTS

SCALE_BLOCK = 256  # of NF4's scales, which share a second one
TABLES = 4 * (16 + 256 + 1)  # of one packed weight: NF4's values, those of a scale in 8 bits, their offset
FUSED_BLOCK, FUSED_TILE = 4096, 2**24  # BLOCK and TILE of kernels/gpu/autograd.py, which needs Triton
JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # of the decoder
READS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "heads", "gate_proj": "mlp",
         "up_proj": "mlp", "down_proj": "inner"}


class Item(NamedTuple):
    """A line of the ledger."""

    name: str
    num_bytes: int
    words: str


class Parameter(NamedTuple):
    """A weight or bias: the last name of its module, its numbers, and how many the model has of it."""

    module: str
    numel: int
    count: int


def size(num_bytes: float) -> str:
    """Bytes for a reader."""
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The bytes of one rank.

    Args:
        run: the options.
        config: the model's; the name is the decoder's, for which `grpo.memory.concurrency` takes a ledger.
        num_ranks: GPUs, or processes on a CPU.
        dtype: of weights and activations.
        rollout_dtype: of the rollout copy.
        on_gpu: which kernels and which stores of weights are used.
    """

    run: Config
    config: PretrainedConfig
    num_ranks: int
    dtype: torch.dtype
    rollout_dtype: torch.dtype
    on_gpu: bool

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key/value heads, size of a head."""
        query, key = self.config.num_attention_heads, self.config.num_key_value_heads
        return query, key, getattr(self.config, "head_dim", None) or self.config.hidden_size // query

    def projections(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a layer's seven linear modules."""
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        query, key, head = self.heads
        return {"q_proj": (query * head, hidden), "k_proj": (key * head, hidden), "v_proj": (key * head, hidden),
                "o_proj": (hidden, query * head), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
                "down_proj": (hidden, inner)}

    def biased(self) -> set[str]:
        """The projections that have a bias."""
        if self.config.model_type == "qwen2":
            return {"q_proj", "k_proj", "v_proj"}
        attention, mlp = (getattr(self.config, name, False) for name in ("attention_bias", "mlp_bias"))
        return {name for name in READS if (attention if READS[name] in ("attention", "heads") else mlp)}

    def parameters(self) -> list[Parameter]:
        """All weights and biases of the base but those of the seven projections, a tied one once."""
        layers, hidden = self.config.num_hidden_layers, self.config.hidden_size
        table = self.config.vocab_size * hidden
        found = [Parameter("embed_tokens", table, 1), Parameter("norm", hidden, 1)]
        found += [] if self.config.tie_word_embeddings else [Parameter("lm_head", table, 1)]
        found += [Parameter(name, hidden, layers) for name in ("input_layernorm", "post_attention_layernorm")]
        if self.config.model_type == "qwen3":
            found += [Parameter(name, self.heads[2], layers) for name in ("q_norm", "k_norm")]
        return found + [Parameter(name, self.projections()[name][0], layers) for name in sorted(self.biased())]

    def saved_whole(self) -> list[Parameter]:
        """Copies of whole modules that train beside LoRA; on a tied model embedding and head are one."""
        names = set(self.run.lora_modules_to_save) if self.run.use_peft else set()
        if self.config.tie_word_embeddings and "lm_head" in names:
            names.add("embed_tokens")
        return [one for one in self.parameters() if one.module in names]

    def trains_head(self) -> bool:
        """Does the head change?"""
        head = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return not self.run.use_peft or head in {one.module for one in self.saved_whole()}

    def targets(self) -> set[str]:
        """The projections that have a branch."""
        return set(self.run.lora_target_modules) if self.run.use_peft else set()

    def branches(self) -> list[Parameter]:
        """LoRA's A and B."""
        return [Parameter(name, self.run.lora_r * side, self.config.num_hidden_layers)
                for name, sides in self.projections().items() if name in self.targets() for side in sides]

    # -- what is held all the time -------------------------------------------------------------------------------------

    def base(self) -> list[Parameter]:
        """The base as it is stored: of a packed weight numbers of the engine's type, each of 2 c weights."""
        packing = 2 * self.dtype.itemsize if self.run.load_in_4bit else 1
        packed = [Parameter(name, outputs * inputs // packing, self.config.num_hidden_layers)
                  for name, (outputs, inputs) in self.projections().items()]
        return packed + self.parameters()

    def trained(self) -> list[Parameter]:
        """What is trained: branches and whole copies, or the base."""
        return self.branches() + self.saved_whole() if self.run.use_peft else self.base()

    def num_trained(self) -> int:
        """Trained numbers, whole."""
        return sum(one.numel * one.count for one in self.trained())

    def reference(self) -> list[Parameter]:
        """The frozen copy that answers as the policy of step 0, where the base alone does not."""
        if not self.run.use_peft:
            return self.base() if self.run.beta > 0 else []
        return self.trained() if self.run.adapter_name_or_path else []

    def kept(self, parameters: list[Parameter]) -> int:
        """Bytes of a rank's part between two forwards: under ZeRO-3 every tensor is cut, and the last cut filled."""
        ranks = self.num_ranks if self.run.zero_stage == 3 else 1
        return sum(-(-one.numel // ranks) * one.count for one in parameters) * self.dtype.itemsize

    def scales(self) -> int:
        """Bytes of NF4's scales and tables. No parameters, so ZeRO does not cut them."""
        if not self.run.load_in_4bit:
            return 0
        blocks = [-(-outputs * inputs // NF4_BLOCK) for outputs, inputs in self.projections().values()]
        return self.config.num_hidden_layers * sum(count + 4 * -(-count // SCALE_BLOCK) + TABLES for count in blocks)

    def weights(self) -> int:
        """Bytes of all weights: what `Engine.held_bytes` measures."""
        trained = self.trained() if self.run.use_peft else []
        return sum(map(self.kept, (self.base(), trained, self.reference()))) + self.scales()

    def gradients(self) -> int:
        """Float32 sums over micro-batches, cut from stage 2 on."""
        return 4 * -(-self.num_trained() // (self.num_ranks if self.run.zero_stage > 1 else 1))

    def optimizer(self) -> int:
        """AdamW's two moments, and the float32 master where the weight itself is none."""
        is_master = self.dtype == torch.float32 and self.run.zero_stage in (0, 3)
        return (8 if is_master else 12) * -(-self.num_trained() // (self.num_ranks if self.run.zero_stage else 1))

    def zero(self, name: str) -> Any:
        """A setting of DeepSpeed's in force."""
        return zero_config(self.run, self.dtype)["zero_optimization"][name]

    def bucket(self) -> int:
        """DeepSpeed's buffer for gradients on their way, which has its size whatever it holds."""
        number = 0 if self.run.zero_stage == 0 else 1
        if self.run.zero_stage in (1, 2) and self.zero("overlap_comm"):
            number = 2
        return number * self.zero("reduce_bucket_size") * self.dtype.itemsize

    def gathered(self) -> int:
        """Bytes of whole weights that ZeRO-3 holds in a pass: the small ones for good, of others what it may keep."""
        if self.run.zero_stage < 3:
            return 0
        everything = self.base() + self.reference() + (self.trained() if self.run.use_peft else [])
        small = self.zero("stage3_param_persistence_threshold")
        large = [one for one in everything if one.numel > small]
        live = max([self.zero("stage3_max_live_parameters"), *(one.numel for one in large)])
        numel = sum(one.numel * one.count for one in everything if one.numel <= small)
        return (numel + min(live, sum(one.numel * one.count for one in large))) * self.dtype.itemsize

    # -- the rollout ---------------------------------------------------------------------------------------------------

    def rollout_copy(self) -> int:
        """What `Decoder.nbytes` measures: rows of a join's B are as long as all its outputs together."""
        form, numel, packed = self.run.rollout_weights, 0, 0
        for names in JOINED:
            sides = [self.projections()[name] for name in names]
            outputs, inputs = sum(one for one, _ in sides), sides[0][1]
            rank = self.run.lora_r * len(self.targets() & set(names))
            if form == "nf4":
                packed += outputs * inputs // 2
            else:
                numel += outputs * inputs * (2 if form == "merged" and rank else 1)
            numel += outputs + rank if self.biased() & set(names) else 0
            numel += rank * (inputs + outputs)
        numel, packed = (count * self.config.num_hidden_layers for count in (numel, packed))
        numel += sum(one.numel * one.count for one in self.parameters() if one.module not in READS)
        device = torch.device("cuda" if self.on_gpu else "cpu")
        blocks = not self.trains_head() and Blocks.serves(device, self.rollout_dtype, self.config.vocab_size)
        if self.config.tie_word_embeddings and blocks:
            numel += self.config.vocab_size * self.config.hidden_size  # a second head
        return numel * self.rollout_dtype.itemsize + packed

    def token_bytes(self) -> int:
        """Keys and values of a token in all layers of the rollout copy."""
        _, key, head = self.heads
        return self.config.num_hidden_layers * 2 * key * head * self.rollout_dtype.itemsize

    # -- an update -----------------------------------------------------------------------------------------------------

    def layer_token(self) -> int:
        """Bytes that a layer saves of a token for its backward pass, see above."""
        number, (query, key, head) = self.dtype.itemsize, self.heads
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        saved = 8 * hidden + 8 + 2 * number * (query + key) * head + 4 * query + 3 * number * inner
        normed = 2 * hidden
        if self.config.model_type == "qwen3":
            saved += 4 * (query + key) * (head + 1)
            normed += (query + key) * head
        targets = self.targets() if self.run.use_peft else set(READS)
        inputs = {name: inputs for name, (_, inputs) in self.projections().items() if name in targets}
        if self.run.use_peft and self.run.lora_dropout > 0:  # each branch has its own input, and what was dropped
            read = sum(inputs.values()) * (number + (1 if self.on_gpu else number))
        else:
            read = number * sum({READS[name]: count for name, count in inputs.items()}.values())
        return saved + read + number * (self.run.lora_r * len(inputs) if self.run.use_peft else normed)

    def activations(self, num_tokens: int, *, checkpointing: bool) -> int:
        """Bytes saved for the backward pass; with checkpointing each layer's input, and all of one layer."""
        layers, number = self.config.num_hidden_layers, self.dtype.itemsize
        each = self.layer_token()
        hidden = number * self.config.hidden_size
        return num_tokens * (layers * hidden + each if checkpointing else layers * each)

    def passing(self, num_tokens: int) -> int:
        """Gradients on their way through an MLP, the widest place, where what was saved goes; a weight unpacked."""
        weight = max(outputs * inputs for outputs, inputs in self.projections().values())
        widest = self.config.intermediate_size + 2 * self.config.hidden_size
        return self.dtype.itemsize * (num_tokens * widest + (weight if self.run.load_in_4bit else 0))

    def head(self, num_tokens: int) -> int:
        """Scored hidden states, and what the log-prob kernel says that it needs beside them."""
        hidden, number = self.config.hidden_size, self.dtype.itemsize
        exact = self.run.kl_estimator == "exact" and self.run.beta > 0
        rows, half = num_tokens * hidden, number < 4
        if not self.on_gpu or self.dtype == torch.float64:
            tiles = (6 if exact else 3) + half
            tile = min(TILE_ELEMENTS, self.config.vocab_size * max(num_tokens, hidden))
            return number * rows + 4 * (tiles * tile + rows * (2 + half * (2 if exact else 1)))
        sums = (24 if exact else 12) * num_tokens * -(-self.config.vocab_size // FUSED_BLOCK)
        hybrid = 4 * FUSED_TILE * (2 if exact else 1)
        if not self.trains_head() and not exact:
            return 2 * number * rows + sums + 4 * hidden * FUSED_BLOCK + 2 * FUSED_TILE + hybrid
        words = max(2048, 2 * FUSED_TILE // max(num_tokens, 1))
        return number * rows + max(sums + hybrid, 4 * rows + (6 * num_tokens + 4 * hidden) * words)

    def update(self, num_tokens: int, *, checkpointing: bool) -> int:
        """What one micro-batch needs beside what is held."""
        together = self.activations(num_tokens, checkpointing=checkpointing) + self.passing(num_tokens)
        return together + self.head(num_tokens) + self.gathered()
