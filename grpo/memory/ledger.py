"""Memory: bytes of one rank by item, as formulas of the model's config, before any weight is loaded.

Formulas for what libraries do were derived from transformers' Qwen2 layer, peft's LoRA, bitsandbytes' NF4 and
DeepSpeed's ZeRO; test_ledger.py measures each.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo.config import Config
from grpo.loading.model_config import NF4_BLOCK
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


class Parameter(NamedTuple):
    """A kind of weight or bias: the last part of its module's name, its size, and how many the model has."""

    module: str
    numel: int
    count: int


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

    # -- the model -----------------------------------------------------------------------------------------------------

    @property
    def heads(self) -> tuple[int, int, int]:
        """Number of query heads, number of key/value heads, size of a head."""
        query, key = self.config.num_attention_heads, self.config.num_key_value_heads
        return query, key, getattr(self.config, "head_dim", None) or self.config.hidden_size // query

    def projections(self) -> dict[str, tuple[int, int]]:
        """Numbers of outputs and inputs of a layer's seven linear modules."""
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        query, key, head = self.heads
        return {"q_proj": (query * head, hidden), "k_proj": (key * head, hidden), "v_proj": (key * head, hidden),
                "o_proj": (hidden, query * head), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
                "down_proj": (hidden, inner)}

    def biased(self) -> set[str]:
        """The projections that have a bias."""
        if self.config.model_type == "qwen2":
            return {"q_proj", "k_proj", "v_proj"}  # in its code, not in its config
        attention, mlp = (getattr(self.config, name, False) for name in ("attention_bias", "mlp_bias"))
        return {name for name in READS if (attention if READS[name] in ("attention", "heads") else mlp)}

    def norms_heads(self) -> bool:
        """Does each head of query and key have a norm?"""
        return self.config.model_type == "qwen3"

    def parameters(self) -> list[Parameter]:
        """All weights and biases of the base without the weights of the seven projections; a tied one once."""
        layers, hidden = self.config.num_hidden_layers, self.config.hidden_size
        table = self.config.vocab_size * hidden
        found = [Parameter("embed_tokens", table, 1), Parameter("norm", hidden, 1)]
        found += [] if self.config.tie_word_embeddings else [Parameter("lm_head", table, 1)]
        found += [Parameter(name, hidden, layers) for name in ("input_layernorm", "post_attention_layernorm")]
        if self.norms_heads():
            found += [Parameter(name, self.heads[2], layers) for name in ("q_norm", "k_norm")]
        return found + [Parameter(name, self.projections()[name][0], layers) for name in sorted(self.biased())]

    def saved_whole(self) -> list[Parameter]:
        """Copies of modules that train whole, next to LoRA; on a tied model embedding and head are one."""
        names = set(self.run.lora_modules_to_save) if self.run.use_peft else set()
        if self.config.tie_word_embeddings and "lm_head" in names:
            names.add("embed_tokens")
        return [one for one in self.parameters() if one.module in names]

    def trains_head(self) -> bool:
        """Does training change the head?"""
        head = "embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        return not self.run.use_peft or head in {one.module for one in self.saved_whole()}

    def targets(self) -> set[str]:
        """The projections with a LoRA branch."""
        return set(self.run.lora_target_modules) if self.run.use_peft else set()

    def branches(self) -> list[Parameter]:
        """A and B of all LoRA branches."""
        return [Parameter(name, self.run.lora_r * side, self.config.num_hidden_layers)
                for name, sides in self.projections().items() if name in self.targets() for side in sides]

    # -- what is stored all the time -----------------------------------------------------------------------------------

    def base(self) -> list[Parameter]:
        """The base as it is stored."""
        packing = 2 * self.dtype.itemsize if self.run.load_in_4bit else 1  # 4-bit weights in a number of type `dtype`
        packed = [Parameter(name, outputs * inputs // packing, self.config.num_hidden_layers)
                  for name, (outputs, inputs) in self.projections().items()]
        return packed + self.parameters()

    def trained(self) -> list[Parameter]:
        """What is trained: branches and whole modules, or the base."""
        return self.branches() + self.saved_whole() if self.run.use_peft else self.base()

    def num_trained(self) -> int:
        """Trained parameters, all ranks' shards together."""
        return sum(one.numel * one.count for one in self.trained())

    def reference(self) -> list[Parameter]:
        """The frozen copy that is the reference, if the base alone is not."""
        if not self.run.use_peft:
            return self.base() if self.run.beta > 0 else []
        return self.trained() if self.run.adapter_name_or_path else []

    def kept(self, parameters: list[Parameter]) -> int:
        """Bytes of a rank's part between forwards: ZeRO-3 shards every tensor and pads its last shard."""
        ranks = self.num_ranks if self.run.zero_stage == 3 else 1
        return sum(-(-one.numel // ranks) * one.count for one in parameters) * self.dtype.itemsize

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
        large = [one for one in everything if one.numel > small]
        live = max([self.zero("stage3_max_live_parameters"), *(one.numel for one in large)])
        numel = sum(one.numel * one.count for one in everything if one.numel <= small)
        return (numel + min(live, sum(one.numel * one.count for one in large))) * self.dtype.itemsize

    # -- the sampler ---------------------------------------------------------------------------------------------------

    def rollout_copy(self) -> int:
        """Bytes of the sampler's weights; `Decoder.nbytes` measures them."""
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
            numel += rank * (inputs + outputs)  # joined modules share one B: a row for each output of all of them
        numel, packed = (count * self.config.num_hidden_layers for count in (numel, packed))
        numel += sum(one.numel * one.count for one in self.parameters() if one.module not in READS)
        if self.config.tie_word_embeddings and self._head_in_blocks():
            numel += self.config.vocab_size * self.config.hidden_size  # a second head
        return numel * self.rollout_dtype.itemsize + packed

    def _head_in_blocks(self) -> bool:
        """Is the sampler's head stored in another order?"""
        if self.on_gpu or self.trains_head():
            return False
        import torch  # here: a plan is of a GPU, and answers without

        from grpo.sampler.linear import Blocks

        return Blocks.serves(torch.device("cpu"), self.rollout_dtype, self.config.vocab_size)

    def token_bytes(self) -> int:
        """Bytes of a token's keys and values in all layers of the sampler."""
        _, key, head = self.heads
        return self.config.num_hidden_layers * 2 * key * head * self.rollout_dtype.itemsize

    # -- an update -----------------------------------------------------------------------------------------------------

    def layer_token(self) -> int:
        """Bytes that autograd saves in one layer for the backward pass of one token."""
        number, (query, key, head) = self.dtype.itemsize, self.heads
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        saved = 8 * hidden + 8  # float32 inputs of both norms, and their scales
        saved += 2 * number * (query + key) * head + 4 * query  # query, key, value, attention's output; log-sum-exp
        saved += 3 * number * inner  # gate, silu(gate), up
        normed = 2 * hidden
        if self.norms_heads():
            saved += 4 * (query + key) * (head + 1)
            normed += (query + key) * head
        targets = self.targets() if self.run.use_peft else set(READS)
        inputs = {name: inputs for name, (_, inputs) in self.projections().items() if name in targets}
        # What trained projections read: one tensor for q, k, v, one for gate, up, and what o and down read.
        if self.run.use_peft and self.run.lora_dropout > 0:  # each branch has an input of its own, and a dropout mask
            read = sum(inputs.values()) * (number + (1 if self.on_gpu else number))
        else:
            read = number * sum({READS[name]: count for name, count in inputs.items()}.values())
        # LoRA saves what is between A and B; training everything saves the normed inputs.
        return saved + read + number * (self.run.lora_r * len(inputs) if self.run.use_peft else normed)

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
        """Bytes of the scored hidden states, and of what the log-prob kernel needs."""
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
        if not self.trains_head() and not exact:
            return 2 * number * rows + sums + 4 * hidden * FUSED_BLOCK + 2 * FUSED_TILE + hybrid
        words = max(2048, 2 * FUSED_TILE // max(num_tokens, 1))
        return number * rows + max(sums + hybrid, 4 * rows + (6 * num_tokens + 4 * hidden) * words)

    def update(self, num_tokens: int, *, checkpointing: bool) -> int:
        """Bytes that one micro-batch needs in addition to what is stored."""
        together = self.activations(num_tokens, checkpointing=checkpointing) + self.temporary(num_tokens)
        return together + self.head(num_tokens) + self.gathered()
