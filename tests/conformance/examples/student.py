"""GRPO in 60 lines: a table of logits learns to count down from the digit that it is given."""

import torch

PLACES, WORDS, STOP = 4, 11, 10  # at most four words; the word 10 ends a completion
GROUP, EPSILON, BETA = 8, 0.2, 0.01


def sample(logits, temperature):
    tokens = torch.distributions.Categorical(logits=logits / temperature).sample()
    stops = (tokens == STOP).long()
    return tokens, stops.cumsum(dim=1) - stops == 0  # the stop counts, what follows it does not


def reward(digit, tokens, mask):
    wanted = digit[:, None] - 1 - torch.arange(PLACES)
    return ((tokens == torch.where(wanted >= 0, wanted, STOP)) * mask).sum(dim=1) / PLACES


def logprobs(logits, tokens, temperature):
    return (logits / temperature).log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]


def advantages(rewards):
    std = rewards.std(dim=1, keepdim=True)
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (std + 1e-8)


def k3(logprob, ref):
    return torch.exp(ref - logprob) - (ref - logprob) - 1


def grpo_loss(logprob, old, advantage, mask, ref):
    ratio = torch.exp(logprob - old)
    gain = torch.min(ratio * advantage[:, None], ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantage[:, None])
    return ((-gain + BETA * k3(logprob, ref)) * mask).sum() / mask.sum()


def step_loss(micro_batches):
    return sum(grpo_loss(*one) for one in micro_batches) / len(micro_batches)


def train(steps, temperature=1.0):
    table = torch.zeros(10, PLACES, WORDS, requires_grad=True)  # the policy: logits by digit and place
    reference = table.detach().clone()
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(steps):
        digit = torch.randint(10, (4,)).repeat_interleave(GROUP)
        tokens, mask = sample(table.detach()[digit], temperature)
        rewards = reward(digit, tokens, mask)
        advantage = advantages(rewards.view(-1, GROUP)).flatten()
        old, ref = (logprobs(one.detach()[digit], tokens, temperature) for one in (table, reference))
        for _ in range(2):  # two updates of each batch, each over two micro-batches
            new = logprobs(table[digit], tokens, temperature)
            halves = [tensor.chunk(2) for tensor in (new, old, advantage, mask, ref)]
            optimizer.zero_grad()
            step_loss(list(zip(*halves))).backward()
            optimizer.step()
    return rewards.mean().item()
