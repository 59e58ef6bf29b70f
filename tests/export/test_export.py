"""What the export of an adapter, or of a whole model, is for plain transformers. 15 seconds."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from fault_runs import REWARD
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from refusals import refused, save_small_run, small_run
from safetensors.torch import load_file, save_file
from tiny_models import tiny_qwen2, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval as evaluation_script
import train
from grpo.export import __main__ as command
from grpo.export.comparison import logprobs
from grpo.options.export import parse

pytestmark = pytest.mark.usefixtures("one_pool", "generated")

BOTH = ["lm_head", "embed_tokens"]
TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]


def export(*argv: object) -> int:
    return command.run(*parse([str(word) for word in argv]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, each with a tokenizer, and `data.json`; "own head" says that it is tied, and holds a head of its own."""
    folder = tmp_path_factory.mktemp("export")
    save_small_run(folder)
    for name, model in {"tied": tiny_qwen2(), "untied": tiny_qwen2(tied=False), "own head": tiny_qwen2()}.items():
        model.generation_config.repetition_penalty, model.generation_config.do_sample = 1.1, True
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    head = 0.2 * torch.randn(320, 64, generator=torch.Generator().manual_seed(0))
    file = folder / "own head" / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    return folder


def save(path: Path, model: Path, **options: object) -> Path:
    """An adapter with random branches and moved whole modules, as peft makes and writes it."""
    generator = torch.Generator().manual_seed(1)
    lora = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(path)
    return path


def score(model: torch.nn.Module) -> torch.Tensor:
    return logprobs(model, TOKENS[:2], TOKENS[2:])


@pytest.mark.parametrize(("model", "options"), [
    ("tied", {}), ("untied", {"target_modules": "all-linear"}),
    ("tied", {"use_rslora": True, "rank_pattern": {"q_proj": 2}}), ("tied", {"modules_to_save": ["lm_head"]}),
    ("tied", {"modules_to_save": BOTH}), ("untied", {"modules_to_save": BOTH}),
    ("tied", {"modules_to_save": BOTH, "ensure_weight_tying": True}), ("own head", {}),
    ("own head", {"modules_to_save": ["embed_tokens"]}), ("tied", {"modules_to_save": ["norm"]}),
], ids=str)
def test_an_adapter_from_elsewhere_is_in_plain_transformers_what_it_was_in_peft(
    folder: Path, tmp_path: Path, model: str, options: dict
) -> None:
    adapter = save(tmp_path / "adapter", folder / model, **options)
    expected = score(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / model), adapter))
    assert export(adapter, "--torch_dtype", "float32", "--limit", "0") == 0
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter-export")
    assert (score(written) - expected).abs().max() < 1e-4
    assert (score(AutoModelForCausalLM.from_pretrained(folder / model)) - expected).abs().max() > 0.1
    equal = torch.equal(written.lm_head.weight, written.model.embed_tokens.weight)
    assert written.config.tie_word_embeddings == equal


@pytest.mark.parametrize(("model", "changed"), [
    ("tied", {}), ("untied", {"load_in_4bit": False, "lora_modules_to_save": BOTH}),
    ("own head", {"load_in_4bit": False, "use_peft": False}),
], ids=["NF4", "a trained head", "every weight"])
def test_the_end_of_a_run_is_exported_with_what_is_needed_to_serve_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, model: str,
    changed: dict,
) -> None:
    monkeypatch.chdir(folder)
    shared = {"model_name_or_path": f"./{model}", "output_dir": tmp_path / "out", "learning_rate": 0.01}
    own = {"eval_examples": 2, "test_dataset_id_or_path": folder / "data.json", **changed}
    (folder / "own.py").write_text(REWARD)
    own["reward_funcs"] = f"{folder / 'own.py'}:vowels"
    assert train.main(small_run(folder, **shared, **own)) == 0
    assert f"python -m grpo.export {tmp_path / 'out'}" in capsys.readouterr().out
    trained = tmp_path / "out" / ("model" if "use_peft" in changed else "adapter")
    assert export(tmp_path / "out", "--limit", "3") == 0
    said = capsys.readouterr().out
    # one row for each form; the first is what was trained, and the written weights are rounded to bfloat16
    rows = re.findall(r"^(.*?) {2,}(\S+ % \(.*?\)) +(\S+) +(\S+)$", said, flags=re.MULTILINE)
    names = ["trained weights"] if "use_peft" in changed else ["base and adapter"]
    assert [row[0] for row in rows] == (["NF4 and adapter"] if model == "tied" else []) + [*names, "this export"]
    gaps = [float(row[2]) for row in rows]
    assert gaps[0] == 0 and 0 < gaps[-1] < (1 if model == "tied" else 0.05)
    assert "repetition_penalty=1.1 of the base's generation_config.json is left out" in said
    written = tmp_path / "out" / "export"
    generation = json.loads((written / "generation_config.json").read_text())
    assert "repetition_penalty" not in generation and generation["eos_token_id"]
    prompt = "Question: 1 + 1?"
    tokenizers = [AutoTokenizer.from_pretrained(one) for one in (folder / model, written, trained)]
    assert len({tuple(tokenizer.encode(prompt)) for tokenizer in tokenizers}) == 1
    for one, library in ((written, "transformers"), (trained, "transformers" if "use_peft" in changed else "peft")):
        facts = ModelCard.load(one / "README.md").data.to_dict()
        assert (facts["base_model"], facts["library_name"]) == (model, library)
    assert all(path.stat().st_mode & 0o044 == 0o044 for one in (written, trained) for path in one.iterdir())
    if "use_peft" not in changed:
        where = json.loads((trained / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert where == str(folder / model)
    assert evaluation_script.main(["--model", str(written), "--data", str(folder / "data.json"), "--limit", "2",
                                   "--max_completion_length", "4"]) == 0


def test_a_run_without_held_out_problems_is_exported_and_the_reason_for_no_table_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train.main(small_run(folder, output_dir=tmp_path / "out")) == 0
    assert export(tmp_path / "out", "--limit", "2") == 0
    said = capsys.readouterr().out
    assert "not compared on problems: dataset=" in said and "has no split 'validation'" in said
    assert "strict accuracy" not in said
    assert export(tmp_path / "out", "--limit", "0", "--output", tmp_path / "again") == 0
    assert "not compared" not in capsys.readouterr().out
    for written in (tmp_path / "out" / "export", tmp_path / "again"):
        assert AutoModelForCausalLM.from_pretrained(written) and (written / "generation_config.json").exists()


def test_what_cannot_be_exported_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def line(*argv: object) -> str:
        with pytest.raises(ValueError) as error:
            parse([str(word) for word in argv])
        return str(error.value)

    adapter = save(tmp_path / "adapter", folder / "tied")
    assert "FOLDER is missing" in line()
    assert "must hold config.yaml with adapter/adapter_config.json or model/config.json" in line(tmp_path)
    assert line(adapter, "--outputs", "x") == "unknown option --outputs; nearest known one: --output"
    assert f"output='{adapter}' holds files, which are not written over" in line(adapter, "--output", adapter)
    (tmp_path / "adapter-export").mkdir()
    assert "exists and is not written over" in refused(lambda argv: export(*argv), [adapter], tmp_path, capsys)
    quantised = shutil.copytree(folder / "tied", tmp_path / "nf4")
    settings = json.loads((quantised / "config.json").read_text())
    nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
           "bnb_4bit_use_double_quant": True}
    (quantised / "config.json").write_text(json.dumps(settings | {"quantization_config": nf4}))
    packed = ["--output", tmp_path / "of nf4", "--model", quantised]
    assert refused(lambda argv: export(*argv), [adapter, *packed], tmp_path, capsys) == (
        f"error: model='{quantised}' is quantised, and an adapter is merged into the weights that this was made from; "
        "nearest valid value: --model with their folder or Hub name")
    gone = ["--output", tmp_path / "other", "--model", folder / "untied"]
    (adapter / "adapter_config.json").write_text("{}")
    assert "is not plain LoRA" in refused(lambda argv: export(*argv), [adapter, *gone], tmp_path, capsys)
