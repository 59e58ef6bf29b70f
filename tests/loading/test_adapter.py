"""Adapters that peft wrote: which kinds are taken, that they compute what peft computes, and their reference. 20 s."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_qwen2
from transformers import AutoModelForCausalLM

from grpo.config import Config
from grpo.doctor import at_rest, trial
from grpo.doctor.finding import Finding
from grpo.loading.adapter import PLAIN, STARTS, add_adapter, read_adapter, read_adapter_config
from grpo.loading.model import build_decoder
from grpo.run.parts import Run
from grpo.trainer.policy import REFERENCE, active_adapter

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
BRANCHES = ["q_proj", "v_proj", "down_proj"]

# What makes another kind of adapter of LoRA, and a value that does.
OTHER_KINDS = {
    "bias": "all", "use_dora": True, "lora_bias": True, "alora_invocation_tokens": [5, 6],
    "trainable_token_indices": [1], "layer_replication": [[0, 2], [1, 3]], "target_parameters": ["down_proj.weight"],
    "megatron_config": {"a": 1}, "megatron_core": "other", "use_qalora": True, "qalora_group_size": 8,
    "velora_config": {}, "kasa_config": {}, "monteclora_config": {}, "arrow_config": {}, "use_bdlora": {"nblocks": 2},
    "corda_config": {}, "lora_ga_config": {},
}
WITHOUT_EFFECT = {"runtime_config", "loftq_config"}  # peft takes the first from no file, the second for one start only


def save(folder: Path, model_path: str | None = None, **options: object) -> Path:
    """An adapter with random branches, as peft writes it, of a tiny model or of the one in a folder."""
    model = tiny_qwen2() if model_path is None else AutoModelForCausalLM.from_pretrained(model_path)
    options = {"r": 4, "target_modules": BRANCHES, "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def edit(folder: Path, **changed: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def test_every_field_of_peft_is_known_to_leave_an_adapter_plain_or_not() -> None:
    known = PLAIN | OTHER_KINDS.keys() | WITHOUT_EFFECT | {"init_lora_weights"}
    assert known == {field.name for field in fields(LoraConfig)}, "a newer peft: is the new field plain LoRA?"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain") / "adapter")


@pytest.mark.parametrize(("name", "value"), [
    *OTHER_KINDS.items(), ("a_field_of_a_newer_peft", [5]), ("init_lora_weights", "pissa"),
    ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora")])
def test_an_adapter_of_another_kind_is_refused_by_what_makes_it_one(plain, tmp_path, name, value) -> None:
    folder = shutil.copytree(plain, tmp_path / "other")
    edit(folder, **{name: value})
    with pytest.raises(ValueError, match=rf"adapter_name_or_path=.* is not plain LoRA: {name} is .*; nearest valid "):
        read_adapter_config(str(folder))


def test_a_kind_that_peft_derives_from_lora_is_refused(plain, tmp_path) -> None:
    folder = shutil.copytree(plain, tmp_path / "adalora")
    edit(folder, peft_type="ADALORA", total_step=10)
    with pytest.raises(ValueError, match="is not plain LoRA: peft_type is ADALORA"):
        read_adapter_config(str(folder))


def test_what_a_newer_peft_has_and_leaves_off_is_no_reason_to_refuse(plain, tmp_path) -> None:
    folder = shutil.copytree(plain, tmp_path / "newer")
    edit(folder, newer_flag=False, newer_config=None, newer_list=[], newer_pattern={})
    assert read_adapter_config(str(folder)).r == 4


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True, "lora_alpha": 6}, {"exclude_modules": ["v_proj"]}, {"layers_to_transform": [1]},
    {"layers_to_transform": [1], "layers_pattern": "layers"}, {"target_modules": ".*(q_proj|v_proj)"},
    {"target_modules": "all-linear"}, {"fan_in_fan_out": True}, {"alpha_pattern": {"down_proj": 16}},
    {"rank_pattern": {"down_proj": 6}}, {"rank_pattern": {"q_proj": 6}}, {"alpha_pattern": {"v_proj": 3}},
    {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
    {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    *({"init_lora_weights": start} for start in STARTS)], ids=str)
def test_a_plain_adapter_computes_in_trainer_and_sampler_what_it_computes_in_peft(options, tmp_path) -> None:
    path, base = str(save(tmp_path / "adapter", **options)), tiny_qwen2()
    expected = logits(PeftModel.from_pretrained(tiny_qwen2(), path))
    read_adapter(base, path, is_trainable=True)
    assert torch.equal(logits(base), expected)
    for form in ("lora", "merged"):
        assert (build_decoder(base, form=form).logits(TOKENS) - expected).abs().max() < 1e-4, form
    assert (logits(tiny_qwen2()) - expected).abs().max() > 0.1, "the adapter says something"


def test_the_reference_of_an_adapter_with_dropout_never_drops(tmp_path) -> None:
    path, model = str(save(tmp_path / "adapter", lora_dropout=0.5)), tiny_qwen2()
    add_adapter(model, Config(adapter_name_or_path=path, load_in_4bit=False), torch.float32)
    model.train()
    with active_adapter(model, REFERENCE):
        reference = logits(model)
        assert torch.equal(logits(model), reference)
    assert torch.equal(reference, logits(PeftModel.from_pretrained(tiny_qwen2(), path).eval()))
    assert not torch.equal(logits(model), logits(model)), "the policy drops"


def findings(begin, *options: str) -> dict[str, Finding]:
    """What the doctor says at rest and of one step."""
    small = ["--eval_examples", "4", "--prompts_per_step", "2", "--num_generations", "4", "--load_in_4bit", "false"]
    run: Run = begin(*small, "--zero_stage", "0", *options)
    return {one.check: one for one in (*at_rest.weights(run), *trial.first_step(run))}


def test_the_doctor_tells_that_the_kl_of_an_adapter_with_dropout_begins_above_0(begin, tmp_path) -> None:
    path = str(save(tmp_path / "adapter", Config().model_name_or_path, lora_dropout=0.05))
    out = ["--output_dir", str(tmp_path / "out")]
    found = findings(begin, "--adapter_name_or_path", path, *out)
    assert found["reference"].level == found["kl at step 0"].level == "warn"
    assert "so the KL begins above 0" in found["reference"].words
    assert found["reference"].cure == found["kl at step 0"].cure == "lora_dropout: 0 in its adapter_config.json"
    assert "are up to 0 nats apart" not in found["kl at step 0"].words
    fresh = findings(begin, "--lora_dropout", "0.05", *out)  # B is 0, so what A drops changes nothing yet
    assert fresh["reference"].level == fresh["kl at step 0"].level == fresh["sampler gap"].level == "ok"
    assert "are up to 0 nats apart" in fresh["kl at step 0"].words
