"""A model folder of a real Qwen2.5 shape with random weights, to measure time and memory without a download.

    python -m benchmarks.random_model --shape 0.5b --data openai/gsm8k --output_dir outputs/random-0.5b

Weights are drawn as transformers draws them. The tokenizer is Qwen2's byte-level BPE trained on the dataset's text, so
prompts have about as many tokens as with the real one; the head has the real number of rows all the same.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2Tokenizer,
)

from data import load_examples

SHAPES = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}
TOKENIZER_SIZE = 16_384


def train_tokenizer(data: str) -> PreTrainedTokenizerBase:
    """Qwen2's kind of tokenizer, trained on a dataset's training problems behind 8 examples."""
    examples = load_examples(data, "train", num_shots=8, seed=0)
    texts = [example.prompt + " " + example.answer for example in examples]
    return Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=TOKENIZER_SIZE)


def build(shape: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random model in bfloat16, on the GPU if there is one."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    return model.eval()


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description="Write a random model of a real shape.")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--data", default="wordproblems", help="dataset whose text the tokenizer is trained on")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.data)
    model = build(options.shape, tokenizer)
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    print(f"{options.output_dir}: {model.num_parameters():,} random parameters")


if __name__ == "__main__":
    main()
