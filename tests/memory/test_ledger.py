"""The memory ledger against numbers by hand, and against what models, bitsandbytes and autograd store. 15 seconds.

What two ranks hold under ZeRO is check_the_ledger_agrees_with_what_ranks_hold in checks/sharding.py.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_llama, tiny_qwen2, tiny_qwen3

import kernels.gpu.autograd
from benchmarks.memory import peak_bytes
from grpo.config import Config
from grpo.loading.adapter import add_adapter
from grpo.loading.model import build_decoder, load_base
from grpo.memory import ledger as formulas
from grpo.memory.ledger import Ledger
from grpo.memory.plan import between_steps, ledger_of, of_a_row
from grpo.sampler.linear import Reordered
from grpo.trainer.engine import Engine
from grpo.trainer.policy import Policy
from grpo.types import Batch

CPU = torch.device("cpu")
ADAPTERS = {
    "adapter": {}, "ranks": {"rank_pattern": {"layers.1.self_attn.q_proj": 8, "down_proj": 3}},
    "one layer": {"layers_to_transform": [1]},
    "regex": {"target_modules": r".*layers\.[12].*(v_proj|up_proj)"},
    "tied head": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "own head": {"modules_to_save": ["lm_head"]}, "own embedding": {"modules_to_save": ["embed_tokens"]},
    "two": {"modules_to_save": ["lm_head", "embed_tokens"]}, "norms": {"modules_to_save": ["norm", "k_proj"]},
    "untied head": {"modules_to_save": ["lm_head"], "tied": False},
}
DEEP = {"num_hidden_layers": 3}
MIDDLE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, and an adapter."""
    folder = tmp_path_factory.mktemp("ledger")
    models = {
        "tied": tiny_qwen2(**DEEP), "untied": tiny_qwen2(tied=False, **DEEP), "qwen3": tiny_qwen3(),
        "llama": tiny_llama(), "middle": tiny_qwen2(**MIDDLE), "middle3": tiny_qwen3(**MIDDLE),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    for name, options in ADAPTERS.items():
        tied = options.get("tied", True)
        lora = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]} | {
            key: value for key, value in options.items() if key != "tied"})
        get_peft_model(tiny_qwen2(tied=tied, **DEEP), lora).save_pretrained(folder / name)
    return folder


def parts(folder: Path, model: str, **options):
    """A model as a run would make it, and its ledger on one rank of a CPU."""
    options = {"torch_dtype": "float32", "load_in_4bit": False, "lora_r": 4, "lora_alpha": 4} | options
    run = Config(model_name_or_path=str(folder / model), **options)
    dtype = getattr(torch, run.torch_dtype)
    base = load_base(run.model_name_or_path, load_in_4bit=run.load_in_4bit, dtype=dtype, device=CPU)
    if run.use_peft:
        add_adapter(base, run, dtype)
    else:
        base.requires_grad_(True)
    ledger = ledger_of(run, base.config, num_ranks=1, dtype=dtype, rollout_dtype=dtype, on_gpu=False)
    return base, ledger


def changed_to(ledger: Ledger, **changed) -> Ledger:
    """The same run with other ranks, types or options."""
    return Ledger(**{**vars(ledger), **changed})


def test_a_tiny_model_by_hand(folder: Path) -> None:
    _, ledger = parts(folder, "tied", load_in_4bit=True)
    # H 64, I 128, Q 64, K 32: weights of a layer 4096 (q, o) + 2048 (k, v) + 8192 (gate, up, down), twice and thrice:
    # 36,864 half bytes. In float32: 320 x 64 of the table, 64 of the last norm, and of each of 3 layers 128 of its
    # norms and 64 + 32 + 32 of biases.
    assert ledger.kept(ledger.base()) == 3 * 36_864 // 2 + 4 * (320 * 64 + 64 + 3 * 256) == 140_544
    # A byte for 64 weights, 4 for each seven modules' one second scale, 16 + 256 + 1 numbers of tables in each.
    assert ledger.scales() == 3 * (36_864 // 64 + 7 * 4 + 7 * 4 * 273) == 24_744
    # r 4 times inputs and outputs of the seven: 128 + 96 + 96 + 128 + 192 + 192 + 192 = 1024.
    assert ledger.num_trained() == 3 * 4 * 1024 == 12_288
    assert ledger.weights() == 140_544 + 24_744 + 4 * 12_288
    assert (ledger.gradients(), ledger.optimizer()) == (4 * 12_288, 8 * 12_288)  # a float32 weight is its own master
    two = changed_to(ledger, num_ranks=2)
    assert two.weights() == (140_544 + 4 * 12_288) // 2 + 24_744  # the scales stay whole
    assert (two.gradients(), two.optimizer()) == (2 * 12_288, 4 * 12_288)
    # 8 x 64 + 8, and in numbers of 4 bytes: 2 x 64, 3 x 64 + 2 x 32, 4 x 128, 7 x 4; 16 of log-sum-exp.
    assert ledger.layer_token() == 520 + 4 * (128 + 256 + 512 + 28) + 16 == 4_232
    assert ledger.activations(10, checkpointing=False) == 3 * 42_320
    assert ledger.activations(10, checkpointing=True) == 10 * 3 * 256 + 42_320


def test_each_zero_stage_shards_what_it_should(folder: Path) -> None:
    _, ledger = parts(folder, "tied", load_in_4bit=True, torch_dtype="bfloat16")
    found = {}
    for stage in range(4):
        run = Config(**{**vars(ledger.run), "zero_stage": stage})
        at = changed_to(ledger, run=run, num_ranks=4)
        found[stage] = (at.weights(), at.gradients() // 12_288, at.optimizer() // 12_288, at.gathered() > 0)
    whole, cut = found[0][0], found[3][0]
    assert found == {0: (whole, 4, 12, False), 1: (whole, 4, 3, False), 2: (whole, 1, 3, False), 3: (cut, 1, 3, True)}
    assert cut - ledger.scales() == (whole - ledger.scales()) / 4


@pytest.mark.parametrize(("model", "options"), [
    ("tied", {}), ("untied", {}), ("qwen3", {}), ("llama", {}),
    ("tied", {"load_in_4bit": True, "torch_dtype": "bfloat16"}), ("qwen3", {"load_in_4bit": True}),
    ("tied", {"lora_modules_to_save": ["lm_head"]}), ("untied", {"lora_modules_to_save": ["lm_head", "embed_tokens"]}),
    ("tied", {"adapter_name_or_path": "adapter", "load_in_4bit": True}), ("untied", {"use_peft": False}),
    ("tied", {"lora_target_modules": ["q_proj", "up_proj"], "lora_alpha": 8}),
    ("tied", {"lora_modules_to_save": ["norm", "v_proj"], "lora_target_modules": ["q_proj"]}),
    *(("tied", {"adapter_name_or_path": name}) for name in ADAPTERS if name != "untied head"),
    ("untied", {"adapter_name_or_path": "untied head"}),
    ("tied", {"adapter_name_or_path": "two", "load_in_4bit": True}),
], ids=str)
def test_weights_and_the_sampler_are_those_of_the_model_to_the_byte(folder: Path, model: str, options) -> None:
    if "adapter_name_or_path" in options:
        options = options | {"adapter_name_or_path": str(folder / options["adapter_name_or_path"])}
    base, ledger = parts(folder, model, **options)
    for form in ("lora", "merged", "nf4"):
        if form == "nf4" and not ledger.run.load_in_4bit or form == "merged" and not ledger.run.use_peft:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            run = Config(**{**vars(ledger.run), "rollout_weights": form})
            copied = changed_to(ledger, run=run, rollout_dtype=dtype)
            assert copied.rollout_copy() == build_decoder(base, form=form, dtype=dtype).nbytes(), (form, dtype)
    assert ledger.token_bytes() == build_decoder(base).token_bytes()
    policy = Policy(base, frozen_copy=not ledger.run.use_peft)
    assert ledger.num_trained() == sum(one.numel() for one in policy.parameters() if one.requires_grad)
    assert ledger.weights() == Engine.held_bytes(SimpleNamespace(policy=policy))


@pytest.mark.parametrize(("model", "options"), [
    ("tied", {}), ("untied", {}), ("untied", {"use_peft": False}), ("tied", {"use_peft": False}),
    ("tied", {"lora_modules_to_save": ["lm_head"]}), ("untied", {"lora_modules_to_save": ["lm_head"]}),
], ids=str)
def test_a_head_in_another_order_is_counted(folder: Path, model: str, options, monkeypatch) -> None:
    monkeypatch.setattr(Reordered, "FEWEST", 1)
    base, ledger = parts(folder, model, **options)
    decoder = build_decoder(base)
    assert decoder.head and ledger.rollout_copy() == decoder.nbytes()


def packed(num_tokens: int) -> Batch:
    """A prompt of a quarter of the tokens, and one completion."""
    prompt = num_tokens // 4
    token_L, second_L = torch.randint(3, 300, (num_tokens,)), (torch.arange(num_tokens) >= prompt).long()
    num_scored = num_tokens - prompt
    return Batch(
        token_L=token_L, position_L=torch.arange(num_tokens), segment_L=1 + second_L, parent_L=second_L,
        source_K=torch.arange(prompt - 1, num_tokens - 1), target_K=token_L[prompt:],
        completion_K=torch.zeros(num_scored, dtype=torch.long), place_K=torch.arange(num_scored),
        mask_UT=torch.ones(1, num_scored, dtype=torch.bool))


def saved_bytes(policy: Policy, batch: Batch) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, weights left out."""
    known, kept = {one.untyped_storage().data_ptr() for one in policy.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = policy(batch)
        del output
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("model", "options", "num_tokens"), [
    ("middle", {}, 512), ("middle", {"load_in_4bit": True}, 512), ("middle", {"lora_dropout": 0.1}, 512),
    ("middle", {"lora_target_modules": ["q_proj", "v_proj"]}, 512), ("middle3", {}, 512),
    ("middle", {"use_peft": False, "beta": 0.0}, 512), ("tied", {}, 64), ("llama", {}, 512),
], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_saves(folder: Path, model, options, num_tokens, dtype) -> None:
    base, ledger = parts(folder, model, torch_dtype=dtype, **options)
    found = saved_bytes(Policy(base).train(), packed(num_tokens))
    # Not of the layers: the head saves three quarters of the tokens, in float32 and in their own type.
    found -= num_tokens * 3 // 4 * base.config.hidden_size * (4 + ledger.dtype.itemsize)
    formula = ledger.activations(num_tokens, checkpointing=False)
    assert abs(found - formula) < 0.06 * formula, found / formula


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_needs_at_most_what_the_ledger_says_and_not_much_less(
    folder: Path, dtype: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.reference.TILE_ELEMENTS", 2**14)
    base, ledger = parts(folder, "middle", torch_dtype=dtype, load_in_4bit=True)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    policy, batch = Policy(base).train(), packed(512)
    peak = peak_bytes(lambda: policy(batch).logprob_K.sum().backward(), "cpu")
    peak -= ledger.num_trained() * ledger.dtype.itemsize  # gradients of what trains
    formula = ledger.update(512, checkpointing=checkpointing) - ledger.gathered()
    assert 0.78 * formula < peak <= formula, peak / formula


def test_the_tiles_are_those_of_the_kernel() -> None:
    assert (formulas.FUSED_BLOCK, formulas.FUSED_TILE) == (kernels.gpu.autograd.BLOCK, kernels.gpu.autograd.TILE)


def test_a_head_on_a_gpu_needs_what_the_kernel_says(folder: Path) -> None:
    # autograd.py says of 16,384 tokens and H 896: 80 MB saved and needed, with the hybrid 4 TILE more; it counts the
    # stash and one block's sums, not the hidden states themselves. All tokens' sums are counted here: 7.5 MB.
    big = ledger_of(Config(), tiny_qwen2(hidden_size=896, vocab_size=151936 // 100).config, num_ranks=1,
                    dtype=torch.bfloat16, rollout_dtype=torch.bfloat16, on_gpu=True)
    big.config.vocab_size = 151936
    needed = big.head(16_384) - 2 * 16_384 * 896 - 4 * 2**24
    assert 70e6 < needed < 90e6


def test_the_items_are_the_ledger(folder: Path) -> None:
    _, ledger = parts(folder, "tied", load_in_4bit=True)
    assert sum(item.num_bytes for item in between_steps(ledger)) == (
        ledger.weights() + ledger.gradients() + ledger.optimizer() + ledger.bucket() + ledger.rollout_copy())
    for on in (False, True):
        items = of_a_row(ledger, 50, checkpointing=on)
        assert sum(item.num_bytes for item in items) == ledger.update(50, checkpointing=on)
