"""Claims about ratio and clip, on one token in units of its weight, and about what the ratio is of."""

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, Wrong, claims_of
from tests.conformance.claims import causes
from tests.conformance.tools import (
    expect,
    needs_ratio_of_tokens,
    one_token,
    policy_part,
    ratio_kind,
    weights,
    whole_loss,
    words,
)

claim = claims_of("ratio and clip")
PAPER = "DeepSeekMath, arXiv 2402.03300, equation 3"
PPO = "PPO, arXiv 1707.06347, equation 7"
DAPO = "DAPO, arXiv 2503.14476, equation 10"
LOSS = "l = -min(ratio A, clip(ratio, 1 - low, 1 + high) A)"


def expect_token(
    adapter: Adapter, ratio: float, advantage: float, value: float, slope: float, tolerance: float
) -> None:
    """Value and gradient of one token, in units of its weight."""
    found, grad = one_token(adapter, ratio, advantage)
    expect(found, value, tolerance, f"value at ratio {ratio:.4g}, A {advantage:.4g}")
    expect(grad, slope, tolerance, f"gradient at ratio {ratio:.4g}, A {advantage:.4g}")


@claim(
    "loss", tolerance=1e-4,
    says="A token with a positive advantage becomes likelier, one with a negative less likely.",
    equation="dl / dlogp = -ratio A", source="fla-org/flash-linear-attention issue 1073: the loss negated twice",
    by_hand="ratio 1: gradient -2 for A = 2, and 2 for A = -2",
    violation="The policy unlearns what is right.")
def the_sign(adapter: Adapter, tolerance: float) -> None:
    for advantage in (2.0, -2.0):
        expect(one_token(adapter, 1.0, advantage)[1], -advantage, tolerance, f"gradient for A = {advantage:g}")


@claim(
    "loss", tolerance=1e-4,
    says="On the first update the value of the loss is that of minus the advantage.",
    equation="ratio = 1: l = -A", source=PAPER,
    by_hand="A = 2: -2",
    violation="The logged loss says nothing.")
def value_on_policy(adapter: Adapter, tolerance: float) -> None:
    expect(one_token(adapter, 1.0, 2.0)[0], -2.0, tolerance, "value")


@claim(
    "loss", tolerance=1e-5,
    says="A group of equally long completions has loss 0 on the first update, and its gradient is not 0.",
    equation="sum_g A_g = 0, grad l_g = -A_g grad logp_g",
    source="huggingface/trl issues 2703 and 3452: \"loss is 0, is it broken?\"",
    by_hand="A = (1.5, -0.5, -0.5, -0.5): value -(1.5 - 1.5) = 0, gradients 1 to -1/3",
    violation="A loss of 0 without a gradient trains nothing, for days.")
def loss_0_and_gradient_not_0(adapter: Adapter, tolerance: float) -> None:
    part = policy_part(adapter, torch.zeros(4, 2), torch.tensor([1.5, -0.5, -0.5, -0.5]))
    expect(part.value, 0.0, tolerance, "value")
    expect(part.grad_NT[:, 0] / part.grad_NT[0, 0], [1.0, -1 / 3, -1 / 3, -1 / 3], 1e-4, "gradients over the first")


@claim(
    "loss",
    says="A completion with advantage 0 does not move, whatever its ratio.",
    equation="A = 0: l = 0", source=PAPER,
    by_hand="ratio 1.3, A = 0: 1.3 * 0 = 0",
    violation="Prompts that teach nothing move the policy.")
def advantage_0(adapter: Adapter, tolerance: float) -> None:
    old_NT = torch.full((1, 2), -1.0)
    at_ref, off_ref = (whole_loss(adapter, old_NT + shift, old_NT, torch.zeros(1)) for shift in (0.0, 0.2624))
    if at_ref.grad_NT.abs().max() > tolerance:
        raise NotOffered("the KL has a gradient where policy and reference agree (k1)")
    expect(off_ref.value, 0.0, tolerance, "value")
    expect(off_ref.grad_NT, [[0.0, 0.0]], tolerance, "gradient")


@claim(
    "loss", tolerance=1e-4,
    says="Inside the clip, above 1, the loss is that of the ratio.",
    equation=LOSS, source=PPO,
    by_hand="ratio 1.1, A = 1: value -1.1, gradient -1.1 (the ratio is half way to the bound)",
    violation="The second update of a batch follows another gradient than the first.")
def inside_above(adapter: Adapter, tolerance: float) -> None:
    ratio = 1 + adapter.clip[1] / 2
    expect_token(adapter, ratio, 1.0, -ratio, -ratio, tolerance)


@claim(
    "loss", tolerance=1e-4,
    says="Inside the clip, below 1, the loss is that of the ratio, too.",
    equation=LOSS, source=PPO,
    by_hand="ratio 0.9, A = -1: value 0.9, gradient 0.9",
    violation="The second update of a batch follows another gradient than the first.")
def inside_below(adapter: Adapter, tolerance: float) -> None:
    ratio = 1 - adapter.clip[0] / 2
    expect_token(adapter, ratio, -1.0, ratio, ratio, tolerance)


@claim(
    "loss", tolerance=1e-4, cause=causes.CLIP,
    says="A good token that has become much likelier is not pushed further.",
    equation=LOSS, source=PPO,
    by_hand="ratio 2, A = 1, high 0.2: value -min(2, 1.2) = -1.2, gradient 0",
    violation="Without this bound several updates of a batch go as far as they like.")
def clipped_above(adapter: Adapter, tolerance: float) -> None:
    expect_token(adapter, 2.0, 1.0, -(1 + adapter.clip[1]), 0.0, tolerance)


@claim(
    "loss", tolerance=1e-4, cause=causes.CLIP,
    says="A bad token that has become much less likely is not pushed further.",
    equation=LOSS, source=PPO,
    by_hand="ratio 0.5, A = -1, low 0.2: value -min(-0.5, -0.8) = 0.8, gradient 0",
    violation="Probabilities of bad tokens go to 0, and with them the entropy.")
def clipped_below(adapter: Adapter, tolerance: float) -> None:
    expect_token(adapter, 0.5, -1.0, 1 - adapter.clip[0], 0.0, tolerance)


@claim(
    "loss", tolerance=1e-4,
    says="A good token that has become less likely keeps its gradient.",
    equation=LOSS, source=PPO,
    by_hand="ratio 0.5, A = 1: value -min(0.5, 0.8) = -0.5, gradient -0.5",
    violation="The clip also stops what would bring the policy back.")
def a_good_token_that_lost(adapter: Adapter, tolerance: float) -> None:
    expect_token(adapter, 0.5, 1.0, -0.5, -0.5, tolerance)


@claim(
    "loss", tolerance=1e-4,
    says="A bad token that has become likelier keeps its gradient.",
    equation=LOSS, source=PPO,
    by_hand="ratio 2, A = -1: value -min(-2, -1.2) = 2, gradient 2",
    violation="The clip also stops what would bring the policy back.")
def a_bad_token_that_gained(adapter: Adapter, tolerance: float) -> None:
    expect_token(adapter, 2.0, -1.0, 2.0, 2.0, tolerance)


def expect_edge(adapter: Adapter, edge: float, outwards: float, advantage: float) -> None:
    inside, outside = (one_token(adapter, edge + step, advantage)[1].item() for step in (-outwards, outwards))
    if abs(inside) < 0.5 or abs(outside) > 1e-6:
        raise Wrong(f"A = {advantage:g}: found gradients {inside:.4g} at ratio {edge - outwards:.4g} and {outside:.4g} "
                    f"at {edge + outwards:.4g}, expected one there and none here")


@claim(
    "loss", tolerance=0.0, cause=causes.CLIP,
    says="The upper bound is where the adapter says.",
    equation="1 + high", source=DAPO,
    by_hand="high 0.2: at ratio 1.19 a gradient for A = 1, at 1.21 none",
    violation="With the other side's bound, clip-higher does nothing, or loosens the wrong side.")
def the_upper_bound(adapter: Adapter, tolerance: float) -> None:
    expect_edge(adapter, 1 + adapter.clip[1], 0.01, 1.0)


@claim(
    "loss", tolerance=0.0, cause=causes.CLIP,
    says="The lower bound is where the adapter says.",
    equation="1 - low", source=DAPO,
    by_hand="low 0.2: at ratio 0.81 a gradient for A = -1, at 0.79 none",
    violation="With the other side's bound, the lower side is loosened or tightened by what was asked for the upper.")
def the_lower_bound(adapter: Adapter, tolerance: float) -> None:
    expect_edge(adapter, 1 - adapter.clip[0], -0.01, -1.0)


@claim(
    "loss",
    says="The ratio is that of a token, or the geometric mean of a completion's (GSPO); not their product.",
    equation="ratio_t = p(o_t) / p_old(o_t); GSPO (arXiv 2507.18071): s = (prod_t ratio_t)^(1/T)",
    source=f"{PAPER}; rasbt/reasoning-from-scratch issue 243",
    by_hand="ratios 1.15 and 0.9, A = 1: gradients 1.15 to 0.9; geometric mean sqrt(1.035) = 1.0173; product 1.035",
    violation="The product of 200 ratios of 1.05 is 17,292: long completions are clipped as a whole, or explode.")
def what_the_ratio_is_of(adapter: Adapter, tolerance: float) -> None:
    kind = ratio_kind(adapter)
    if kind not in ("of each token", "the mean over a completion (GSPO)"):
        raise Wrong(f"found {kind}")


@claim(
    "loss", tolerance=1e-3,
    says="A long completion of which every token has moved a little is not clipped.",
    equation="ratio_t = 1.05 for all t", source="rasbt/reasoning-from-scratch issue 243",
    by_hand="100 tokens with ratio 1.05: each gradient is 1.05 of that on policy; their product would be 131",
    violation="On long answers nothing is learned after the first update.")
def a_long_completion(adapter: Adapter, tolerance: float) -> None:
    on_policy_NT = weights(adapter, torch.ones(1, 100, dtype=torch.bool))
    moved = policy_part(adapter, torch.full((1, 100), 1.05).log(), torch.ones(1))
    expect((-moved.grad_NT / on_policy_NT)[0, ::50], [1.05, 1.05], tolerance, "over the gradients on policy")


@claim(
    "loss", tolerance=1e-4,
    says="A token that is clipped leaves its neighbours theirs.",
    equation=LOSS, source=PPO,
    by_hand="ratios 2 and 1, A = 1, high 0.2: gradients 0 and -1, value -(1.2 + 1)",
    violation="One token that moved stops the lesson of a whole completion.")
def a_clipped_token_beside_another(adapter: Adapter, tolerance: float) -> None:
    needs_ratio_of_tokens(adapter)
    weight_NT = weights(adapter, torch.ones(1, 2, dtype=torch.bool))
    part = policy_part(adapter, torch.tensor([[2.0, 1.0]]).log(), torch.ones(1))
    expect(part.grad_NT / weight_NT, [[0.0, -1.0]], tolerance, "gradients")
    expect(part.value / weight_NT[0, 0], -(2 + adapter.clip[1]), tolerance, "value")


@claim(
    "loss", tolerance=1e-4,
    says="Each completion has its own advantage.",
    equation="A_n for all tokens of completion n", source=PAPER,
    by_hand="ratio 1, A = (3, -1, 0.5), two tokens each: gradients -3, 1, -0.5 for both",
    violation="Completions are taught each other's lessons.")
def each_completion_has_its_own(adapter: Adapter, tolerance: float) -> None:
    weight_NT = weights(adapter, torch.ones(3, 2, dtype=torch.bool))
    part = policy_part(adapter, torch.zeros(3, 2), torch.tensor([3.0, -1.0, 0.5]))
    expect(part.grad_NT / weight_NT, [[-3.0] * 2, [1.0] * 2, [-0.5] * 2], tolerance, "gradients")


@claim(
    "loss", names=True,
    says="What is clipped.",
    equation="ratio_t, or s = (prod_t ratio_t)^(1/T)", source=f"{PAPER}; GSPO, arXiv 2507.18071, equation 7",
    by_hand="ratios 1.15 and 0.9, A = 1: gradients 1.15 to 0.9, or a mean of 1.0173",
    violation="Bounds for a mean are 100 times tighter than for a token: 3e-4 instead of 0.2.")
def the_ratio(adapter: Adapter, tolerance: float) -> str:
    return ratio_kind(adapter)


@claim(
    "loss", names=True,
    says="Whether bad tokens are bounded on the other side, too.",
    equation="A < 0: l = min(ratio |A|, c |A|)", source="dual clip, arXiv 1912.09729, equation 5",
    by_hand="ratio 10, A = -1: 10, or 3 with c = 3",
    violation="A token that became 10 times likelier pulls 10 times.")
def dual_clip(adapter: Adapter, tolerance: float) -> str:
    value, grad = one_token(adapter, 10.0, -1.0)
    if abs(value.item() - 10) < 0.01:
        return "none"
    return f"at {value.item():.3g}" if abs(grad.item()) < 1e-4 else f"another: {words(torch.stack([value, grad]))}"
