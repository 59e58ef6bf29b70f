"""What was found by hand for each claim that a peer fails: the line of their code, and convention or error.

`compare.py` looks up the number of the line, and refuses a failed claim without a finding and a finding without one.
"""

from typing import NamedTuple

TRL, VERL, OPENRLHF = "trl 1.16.0", "verl 0.9.0", "openrlhf 0.11.0"
ERROR, REACHED_SELDOM, NOT_REACHED = "error", "error, seldom reached", "error, not reached in its own trainer"


class Finding(NamedTuple):
    """Of one peer; `line` stands once in its file, without the indentation."""

    peer: str
    claims: tuple[str, ...]
    kind: str
    file: str
    line: str
    words: str


DIGITS = ("never negative in float32", "small differences are exact")
ROUNDED = ("equal rewards that round", "equal rewards of hundreds")
EXCLUDED = ("entropy with an excluded word", "gradient of the entropy with an excluded word")
FINDINGS = [
    Finding(
        TRL, ("equal rewards of hundreds",), ERROR, "trl/trainer/grpo_trainer.py",
        "advantages = advantages / (std_rewards + 1e-4)",
        "Whether rewards are equal is asked for the log alone. 1e-4 is well above the rounding of rewards around 1, "
        "not of rewards around 100: seven equal 95.3 get 0.07 each, seven 953.1 get -0.37."),
    Finding(
        TRL, (*DIGITS, "never negative in bfloat16"), ERROR, "trl/trainer/grpo_trainer.py",
        "torch.exp(ref_per_token_logps - per_token_logps) - (ref_per_token_logps - per_token_logps) - 1",
        "exp(x) - x - 1 loses its digits where x is small; expm1(x) - x keeps them. The KL in the log is off by up to "
        "6e-8 for each token. With use_bias_correction_kl the gradient contains this value, too."),
    Finding(
        TRL, ("far apart",), REACHED_SELDOM, "trl/trainer/grpo_trainer.py",
        "torch.exp(ref_per_token_logps - per_token_logps) - (ref_per_token_logps - per_token_logps) - 1",
        "Nothing bounds the exponent: infinite where the reference holds a token for e^89 times as likely."),
    Finding(
        TRL, ("far above and good", "far above and bad"), REACHED_SELDOM, "trl/trainer/grpo_trainer.py",
        "coef_1 = torch.exp(log_importance_weights)",
        "Nothing bounds the exponent. Beyond e^88 the ratio is infinite: times a KL of 0 that is NaN, and where the "
        "clip holds it, its gradient is 0 * infinity."),
    Finding(
        TRL, ("entropy with an excluded word",), NOT_REACHED, "trl/kernels/chunked_logprob.py",
        "x_sum_exp.mul_(rescale).add_((e * z).sum(-1))",
        "0 * -infinity. The head's weights and bias are finite in the models that TRL trains."),
    Finding(
        TRL, ("gradient of the entropy with an excluded word",), NOT_REACHED, "trl/kernels/chunked_logprob.py",
        "grad -= grad_entropy.unsqueeze(-1) * p * (log_p + entropy.unsqueeze(-1))",
        "The entropy that its forward has saved is NaN already. With entropy_coef its trainer takes this gradient; "
        "the head's weights and bias are finite in the models that TRL trains."),
    Finding(
        VERL, ROUNDED, ERROR, "verl/trainer/ppo/core_algos.py",
        "scores[i] = (scores[i] - id2mean[index[i]]) / (id2std[index[i]] + epsilon)",
        "Whether rewards are equal is not asked. With epsilon 1e-6 the rounding of a mean of seven 0.95 is 6 % of a "
        "full advantage, and of seven 95.3 83 %, of one sign for the whole group."),
    Finding(
        VERL, (*DIGITS, "never negative in bfloat16"), ERROR, "verl/trainer/ppo/core_algos.py",
        "kld = (ratio - kl - 1).contiguous()",
        "exp(x) - x - 1 loses its digits where x is small. The gradient does not: k3+ takes k2's."),
    Finding(
        VERL, ("nothing counts",), REACHED_SELDOM, "verl/trainer/ppo/core_algos.py",
        "loss = verl_F.masked_sum(loss_mat, loss_mask) / batch_num_tokens * dp_size",
        "0 / 0 where no token of the global batch counts: when a filter or rejection masks every response."),
    Finding(
        VERL, ("exact from bfloat16",), ERROR, "verl/utils/torch_functional.py",
        "row_logprobs = F.log_softmax(row_logits, dim=-1)",
        "The softmax of bfloat16 logits, which the FSDP engine has under autocast, is rounded to bfloat16. This is the "
        "path without flash-attention, whose kernel takes its place where it is installed: not tried here."),
    Finding(
        VERL, EXCLUDED, NOT_REACHED, "verl/utils/torch_functional.py",
        "entropy = torch.logsumexp(logits, dim=-1) - torch.sum(pd * logits, dim=-1)",
        "0 * -infinity, forwards and backwards. Logits of the models that verl trains are finite."),
    Finding(
        OPENRLHF, ROUNDED, ERROR, "openrlhf/trainer/ppo_utils/experience_maker.py",
        "rewards = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-9)",
        "Whether rewards are equal is not asked. 1e-9 is far below the rounding of a mean in float32: seven equal 0.95 "
        "get 0.91 each, seven 95.3 get 0.93, as strong as a lesson, of one sign for the whole group."),
    Finding(
        OPENRLHF, DIGITS, ERROR, "openrlhf/models/utils.py", "log_ratio = (-log_ratio).exp() - 1 + log_ratio",
        "exp(x) - 1 - x loses its digits where x is small. The gradient is right."),
    Finding(
        OPENRLHF, ("far apart",), REACHED_SELDOM, "openrlhf/models/utils.py",
        "return log_ratio.clamp(min=-10, max=10)",
        "Bounded after the exponential: the value is 10, the gradient 0 * infinity where the reference holds a token "
        "for e^89 times as likely."),
    Finding(
        OPENRLHF,
        ("nan of the policy", "minus infinity of the policy", "nan of the old policy", "nan of the reference"),
        REACHED_SELDOM, "openrlhf/models/actor.py",
        "action_log_probs = log_probs[:, -action_mask.shape[1] :] * action_mask.float()",
        "Multiplied by the mask, not selected: NaN * 0 and infinity * 0 are NaN. Reached when a model gives NaN or "
        "-infinity for padding. Huge finite numbers there do no harm."),
    Finding(
        OPENRLHF, ("nothing counts",), NOT_REACHED, "openrlhf/models/loss.py",
        "return (loss * loss_mask).sum() / batch_num_tokens * dp_size",
        "0 / 0 where no token of an optimizer step counts. Its trainer masks no whole response."),
    Finding(
        OPENRLHF, ("entropy at the temperature",), "convention at temperature 1, its default; else an error",
        "openrlhf/models/actor.py", 'entropy = compute_entropy(output["logits"])',
        "Taken before the logits are divided by the temperature: log and bonus have the entropy at temperature 1."),
    Finding(
        OPENRLHF, EXCLUDED, NOT_REACHED, "openrlhf/models/utils.py",
        "entropy = torch.logsumexp(logits, dim=-1) - torch.sum(pd * logits, dim=-1)",
        "0 * -infinity, forwards and backwards. Logits of the models that OpenRLHF trains are finite."),
]
