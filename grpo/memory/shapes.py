"""Names and shapes of a model's weights, and of what an adapter adds to them: from files' headers, without weights.

Names are public ones: "model.layers.0.self_attn.q_proj.weight", of a branch "….q_proj.lora_A.weight" [R, I] and
"….lora_B.weight" [O, R].
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from grpo.config import Config

if TYPE_CHECKING:  # `--plan` answers before anything imports it
    from transformers import PretrainedConfig

Shapes: TypeAlias = dict[str, tuple[int, ...]]
PLACES = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn") | dict.fromkeys(
    ("gate_proj", "up_proj", "down_proj"), "mlp")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Added(NamedTuple):
    """What trains next to a frozen base, and whether the policy's head is another tensor than its embedding."""

    shapes: Shapes
    own_head: bool

    def rank(self, layer: int, projection: str) -> int:
        """The rank of a projection's branch; 0 where it has none."""
        return self.shapes.get(f"{module(layer, projection)}.lora_A.weight", (0,))[0]

    def trains_head(self) -> bool:
        """Does it change the head?"""
        return (HEAD if self.own_head else EMBEDDING) in self.shapes


def module(layer: int, projection: str) -> str:
    """The full name of a projection."""
    return f"model.layers.{layer}.{PLACES[projection]}.{projection}"


def heads(config: "PretrainedConfig") -> tuple[int, int, int]:
    """Number of query heads, number of key/value heads, size of a head."""
    query, key = config.num_attention_heads, config.num_key_value_heads
    return query, key, getattr(config, "head_dim", None) or config.hidden_size // query


def projections(config: "PretrainedConfig") -> dict[str, tuple[int, int]]:
    """Numbers of outputs and inputs of a layer's seven linear modules."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key, head = heads(config)
    return {"q_proj": (query * head, hidden), "k_proj": (key * head, hidden), "v_proj": (key * head, hidden),
            "o_proj": (hidden, query * head), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
            "down_proj": (hidden, inner)}


def biased(config: "PretrainedConfig") -> set[str]:
    """The projections that have a bias."""
    if config.model_type == "qwen2":
        return {"q_proj", "k_proj", "v_proj"}  # in its code, not in its config
    setting = {"self_attn": "attention_bias", "mlp": "mlp_bias"}
    return {name for name, place in PLACES.items() if getattr(config, setting[place], False)}


def norms_heads(config: "PretrainedConfig") -> bool:
    """Does each head of query and key have a norm?"""
    return config.model_type == "qwen3"


def of_model(config: "PretrainedConfig") -> Shapes:
    """All weights and biases of a base; a tied one once."""
    hidden, table = config.hidden_size, (config.vocab_size, config.hidden_size)
    layer: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if norms_heads(config):
        layer |= {f"self_attn.{name}.weight": (heads(config)[2],) for name in ("q_norm", "k_norm")}
    shapes: Shapes = {EMBEDDING: table, "model.norm.weight": (hidden,)}
    shapes |= {} if config.tie_word_embeddings else {HEAD: table}
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        for name, sides in projections(config).items():
            shapes[f"{module(number, name)}.weight"] = sides
            if name in biased(config):
                shapes[f"{module(number, name)}.bias"] = sides[:1]
    return shapes


def of_fresh_adapter(run: Config, config: "PretrainedConfig") -> Added:
    """What `grpo.loading.adapter.add_adapter` adds without `adapter_name_or_path`."""
    branches: Shapes = {}
    for layer in range(config.num_hidden_layers):
        for name, (outputs, inputs) in projections(config).items():
            if name in run.lora_target_modules:
                branches[f"{module(layer, name)}.lora_A.weight"] = (run.lora_r, inputs)
                branches[f"{module(layer, name)}.lora_B.weight"] = (outputs, run.lora_r)
    return _with_whole(branches, config, run.lora_modules_to_save, ties=True)


def of_saved_adapter(path: str, modules_to_save: list[str], config: "PretrainedConfig", *, ties: bool) -> Added:
    """What an adapter's folder adds; `ties` is its `ensure_weight_tying`."""
    from safetensors import safe_open  # here, because a plan mostly does without

    with safe_open(Path(path) / "adapter_model.safetensors", framework="numpy") as file:
        branches = {name.removeprefix("base_model.model."): tuple(file.get_slice(name).get_shape())
                    for name in file.keys() if ".lora_" in name}
    return _with_whole(branches, config, modules_to_save, ties=ties)


def _with_whole(branches: Shapes, config: "PretrainedConfig", names: list[str], *, ties: bool) -> Added:
    """Branches, and copies of the modules that train whole. On a tied model embedding and head may become two."""
    table = (config.vocab_size, config.hidden_size)
    # As peft finds them: by the end of their full name.
    whole = {name: shape for name, shape in (of_model(config) | {HEAD: table}).items()
             if name.rpartition(".")[0].endswith(tuple(names))}
    apart = bool(whole.keys() & {EMBEDDING, HEAD})
    if config.tie_word_embeddings and ties and apart:
        whole, apart = whole | {EMBEDDING: table}, False
        whole.pop(HEAD, None)
    return Added(branches | whole, own_head=apart or not config.tie_word_embeddings)
