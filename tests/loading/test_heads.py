"""Embeddings and heads of their own, on tied and untied models: in sampler, trainer and export as in peft. 20 s.

A published recipe trains `lm_head` and `embed_tokens` whole without tying them, on models whose two are one.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from refusals import refused, save_small_run, small_run
from safetensors.torch import load_file, save_file
from tiny_models import one_text, tiny_qwen2, tiny_tokenizer
from transformers import AutoModelForCausalLM

import train
from grpo.config import Config
from grpo.loading.adapter import add_adapter, read_adapter
from grpo.loading.model import build_decoder, load_base, load_decoder
from grpo.saving import checkpoint
from grpo.trainer.policy import Policy, trainable

pytestmark = pytest.mark.usefixtures("one_pool")

CPU = torch.device("cpu")
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
BOTH = ["lm_head", "embed_tokens"]
WHOLE = [
    {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}, {"modules_to_save": BOTH},
    {"modules_to_save": ["model.embed_tokens"], "target_modules": "all-linear"},
    {"modules_to_save": ["norm", "k_proj"]},
    {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    {"modules_to_save": BOTH, "ensure_weight_tying": True}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, each with a tokenizer, and `data.json`; "own head" says that it is tied, and holds a head of its own."""
    folder = tmp_path_factory.mktemp("heads")
    save_small_run(folder)
    models = {"tied": tiny_qwen2(), "untied": tiny_qwen2(tied=False), "own head": tiny_qwen2()}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    put(folder / "own head" / "model.safetensors", {"lm_head.weight": drawn(320, 64, scale=0.2)})
    return folder


def drawn(*shape: int, scale: float = 0.1) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def put(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors into a file of safetensors."""
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


def save(path: Path, model: Path, **options: object) -> str:
    """An adapter with random branches and moved whole modules, as peft makes and writes it."""
    options = copy.deepcopy(options)  # peft takes tied names out of the lists that it is given
    lora = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += drawn(*parameter.shape)
    wrapped.save_pretrained(path)
    return str(path)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def base(model: Path, *, load_in_4bit: bool = False) -> torch.nn.Module:
    return load_base(str(model), load_in_4bit=load_in_4bit, dtype=torch.float32, device=CPU)


def of_text(logits_1LV: torch.Tensor) -> torch.Tensor:
    """[K] log-probabilities of the text's tokens but the first."""
    return logits_1LV[0, :-1].log_softmax(-1).gather(-1, TOKENS[0, 1:, None])[:, 0]


@pytest.mark.parametrize(("model", "options", "load_in_4bit"), [
    *(("tied", options, False) for options in WHOLE), *(("untied", options, False) for options in WHOLE[::2]),
    *(("own head", options, False) for options in WHOLE[:5]), ("tied", WHOLE[2], True), ("untied", WHOLE[2], True),
], ids=str)
def test_what_is_trained_whole_is_in_sampler_trainer_and_reference_what_it_is_in_peft(
    folder, tmp_path, model, options, load_in_4bit
) -> None:
    path = save(tmp_path / "adapter", folder / model, **options)
    expected = logits(PeftModel.from_pretrained(base(folder / model, load_in_4bit=load_in_4bit), path))
    trained = base(folder / model, load_in_4bit=load_in_4bit)
    add_adapter(trained, Config(adapter_name_or_path=path, load_in_4bit=load_in_4bit), torch.float32)
    decoder, policy = build_decoder(trained), Policy(trained)
    assert (decoder.logits(TOKENS) - expected).abs().max() < 1e-4
    assert {name: one.shape for name, one in trainable(trained).items()}.items() <= {
        name: one.shape for name, one in decoder.tensors().items()}.items(), "each trained weight reaches the sampler"
    assert not any("modules_to_save" in name for name in decoder.plain), "the reference's weights do not"
    with torch.no_grad():
        for reference in (False, True):
            found_K = policy(one_text(TOKENS[0]), reference=reference).logprob_K
            assert (found_K - of_text(expected)).abs().max() < 1e-5
        for parameter in trainable(trained).values():
            parameter += 0.1
        found_K = policy(one_text(TOKENS[0]), reference=True).logprob_K
        assert (found_K - of_text(expected)).abs().max() < 1e-5, "the reference is a copy"
    assert (logits(base(folder / model)) - expected).abs().max() > 0.1, "the adapter says something"


@pytest.mark.parametrize("names", [["lm_head"], ["embed_tokens"], BOTH], ids=str)
@pytest.mark.parametrize(("model", "tied"), [("tied", True), ("own head", False)])
def test_what_is_tied_is_trained_as_one_weight(folder, model, tied, names) -> None:
    trained = base(folder / model)
    add_adapter(trained, Config(lora_modules_to_save=names, load_in_4bit=False), torch.float32)
    whole = {name for name in trainable(trained) if "lora_" not in name}
    assert len(whole) == (1 if tied else len(names))


def test_a_tied_model_whose_file_holds_another_head_keeps_it(folder, tmp_path) -> None:
    expected = logits(AutoModelForCausalLM.from_pretrained(folder / "own head"))
    assert (logits(AutoModelForCausalLM.from_pretrained(folder / "tied")) - expected).abs().max() > 0.1
    for load_in_4bit in (False, True):
        decoder, *_ = load_decoder(
            str(folder / "own head"), adapter=None, load_in_4bit=load_in_4bit, dtype=torch.float32, device=CPU)
        model = base(folder / "own head", load_in_4bit=load_in_4bit)
        assert (decoder.logits(TOKENS) - logits(model)).abs().max() < 1e-4
        assert load_in_4bit or torch.equal(logits(model), expected)
        assert not decoder.config.tie_word_embeddings, "the ledger counts both"


def test_an_adapter_that_would_tie_a_head_of_its_own_is_refused(folder, tmp_path) -> None:
    path = save(tmp_path / "adapter", folder / "own head", modules_to_save=["lm_head"], ensure_weight_tying=True)
    with pytest.raises(ValueError, match="base_model.model.lm_head.weight has no place in this model"):
        read_adapter(base(folder / "own head"), path, is_trainable=False)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_a_branch_on_a_head_or_an_embedding_is_refused(folder, tmp_path, name) -> None:
    path = save(tmp_path / "adapter", folder / "untied", target_modules=["q_proj", name])
    with pytest.raises(ValueError, match=f"has a branch on .*{name}, which is none of q_proj, k_proj"):
        read_adapter(base(folder / "untied"), path, is_trainable=False)


def test_a_head_of_zeros_answers_with_zeros(folder, tmp_path) -> None:
    path = Path(save(tmp_path / "adapter", folder / "tied", modules_to_save=["lm_head"]))
    put(path / "adapter_model.safetensors", {"base_model.model.lm_head.weight": torch.zeros(320, 64)})
    decoder, *_ = load_decoder(
        str(folder / "tied"), adapter=str(path), load_in_4bit=False, dtype=torch.float32, device=CPU)
    assert (decoder.logits(TOKENS) == 0).all()


@pytest.mark.parametrize("options", [{"modules_to_save": BOTH}, {"modules_to_save": ["embed_tokens"]},
                                     {"modules_to_save": BOTH, "ensure_weight_tying": True}], ids=str)
def test_an_export_is_in_plain_peft_what_it_was_here(folder, tmp_path, begin, options) -> None:
    path = save(tmp_path / "adapter", folder / "tied", **options)
    run = begin(*small_run(folder, model_name_or_path=folder / "tied", adapter_name_or_path=path, load_in_4bit=False,
                           output_dir=tmp_path / "out"))
    exported = checkpoint.export(run.engine, tmp_path / "exported", run.peft_config)
    found, expected = (logits(PeftModel.from_pretrained(base(folder / "tied"), str(one))) for one in (exported, path))
    assert torch.equal(found, expected)


def test_a_full_fine_tune_exports_a_head_of_its_own(folder, tmp_path, begin) -> None:
    run = begin(*small_run(folder, model_name_or_path=folder / "own head", use_peft=False, load_in_4bit=False,
                           output_dir=tmp_path / "out"))
    exported = checkpoint.export(run.engine, tmp_path / "exported", None)
    assert json.loads((exported / "config.json").read_text())["tie_word_embeddings"] is False
    found, expected = (logits(AutoModelForCausalLM.from_pretrained(one)) for one in (exported, folder / "own head"))
    assert torch.equal(found, expected)


def test_a_tensor_that_peft_would_put_into_the_base_is_refused(folder, tmp_path, capsys) -> None:
    path = Path(save(tmp_path / "adapter", folder / "tied"))
    held = load_file(folder / "tied" / "model.safetensors")
    name = "base_model.model.model.embed_tokens.weight"
    changed = {"model_name_or_path": folder / "tied", "adapter_name_or_path": path, "output_dir": tmp_path / "out"}
    put(path / "adapter_model.safetensors", {name: held["model.embed_tokens.weight"] + 0.5})
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert f"{name} has no place in this model, or is in neither target_modules nor modules_to_save" in line
    own = held["model.embed_tokens.weight"]
    put(path / "adapter_model.safetensors", {name: own})  # as save_embedding_layers does
    add_adapter(base(folder / "tied"), Config(adapter_name_or_path=str(path), load_in_4bit=False), torch.float32)
    put(path / "adapter_model.safetensors", {"base_model.model.lm_head.weight": own})  # its other name
    add_adapter(base(folder / "tied"), Config(adapter_name_or_path=str(path), load_in_4bit=False), torch.float32)


@pytest.mark.parametrize("name", ["k_proj", "model.layers.7.input_layernorm"])
def test_what_cannot_be_trained_whole_is_refused(folder, tmp_path, capsys, name) -> None:
    changed = {"lora_modules_to_save": name, "output_dir": tmp_path / "out"}  # packed in 4 bits; in no layer
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert f"lora_modules_to_save='{name}' is no module that can be trained whole" in line
    path = save(tmp_path / "adapter", folder / "tied", modules_to_save=["k_proj"])
    changed = {"model_name_or_path": folder / "tied", "adapter_name_or_path": path, "output_dir": tmp_path / "out"}
    line = refused(train.main, small_run(folder, **changed), tmp_path, capsys)
    assert "modules_to_save='k_proj' is no module that can be trained whole" in line
