"""A small GRPO: DeepSeekMath (2402.03300) objective, DAPO token-level mean and clip-higher."""
import torch
import torch.distributed as dist
import torch.nn.functional as F


def token_stats(model_logits, ids, temperature=1.0):
    """Log-prob of each chosen token and entropy of each distribution."""
    logp = F.log_softmax(model_logits.float() / temperature, dim=-1)
    chosen = logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
    return chosen, entropy


def sum_gradients(params):
    """The sum over all processes: the divisor is already that of all."""
    if dist.is_initialized():
        for p in params:
            dist.all_reduce(p.grad)


def count_tokens(masks):
    """Tokens of all micro-batches of all processes."""
    n = sum(m.sum() for m in masks)
    if dist.is_initialized():
        dist.all_reduce(n)
    return n


class GRPO:
    def __init__(self, group_size, eps_low=0.2, eps_high=0.28, kl_coef=0.04):
        self.group_size = group_size
        self.eps_low = eps_low
        self.eps_high = eps_high
        self.kl_coef = kl_coef

    def group_advantages(self, rewards):
        """rewards: flat [prompts * group_size] -> flat, normalised in each group."""
        r = rewards.view(-1, self.group_size)
        if self.group_size == 1:
            return torch.zeros_like(rewards)
        adv = (r - r.mean(dim=1, keepdim=True)) / (r.std(dim=1, keepdim=True) + 1e-4)
        adv = torch.where((r == r[:, :1]).all(dim=1, keepdim=True), 0.0, adv)  # rounding is no lesson
        return adv.view(-1)

    @staticmethod
    def k3(logp, ref_logp):
        """Schulman's k3: exp(ref - logp) - (ref - logp) - 1."""
        diff = (ref_logp - logp).float().clamp(-20, 20)
        return torch.expm1(diff) - diff

    def loss(self, batch, n_tokens=None):
        """batch: dict of logp, old_logp, ref_logp, mask [N, T] and adv [N]."""
        mask = batch["mask"].bool()
        ratio = torch.exp((batch["logp"] - batch["old_logp"]).clamp(-20, 20))
        adv = batch["adv"].unsqueeze(1)
        clipped = torch.clamp(ratio, 1 - self.eps_low, 1 + self.eps_high)
        per_token = -torch.min(ratio * adv, clipped * adv)
        if self.kl_coef > 0:
            per_token = per_token + self.kl_coef * self.k3(batch["logp"], batch["ref_logp"])
        if n_tokens is None:
            n_tokens = mask.sum()
        return torch.where(mask, per_token, 0.0).sum() / n_tokens.clamp(min=1)

    def step(self, policy, optimizer, batches, max_norm=1.0):
        """One optimizer step with gradient accumulation; policy(batch) fills in logp."""
        optimizer.zero_grad()
        n_tokens = count_tokens([b["mask"] for b in batches])
        for batch in batches:
            batch["logp"] = policy(batch)
            self.loss(batch, n_tokens).backward()
        sum_gradients(policy.parameters())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
        optimizer.step()
