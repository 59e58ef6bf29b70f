"""Shows student.py to the conformance suite."""

import student

CLIP = (student.EPSILON, student.EPSILON)
BETA = student.BETA


def advantages(rewards):
    return student.advantages(rewards)


def kl(logprob, ref_logprob):
    return student.k3(logprob, ref_logprob)


def loss(logprob, old_logprob, advantage, mask, ref_logprob):
    return student.step_loss([(logprob, old_logprob, advantage, mask, ref_logprob)])


def batch_loss(micro_batches):
    return student.step_loss(micro_batches)


def score(logits, tokens, temperature):
    return student.logprobs(logits, tokens, temperature), None
