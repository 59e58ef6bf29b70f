"""Rewards become advantages: how much better a completion is than the other completions of its prompt.

The std is the sample std (ddof 1), as in TRL; DeepSeekMath (arXiv 2402.03300, section 4.1.2) writes "std" and does not
say which. With the population std the winner of (1, 0, 0, 0) would get 1.732 instead of 1.500.

B prompts, G completions of each, F reward functions. A reward is NaN where a completion is not scored: every function
gave None for it, or one failed on it and `reward_failure` is "exclude".
"""

import math
from typing import NamedTuple

import torch

from grpo.options.refusal import nearest, refuse  # refuse raises ValueError

ESTIMATORS = ("grpo", "rloo", "reinforce_plus_plus_baseline", "pass_at_k")
SCALES = ("group", "batch", "none")
GATES = ("none", "outcome")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


def group_advantages(
    reward_BG: torch.Tensor, *, scale: str = "group", eps: float = 1e-4, batch_std: float | None = None
) -> torch.Tensor:
    """Centre each reward on its group's mean and divide by a standard deviation.

        group   A_bg = (r_bg - mean_g r_bg) / (std_g r_bg + eps)      GRPO, arXiv 2402.03300
        batch   A_bg = (r_bg - mean_g r_bg) / (std_bg r_bg + eps)     the std of all rewards, arXiv 2508.08221
        none    A_bg =  r_bg - mean_g r_bg                            Dr. GRPO, arXiv 2503.20783

    One right answer among four: rewards (1, 0, 0, 0). The mean is 0.25 and the sample standard deviation √((0.75² +
    3·0.25²)/3) = 0.5. So the advantages are 0.75/0.5 = 1.500 and 3 times −0.25/0.5 = −0.500 (1.4997 and −0.4999 with
    the 1e-4 in the divisor). They sum to 0.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="none")
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])

    A completion that is not scored (NaN) gets advantage 0, and mean and std are over the others. With rewards
    (1, 0, 0, NaN) the mean is 1/3 and the std sqrt((4/9 + 2 * 1/9) / 2) = 0.577. A reward of 0 in place of NaN would
    make the mean 0.25 and count the completion as a wrong one, which nobody knows.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, math.nan]]))
    tensor([[ 1.1545, -0.5773, -0.5773,  0.0000]])

    Computed in float32, G >= 2. Exactly 0 in a group whose scored rewards are all equal, or that has fewer than two of
    them. For "batch", `batch_std` is the std of the scored rewards of all ranks; None takes it from reward_BG.

    Raises:
        ValueError: the scale is unknown.
    """
    if scale not in SCALES:
        refuse("scale", scale, f"must be one of {', '.join(SCALES)}", nearest(scale, SCALES))
    reward_BG = reward_BG.float()
    mean_B1, std_B1, flat_B1 = group_statistics(reward_BG)
    advantage_BG = reward_BG - mean_B1
    if scale == "group":
        advantage_BG = advantage_BG / (std_B1 + eps)
    elif scale == "batch":
        advantage_BG = advantage_BG / ((reward_BG[~reward_BG.isnan()].std() if batch_std is None else batch_std) + eps)
    return torch.where(flat_B1 | reward_BG.isnan(), 0.0, advantage_BG)


class GroupStatistics(NamedTuple):
    """Statistics of the scored rewards of each group: [B, 1] each."""

    mean_B1: torch.Tensor
    std_B1: torch.Tensor  # sample std; it and the mean are NaN where fewer than two completions are scored
    flat_B1: torch.Tensor  # bool, True where all are equal: the group teaches nothing


def group_statistics(reward_BG: torch.Tensor) -> GroupStatistics:
    """Of float32 rewards; see the top for NaN."""
    scored_BG = ~reward_BG.isnan()
    mean_B1, std_B1 = reward_BG.mean(dim=1, keepdim=True), reward_BG.std(dim=1, keepdim=True)
    for b in (~scored_BG).any(dim=1).nonzero()[:, 0]:  # so far both are NaN here
        if scored_BG[b].sum() > 1:
            scored = reward_BG[b, scored_BG[b]]
            mean_B1[b], std_B1[b] = scored.mean(), scored.std()
    highest_B1 = torch.where(scored_BG, reward_BG, -math.inf).amax(dim=1, keepdim=True)
    lowest_B1 = torch.where(scored_BG, reward_BG, math.inf).amin(dim=1, keepdim=True)
    # By the rewards themselves: the float32 mean of seven 0.95 is 0.94999993, so r - mean is 6e-8 where it must be 0,
    # and the std is 0 or 6e-8, depending on the shape.
    return GroupStatistics(mean_B1, std_B1, highest_B1 <= lowest_B1)


def reward_terms(
    reward_FBG: torch.Tensor, weight_F: torch.Tensor, scored_BG: torch.Tensor, *, aggregation: str, eps: float = 1e-4
) -> torch.Tensor:
    """What each reward function adds to the number by which completions are compared; that number is the sum over F.

        sum_then_normalize   t_fbg = w_f r_fbg
        normalize_then_sum   t_fbg = w_f (r_fbg - mean_g r_fbg) / (std_g r_fbg + eps)

    The first is GRPO: the sum is the reward, for any scale of `group_advantages`. The second is GDPO, arXiv 2601.05242,
    equations 4 and 5; its equation 6 divides the sum by the std of all completions, not tokens, of all ranks. That is
    scale "batch":

        A_bg = (t_bg - mean_g t_bg) / (std_bg t_bg + eps),   t_bg = sum_f t_fbg

    The paper subtracts the mean of the batch, we that of the group. Both are 0, as each function's terms sum to 0 in
    every group; ours leaves exactly 0 in a group of equal rewards.

    Why: in a plain sum a reward of some hundred, such as a length, hides a 0 or 1 for the answer, and a group in which
    two rewards agree gets no larger advantages than one in which a single reward differs. Here each function counts by
    its weight. Two groups of two completions, two functions: in the first group both functions give (1, 0), in the
    second one gives (1, 0) and the other (0, 0). The terms are 0.5 / 0.707 = 0.707, so the winners' sums are 1.414 and
    0.707. Over the std of all four, sqrt((4 + 1) / 3) = 1.291, their advantages are 1.095 and 0.548. With
    sum_then_normalize and scale "group" both get 0.707.

    >>> reward_FBG = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    >>> all_BG = torch.ones(2, 2, dtype=torch.bool)
    >>> term_FBG = reward_terms(reward_FBG, torch.ones(2), all_BG, aggregation="normalize_then_sum")
    >>> group_advantages(term_FBG.sum(dim=0), scale="batch")
    tensor([[ 1.0954, -1.0954],
            [ 0.5477, -0.5477]])

    Args:
        reward_FBG: before the weights, NaN where a function gave None. Such a term is 0, and with normalize_then_sum
            the function's mean and std are over the other completions of the group.
        scored_BG: bool. A completion that is not scored has NaN for all terms and is in no mean and std.

    Returns [F, B, G] float32. With normalize_then_sum a function's terms are exactly 0 in a group in which it gave
    equal values, or fewer than two.

    Raises:
        ValueError: the aggregation is unknown.
    """
    if aggregation not in AGGREGATIONS:
        refuse("aggregation", aggregation, f"must be one of {', '.join(AGGREGATIONS)}",
               nearest(aggregation, AGGREGATIONS))
    value_FBG = torch.where(scored_BG, reward_FBG.float(), math.nan)
    if aggregation == "normalize_then_sum":
        value_FBG = group_advantages(value_FBG.flatten(0, 1), eps=eps).view(value_FBG.shape)
    return torch.where(scored_BG, weight_F.float()[:, None, None] * value_FBG.nan_to_num(), math.nan)


def gate_advantages(advantage_BG: torch.Tensor, right_BG: torch.Tensor, *, gate: str) -> torch.Tensor:
    """Set the advantages of groups without a right answer (True in `right_BG`) to 0, if the gate is "outcome".

        outcome   A_bg = A_bg if any_g right_bg else 0
        none      A_bg = A_bg

    A second reward, such as the one for the format, also ranks completions of which none is right, and dividing by the
    std makes those differences full size: "phantom advantages". In verl-recipe pull request 125 a mild length reward
    drove a 1.5B model on GSM8K far below its start; with this gate it ended above. The KL acts in every group. Which
    reward says "right" is option outcome_reward, and from which value on is `report.measures.RIGHT` (1.0).

    >>> gate_advantages(torch.tensor([[1.5, -1.5]]), torch.tensor([[False, False]]), gate="outcome")
    tensor([[0., 0.]])

    Raises:
        ValueError: the gate is unknown.
    """
    if gate not in GATES:
        refuse("gate", gate, f"must be one of {', '.join(GATES)}", nearest(gate, GATES))
    if gate == "none":
        return advantage_BG
    return torch.where(right_BG.any(dim=1, keepdim=True), advantage_BG, 0.0)


def leave_one_out_advantages(reward_BG: torch.Tensor) -> torch.Tensor:
    """Compare each reward with the mean of the others of its group: RLOO, arXiv 2402.14740.

        A_bg = r_bg - mean_{j != g} r_bj = (r_bg - mean_g r_bg) n / (n - 1)        n scored completions

    No completion is compared with itself, so the policy gradient has no bias. With scale="none" `group_advantages`
    gives (n - 1) / n times these advantages: the same direction, a little shorter. With rewards (1, 0, 0, 0) the winner
    gets 1 - 0 = 1, a loser 0 - 1/3.

    >>> leave_one_out_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])

    Returns float32. Completions that are not scored and groups of equal rewards get 0, as in `group_advantages`.
    """
    num_B1 = (~reward_BG.isnan()).sum(dim=1, keepdim=True)
    return group_advantages(reward_BG, scale="none") * num_B1 / (num_B1 - 1).clamp(min=1)


def whitened_advantages(
    advantage_BG: torch.Tensor, scored_BG: torch.Tensor, *, mean: float, std: float, eps: float = 1e-8
) -> torch.Tensor:
    """Centre and scale centred rewards by all tokens of the global batch: REINFORCE++ with baseline, arXiv 2501.03262.

        A_bg = (a_bg - mean) / sqrt(std^2 + eps)        a_bg = r_bg - mean_g r_bg

    `mean` and `std` (sample std) are over tokens that count, of all ranks: a completion of 10 tokens is in them ten
    times, as in verl. With one scale for all, a group whose rewards are nearly equal keeps its small advantages; its
    own std would make them full size. A group of equal rewards has a = 0 but not A = 0, where long completions pull the
    mean away from 0. The centred rewards (0.75, -0.25, -0.25, -0.25) of one token each have mean 0 and std 0.5:

    >>> a_BG = torch.tensor([[0.75, -0.25, -0.25, -0.25]])
    >>> whitened_advantages(a_BG, torch.ones(1, 4, dtype=torch.bool), mean=0.0, std=0.5)
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])

    Exactly 0 where a completion is not scored (False in `scored_BG`), and everywhere if std is 0.
    """
    white_BG = (advantage_BG - mean) / math.sqrt(std**2 + eps)
    return torch.where(scored_BG & (std > 0), white_BG, 0.0)


def pass_at_k_advantages(right_BG: torch.Tensor, scored_BG: torch.Tensor, *, k: int) -> torch.Tensor:
    """Reward k completions together, 1 if any of them is right, and give each the mean over all its sets of k.

        R      = 1 - C(w, k) / C(n, k)        pass@k of n completions, w of them wrong
        right  A = (1 - R) / std              std = sqrt(R (1 - R))
        wrong  A = (1 - R - C(w - 1, k - 1) / C(n - 1, k - 1)) / std

    PASS@k training, arXiv 2508.10751, equations 14 and 15. A completion learns from what a set of k would have missed
    without it, so problems that are mostly right teach little, and different ways to an answer stay alive. With one
    right of four and k = 2: R = 1 - 3/6 = 0.5, std 0.5; right (1 - 0.5) / 0.5 = 1, wrong (1 - 0.5 - 2/3) / 0.5 = -1/3.

    >>> right_BG = torch.tensor([[True, False, False, False]])
    >>> pass_at_k_advantages(right_BG, torch.ones_like(right_BG), k=2)
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])

    Only scored completions count, in n and w. float32, [B, G]; exactly 0 where a completion is not scored, and in a
    group with R 0 or 1 (all wrong, or fewer than k wrong), or of fewer than k.
    """
    advantage_BG = torch.zeros(right_BG.shape)
    for b in range(len(right_BG)):
        n, wrong = int(scored_BG[b].sum()), int((scored_BG[b] & ~right_BG[b]).sum())
        if not k <= wrong < n:
            continue
        missed = math.comb(wrong, k) / math.comb(n, k)  # 1 - R
        std = math.sqrt(missed * (1 - missed))
        of_wrong = missed - math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)
        advantage_BG[b] = torch.where(right_BG[b], missed / std, of_wrong / std)
    return torch.where(scored_BG, advantage_BG, 0.0)
