"""A small GRPO: DeepSeekMath (2402.03300) objective, DAPO token-level mean and clip-higher."""
import torch
import torch.distributed as dist
import torch.nn.functional as F


def token_stats(model_logits, ids, temperature=1.0):
    """Log-prob of each chosen token and entropy of each distribution."""
    logp = F.log_softmax(model_logits / temperature, dim=-1)
    chosen = logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return chosen, entropy


def average_gradients(params):
    """What DDP does: the mean of the gradients of all processes."""
    if dist.is_initialized():
        for p in params:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


class GRPO:
    def __init__(self, group_size, eps_low=0.2, eps_high=0.28, kl_coef=0.04):
        self.group_size = group_size
        self.eps_low = eps_low
        self.eps_high = eps_high
        self.kl_coef = kl_coef

    def group_advantages(self, rewards):
        """rewards: flat [prompts * group_size] -> flat, normalised in each group."""
        r = rewards.view(-1, self.group_size)
        adv = (r - r.mean(dim=1, keepdim=True)) / (r.std(dim=1, keepdim=True) + 1e-8)
        return adv.view(-1)

    @staticmethod
    def k3(logp, ref_logp):
        """Schulman's k3: exp(ref - logp) - (ref - logp) - 1."""
        diff = ref_logp - logp
        return torch.exp(diff) - diff - 1

    @staticmethod
    def masked_mean(x, mask):
        return (x * mask).sum() / mask.sum()

    def loss(self, batch):
        """batch: dict of logp, old_logp, ref_logp, mask [N, T] and adv [N]."""
        ratio = torch.exp(batch["logp"] - batch["old_logp"])
        adv = batch["adv"].unsqueeze(1)
        clipped = torch.clamp(ratio, 1 - self.eps_low, 1 + self.eps_high)
        per_token = -torch.min(ratio * adv, clipped * adv)
        if self.kl_coef > 0:
            per_token = per_token + self.kl_coef * self.k3(batch["logp"], batch["ref_logp"])
        mask = batch["mask"].float()
        return self.masked_mean(per_token, mask)

    def step(self, policy, optimizer, batches, max_norm=1.0):
        """One optimizer step with gradient accumulation; policy(batch) fills in logp."""
        optimizer.zero_grad()
        for batch in batches:
            batch["logp"] = policy(batch)
            loss = self.loss(batch) / len(batches)
            loss.backward()
        average_gradients(policy.parameters())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
        optimizer.step()
