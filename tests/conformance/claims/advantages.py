"""Claims about advantages: what holds whichever standard deviation divides them."""

import torch

from grpo.report.tokens.worked import EXAMPLE as WORKED
from grpo.report.tokens.worked import worked
from tests.conformance.adapter import Adapter
from tests.conformance.claim import Wrong, claims_of
from tests.conformance.claims import causes
from tests.conformance.tools import expect, expect_finite, words

claim = claims_of("advantages")
PAPER = "DeepSeekMath, arXiv 2402.03300, section 4.1.2"
CENTRED = "A_g = (r_g - mean r) / s, with s > 0 or 1"


def advantages(adapter: Adapter, *groups: tuple[float, ...]) -> torch.Tensor:
    reward_BG = torch.tensor(groups)
    found_BG = adapter.advantages(reward_BG)
    if found_BG.shape != reward_BG.shape:
        raise Wrong(f"found shape {tuple(found_BG.shape)}, expected {tuple(reward_BG.shape)}")
    return found_BG.detach()


def shape(advantage_G: torch.Tensor) -> torch.Tensor:
    """The advantages of a group over the largest: what is left when the standard deviation is a convention."""
    return advantage_G / advantage_G.abs().max()


@claim(
    "advantages", tolerance=1e-3,
    says="The only right one of four completions gets 3 times what each wrong one gets, and the other sign.",
    equation=CENTRED, source=PAPER,
    by_hand=f"{worked(WORKED).text} Whatever divides them: 3 to −1.",
    violation="Right answers do not become likelier in proportion to how rare they are in their group.")
def one_right_of_four(adapter: Adapter, tolerance: float) -> None:
    winner, *losers = advantages(adapter, WORKED)[0]
    if not winner > 0:
        raise Wrong(f"the right one: found {winner:.4g}, expected more than 0")
    expect(torch.stack(losers) / winner, [-1 / 3] * 3, tolerance, "the wrong ones over the right one")


@claim(
    "advantages", tolerance=1e-3,
    says="The advantages of a group add up to 0.",
    equation="sum_g A_g = 0", source=PAPER,
    by_hand="(0.5, 0.25, 2, -1): mean 0.4375, so 0.0625 - 0.1875 + 1.5625 - 1.4375 = 0",
    violation="The policy gains or loses likelihood as a whole, whatever it wrote: a drift that is no lesson.")
def a_group_adds_up_to_0(adapter: Adapter, tolerance: float) -> None:
    advantage_BG = advantages(adapter, (0.5, 0.25, 2.0, -1.0), (4.0, 3.0, 3.0, 2.0))
    for advantage_G in advantage_BG:
        expect(shape(advantage_G).sum(), 0.0, tolerance, "sum over the largest")


@claim(
    "advantages",
    says="The better the reward, the higher the advantage.",
    equation="r_a > r_b implies A_a > A_b", source=PAPER,
    by_hand="(0, 3, 1, 0.5): the order is 3, 1, 0.5, 0",
    violation="The policy is taught the worse of two answers.")
def order_is_kept(adapter: Adapter, tolerance: float) -> None:
    advantage_G = advantages(adapter, (0.0, 3.0, 1.0, 0.5))[0]
    if advantage_G.argsort(descending=True).tolist() != [1, 2, 3, 0]:
        raise Wrong(f"found {words(advantage_G)} for rewards (0, 3, 1, 0.5)")


@claim(
    "advantages", tolerance=1e-4,
    says="What the completions of one prompt got does not order those of another.",
    equation="mean r is over the completions of one prompt", source=PAPER,
    by_hand="(1, 0, 0, 0) is 3 to -1 beside (100, -50, 7, 7) and beside (0, 0, 0, 1)",
    violation="Completions of an easy prompt are all praised, those of a hard one all blamed: nothing is compared.")
def prompts_are_kept_apart(adapter: Adapter, tolerance: float) -> None:
    for other in ((100.0, -50.0, 7.0, 7.0), (0.0, 0.0, 0.0, 1.0)):
        expect(shape(advantages(adapter, WORKED, other)[0]), [1.0, -1 / 3, -1 / 3, -1 / 3], tolerance,
               f"(1, 0, 0, 0) beside {other}, over the largest")


@claim(
    "advantages", tolerance=1e-3,
    says="A number added to all rewards of a prompt changes nothing.",
    equation="A(r + c) = A(r)", source=PAPER,
    by_hand="(101, 100, 100, 100): mean 100.25, so 0.75 and -0.25 again",
    violation="A reward that everyone gets, such as one for the format, becomes a lesson.")
def a_constant_changes_nothing(adapter: Adapter, tolerance: float) -> None:
    lifted = advantages(adapter, tuple(reward + 100 for reward in WORKED))
    expect(lifted, advantages(adapter, WORKED).tolist(), tolerance, "(101, 100, 100, 100)")


@claim(
    "advantages", tolerance=1e-4,
    says="Negative rewards are compared like any others.",
    equation=CENTRED, source=PAPER,
    by_hand="(-1, -2, -3, -4): mean -2.5, so 1.5, 0.5, -0.5, -1.5",
    violation="Penalties are cut off or change sign.")
def negative_rewards(adapter: Adapter, tolerance: float) -> None:
    found = advantages(adapter, (-1.0, -2.0, -3.0, -4.0))[0]
    expect(found / found[0], [1.0, 1 / 3, -1 / 3, -1.0], tolerance, "over the first")
    if not found[0] > 0:
        raise Wrong(f"the best: found {found[0]:.4g}, expected more than 0")


@claim(
    "advantages", tolerance=1e-4,
    says="Huge rewards are compared like any others.",
    equation=CENTRED, source=PAPER,
    by_hand="(3e6, 1e6, 0, 0): mean 1e6, so 2, 0, -1, -1 times 1e6",
    violation="Rewards beyond a bound that nobody asked for teach something else.")
def huge_rewards(adapter: Adapter, tolerance: float) -> None:
    expect(shape(advantages(adapter, (3e6, 1e6, 0.0, 0.0))[0]), [1.0, 0.0, -0.5, -0.5], tolerance, "over the largest")


@claim(
    "advantages", tolerance=1e-6,
    says="A prompt whose completions all got the same teaches nothing.",
    equation="A_g = 0 where all r are equal", source="DAPO, arXiv 2503.14476, section 3.2",
    by_hand="(0, 0, 0, 0) and (1, 1, 1, 1): every difference from the mean is 0",
    violation="Prompts that are always solved, or never, push the policy somewhere.")
def equal_rewards(adapter: Adapter, tolerance: float) -> None:
    expect(advantages(adapter, (0.0,) * 4, (1.0,) * 4), [[0.0] * 4] * 2, tolerance)


@claim(
    "advantages", tolerance=0.01, cause=causes.ROUNDING,
    says="Equal rewards whose mean rounds teach nothing either.",
    equation="A_g = 0 where all r are equal", source="NVIDIA-NeMo/RL pull request 4158 (the same in another form)",
    by_hand="seven times 0.95: the float32 mean is 6.0e-8 below, so the sample std is 6.0e-8 * sqrt(7/6) = 6.4e-8: "
            "with eps 1e-9 each gets 6.0e-8 / 6.5e-8 = 0.91, with 1e-8 0.80",
    violation="Rounding errors become advantages of full size, all of one sign: noise as strong as a lesson.")
def equal_rewards_that_round(adapter: Adapter, tolerance: float) -> None:
    for value in (0.95, -0.95, 0.35):
        expect(advantages(adapter, (value,) * 7)[0], [0.0] * 7, tolerance, f"seven times {value}")


@claim(
    "advantages", tolerance=0.01, cause=causes.ROUNDING,
    says="Equal rewards teach nothing, whatever their size.",
    equation="A_g = 0 where all r are equal", source="NVIDIA-NeMo/RL pull request 4158 (the same in another form)",
    by_hand="seven times 953.1: a float32 there has steps of 6.1e-5, so a mean that rounds is one step off, and the "
            "sample std 6.1e-5 * sqrt(7/6) = 6.6e-5. With eps 1e-4: 6.1e-5 / (6.6e-5 + 1e-4) = 0.37",
    violation="With lengths, times or per cents as rewards, prompts that teach nothing get a third of a lesson.")
def equal_rewards_of_hundreds(adapter: Adapter, tolerance: float) -> None:
    for value in (95.3, 953.1, -953.1):
        expect(advantages(adapter, (value,) * 7)[0], [0.0] * 7, tolerance, f"seven times {value}")


@claim(
    "advantages", tolerance=1e-4,
    says="Beside a prompt that teaches nothing another teaches what it does alone.",
    equation=CENTRED, source=PAPER,
    by_hand="(1, 1, 1, 1) and (1, 0, 0, 0): the second is 3 to -1",
    violation="One solved prompt in a batch makes the batch useless, or not a number.")
def a_flat_group_beside_another(adapter: Adapter, tolerance: float) -> None:
    expect(shape(advantages(adapter, (1.0,) * 4, WORKED)[1]), [1.0, -1 / 3, -1 / 3, -1 / 3], tolerance,
           "over the largest")


@claim(
    "advantages", tolerance=1e-3,
    says="No advantage of G completions is beyond G / sqrt(G - 1).",
    equation="|r_g - mean r| <= sqrt(G - 1) std r (Samuelson 1968); with the mean of the others, G / (G - 1) times "
             "that",
    source="NVIDIA-NeMo/RL pull request 4158",
    by_hand="seven times 0.35 and 0.95: 0.525 / 0.212 = 2.475; the bound is 8 / sqrt(7) = 3.024. Over the std of the "
            "other seven, 0 but for rounding: 4,000",
    violation="A single completion gets thousands of times the weight of the others: one step ruins the policy.")
def one_odd_reward(adapter: Adapter, tolerance: float) -> None:
    found = advantages(adapter, (*(0.35,) * 7, 0.95))[0]
    expect_finite(found, "seven times 0.35 and 0.95")
    if found.abs().max() > 8 / 7**0.5 + tolerance:
        raise Wrong(f"found {words(found)}, expected none beyond 8 / sqrt(7) = 3.024")


@claim(
    "advantages", tolerance=1e-4,
    says="Of two completions one gets what the other loses.",
    equation=CENTRED, source=PAPER,
    by_hand="(1, 0): mean 0.5, so 0.5 and -0.5: 1 to -1",
    violation="The smallest group is biased.")
def two_completions(adapter: Adapter, tolerance: float) -> None:
    expect(shape(advantages(adapter, (1.0, 0.0))[0]), [1.0, -1.0], tolerance, "over the largest")


@claim(
    "advantages", cause=causes.ONE,
    says="A prompt with one completion gives finite advantages.",
    equation="the sample std of one number is 0 / 0", source="definition of the sample standard deviation",
    by_hand="(1): the mean is 1, so 0 / 0 without care",
    violation="NaN goes through the loss into all weights.")
def one_completion(adapter: Adapter, tolerance: float) -> None:
    expect_finite(advantages(adapter, (1.0,), (0.0,)), "one completion for each prompt")


@claim(
    "advantages", tolerance=1e-5,
    says="In which order the completions of a prompt stand does not matter.",
    equation="A(permuted r) = permuted A(r)", source=PAPER,
    by_hand="(2, 0, 1, 5) and (5, 1, 0, 2): the same four advantages in reverse",
    violation="A baseline hangs on one completion, for instance the first.")
def order_of_completions(adapter: Adapter, tolerance: float) -> None:
    found, reverse = advantages(adapter, (2.0, 0.0, 1.0, 5.0)), advantages(adapter, (5.0, 1.0, 0.0, 2.0))
    expect(reverse.flip(1), found.tolist(), tolerance, "in reverse")


@claim(
    "advantages",
    says="The rewards stay as they were.",
    equation="r is not written to", source="a convention of PyTorch",
    by_hand="(1, 0, 0, 0) before and after",
    violation="The log shows advantages under the name of rewards.")
def rewards_are_not_changed(adapter: Adapter, tolerance: float) -> None:
    reward_BG = torch.tensor([WORKED, (0.0, 0.0, 1.0, 1.0)])
    adapter.advantages(reward_BG)
    expect(reward_BG, [WORKED, (0.0, 0.0, 1.0, 1.0)], tolerance, "the rewards afterwards")


@claim(
    "advantages", tolerance=1e-4,
    says="A reward that is not a number does not spread to other prompts.",
    equation=CENTRED, source="huggingface/trl: a reward function may give None, which becomes NaN",
    by_hand="(nan, 1, 0, 0) and (1, 0, 0, 0): the second is 3 to -1",
    violation="One grader that fails makes the whole batch NaN.")
def not_a_number_stays_in_its_group(adapter: Adapter, tolerance: float) -> None:
    expect(shape(advantages(adapter, (float("nan"), 1.0, 0.0, 0.0), WORKED)[1]), [1.0, -1 / 3, -1 / 3, -1 / 3],
           tolerance, "over the largest")
