import torch
from student_first import GRPO, average_gradients, token_stats

NAME = "student GRPO"
CLIP = (0.2, 0.28)
BETA = 0.04


def advantages(rewards):
    return GRPO(group_size=rewards.shape[1]).group_advantages(rewards.reshape(-1)).view_as(rewards)


def kl(logprob, ref_logprob):
    return GRPO.k3(logprob, ref_logprob)


def loss(logprob, old_logprob, advantage, mask, ref_logprob, beta=BETA):
    batch = {"logp": logprob, "old_logp": old_logprob, "ref_logp": ref_logprob, "mask": mask, "adv": advantage}
    return GRPO(group_size=1, kl_coef=beta).loss(batch)


def batch_loss(micro_batches):
    return sum(loss(*m) / len(micro_batches) for m in micro_batches)


def score(logits, tokens, temperature):
    return token_stats(logits, tokens, temperature)


def rank_gradient(weight, tokens, advantage, mask):
    logp = torch.log_softmax(weight, dim=-1)[tokens]
    weight.grad = None
    loss(logp, logp.detach(), advantage, mask, logp.detach(), beta=0.0).backward()
    average_gradients([weight])
    return weight.grad
