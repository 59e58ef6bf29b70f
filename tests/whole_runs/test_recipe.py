"""The Qwen2.5-0.5B recipe on real GSM8K with a small stand-in for the model, two ranks. About 30 seconds.

The stand-in is a random tied Qwen2 with a tokenizer trained on GSM8K text; everything else is the recipe: 8 shots, NF4,
bfloat16, LoRA plus a trained tied head, ZeRO-3. Skipped where GSM8K is not at hand (folder GSM8K_DIR).
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from faults import Warm
from peft import PeftModel
from ranks import ROOT
from safetensors.torch import load_file
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from data import load_examples
from grpo.loading.model import load_base, load_decoder

GSM8K = Path(os.environ.get("GSM8K_DIR", ROOT.parent / "shared" / "data" / "gsm8k"))
pytestmark = pytest.mark.skipif(not GSM8K.is_dir(), reason=f"no GSM8K at {GSM8K}; set GSM8K_DIR")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = [json.loads(line) for line in (GSM8K / "test.jsonl").read_text().splitlines()[:400]]
    (folder / "gsm8k").mkdir()
    for split in ("train", "test"):  # some of it: each rank makes tokens of all prompts, 1,000 a piece with the shots
        chosen = (GSM8K / f"{split}.jsonl").read_text().splitlines()[:60]
        (folder / "gsm8k" / f"{split}.jsonl").write_text("\n".join(chosen))
    texts = [row["question"] + "\n" + row["answer"] for row in rows]
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=1024)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # A random model earns nothing on arithmetic; this makes the weights move.
    (folder / "more.py").write_text("def spaces(completions, **_):\n    return [t.count(' ') / 9 for t in completions]")
    return folder


def train(warm: Warm, folder: Path, *options: str) -> Path:
    """Two steps of the recipe, a checkpoint after each."""
    ended = warm.run(
        "--config", "recipes/qwen2.5-0.5b-gsm8k.yaml", "--model_name_or_path", str(folder / "model"),
        "--train_dataset_id_or_path", str(folder / "gsm8k"), "--output_dir", str(folder / "run"), "--report_to", "none",
        "--reward_funcs", "format", "correctness", f"{folder / 'more.py'}:spaces", "--max_steps", "2", "--save_steps",
        "1", "--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "16",
        "--eval_examples", "2", *options)
    assert ended.codes == [0, 0], ended.err[0][-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def output(warm: Warm, folder: Path) -> Path:
    return train(warm, folder)


def test_the_recipe_trains_checkpoints_resumes_and_exports(warm: Warm, folder: Path, output: Path) -> None:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1]
    assert records[0]["kl"] == 0.0 and all(record["grad_norm"] > 0 for record in records)
    first_adapter = load_file(output / "adapter" / "adapter_model.safetensors")

    shutil.rmtree(output / "checkpoints" / "step-2")
    train(warm, folder, "--resume")  # from the checkpoint after the first step: the second once more
    again = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in again] == [0, 1]
    for name in ("loss", "kl", "grad_norm", "reward"):
        assert again[1][name] == pytest.approx(records[1][name], abs=1e-6), name
    adapter = load_file(output / "adapter" / "adapter_model.safetensors")
    assert adapter.keys() == first_adapter.keys()
    assert all(torch.equal(adapter[name], first_adapter[name]) for name in adapter)

    head, embedding = (
        adapter[f"base_model.model.{name}.weight"] for name in ("lm_head", "model.embed_tokens")
    )
    assert torch.equal(head, embedding) and head.abs().sum() > 0


def test_the_export_scores_in_plain_peft_as_in_our_decoder(folder: Path, output: Path) -> None:
    model, adapter = str(folder / "model"), str(output / "adapter")
    decoder, tokenizer, _ = load_decoder(
        model, adapter=adapter, load_in_4bit=True, dtype=torch.bfloat16, device=CPU
    )
    plain = PeftModel.from_pretrained(
        load_base(model, load_in_4bit=True, dtype=torch.bfloat16, device=CPU), adapter, autocast_adapter_dtype=False
    )
    example = load_examples(str(folder / "gsm8k"), "test", num_shots=8, seed=0)[0]
    tokens = torch.tensor([tokenizer.encode(example.prompt)])
    with torch.no_grad():
        expected = plain.train()(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
        found = decoder.logits(tokens)[0].log_softmax(-1)
        with plain.disable_adapter():
            base = plain(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
    assert len(tokens[0]) > 1000, "eight shots"
    assert (found - expected).abs().max() < 0.05, "bfloat16 rounding of logits only"
    assert (expected - base).abs().max() > 0.05, "the adapter says something"
