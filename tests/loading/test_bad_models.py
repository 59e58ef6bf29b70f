"""Model, tokenizer and adapter folders that must be refused, each one edit away from a good one. 10 seconds.

The libraries would draw a missing tensor at random, pass over a module that is not there, or fail somewhere inside.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from refusals import refused, save_small_run, small_run
from safetensors.torch import load_file, save_file
from tiny_models import tiny_qwen2
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import eval as evaluation_command
import train
from grpo.loading.model import load_base

pytestmark = pytest.mark.usefixtures("one_pool")

Edit = Callable[[Path], object]
UP = "model.layers.0.mlp.up_proj.weight"
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
       "bnb_4bit_use_double_quant": True}
QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4}, "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8"}, "compressed-tensors": {"quant_method": "compressed-tensors"},
    "bitsandbytes in 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    # what it is where a config does not say
    "bitsandbytes in fp4": {name: value for name, value in NF4.items() if name != "bnb_4bit_quant_type"},
    "bitsandbytes in nf4 without double quantisation": {
        name: value for name, value in NF4.items() if name != "bnb_4bit_use_double_quant"},
    "bitsandbytes in nf4, apart from ['up_proj']": NF4 | {"llm_int8_skip_modules": ["lm_head", "up_proj"]},
}
PLAIN = {"load_in_4bit": "false"}  # beside it the same in 4 bits, which loads by another way


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_small_run(folder)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_qwen2(num_hidden_layers=1), lora).save_pretrained(folder / "adapter")
    return folder


def content(name: str, text: str | bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def without(*names: str) -> Edit:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, num_bytes: int) -> Edit:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - num_bytes)


def settings(name: str, **changed: object) -> Edit:
    """A JSON file with some values changed; ... takes a key out."""
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changed
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    return edit


def config(**changed: object) -> Edit:
    return settings("config.json", **changed)


def adapter_config(**changed: object) -> Edit:
    return settings("adapter_config.json", **changed)


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """A safetensors file after a change of what it holds."""
    def edit(folder: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
        change(held)
        save_file(held, folder / file, metadata={"format": "pt"})
    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    return tensors("model.safetensors", change)


def branches(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    return tensors("adapter_model.safetensors", change)


def first(held: dict[str, torch.Tensor], value: float) -> None:
    """One value of one tensor is another."""
    held[min(held)].view(-1)[0] = value


def index(*shards: str) -> Edit:
    """Weights in shards of which none exists."""
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        listed = {"metadata": {}, "weight_map": {"model.norm.weight": shard for shard in shards}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    return edit


def quantised(**settings: object) -> Edit:
    """A config that says so, and no weights: it is refused before they are looked for."""
    return lambda folder: (config(quantization_config=settings)(folder), (folder / "model.safetensors").unlink())


def rope(**parameters: object) -> Edit:
    return config(rope_parameters={"rope_theta": 1e4, **parameters})


# edit of the model folder, words of the line, options
MODELS = {
    "config is cut off": (content("config.json", "{"), ["is no model", "not a valid JSON"]),
    "config is empty": (content("config.json", ""), ["is no model", "not a valid JSON"]),
    "config is a list": (content("config.json", "[]"), ["is no model", "model_type"]),
    "config is not UTF-8": (content("config.json", b"\xff\xfe"), ["is no model", "not a valid JSON"]),
    "no model type": (config(model_type=...), ["is no model", "model_type"]),
    "unknown model type": (config(model_type="qwen9"), ["is no model", "`qwen9`"]),
    "model type is a number": (config(model_type=3), ["is no model"]),
    "another architecture": (config(model_type="bert"), ["model_type='bert'", "qwen2, qwen3, llama"]),
    "an encoder and decoder": (config(model_type="t5"), ["model_type='t5'", "qwen2, qwen3, llama"]),
    "layers are text": (config(num_hidden_layers="one"), ["is no model", "'num_hidden_layers' expected int"]),
    "one layer too many": (config(num_hidden_layers=2, layer_types=...), ["model.layers.1.", "is not in its files"]),
    "no heads": (config(num_attention_heads=0), ["cannot be loaded", "ZeroDivisionError"]),
    "negative size": (config(hidden_size=-64), ["cannot be loaded", "negative dimension"]),
    "wider than its files": (config(hidden_size=128), ["model.embed_tokens.weight has another shape"]),
    "more key heads than its files": (config(num_key_value_heads=4), ["k_proj.", "has another shape"]),
    "vocabulary below its files'": (config(vocab_size=100), ["model.embed_tokens.weight has another shape"]),
    "head not in its files": (config(tie_word_embeddings=False), ["lm_head.weight is not in its files"]),
    "unknown type of weights": (config(dtype="float99"), ["is no model", "float99"]),
    "no context": (config(max_position_embeddings=0), ["max_completion_length=8", "context is 0"]),
    **{f"quantised, {words}": (quantised(**settings), [f"is quantised by {words}, which is not implemented"])
       for words, settings in QUANTISED.items()},
    "quantised by its older name": (
        lambda folder: (config(compression_config={"quant_method": "compressed-tensors"})(folder),
                        (folder / "model.safetensors").unlink()), ["is quantised by compressed-tensors"]),
    "NF4 that is called plain": (quantised(**NF4), ["load_in_4bit=False is not true of", "nearest valid value: True"],
                                 PLAIN),
    "a bias that the config does not tell of": (
        weights(lambda held: held.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(64)})),
        ["does not go with its config.json, by which model.layers.0.self_attn.o_proj.bias has no place"]),
    "scales that the config does not tell of": (
        weights(lambda held: held.update({f"{UP}_scale_inv": torch.ones(1)})), [f"{UP}_scale_inv has no place"]),
    "sliding window": (config(use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention"]),
                       ["use_sliding_window=True is not implemented"]),
    "yarn": (rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=2048), ["rope_type='yarn'"]),
    "dynamic rope": (rope(rope_type="dynamic", factor=2.0), ["rope_type='dynamic' is not implemented"]),
    "unknown rope": (rope(rope_type="helix"), ["rope_type='helix' is not implemented"]),
    "llama3 rope without its numbers": (rope(rope_type="llama3"), ["is no model", "factor"]),
    "another activation": (config(hidden_act="gelu"), ["hidden_act='gelu' is not implemented"]),
    "no weights": (without("model.safetensors"), ["cannot be loaded", "no file named model.safetensors"]),
    "weights are empty": (content("model.safetensors", b""), ["cannot be loaded", "SafetensorError"]),
    "weights are noise": (content("model.safetensors", b"\xff" * 99), ["cannot be loaded", "SafetensorError"]),
    "weights are cut off": (cut("model.safetensors", 64), ["cannot be loaded", "SafetensorError"]),
    "a shard is missing": (index("model-1.safetensors"), ["cannot be loaded", "model-1.safetensors"]),
    "the index is cut off": (lambda folder: (without("model.safetensors")(folder),
                                             content("model.safetensors.index.json", "{")(folder)),
                             ["cannot be loaded", "JSONDecodeError"]),
    "a matrix is missing": (weights(lambda held: held.pop(UP)), [f"{UP} is not in its files"]),
    "a matrix is missing, plain": (weights(lambda held: held.pop(UP)), [f"{UP} is not in its files"], PLAIN),
    "a matrix has another shape": (weights(lambda held: held.update({UP: torch.ones(32, 64)})), [f"{UP} has another"]),
    "a norm is missing": (weights(lambda held: held.pop("model.norm.weight")), ["model.norm.weight is not in"]),
    "a matrix is NaN": (weights(lambda held: held[UP].fill_(torch.nan)), [f"holds {UP}", "nan", "finite"]),
    "one NaN, plain": (weights(lambda held: first(held, torch.nan)), ["holds model.", "nan", "finite"], PLAIN),
    "one infinity": (weights(lambda held: first(held, torch.inf)), ["holds model.embed_tokens.weight", "inf"]),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), ["tokenizer_name_or_path", "no vocabulary"]),
    "tokenizer is cut off": (content("tokenizer.json", "{"), ["tokenizer_name_or_path", "JSONDecodeError"]),
    "tokenizer is a list": (content("tokenizer.json", "[]"), ["tokenizer_name_or_path", "cannot be loaded"]),
    "tokenizer's settings are a list": (content("tokenizer_config.json", "[]"), ["tokenizer_name_or_path"]),
    "end is text": (content("generation_config.json", '{"eos_token_id": "x"}'), ["eos_token_id='x'", "below"]),
    "end is no token": (content("generation_config.json", '{"eos_token_id": [1, -1]}'), ["eos_token_id=-1"]),
}
ADAPTERS = {
    "no weights": (without("adapter_model.safetensors"), ["no adapter_model.safetensors"]),
    "weights are cut off": (cut("adapter_model.safetensors", 64), ["cannot be loaded", "SafetensorError"]),
    "config is cut off": (content("adapter_config.json", "{"), ["is no adapter", "JSONDecodeError"]),
    "config is a list": (content("adapter_config.json", "[]"), ["is no adapter"]),
    "config is empty": (content("adapter_config.json", "{}"), ["is not plain LoRA", "peft_type is None"]),
    "unknown kind": (adapter_config(peft_type="MAGIC"), ["is no adapter", "MAGIC"]),
    "another kind": (adapter_config(peft_type="IA3"), ["is not plain LoRA", "peft_type is IA3"]),
    "aLoRA": (adapter_config(alora_invocation_tokens=[5]), ["is not plain LoRA", "alora_invocation_tokens is [5]"]),
    "PiSSA": (adapter_config(init_lora_weights="pissa"), ["is not plain LoRA: init_lora_weights is 'pissa'"]),
    "another task": (adapter_config(task_type="SEQ_CLS"), ["CAUSAL_LM"]),
    "no modules": (adapter_config(target_modules=None), ["LoRA of target_modules"]),
    "unknown modules": (adapter_config(target_modules=["gate"]), ["not for this model", "{'gate'}"]),
    "embeddings": (adapter_config(target_modules=["embed_tokens"]), ["has a branch on", "embed_tokens"]),
    "another rank": (adapter_config(r=4), ["not for this model", "size mismatch"]),
    "rank is text": (adapter_config(r="2"), ["not for this model", "TypeError"]),
    "a module saved that is not there": (adapter_config(modules_to_save=["haed"]), ["modules_to_save='haed'"]),
    "a head saved that is not there": (adapter_config(modules_to_save=["lm_head"]), ["not for this model", "lm_head"]),
    "a branch is missing": (branches(lambda held: held.pop(QUERY)), [f"{QUERY} is missing"]),
    "all branches are missing": (branches(lambda held: held.clear()), [f"{QUERY} is missing"]),
    "a branch too many": (branches(lambda held: held.update({QUERY.replace("q_", "k_"): torch.ones(2, 64)})),
                          ["k_proj.lora_A.weight has no place"]),
    "one NaN": (branches(lambda held: first(held, torch.nan)), ["holds base_model.", "nan", "finite"]),
    "one infinity": (branches(lambda held: first(held, torch.inf)), ["holds base_model.", "inf", "finite"]),
    "whole numbers": (branches(lambda held: held.update({QUERY: held[QUERY].int()})), [f"holds {QUERY}"]),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS.keys())
def test_a_broken_model_folder_is_one_line(folder, tmp_path, capsys, case) -> None:
    edit, words, *options = case
    model = shutil.copytree(folder / "model", tmp_path / "broken")
    edit(model)
    changed = {"model_name_or_path": model, "output_dir": tmp_path / "out", **(options[0] if options else {})}
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("case", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_a_broken_adapter_folder_is_one_line(folder, tmp_path, capsys, case) -> None:
    edit, words = case
    adapter = shutil.copytree(folder / "adapter", tmp_path / "broken")
    edit(adapter)
    changed = {"adapter_name_or_path": adapter, "output_dir": tmp_path / "out"}
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert "adapter_name_or_path=" in line or "modules_to_save=" in line
    assert all(word in line for word in words), line


def test_another_kind_of_adapter_is_refused_before_the_weights_of_its_model_load(folder, tmp_path, capsys) -> None:
    model, adapter = (shutil.copytree(folder / name, tmp_path / name) for name in ("model", "adapter"))
    adapter_config(init_lora_weights="pissa")(adapter)
    without("model.safetensors")(model)
    changed = {"model_name_or_path": model, "adapter_name_or_path": adapter, "output_dir": tmp_path / "out"}
    data = ["--data", str(folder / "data.json"), "--split", "train"]
    for command, argv in ((train.main, small_run(folder, **changed)),
                          (evaluation_command.main, ["--model", str(model), "--adapter", str(adapter), *data])):
        assert "is not plain LoRA: init_lora_weights" in refused(command, argv, tmp_path, capsys)


def test_files_that_hold_nf4_are_what_this_project_makes_of_the_model(folder, tmp_path, capsys) -> None:
    ours = load_base(str(folder / "model"), load_in_4bit=True, dtype=torch.bfloat16, device=torch.device("cpu"))
    # As published: for products in float16, in bytes.
    kind = BitsAndBytesConfig(**{name: value for name, value in NF4.items() if name != "quant_method"},
                              bnb_4bit_compute_dtype=torch.float16)
    AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.bfloat16, quantization_config=kind, device_map={"": "cpu"},
    ).save_pretrained(tmp_path / "packed")
    packed = load_base(str(tmp_path / "packed"), load_in_4bit=True, dtype=torch.bfloat16, device=torch.device("cpu"))
    for (name, one), other in zip(ours.named_parameters(), packed.parameters(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name
    token_NL = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(ours(token_NL).logits, packed(token_NL).logits)
    data = ["--data", str(folder / "data.json"), "--split", "train"]
    line = refused(evaluation_command.main, ["--model", str(tmp_path / "packed"), *data], tmp_path, capsys)
    assert "load_in_4bit=False is not true of" in line and line.endswith("nearest valid value: True")


def test_the_evaluation_refuses_them_as_well(folder, tmp_path, capsys) -> None:
    model, adapter = (shutil.copytree(folder / name, tmp_path / name) for name in ("model", "adapter"))
    content("model.safetensors", b"")(model)
    branches(lambda held: first(held, torch.nan))(adapter)
    data = ["--data", str(folder / "data.json"), "--split", "train", "--output", str(tmp_path / "out")]
    for argv, words in ((["--model", str(model)], "SafetensorError"),
                        (["--model", str(folder / "model"), "--adapter", str(adapter)], "holds base_model.")):
        assert words in refused(evaluation_command.main, [*argv, *data], tmp_path, capsys)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder, tmp_path, capsys) -> None:
    tiny_qwen2(num_hidden_layers=1, vocab_size=256).save_pretrained(tmp_path / "small")
    changed = {"model_name_or_path": tmp_path / "small", "tokenizer_name_or_path": folder / "model"}
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert "has 320 tokens, but the model's vocab_size is 256" in line


def test_options_that_the_model_does_not_go_with_are_one_line(folder, capsys) -> None:
    for changed, words in (
        ({"lora_r": 65}, ["lora_r=65", "nearest valid value: 64"]),
        ({"lora_modules_to_save": ["embed_tokns"]}, ["lora_modules_to_save='embed_tokns'", "embed_tokens"]),
        ({"lora_modules_to_save": ["q_proj"]}, ["lora_modules_to_save='q_proj'", "trained whole"]),
        ({"deepspeed": "{zero_optimization: {nonsense: 1}}"}, ["zero_optimization.nonsense: Extra inputs"]),
        ({"deepspeed": "{zero_optimization: {reduce_bucket_size: -1}}"}, ["reduce_bucket_size", "greater than 0"]),
        ({"deepspeed": "{zero_optimization: {leaf_module: 3}}"}, ["deepspeed={'zero_", "leaf_module configuration"]),
        ({"zero_stage": 3, "deepspeed": "{zero_optimization: {offload_param: {device: nvme}}}"},
         ["deepspeed={'zero_", '"nvme_path" in DeepSpeed Config cannot be None', "nearest valid value: without it"]),
        ({"model_name_or_path": "no/such"}, ["model_name_or_path='no/such' is no model"]),
        ({"model_name_or_path": "a b c"}, ["model_name_or_path='a b c' is no model"]),
        ({"tokenizer_name_or_path": "no/such"}, ["tokenizer_name_or_path='no/such' cannot be loaded"]),
    ):
        line = refused(train.main, small_run(folder, **changed), folder, capsys)
        assert all(word in line for word in words), line
