"""TRL's GRPO and ours on the same completions, rewards and weights: one loss, one gradient. 10 seconds.

The completions go through TRL's own `GRPOTrainer`: its advantages, its reference, its loss. Needs TRL, which the
project does not: `pip install --no-deps trl==1.16.0`.
"""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_qwen2, tiny_tokenizer

from grpo.advantage import group_advantages, reward_terms
from grpo.config import Config
from grpo.loss import kl_divergence, loss_denominator, policy_loss
from grpo.options.recipe import PROJECTIONS
from grpo.packing import pack
from grpo.trainer.policy import Policy
from grpo.types import Rollout

pytest.importorskip("trl", reason="TRL is not installed here, so there is nothing to compare with")

BETA, EPSILON, LONGEST, G, RANK = 0.04, 0.2, 12, 4, 4
REWARD = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 2.0, -1.0], [0.95, 0.95, 0.95, 0.95]])
LENGTHS = torch.tensor([9, 1, 4, 2, 7, 3, 5, 9, 1, 6, 2, 8])  # all shorter than LONGEST, which dr_grpo divides by
PROMPTS = [[50, 51, 52, 60, 61], [50, 51, 52, 70], [50, 51, 52, 80, 81, 82, 83]]
# TRL multiplies the KL by the ratio unless told otherwise, and that has the gradient of our k3_unbiased.
KL = {"k3": False, "k3_unbiased": True}


def lora() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    """Completions of other lengths than their neighbours, no end token among them."""
    token_NT = torch.randint(3, 320, (len(LENGTHS), int(LENGTHS.max())), generator=torch.Generator().manual_seed(1))
    token_NT = token_NT * (torch.arange(token_NT.shape[1]) < LENGTHS[:, None])
    return Rollout(
        prompt_ids=PROMPTS, token_NT=token_NT, length_N=LENGTHS, sampler_logprob_NT=torch.zeros(token_NT.shape),
        truncated_N=torch.zeros(len(LENGTHS), dtype=torch.bool), text=[""] * len(LENGTHS))


def perturb(model: torch.nn.Module) -> None:
    """Draw LoRA's weights, so that the policy is not its reference and every branch has a gradient."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted((public(name), p) for name, p in model.named_parameters() if "lora_" in name):
            scale = 0.05 if "lora_B" in name else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def public(name: str) -> str:
    return name.removeprefix("base_model.model.")


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {public(name): p.grad for name, p in model.named_parameters() if p.requires_grad}


def trl_step(rollout: Rollout, folder, *, loss_type: str = "dapo", kl_estimator: str = "k3", micro_batches: int = 1,
             rewards: torch.Tensor | None = None, **options) -> SimpleNamespace:
    """TRL's loss, LoRA gradients, advantages and KL, its trainer given our completions in place of sampling.

    `rewards` has a row for each of several functions, NaN for None.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    sampled = [token_T[:length].tolist() for token_T, length in zip(rollout.token_NT, rollout.length_N.tolist())]
    prompts = [f"{b}" for b in range(len(PROMPTS)) for _ in range(G)]

    def completions(prompts, trainer):
        return {"prompt_ids": [PROMPTS[int(p)] for p in prompts], "completion_ids": sampled, "logprobs": None}

    def of(value_N):
        def reward(completions, **columns):
            return [None if value != value else value for value in value_N.tolist()]
        return reward

    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=len(sampled) // micro_batches, gradient_accumulation_steps=micro_batches,
        num_generations=G, max_completion_length=LONGEST, beta=BETA, epsilon=EPSILON, loss_type=loss_type,
        use_bias_correction_kl=KL[kl_estimator], **options)
    functions = [of(value_N) for value_N in (REWARD.flatten()[None] if rewards is None else rewards)]
    trainer = GRPOTrainer(
        model=tiny_qwen2(), reward_funcs=functions, args=args, train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tiny_tokenizer(), peft_config=lora(), rollout_func=completions)
    model = trainer.model.train()
    perturb(model)
    trainer.current_gradient_accumulation_steps = micro_batches  # what its training loop sets
    inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])
    loss = 0.0
    for some_N in torch.arange(len(sampled)).chunk(micro_batches):
        part = {name: value[some_N] if value.dim() else value for name, value in inputs.items()
                if isinstance(value, torch.Tensor)}
        one = trainer.compute_loss(model, part)
        one.backward()
        loss += float(one.detach())
    kl = trainer._metrics["train"]["kl"]
    return SimpleNamespace(loss=loss, gradients=gradients(model), advantage_N=inputs["advantages"], kl=kl)


def our_step(rollout: Rollout, *, loss_type: str, kl_estimator: str) -> SimpleNamespace:
    """The same of ours, split over micro-batches."""
    model = tiny_qwen2()
    get_peft_model(model, lora())
    perturb(model)
    policy = Policy(model).train()
    advantage_N = group_advantages(REWARD).flatten()
    denominator = loss_denominator(
        loss_type, num_tokens=int(LENGTHS.sum()), num_sequences=len(LENGTHS), max_completion_length=LONGEST)
    batches = pack(rollout, torch.ones(len(LENGTHS), dtype=torch.bool), max_tokens=40)
    assert len(batches) > 1
    loss = kl = 0.0
    for batch in batches:
        reference_NT = batch.scatter(policy(batch, reference=True).logprob_K)
        logprob_NT = batch.scatter(policy(batch).logprob_K)
        kl_NT = kl_divergence(logprob_NT, reference_NT, estimator=kl_estimator)
        part = policy_loss(
            logprob_NT, None, advantage_N, batch.mask_UT, loss_type=loss_type, epsilon=EPSILON, epsilon_high=EPSILON,
            denominator=denominator, kl_NT=kl_NT, beta=BETA)
        part.backward()
        loss += float(part.detach())
        kl += float(kl_NT.detach()[batch.mask_UT].sum()) / int(LENGTHS.sum())
    return SimpleNamespace(loss=loss, gradients=gradients(model), advantage_N=advantage_N, kl=kl)


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of any LoRA gradient, relative to the largest entry of its matrix."""
    assert found.keys() == expected.keys() and len(found) == 3 * len(PROJECTIONS) * 2
    return max(float((found[name] - right).abs().max() / right.abs().max()) for name, right in expected.items())


@pytest.mark.parametrize("kl_estimator", KL)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_loss_and_lora_gradients_are_trls(rollout, tmp_path, loss_type, kl_estimator):
    theirs = trl_step(rollout, tmp_path, loss_type=loss_type, kl_estimator=kl_estimator)
    ours = our_step(rollout, loss_type=loss_type, kl_estimator=kl_estimator)
    assert torch.allclose(ours.advantage_N, theirs.advantage_N, atol=1e-4)
    assert ours.kl > 0.01 and ours.kl == pytest.approx(theirs.kl[0], rel=1e-4)
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-4)
    assert furthest(ours.gradients, theirs.gradients) < 1e-4


def test_the_other_kl_and_the_other_denominator_are_told_apart(rollout, tmp_path):
    """Without this the comparison above could be blind."""
    theirs = trl_step(rollout, tmp_path, loss_type="dapo", kl_estimator="k3")
    for other in ({"loss_type": "dapo", "kl_estimator": "k3_unbiased"}, {"loss_type": "grpo", "kl_estimator": "k3"}):
        assert furthest(our_step(rollout, **other).gradients, theirs.gradients) > 1e-3, other


def test_trls_accumulated_micro_batches_too(rollout, tmp_path):
    theirs = trl_step(rollout, tmp_path, loss_type="dapo", kl_estimator="k3", micro_batches=3)
    ours = our_step(rollout, loss_type="dapo", kl_estimator="k3")
    assert furthest(ours.gradients, theirs.gradients) < 1e-4


NAN = float("nan")
# By three functions: a group that two of them rank in opposite ways; one with None of some, of all, and of all but one;
# one in which two are equal for all. TRL adds rounding errors where an equal value has no exact mean: 0.5 has one.
SEVERAL = torch.tensor([
    [1.0, 0.0, 0.0, 1.0, 0.0, NAN, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5],
    [300.0, 20.0, 70.0, 30.0, NAN, NAN, 5.0, NAN, 0.0, 1.0, 0.0, 0.25],
    [0.25, 0.5, -1.0, 2.0, NAN, NAN, NAN, 3.0, 0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.1, 0.0], [2.0, -0.5, 3.0]])
def test_advantages_of_rewards_normalised_one_by_one_are_trls(rollout, tmp_path, weights):
    theirs = trl_step(rollout, tmp_path, rewards=SEVERAL, reward_weights=weights,
                      multi_objective_aggregation="normalize_then_sum").advantage_N
    scored_BG = ~SEVERAL.isnan().all(dim=0).view(-1, G)
    summed_BG = {way: reward_terms(SEVERAL.view(3, -1, G), torch.tensor(weights), scored_BG, aggregation=way).sum(dim=0)
                 for way in ("normalize_then_sum", "sum_then_normalize")}
    ours_BG = group_advantages(summed_BG["normalize_then_sum"], scale="batch")
    torch.testing.assert_close(ours_BG.flatten(), theirs, atol=1e-5, rtol=0)
    assert theirs.abs().max() > 1 and theirs[5] == 0.0
    other_BG = group_advantages(summed_BG["sum_then_normalize"], scale="batch")  # else the comparison could be blind
    assert (other_BG.flatten() - theirs).abs().max() > 0.1


def test_the_options_above_are_our_defaults():
    assert (Config.beta, Config.epsilon, Config.kl_estimator) == (BETA, EPSILON, "k3_unbiased")
