"""The sampler's model against transformers and peft on random models, cached against plain. About 15 s on a CPU."""

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from quick_interpreter import hasten
from tiny_models import decoder_of, tiny_llama, tiny_qwen2, tiny_qwen3
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, Qwen2Config

from grpo.loading.model import build_decoder
from grpo.sampler.decoder import Decoder
from grpo.sampler.linear import JoinedLinear, Reordered

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "qwen2 tied": lambda: tiny_qwen2(tied=True),
    "qwen2 untied": lambda: tiny_qwen2(tied=False),
    "qwen2 long rope": lambda: tiny_qwen2(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen3": tiny_qwen3,
    "qwen3 tied": lambda: tiny_qwen3(tied=True),
    "llama": tiny_llama,
    "llama with biases": lambda: tiny_llama(attention_bias=True, mlp_bias=True),
    "llama 3.1 rope": lambda: tiny_llama(rope_parameters=LLAMA3_ROPE),
}


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 320, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reference(model: torch.nn.Module, token_NL: torch.Tensor) -> torch.Tensor:
    return model(token_NL).logits.float()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name):
    model, token_NL = MODELS[name](), tokens(2, 200)
    torch.testing.assert_close(decoder_of(model).logits(token_NL), reference(model, token_NL), atol=1e-4, rtol=0)


def module_by_module(linear: JoinedLinear, x_XI: torch.Tensor) -> torch.Tensor:
    """The products that transformers computes: one for each module, with its weight as [O, I]."""
    biases = [None if linear.bias_Z is None else linear.bias_Z[outputs].clone() for outputs in linear.row.values()]
    weights = [linear.weight_IO[:, outputs].T.contiguous() for outputs in linear.row.values()]
    return torch.cat([F.linear(x_XI, weight_OI, bias_O) for weight_OI, bias_O in zip(weights, biases)], dim=-1)


@pytest.mark.parametrize("build", [tiny_qwen2, tiny_qwen3, tiny_llama])
def test_bfloat16_rounds_where_transformers_does_and_only_keeps_the_logits_finer(monkeypatch, build):
    """A CPU sums products of other shapes in another order: few round differently, but later layers spread it."""
    token_NL = tokens(2, 100)
    model = build()
    for parameter in model.parameters():  # not model.bfloat16(), which would also round the rotary frequencies
        parameter.data = parameter.data.bfloat16()
    truth = reference(copy.deepcopy(model).float(), token_NL)
    theirs, ours = reference(model, token_NL), decoder_of(model).logits(token_NL)
    error = (theirs - truth).abs().mean()
    assert (ours - truth).abs().mean() < error
    # At most 0.13 of the error on an AVX2 CPU. One rounding forgotten, in silu alone, is 0.5; in each norm it is 1.1.
    assert (ours - theirs).abs().mean() < 0.25 * error
    monkeypatch.setattr(JoinedLinear, "__call__", module_by_module)
    assert (decoder_of(model).logits(token_NL).bfloat16() == theirs).float().mean() > 0.999


def lora_model(build, form: str = "lora", **options) -> tuple[torch.nn.Module, Decoder]:
    """A peft model with random branches on all seven projections, and the decoder with the same."""
    model = build()
    weight = {name: tensor.clone() for name, tensor in model.named_parameters()}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **options))
    lora = {}
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            A_RI, B_OR = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            B_OR.normal_(std=0.2)
            lora[name] = (A_RI, B_OR, module.scaling["default"])
    return wrapped.eval(), Decoder(model.config, weight, lora, form=form)


@pytest.mark.parametrize("build", [tiny_qwen2, tiny_qwen3])
def test_lora_branches_equal_peft(build):
    model, decoder = lora_model(build)
    token_NL = tokens(2, 50)
    assert sum("lora_A" in name for name in decoder.tensors()) == 7 * 2
    torch.testing.assert_close(decoder.logits(token_NL), reference(model, token_NL), atol=1e-4, rtol=0)
    assert (decoder.logits(token_NL) - decoder_of(build()).logits(token_NL)).abs().max() > 0.1


def test_rank_stabilised_scaling_is_taken_from_the_module():
    model, decoder = lora_model(tiny_qwen2, use_rslora=True)
    torch.testing.assert_close(decoder.logits(tokens(1, 9)), reference(model, tokens(1, 9)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("build", "num_prefix", "fused"),
    [(build, num_prefix, False) for build in (tiny_qwen2, tiny_qwen3, tiny_llama) for num_prefix in (0, 1, 11)]
    + [(tiny_qwen2, 0, True), (tiny_qwen3, 11, True)])
def test_cached_logits_equal_plain_logits_while_rows_come_and_go(build, num_prefix, fused, monkeypatch):
    """Fused is how a GPU attends, here in Triton's interpreter, which is slow: 13 steps instead of 20."""
    if fused:
        hasten(monkeypatch)
    decoder = decoder_of(build(num_hidden_layers=2))
    prefix = tokens(num_prefix, seed=1).tolist()
    rests = [tokens(length, seed=length).tolist() for length in (6, 0, 13)]
    own_NT = tokens(6, 24, seed=2)
    plain = [decoder.logits(torch.tensor([prefix + rests[n // 2] + own_NT[n].tolist()]))[0] for n in range(6)]
    cache = decoder.new_cache(prefix_length=num_prefix, num_places=3, rest_room=13, num_slots=4, own_room=24)
    cache.fused, cache.num_clean = fused, 24 if fused else 0
    if prefix:
        decoder.read_prefix(cache, prefix)
    decoder.read_rests(cache, [0, 1, 2], rests)
    rows, said = [], [0] * 6  # row in each slot, own tokens each has said

    def seat(*new: int) -> None:
        cache.seat(torch.arange(len(rows), len(rows) + len(new)), torch.tensor([n // 2 for n in new]))
        rows.extend(new)

    def leave(slot: int) -> None:
        cache.move_slot(len(rows) - 1, slot)
        rows[slot] = rows[-1]
        rows.pop()

    events = {0: lambda: seat(0, 2, 5), 2: lambda: seat(1), 5: lambda: leave(1), 6: lambda: seat(4),
              9: lambda: leave(0), 10: lambda: leave(0), 11: lambda: seat(3)}
    for t in range(13 if fused else 20):
        events.get(t, lambda: None)()
        logits_MV = decoder.step(cache, torch.stack([own_NT[n, said[n]] for n in rows]))
        for n, logits_V in zip(rows, logits_MV):
            torch.testing.assert_close(logits_V, plain[n][num_prefix + len(rests[n // 2]) + said[n]], atol=1e-4, rtol=0)
            said[n] += 1
    assert said == ([9, 11, 5, 2, 4, 13] if fused else [9, 18, 5, 9, 4, 20])


def test_new_values_copied_into_its_tensors_make_it_the_new_model():
    old, new = lora_model(tiny_qwen2)[1], lora_model(lambda: tiny_qwen2(seed=1))[1]
    source = new.tensors()
    assert "model.layers.1.mlp.down_proj.lora_B.weight" in source and "model.layers.0.self_attn.q_proj.bias" in source
    assert old.tensors().keys() == source.keys()
    for name, tensor in old.tensors().items():
        tensor.copy_(source[name])
    assert torch.equal(old.logits(tokens(1, 20)), new.logits(tokens(1, 20)))


@pytest.mark.parametrize("tied", [True, False])
def test_large_frozen_weights_are_reordered_and_give_the_same_logits(tied):
    """The head has 4,096 x 64 elements, 2^18, and so have gate and up together."""
    model = tiny_qwen2(tied=tied, vocab_size=4096, intermediate_size=2048)
    weight, trained = dict(model.named_parameters()), {"model.layers.1.mlp.up_proj.weight"}
    decoder = Decoder(model.config, weight, {}, trained=trained)
    assert decoder.head and decoder.layers[0].gate_up.reordered
    assert decoder.layers[1].gate_up.reordered is None  # one of its two trains
    assert decoder.layers[0].down.reordered is None  # half as many
    names = decoder.tensors()
    assert trained <= set(names) and "model.layers.1.mlp.gate_proj.weight" in names
    assert "model.layers.0.mlp.up_proj.weight" not in names and "model.layers.0.self_attn.q_proj.bias" in names
    logits_NLV = decoder.logits(tokens(2, 20))
    torch.testing.assert_close(logits_NLV, reference(model, tokens(2, 20)), atol=1e-4, rtol=0)
    # A tied head is held a second time; all other weights once.
    again = weight["model.embed_tokens.weight"].nbytes if tied else 0
    assert decoder.nbytes() == sum(tensor.nbytes for tensor in weight.values()) + again


class _Rows(TorchDispatchMode):
    """The numbers of rows of all products with a weight."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if function in (aten.mm.default, aten.addmm.default, aten.bmm.default):
            self.seen.add(args[1 if function is aten.addmm.default else 0].shape[-2])
        return function(*args, **(kwargs or {}))


def test_products_have_few_numbers_of_rows_whatever_prompts_and_rows_there_are():
    """A prefix or rests of 1 to 40 tokens are read as 32 or 64, two rests as 64 or 128; 1 to 16 rows are 8 or 16."""
    model = tiny_qwen2(intermediate_size=512)
    decoder = Decoder(model.config, dict(model.named_parameters()), {}, trained=set())
    with _Rows() as rows:
        for length in (1, 7, 20, 32, 33, 40):
            cache = decoder.new_cache(prefix_length=length, num_places=2, rest_room=40, num_slots=16, own_room=2)
            decoder.read_prefix(cache, tokens(length).tolist())
            decoder.read_rests(cache, [0, 1], [tokens(length).tolist(), tokens(length // 2).tolist()])
        for num_rows in range(1, 17):
            assert len(decoder.step(cache, tokens(num_rows))) == num_rows
    assert rows.seen == {8, 16, 32, 64, 128}


@pytest.mark.parametrize("bias", [None, tokens(512).float()])
def test_the_bits_of_a_product_with_a_reordered_weight_do_not_depend_on_how_many_inputs_there_are(bias):
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_XI = torch.randn(512, 600, generator=generator), torch.randn(70, 600, generator=generator)
    weight = Reordered(weight_OI)
    whole_XO = weight.product(x_XI, bias)
    torch.testing.assert_close(whole_XO, F.linear(x_XI, weight_OI, bias), atol=1e-3, rtol=0)
    for number in (1, 2, 7, 8, 33, 64):
        assert torch.equal(weight.product(x_XI[5:5 + number], bias), whole_XO[5:5 + number])


@pytest.mark.parametrize(("tied", "name"), [(False, "lm_head.weight"), (True, "model.embed_tokens.weight")])
def test_a_trained_head_is_reordered_with_its_new_values(tied, name):
    model = tiny_qwen2(tied=tied, vocab_size=4096)
    weight = dict(model.named_parameters())
    decoder = Decoder(model.config, weight, {}, trained={name})
    assert decoder.head and decoder.nbytes() == sum(one.nbytes for one in weight.values()) + weight[name].nbytes
    with torch.no_grad():
        decoder.tensors()[name].mul_(-3)
        weight[name].mul_(-3)
    decoder.merge()
    torch.testing.assert_close(decoder.logits(tokens(1, 5)), reference(model, tokens(1, 5)), atol=1e-4, rtol=0)


def test_the_decoder_owns_copies():
    model = tiny_qwen2()
    decoder = Decoder(model.config, dict(model.named_parameters()), {}, trained=set())
    before = decoder.logits(tokens(1, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(decoder.logits(tokens(1, 5)), before)


def test_a_tied_model_keeps_no_second_head():
    assert "lm_head.weight" not in build_decoder(tiny_qwen2(tied=True)).tensors()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(), "model_type='gpt2' is not one of qwen2, qwen3, llama"),
        (Qwen2Config(use_sliding_window=True, max_window_layers=1), "use_sliding_window=True"),
        (Qwen2Config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}), "rope_type='yarn'"),
        (Qwen2Config(hidden_act="gelu"), "hidden_act='gelu'"),
    ],
)
def test_what_it_would_compute_wrong_is_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as error:
        Decoder(config, {}, {})
    assert "\n" not in str(error.value)


def test_lora_on_another_module_is_refused():
    branch = (torch.zeros(1, 64), torch.zeros(320, 1), 1.0)
    with pytest.raises(ValueError, match="lora_target_modules: 'lm_head' is not one of"):
        decoder_of(tiny_qwen2(tied=False), {"lm_head": branch})


@pytest.mark.parametrize("trained", [None, set()], ids=["A beside W", "A apart"])
def test_branches_of_some_modules_and_of_unequal_rank_are_kept_apart(trained):
    model = tiny_qwen2()
    wide = torch.full((4, 64), 0.1), torch.full((64, 4), 0.1), 2.0
    narrow = torch.ones(2, 64), torch.ones(32, 2), 2.0
    name = "model.layers.1.self_attn"
    weight = dict(model.named_parameters())
    both = Decoder(model.config, weight, {f"{name}.q_proj": wide, f"{name}.v_proj": narrow}, trained=trained)
    for module, (A_RI, B_OR, scaling) in (("q_proj", wide), ("v_proj", narrow)):
        weight[f"{name}.{module}.weight"] = weight[f"{name}.{module}.weight"] + scaling * B_OR @ A_RI
    plain = Decoder(model.config, weight, {})
    torch.testing.assert_close(both.logits(tokens(1, 20)), plain.logits(tokens(1, 20)), atol=1e-4, rtol=0)


def test_the_merged_form_follows_what_is_copied_in_once_it_is_merged():
    source = lora_model(lambda: tiny_qwen2(seed=1))[1]
    merged = lora_model(tiny_qwen2, form="merged")[1]
    assert (merged.logits(tokens(1, 20)) - source.logits(tokens(1, 20))).abs().max() > 0.1
    for name, tensor in merged.tensors().items():
        tensor.copy_(source.tensors()[name])
    merged.merge()
    torch.testing.assert_close(merged.logits(tokens(1, 20)), source.logits(tokens(1, 20)), atol=1e-4, rtol=0)


def test_a_copy_moves_whole():
    decoder = lora_model(tiny_qwen2, form="merged")[1]
    before = decoder.logits(tokens(1, 5))
    decoder.move("cpu")
    assert torch.equal(decoder.logits(tokens(1, 5)), before)
    decoder.move("meta")  # stands for a GPU here: whatever stayed behind would clash in the next forward
    assert decoder.logits(tokens(1, 5)).device.type == "meta"
