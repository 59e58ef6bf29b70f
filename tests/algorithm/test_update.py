"""An update on one rank with a table for a policy: its iterations, weights, means and denominator by hand. 4 s."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from grpo import update
from grpo.config import Config
from grpo.report import measures
from grpo.report.metrics import METRICS
from grpo.trainer.out_of_memory import TokenLimit
from grpo.trainer.policy import PolicyOutput
from grpo.types import Batch, Rollout
from grpo.update import Update, ask_reference, choose_tokens, coefficients_of, move, only_learning, prepare, state_after


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    for module in (measures, update):
        monkeypatch.setattr(module, "global_max", lambda values: values)
    monkeypatch.setattr(measures, "global_sum", lambda values: values)
    monkeypatch.setattr(update, "gather_objects", lambda value: [value])
    monkeypatch.setattr(update, "rank", lambda: 0)
    monkeypatch.setattr(update, "world_size", lambda: 1)


class TableEngine:
    """Stands for the engine: the policy is a table of log-probabilities, and a step raises all of them by 0.05.

    The first step reports a gradient of norm 1, the second one of norm 2, and so on.
    """

    can_discard = True

    def __init__(self, logprob_UT):
        self.logprob_UT = logprob_UT.requires_grad_()
        self.grads = []

    def __call__(self, batch, **options):
        logprob_K = self.logprob_UT[batch.completion_K, batch.place_K]
        return PolicyOutput(logprob_K, entropy_K=torch.zeros_like(logprob_K))

    def backward(self, loss, last):
        loss.backward()

    def step(self, learning_rate):
        self.grads.append(self.logprob_UT.grad)
        self.logprob_UT = (self.logprob_UT.detach() + 0.05).requires_grad_()
        return float(len(self.grads))


def packed(completions, mask_UT):
    """A packed batch of both tokens of these completions; what only a real engine reads is None."""
    unused = dict.fromkeys(("token_L", "position_L", "segment_L", "parent_L", "source_K", "target_K"))
    completion_K, place_K = torch.cartesian_prod(torch.tensor(completions), torch.arange(2)).T
    counted_U1 = torch.isin(torch.arange(2), torch.tensor(completions))[:, None]
    return Batch(**unused, completion_K=completion_K, place_K=place_K, mask_UT=mask_UT & counted_U1)


def work_of(split):
    """Two completions with advantages 1 and -1 in these packed batches; the last of four tokens does not count."""
    mask_UT = torch.tensor([[True, True], [True, False]])
    return Update(
        micro_batches=[packed(completions, mask_UT) for completions in split], advantage_U=torch.tensor([1.0, -1.0]),
        sampler_logprob_UT=torch.tensor([[0.5, 0.3], [0.4, math.nan]]).log(), denominator=3, num_tokens=3,
        **dict.fromkeys(("rollout", "keep_U", "limit")),  # for packing
    )


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
@pytest.mark.parametrize(("correction", "weight", "logged"), [
    ("truncated", [[0.5, 2.0], [1.0, 0.0]], {"correction_weight_mean": 3.5 / 3, "correction_capped_share": 1 / 3}),
    ("masked", [[0.5, 0.0], [1.0, 0.0]], {"correction_weight_mean": 0.5, "correction_capped_share": 1 / 3}),
    ("none", [[1.0, 1.0], [1.0, 0.0]], {}),
])
def test_an_update_weighs_both_iterations_by_the_policy_that_sampled(correction, weight, logged, split):
    # trainer / sampler: 0.25 / 0.5 = 0.5, 0.9 / 0.3 = 3, 0.4 / 0.4 = 1; the last token does not count. Advantages 1, -1
    # over 3 tokens: gradient -weight A / 3, in the second iteration times the ratio exp(0.05), inside the clip.
    engine, work = TableEngine(torch.tensor([[0.25, 0.9], [0.4, 0.5]]).log()), work_of(split)
    metrics = move(engine, work, Config(rollout_correction=correction, num_iterations=2, beta=0.0), 1.0)
    expected_UT = -torch.tensor(weight) * torch.tensor([[1.0], [-1.0]]) / 3
    torch.testing.assert_close(engine.grads, [expected_UT, expected_UT * math.exp(0.05)])
    assert {name: metrics[name] for name in metrics if name.startswith("correction")} == pytest.approx(logged)
    assert [name for name in metrics if name not in METRICS] == []


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
def test_all_iterations_compare_with_the_policy_of_the_first_and_are_measured_by_their_mean(split):
    # Ratios 1, exp(0.05) and exp(0.1), clipped at 1.06: in the third iteration, for the two tokens of advantage 1.
    engine = TableEngine(torch.tensor([[0.25, 0.9], [0.4, 0.5]]).log())
    metrics = move(engine, work_of(split), Config(num_iterations=3, beta=0.0, epsilon=0.06), 1.0)
    first_UT = torch.tensor([[-1.0, -1.0], [1.0, 0.0]]) / 3
    third_UT = torch.tensor([[0.0, 0.0], [1.0, 0.0]]) / 3
    torch.testing.assert_close(engine.grads, [first_UT, first_UT * math.exp(0.05), third_UT * math.exp(0.1)])
    loss = [-1 / 3, -math.exp(0.05) / 3, -(2 * 1.06 - math.exp(0.1)) / 3]
    expected = {"grad_norm": (1 + 2 + 3) / 3, "loss": sum(loss) / 3, "clip_share_high": (0 + 0 + 2) / 9,
                "clip_share_low": 0.0, "ratio_max": math.exp(0.1)}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
def test_the_share_of_the_kl_s_pull_is_of_the_weights_of_both_gradients(split):
    # d of three tokens is 0.1, -0.3 and 0.2, and k2 is d^2 / 2: with beta 0.5 the KL weighs 0.3, and the advantages 3.
    logprob_UT = torch.tensor([[0.25, 0.9], [0.4, 0.5]]).log()
    work = work_of(split)
    work.ref_logprob_UT = logprob_UT - torch.tensor([[0.1, -0.3], [0.2, math.nan]])
    found = [move(TableEngine(logprob_UT.clone()), work, Config(kl_estimator="k2", beta=beta), 1.0)["kl_pull_share"]
             for beta in (0.5, 0.0)]
    assert found[0] == pytest.approx(0.3 / 3.3, abs=1e-5) and math.isnan(found[1])
    work.coefficients = {"beta": 5.0}  # where it moves
    again = move(TableEngine(logprob_UT.clone()), work, Config(kl_estimator="k2", beta=0.5), 1.0)["kl_pull_share"]
    assert again == pytest.approx(3 / 6, abs=1e-5)


def prepared(scored, **options):
    """The update of four completions of 2, 3, 4 and 1 tokens, of which the second and the last were cut."""
    rollout = Rollout(
        prompt_ids=[[5, 6], [5, 7]], token_NT=torch.full((4, 4), 9), length_N=torch.tensor([2, 3, 4, 1]),
        sampler_logprob_NT=torch.zeros(4, 4), truncated_N=torch.tensor([False, True, False, True]), text=[""] * 4)
    limit = TokenLimit(100, needed=lambda num_tokens: 0, device=torch.device("cpu"))
    return prepare(rollout, torch.ones(4), torch.tensor(scored), Config(max_completion_length=8, **options), limit)


@pytest.mark.parametrize(("loss_type", "denominator"), [("dapo", 2 + 4), ("grpo", 4), ("dr_grpo", 4 * 8)])
def test_a_masked_completion_is_a_sequence_without_tokens(loss_type, denominator):
    work = prepared([True] * 4, loss_type=loss_type, mask_truncated_completions=True)
    assert (work.denominator, work.num_tokens) == (denominator, 6)
    assert sum(batch.mask_UT for batch in work.micro_batches).sum(1).tolist() == [2, 0, 4, 0]


@pytest.mark.parametrize(("loss_type", "denominator"), [("dapo", 3 + 4 + 1), ("grpo", 4), ("dr_grpo", 4 * 8)])
def test_an_unscored_completion_is_a_sequence_without_tokens(loss_type, denominator):
    # The same four, of which the first has no reward. That the second and the last were cut does not matter here.
    work = prepared([False, True, True, True], loss_type=loss_type)
    assert (work.denominator, work.num_tokens) == (denominator, 8)
    assert sum(batch.mask_UT for batch in work.micro_batches).sum(1).tolist() == [0, 3, 4, 1]
    assert work.evidence()[0]["keep_N"].tolist() == [False, True, True, True]


def test_a_completion_that_is_truncated_or_unscored_is_masked_and_none_may_be_left():
    work = prepared([False, True, True, True], mask_truncated_completions=True)
    assert work.keep_U.tolist() == [False, False, True, False] and work.num_tokens == work.denominator == 4
    nothing = prepared([False] * 4)
    assert (nothing.num_tokens, nothing.denominator) == (0, 1) and not nothing.micro_batches[0].mask_UT.any()


@pytest.mark.parametrize("kl_estimator", ["k2", "k3_unbiased"])
def test_a_completion_that_is_masked_gets_no_gradient_from_the_kl_either(kl_estimator):
    # ref is 0.1 nats below the policy everywhere: without an advantage the gradient is that of the KL, beta * 0.1 / 2
    # tokens, for the two tokens that count.
    engine, work = TableEngine(torch.zeros(2, 2)), work_of([[0, 1]])
    work.micro_batches[0].mask_UT[:] = torch.tensor([[True, True], [False, False]])
    work.advantage_U, work.denominator, work.num_tokens = torch.zeros(2), 2, 2
    work.ref_logprob_UT = torch.full((2, 2), -0.1)
    move(engine, work, Config(beta=0.5, kl_estimator=kl_estimator), 1.0)
    torch.testing.assert_close(engine.grads[0], torch.tensor([[0.025, 0.025], [0.0, 0.0]]))


def test_a_filler_that_is_not_finite_reaches_no_token_that_counts_and_no_metric():
    # A filler runs a token of completion 0, which counts in another batch. Both iterations as without it: -A / 3 times
    # the ratio, and of the KL, 0.05 nats in the second, beta * 0.05 / 3.
    class BrokenFiller(TableEngine):
        def __call__(self, batch, **options):
            output = super().__call__(batch)
            return output if batch.mask_UT.any() else output._replace(logprob_K=output.logprob_K + math.nan)

    table_UT = torch.tensor([[0.25, 0.9], [0.4, 0.5]]).log()
    engine, work, config = BrokenFiller(table_UT), work_of([[0, 1]]), Config(num_iterations=2, beta=0.6)
    mask_UT = work.micro_batches[0].mask_UT
    work.micro_batches.append(replace(work.micro_batches[0], mask_UT=torch.zeros_like(mask_UT)))
    with torch.no_grad():
        ask_reference(engine, work, config)
    assert work.ref_logprob_UT.equal(torch.where(mask_UT, table_UT, 0.0))
    metrics = move(engine, work, config, 1.0)
    first_UT = torch.tensor([[-1.0, -1.0], [1.0, 0.0]]) / 3
    torch.testing.assert_close(engine.grads, [first_UT, first_UT * math.exp(0.05) + 0.01 * mask_UT])
    assert all(map(math.isfinite, metrics.values()))


class EntropyEngine(TableEngine):
    """The same with entropies of tokens, which a step lowers by half."""

    def __init__(self, logprob_UT, entropy_UT):
        super().__init__(logprob_UT)
        self.entropy_UT, self.entropy_grads = entropy_UT.requires_grad_(), []

    def __call__(self, batch, **options):
        assert options["entropy"]
        return super().__call__(batch)._replace(entropy_K=self.entropy_UT[batch.completion_K, batch.place_K])

    def step(self, learning_rate):
        self.entropy_grads.append(self.entropy_UT.grad)
        self.entropy_UT = (self.entropy_UT.detach() / 2).requires_grad_()
        return super().step(learning_rate)


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_the_entropy_bonus_is_of_all_tokens_whatever_the_loss_type_and_in_every_iteration(loss_type, split):
    # 0.3 times the mean of 3 tokens: each entropy has the gradient -0.1. Means 2 and 1 in the two iterations.
    engine = EntropyEngine(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 9.0]]))
    work = work_of(split)
    work.advantage_U = torch.zeros(2)
    metrics = move(engine, work, Config(entropy_coef=0.3, num_iterations=2, beta=0.0, loss_type=loss_type), 1.0)
    torch.testing.assert_close(engine.entropy_grads, [torch.tensor([[-0.1, -0.1], [-0.1, 0.0]])] * 2)
    assert metrics["loss"] == pytest.approx(-0.3 * (2 + 1) / 2) and metrics["entropy"] == pytest.approx(2.0)


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
def test_only_tokens_of_high_entropy_learn_and_the_threshold_is_the_same_however_the_batch_is_split(split):
    # Entropies 1, 2, 3 and one that does not count: the 0.5 quantile is 2, in both splits. Divided by 3 tokens all the
    # same; the entropy bonus is a mean over the two that learn; the KL's gradient, beta * 0.1 / 3, is of all three.
    engine = EntropyEngine(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 9.0]]))
    work = work_of(split)
    work.rollout, work.keep_U = SimpleNamespace(length_N=torch.tensor([2, 1])), torch.tensor([True, True])
    work.limit = SimpleNamespace(device="cpu")
    work.ref_logprob_UT = torch.full((2, 2), -0.1)
    choose_tokens(engine, work, 0.5)
    config = Config(top_entropy_quantile=0.5, entropy_coef=0.3, beta=0.6, kl_estimator="k2", num_iterations=2)
    move(engine, work, config, 1.0)
    kl = 0.6 * 0.1 / 3
    torch.testing.assert_close(engine.grads[0], torch.tensor([[kl, -1 / 3 + kl], [1 / 3 + kl, 0.0]]))
    torch.testing.assert_close(engine.entropy_grads, [torch.tensor([[0.0, -0.15], [-0.15, 0.0]])] * 2)
    # In the second iteration, where all have moved alike, the same tokens learn.
    assert (engine.grads[1] - kl * 1.5).abs()[0, 0] < 1e-6


def test_a_token_that_learns_keeps_the_weight_of_its_correction():
    learns_UT, weight_UT = torch.tensor([[True, False]]), torch.tensor([[0.5, 2.0]])
    assert only_learning(weight_UT, learns_UT).tolist() == [[0.5, 0.0]]
    assert only_learning(None, learns_UT).tolist() == [[1.0, 0.0]] and only_learning(weight_UT, None) is weight_UT


def test_the_threshold_is_over_the_tokens_of_all_ranks_that_count(monkeypatch):
    # This rank has entropies 1 and 2, the other one 3, and 9 of a completion that is left out: the 0.5 quantile is 2.
    other_UT = torch.tensor([[0.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
    monkeypatch.setattr(update, "gather_objects", lambda value: [value, other_UT])
    mask_UT = torch.tensor([[True, True], [True, False], [False, False]])
    work = work_of([])
    work.micro_batches, work.sampler_logprob_UT = [packed([0], mask_UT[:2])], torch.zeros(3, 2)
    work.micro_batches = [replace(work.micro_batches[0], mask_UT=mask_UT & torch.tensor([[True], [False], [False]]))]
    work.rollout = SimpleNamespace(length_N=torch.tensor([2, 1, 1]))
    work.keep_U, work.limit = torch.tensor([True, True, False]), SimpleNamespace(device="cpu")
    choose_tokens(EntropyEngine(torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [7.0, 7.0], [7.0, 7.0]])), work, 0.5)
    assert work.learns_UT.tolist() == [[False, True], [True, False], [False, False]]


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
@pytest.mark.parametrize(("correction", "cap", "floor", "weight", "share"), [
    # trainer / sampler 0.5 * 3 = 1.5 of two tokens, over the cap 1.25 or below 2; 0.4 / 0.4 = 1 of one token
    ("sequence_truncated", 1.25, 0.0, [1.25, 1.25], 2 / 3), ("sequence_truncated", 2.0, 0.0, [1.5, 1.5], 0.0),
    ("truncated", 4.0, 0.75, [0.75, 3.0], 1 / 3), ("masked", 4.0, 0.75, [0.0, 3.0], 1 / 3),
])
def test_both_bounds_of_a_weight_act_and_the_share_that_met_one_is_told(correction, cap, floor, weight, share, split):
    engine, work = TableEngine(torch.tensor([[0.25, 0.9], [0.4, 0.5]]).log()), work_of(split)
    config = Config(rollout_correction=correction, rollout_correction_cap=cap, rollout_correction_floor=floor, beta=0.0)
    metrics = move(engine, work, config, 1.0)
    torch.testing.assert_close(engine.grads[0], torch.tensor([[-weight[0], -weight[1]], [1.0, 0.0]]) / 3)
    assert metrics["correction_weight_mean"] == pytest.approx((sum(weight) + 1) / 3)
    assert metrics["correction_capped_share"] == pytest.approx(share)


def test_a_clip_of_completions_is_counted_by_their_ratios():
    # Log-ratios 0.15 and -0.05, mean 0.05, above the clip at log 1.04: both tokens of the good completion.
    class Uneven(TableEngine):
        def step(self, learning_rate):
            norm = super().step(learning_rate)
            self.logprob_UT = (self.logprob_UT.detach() + torch.tensor([0.1, -0.1])).requires_grad_()
            return norm

    options = dict(num_iterations=2, beta=0.0, epsilon=0.04)
    for level, counted in (("sequence", 2), ("token", 1)):
        config = Config(importance_sampling_level=level, **options)
        metrics = move(Uneven(torch.zeros(2, 2)), work_of([[0, 1]]), config, 1.0)
        assert metrics["clip_share_high"] == pytest.approx(counted / 3 / 2), level


@pytest.mark.parametrize("split", [[[0, 1]], [[0], [1]]], ids=["one packed batch", "two"])
@pytest.mark.parametrize(("options", "grad", "high"), [
    # Second iteration, ratio r = exp(0.05) everywhere; A = 1 and -1.
    # sequence: a ratio of completions, clipped at 1.04 for the good one; as grpo: / tokens / 2 completions
    (dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.04),
     [[0, 0], [0.5 * math.exp(0.05), 0]], 2),
    # cispo: weights min(r, 1.02)
    (dict(loss_type="cispo", epsilon=0.02, epsilon_high=1.02), [[-0.34, -0.34], [0.34, 0]], 2),
    # geo_mean: log-ratios 0.05, clipped at 0.04 for the good one
    (dict(loss_type="geo_mean", epsilon=0.04), [[0, 0], [0.5 * math.exp(0.05), 0]], 2),
    (dict(loss_type="dapo", epsilon=0.01, delta=1.02), [[0, 0], [0, 0]], 2),
], ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_options_of_the_loss_reach_the_second_iteration_and_its_clip_shares(options, grad, high, split):
    engine, work = TableEngine(torch.zeros(2, 2)), work_of(split)
    work.denominator = 2 if options["loss_type"] in ("grpo", "geo_mean") else 3
    metrics = move(engine, work, Config(num_iterations=2, beta=0.0, **options), 1.0)
    torch.testing.assert_close(engine.grads[1], torch.tensor(grad, dtype=torch.float32))
    assert metrics["clip_share_high"] == pytest.approx(high / 3 / 2)


def test_beta_and_the_entropy_bonus_of_a_step_follow_from_the_one_before():
    config = Config(target_kl=0.1, kl_horizon=2560.0, beta=0.5, use_adaptive_entropy=True, entropy_coef=0.3,
                    entropy_target=1.5, entropy_coef_delta=0.1)  # 16 * 8 completions a step: 5 % of the horizon
    assert coefficients_of(config, {}) == {"beta": 0.5, "entropy_coef": 0.0}  # nothing is known of the entropy yet
    state = state_after(config, {}, kl=0.3, entropy=1.4)
    assert state == pytest.approx({"beta": 0.5 * 1.01, "entropy": 1.4, "entropy_coef": 0.4})
    assert coefficients_of(config, json.loads(json.dumps(state))) == {
        "beta": state["beta"], "entropy_coef": state["entropy_coef"]}  # as a checkpoint gives it back
    state = state_after(config, state, kl=0.3, entropy=1.6)
    assert state == pytest.approx({"beta": 0.5 * 1.01**2, "entropy": 1.6, "entropy_coef": 0.3})
    assert coefficients_of(config, state)["entropy_coef"] == 0.0
    assert coefficients_of(Config(), state) == state_after(Config(), state, kl=0.3, entropy=1.0) == {}


def test_coefficients_of_a_step_take_the_place_of_the_options():
    # The KL's gradient beta * 0.1 / 3 with beta 0.5, and the bonus 0.3 / 3, in place of 9 and 0.
    engine, work = EntropyEngine(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 9.0]])), work_of([[0, 1]])
    work.advantage_U, work.ref_logprob_UT = torch.zeros(2), torch.full((2, 2), -0.1)
    work.coefficients = {"beta": 0.5, "entropy_coef": 0.3}
    move(engine, work, Config(beta=9.0, kl_estimator="k2"), 1.0)
    torch.testing.assert_close(engine.grads[0], torch.tensor([[0.05, 0.05], [0.05, 0.0]]) / 3)
    torch.testing.assert_close(engine.entropy_grads[0], -torch.tensor([[0.1, 0.1], [0.1, 0.0]]))


def test_what_an_attempt_has_measured_is_forgotten_each_time_that_memory_ends() -> None:
    tally = measures.Tally(torch.zeros(1), torch.zeros(1, 1), epsilon=0.2, epsilon_high=0.2, num_iterations=1)
    tally._add("kl", torch.tensor(1.0))
    before = tally.copy()
    for _ in range(3):  # of one copy, as `retry` has it
        tally.restore(before)
        tally._add("kl", torch.tensor(2.0))
        tally._raise("ratio_max", torch.tensor(5.0))
    assert float(tally.sums["kl"]) == 3.0
    tally.restore(before)
    assert float(tally.sums["kl"]) == 1.0 and tally.maxima == {}


def test_a_mean_over_no_token_is_not_a_number_and_moves_no_coefficient() -> None:
    tally = measures.Tally(torch.zeros(1), torch.zeros(1, 1), epsilon=0.2, epsilon_high=0.2, num_iterations=1)
    clips = ("clip_share_low", "clip_share_high")
    for name in ("advantage_mass", "kl", "kl_distance", "entropy", "loss", "surrogate", *clips):
        tally._add(name, torch.tensor(0.0))
    found = tally.metrics(0, beta=0.1)
    assert math.isnan(found["kl"]) and math.isnan(found["entropy"]) and found["loss"] == found["clip_share_low"] == 0
    moving = Config(beta=0.1, target_kl=0.05, use_adaptive_entropy=True, entropy_coef=0.01)
    after = state_after(moving, {"beta": 0.1, "entropy_coef": 0.01}, kl=found["kl"], entropy=found["entropy"])
    assert (after["beta"], after["entropy_coef"]) == (0.1, 0.01)
    assert coefficients_of(moving, after)["entropy_coef"] == 0.0  # the bonus acts after a step that was measured
