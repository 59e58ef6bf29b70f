"""Memory: bytes of one rank by item, as formulas of the model's config, before any weight is loaded.

Formulas for what libraries do were derived from transformers' Qwen2 layer, peft's LoRA, bitsandbytes' NF4 and
DeepSpeed's ZeRO; test_ledger.py measures each.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo.config import Config
from grpo.loading.model_config import NF4_BLOCK
from grpo.memory import shapes
from grpo.memory.shapes import Added
from grpo.trainer.zero import zero_config

if TYPE_CHECKING:  # `--plan` answers before anything imports these
    import torch
    from transformers import PretrainedConfig

SCALE_BLOCK = 256  # scales of NF4 that share a second scale
TABLES = 4 * (16 + 256 + 1)  # bytes of a packed weight's tables: NF4's values, the values of 8-bit scales, their offset
FUSED_BLOCK, FUSED_TILE = 4096, 2**24  # BLOCK and TILE of kernels/gpu/autograd.py, which cannot be imported here
JOINED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # in the sampler
# The input of each projection; one tensor may be the input of several.
READS = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "o_proj": "heads", "gate_proj": "mlp",
         "up_proj": "mlp", "down_proj": "inner"}


class Item(NamedTuple):
    """A line of the ledger."""

    name: str
    num_bytes: int
    words: str


class NumberType(NamedTuple):
    """As much of a torch.dtype as the ledger reads, for a plan."""

    name: str
    itemsize: int

    def __str__(self) -> str:
        return self.name


def size(num_bytes: float) -> str:
    """Bytes as text."""
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The bytes of one rank."""

    run: Config
    config: "PretrainedConfig"
    num_ranks: int
    dtype: "torch.dtype | NumberType"  # of the trainer's weights and activations
    rollout_dtype: "torch.dtype | NumberType"  # of the sampler's
    on_gpu: bool
    added: Added  # what trains next to the base; nothing where all of it trains

    @property
    def heads(self) -> tuple[int, int, int]:
        """As `shapes.heads`."""
        return shapes.heads(self.config)

    def projections(self) -> dict[str, tuple[int, int]]:
        """As `shapes.projections`."""
        return shapes.projections(self.config)

    # -- what is stored all the time -----------------------------------------------------------------------------------

    def base(self) -> list[int]:
        """Numbers in each tensor of the base, as it is stored."""
        packing = 2 * self.dtype.itemsize if self.run.load_in_4bit else 1  # 4-bit weights in a number of type `dtype`
        return [math.prod(shape) // (packing if name.endswith("_proj.weight") else 1)
                for name, shape in shapes.of_model(self.config).items()]

    def trained(self) -> list[int]:
        """Numbers in each tensor that is trained: branches and whole modules, or the base."""
        return [math.prod(shape) for shape in self.added.shapes.values()] if self.run.use_peft else self.base()

    def num_trained(self) -> int:
        """Trained parameters, all ranks' shards together."""
        return sum(self.trained())

    def num_branches(self) -> int:
        """Parameters of all LoRA branches."""
        return sum(math.prod(shape) for name, shape in self.added.shapes.items() if ".lora_" in name)

    def trains_head(self) -> bool:
        """Does training change the head?"""
        return not self.run.use_peft or self.added.trains_head()

    def reference(self) -> list[int]:
        """The frozen copy that is the reference, if the base alone is not."""
        if not self.run.use_peft:
            return self.base() if self.run.beta > 0 else []
        return self.trained() if self.run.adapter_name_or_path else []

    def kept(self, tensors: list[int]) -> int:
        """Bytes of a rank's part between forwards: ZeRO-3 shards every tensor and pads its last shard."""
        ranks = self.num_ranks if self.run.zero_stage == 3 else 1
        return sum(-(-numel // ranks) for numel in tensors) * self.dtype.itemsize

    def scales(self) -> int:
        """Bytes of NF4's scales and tables; they are no parameters, so ZeRO does not shard them."""
        if not self.run.load_in_4bit:
            return 0
        blocks = [-(-outputs * inputs // NF4_BLOCK) for outputs, inputs in self.projections().values()]
        return self.config.num_hidden_layers * sum(count + 4 * -(-count // SCALE_BLOCK) + TABLES for count in blocks)

    def weights(self) -> int:
        """Bytes of all weights; `Engine.held_bytes` measures them."""
        trained = self.trained() if self.run.use_peft else []
        return sum(map(self.kept, (self.base(), trained, self.reference()))) + self.scales()

    def gradients(self) -> int:
        """Bytes of float32 sums over micro-batches, sharded from ZeRO stage 2 on."""
        return 4 * -(-self.num_trained() // (self.num_ranks if self.run.zero_stage > 1 else 1))

    def optimizer(self) -> int:
        """Bytes of AdamW's two moments, and of a float32 master if the weight itself is not one."""
        is_master = self.dtype.itemsize == 4 and self.run.zero_stage in (0, 3)
        return (8 if is_master else 12) * -(-self.num_trained() // (self.num_ranks if self.run.zero_stage else 1))

    def zero(self, name: str) -> Any:
        """A setting of DeepSpeed's zero_optimization."""
        return zero_config(self.run, bf16=self.dtype.itemsize == 2)["zero_optimization"][name]

    def bucket(self) -> int:
        """Bytes of DeepSpeed's buffers for gradients between ranks; their size is fixed."""
        number = 0 if self.run.zero_stage == 0 else 1
        if self.run.zero_stage in (1, 2) and self.zero("overlap_comm"):
            number = 2
        return number * self.zero("reduce_bucket_size") * self.dtype.itemsize

    def gathered(self) -> int:
        """Bytes of whole weights that ZeRO-3 has during a pass: all small ones, and others up to its limit."""
        if self.run.zero_stage < 3:
            return 0
        everything = self.base() + self.reference() + (self.trained() if self.run.use_peft else [])
        small = self.zero("stage3_param_persistence_threshold")
        large = [numel for numel in everything if numel > small]
        live = max([self.zero("stage3_max_live_parameters"), *large])
        return (sum(everything) - sum(large) + min(live, sum(large))) * self.dtype.itemsize

    # -- the sampler ---------------------------------------------------------------------------------------------------

    def rollout_copy(self) -> int:
        """Bytes of the sampler's weights; `Decoder.nbytes` measures them."""
        form, numel, packed = self.run.rollout_weights, 0, 0
        biased = shapes.biased(self.config)
        for layer, names in product(range(self.config.num_hidden_layers), JOINED):
            sides = [self.projections()[name] for name in names]
            outputs, inputs = sum(one for one, _ in sides), sides[0][1]
            rank = sum(self.added.rank(layer, name) for name in names)
            if form == "nf4":
                packed += outputs * inputs // 2
            else:
                numel += outputs * inputs * (2 if form == "merged" and rank else 1)
            numel += outputs + rank if biased & set(names) else 0
            numel += rank * (inputs + outputs)  # joined modules share one B: a row for each output of all of them
        numel += sum(math.prod(shape) for name, shape in shapes.of_model(self.config).items() if "_proj." not in name)
        tied, own = self.config.tie_word_embeddings, self.added.own_head
        # A head in another order stands beside one that the embedding needs, or that new values are copied into.
        more = (tied and own) + (self._head_is_reordered() and (tied and not own or self.trains_head()))
        numel += more * self.config.vocab_size * self.config.hidden_size
        return numel * self.rollout_dtype.itemsize + packed

    def _head_is_reordered(self) -> bool:
        """Is the sampler's head stored in another order?"""
        if self.on_gpu:
            return False
        import torch  # here: a plan is of a GPU, and answers without

        from grpo.sampler.linear import Reordered

        return Reordered.serves(
            torch.device("cpu"), self.rollout_dtype, self.config.vocab_size * self.config.hidden_size)

    def token_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers of the sampler."""
        _, key, head = self.heads
        return self.config.num_hidden_layers * 2 * key * head * self.rollout_dtype.itemsize

    # -- an update -----------------------------------------------------------------------------------------------------

    def layer_token(self) -> int:
        """Bytes that autograd saves for the backward pass of one token in the layer that needs most."""
        return max(map(self._layer_token, range(self.config.num_hidden_layers)))

    def _layer_token(self, layer: int) -> int:
        number, (query, key, head) = self.dtype.itemsize, self.heads
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        saved = 8 * hidden + 8  # float32 inputs of both norms, and their scales
        saved += 2 * number * (query + key) * head + 4 * query  # query, key, value, attention's output; log-sum-exp
        saved += 3 * number * inner  # gate, silu(gate), up
        normed = 2 * hidden
        if shapes.norms_heads(self.config):
            saved += 4 * (query + key) * (head + 1)
            normed += (query + key) * head
        rank = {name: self.added.rank(layer, name) for name in READS}
        inputs = {name: inputs for name, (_, inputs) in self.projections().items()
                  if rank[name] or not self.run.use_peft}
        # What trained projections read: one tensor for q, k, v, one for gate, up, and what o and down read.
        if self.run.use_peft and self.run.lora_dropout > 0:  # each branch has an input of its own, and a dropout mask
            read = sum(inputs.values()) * (number + (1 if self.on_gpu else number))
        else:
            read = number * sum({READS[name]: count for name, count in inputs.items()}.values())
        # LoRA saves what is between A and B; training everything saves the normed inputs.
        return saved + read + number * (sum(rank.values()) if self.run.use_peft else normed)

    def activations(self, num_tokens: int, *, checkpointing: bool) -> int:
        """Bytes saved for the backward pass; with checkpointing each layer's input, and one layer's rest."""
        layers, number = self.config.num_hidden_layers, self.dtype.itemsize
        each = self.layer_token()
        hidden = number * self.config.hidden_size
        return num_tokens * (layers * hidden + each if checkpointing else layers * each)

    def temporary(self, num_tokens: int) -> int:
        """Bytes of gradients inside an MLP, the widest part of a layer, and of an unpacked weight."""
        weight = max(outputs * inputs for outputs, inputs in self.projections().values())
        widest = self.config.intermediate_size + 2 * self.config.hidden_size
        return self.dtype.itemsize * (num_tokens * widest + (weight if self.run.load_in_4bit else 0))

    def head(self, num_tokens: int) -> int:
        """Bytes of the hidden states that predict completion tokens, and of what the log-prob kernel needs."""
        hidden, number = self.config.hidden_size, self.dtype.itemsize
        exact = self.run.kl_estimator == "exact" and self.run.beta > 0
        rows, half = num_tokens * hidden, number < 4
        if not self.on_gpu or number == 8:
            from kernels.reference import TILE_ELEMENTS  # here: a plan is of a GPU, and answers without torch

            tiles = (6 if exact else 3) + half
            tile = min(TILE_ELEMENTS, self.config.vocab_size * max(num_tokens, hidden))
            return number * rows + 4 * (tiles * tile + rows * (2 + half * (2 if exact else 1)))
        sums = (24 if exact else 12) * num_tokens * -(-self.config.vocab_size // FUSED_BLOCK)
        hybrid = 4 * FUSED_TILE * (2 if exact else 1)
        bonus = self.run.entropy_coef > 0 or self.run.use_adaptive_entropy  # whose gradient needs the logits again
        if not self.trains_head() and not exact and not bonus:
            return 2 * number * rows + sums + 4 * hidden * FUSED_BLOCK + 2 * FUSED_TILE + hybrid
        words = max(2048, 2 * FUSED_TILE // max(num_tokens, 1))
        return number * rows + max(sums + hybrid, 4 * rows + (6 * num_tokens + 4 * hidden) * words)

    def update(self, num_tokens: int, *, checkpointing: bool) -> int:
        """Bytes that one micro-batch needs in addition to what is stored."""
        together = self.activations(num_tokens, checkpointing=checkpointing) + self.temporary(num_tokens)
        return together + self.head(num_tokens) + self.gathered()
