"""Random models and a byte-level tokenizer, small enough for any test; the weights are those of a fixed seed.

Weights are drawn ten times wider than at transformers' initialisation, biases and norms included, so that the logits
differ by several nats and a forgotten bias, norm or rotation shows.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.sampler.decoder import Decoder
from grpo.types import Batch

TEXT = [
    "Question: Tom has 12 apples and buys 30 more. How many apples has he now?",
    "Solution: Let's think step by step. 12 + 30 = 42.\n#### The final answer is 42",
    "Question: A train goes 60 miles in one hour. How far does it go in 4 hours?",
    "Solution: Let's think step by step. 60 * 4 = 240.\n#### The final answer is 240",
]
# Ends a turn with <end>, which is not the tokenizer's own end; opens and closes a thought where none is wanted.
CHAT_TEMPLATE = """\
{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<end>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'assistant: ' }}\
{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}"""
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
}


def tiny_qwen2(*, tied: bool = True, seed: int = 0, **config) -> Qwen2ForCausalLM:
    """A Qwen2 with grouped queries and query, key and value biases."""
    return _randomise(Qwen2ForCausalLM(Qwen2Config(**SHAPE | {"tie_word_embeddings": tied} | config)), seed)


def tiny_qwen3(*, tied: bool = False, seed: int = 0, **config) -> Qwen3ForCausalLM:
    """A Qwen3, whose head size is not hidden size / heads."""
    shape = SHAPE | {"head_dim": 32, "tie_word_embeddings": tied} | config
    return _randomise(Qwen3ForCausalLM(Qwen3Config(**shape)), seed)


def tiny_llama(*, tied: bool = False, seed: int = 0, **config) -> LlamaForCausalLM:
    """A Llama."""
    return _randomise(LlamaForCausalLM(LlamaConfig(**SHAPE | {"tie_word_embeddings": tied} | config)), seed)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 320 tokens; 0 is "<pad>", 1 is "<eos>", 2 is "<end>", all special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<pad>", "<eos>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=["<end>"]
    )


def one_text(token_L: torch.Tensor) -> Batch:
    """A packed batch of one text, of which every token but the first is scored."""
    length = len(token_L)
    index_L, zero_L = torch.arange(length), torch.zeros(length, dtype=torch.int64)
    return Batch(
        token_L=token_L, position_L=index_L, segment_L=zero_L + 1, parent_L=zero_L, source_K=index_L[:-1],
        target_K=token_L[1:], completion_K=zero_L[1:], place_K=index_L[:-1],
        mask_UT=torch.ones(1, length - 1, dtype=torch.bool))


def decoder_of(model: PreTrainedModel, lora: dict[str, tuple[torch.Tensor, torch.Tensor, float]] | None = None):
    """The decoder with a plain transformers model's weights."""
    config: PretrainedConfig = model.config
    return Decoder(config, dict(model.named_parameters()), lora or {})


def _randomise(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else 0.2 * noise)
    return model.eval()
