"""Claims about log-probabilities and entropies of tokens from logits."""

import math

import torch

from tests.conformance.adapter import Adapter
from tests.conformance.claim import NotOffered, Wrong, claims_of
from tests.conformance.claims import causes
from tests.conformance.tools import expect, expect_finite, gradient

claim = claims_of("log-probabilities")
SOFTMAX = "logp_t = z_t / temperature - logsumexp(z / temperature)"
ENTROPY = "H = -sum_v p_v log p_v"
SAMPLED = "tokens sampled at temperature T have the probabilities of softmax(z / T)"
INF = math.inf
THREE = [[[0.0, math.log(2), math.log(5)]]]  # probabilities 1/8, 2/8, 5/8


def logprob(adapter: Adapter, logits: list, token: int, temperature: float = 1.0) -> torch.Tensor:
    """The log-probability of one token after these logits, [1, 1]."""
    return adapter.score(torch.tensor(logits, requires_grad=True), torch.tensor([[token]]), temperature)[0]


def entropy(adapter: Adapter, logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The entropies of [N, T, V] logits, [N, T], with the gradient that they have."""
    tokens = torch.zeros(logits.shape[:2], dtype=torch.int64)
    found = adapter.score(logits, tokens, temperature)[1]
    if found is None:
        raise NotOffered("no entropy")
    return found


@claim(
    "score", tolerance=1e-5,
    says="The log-probability is that of the softmax.",
    equation=SOFTMAX, source="definition",
    by_hand="logits (0, ln 2, ln 5), the third word: ln 5/8 = -0.4700",
    violation="Ratio and KL are of numbers that are no probabilities.")
def softmax_by_hand(adapter: Adapter, tolerance: float) -> None:
    expect(logprob(adapter, THREE, 2), [[math.log(5 / 8)]], tolerance)


@claim(
    "score", tolerance=1e-5,
    says="The probabilities of all words add up to 1.",
    equation="sum_v exp(logp_v) = 1", source="definition",
    by_hand="seven logits from -3 to 4: the seven exponentials over their sum",
    violation="Ratio and KL are of numbers that are no probabilities.")
def probabilities_add_up(adapter: Adapter, tolerance: float) -> None:
    logits = torch.linspace(-3, 4, 7).expand(1, 7, 7).clone().requires_grad_()
    found = adapter.score(logits, torch.arange(7)[None], 1.0)[0]
    expect(found.exp().sum(), 1.0, tolerance, "sum of seven probabilities")


@claim(
    "score", tolerance=1e-5,
    says="The temperature divides the logits.",
    equation=SOFTMAX, source=SAMPLED,
    by_hand="logits (0, ln 4) at temperature 2: ln 4 / 2 = ln 2, so the second word has ln 2/3 = -0.4055",
    violation="The ratio of a policy to itself is not that of what was sampled: huggingface/trl issue 4159.")
def temperature(adapter: Adapter, tolerance: float) -> None:
    expect(logprob(adapter, [[[0.0, math.log(4)]]], 1, 2.0), [[math.log(2 / 3)]], tolerance, "temperature 2")
    expect(logprob(adapter, [[[0.0, math.log(2)]]], 1, 0.5), [[math.log(4 / 5)]], tolerance, "temperature 1/2")


@claim(
    "score", tolerance=1e-5,
    says="The gradient is that of the softmax at the temperature.",
    equation="dlogp_t / dz = (onehot_t - p) / temperature", source="definition",
    by_hand="p = (1/8, 2/8, 5/8), the third word: (-1/8, -2/8, 3/8); logits times 2 at temperature 2: half of it",
    violation="The policy moves along another direction than its own probabilities.")
def gradient_of_the_softmax(adapter: Adapter, tolerance: float) -> None:
    for scale in (1.0, 2.0):
        logits = (scale * torch.tensor(THREE)).requires_grad_()
        found = gradient(adapter.score(logits, torch.tensor([[2]]), scale)[0].sum(), logits)
        expect(found[0, 0], [-0.125 / scale, -0.25 / scale, 0.375 / scale], tolerance, f"temperature {scale:g}")


@claim(
    "score", tolerance=1e-5,
    says="Each place has its own token.",
    equation=SOFTMAX, source="definition",
    by_hand="three places, words 0, 1 and 2 of (0, ln 2, ln 5): ln 1/8, ln 2/8, ln 5/8",
    violation="Tokens are scored by the distribution of another place: a shift by one.")
def each_place_has_its_token(adapter: Adapter, tolerance: float) -> None:
    logits = torch.tensor(THREE).repeat(2, 3, 1)
    logits[1] *= 2  # the second completion has other distributions: 1, 4 and 25 of 30
    found = adapter.score(logits.requires_grad_(), torch.tensor([[0, 1, 2], [2, 1, 0]]), 1.0)[0]
    expect(found.exp(), [[1 / 8, 2 / 8, 5 / 8], [25 / 30, 4 / 30, 1 / 30]], tolerance, "probabilities")


@claim(
    "score", tolerance=1e-5,
    says="Huge logits overflow nowhere.",
    equation="logsumexp around the largest logit", source="definition",
    by_hand="(1000, 1000 + ln 3), the second word: ln 3/4; (1000, 0), the second: -1000",
    violation="A confident model gives infinity or NaN.")
def huge_logits(adapter: Adapter, tolerance: float) -> None:
    expect(logprob(adapter, [[[1000.0, 1000.0 + math.log(3)]]], 1), [[math.log(3 / 4)]], 100 * tolerance, "around 1000")
    expect(logprob(adapter, [[[1000.0, 0.0]]], 1), [[-1000.0]], tolerance, "the unlikely word")


@claim(
    "score", tolerance=1e-5, cause=causes.EXCLUDED,
    says="A word that the model excludes has no share, and disturbs no other.",
    equation="z_v = -infinity implies p_v = 0", source="vocabularies padded to a multiple of 64",
    by_hand="(0, -infinity, ln 3), the third word: ln 3/4, gradient (-1/4, 0, 1/4)",
    violation="NaN from 0 * infinity in the softmax's gradient.")
def an_excluded_word(adapter: Adapter, tolerance: float) -> None:
    logits = torch.tensor([[[0.0, -INF, math.log(3)]]], requires_grad=True)
    found = adapter.score(logits, torch.tensor([[2]]), 1.0)[0]
    expect(found, [[math.log(3 / 4)]], tolerance, "value")
    expect(gradient(found.sum(), logits)[0, 0], [-0.25, 0.0, 0.25], tolerance, "gradient")


@claim(
    "score",
    says="The logits stay as they were.",
    equation="z is not written to", source="a convention of PyTorch",
    by_hand="the same logits before and after a score at temperature 2",
    violation="Who scores them twice, as policy and for the entropy, scores at the temperature squared.")
def logits_are_not_changed(adapter: Adapter, tolerance: float) -> None:
    logits = torch.tensor(THREE)
    adapter.score(logits, torch.tensor([[2]]), 2.0)
    expect(logits, THREE, 1e-6, "the logits afterwards")


def expect_exact(adapter: Adapter, dtype: torch.dtype, tolerance: float) -> None:
    """2,000 words with logits of this type, against float64."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(2, 4, 2000, generator=generator)).to(dtype)
    tokens = torch.randint(2000, (2, 4), generator=generator)
    found = adapter.score(logits.clone().requires_grad_(), tokens, 1.0)[0].detach().double()
    right = logits.double().log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]
    worst = (found - right).abs().max().item()
    if not worst <= tolerance:
        raise Wrong(f"found {worst:.2g} nats off at worst, expected at most {tolerance:g}")


@claim(
    "score", tolerance=1e-5,
    says="In float32 log-probabilities are exact to 1e-5 over 2,000 words.",
    equation=SOFTMAX, source="definition",
    by_hand="float32 has 7 digits; log-probabilities around -15: 1e-6",
    violation="Ratios of a policy to itself differ from 1.")
def exact_in_float32(adapter: Adapter, tolerance: float) -> None:
    expect_exact(adapter, torch.float32, tolerance)


@claim(
    "score", tolerance=1e-3,
    says="From bfloat16 logits, log-probabilities are computed in float32.",
    equation="log_softmax(z.float())", source="verl issue 6280: 10 % of ratios outside [0.9, 1.1] on policy",
    by_hand="a bfloat16 number around 12 has steps of 1/16: up to 0.03 nats off, 3 % of the ratio",
    violation="The ratio of a policy to itself is noise of some per cent, and clips.")
def exact_from_bfloat16(adapter: Adapter, tolerance: float) -> None:
    expect_exact(adapter, torch.bfloat16, tolerance)


@claim(
    "score", tolerance=1e-5,
    says="The entropy is that of the distribution, in nats.",
    equation=ENTROPY, source="definition",
    by_hand="four equal words: ln 4 = 1.3863; (1/2, 1/4, 1/4, 0 or nearly): 1.5 ln 2 = 1.0397",
    violation="An entropy bonus pulls, and the log shows, something else.")
def entropy_by_hand(adapter: Adapter, tolerance: float) -> None:
    logits = torch.tensor([[[0.0] * 4, [math.log(2), 0.0, 0.0, -60.0]]], requires_grad=True)
    expect(entropy(adapter, logits), [[math.log(4), 1.5 * math.log(2)]], tolerance)


@claim(
    "score", tolerance=1e-5,
    says="The entropy is that of the distribution that was sampled from: at the temperature.",
    equation="p = softmax(z / temperature)", source=SAMPLED,
    by_hand="logits (0, 2 ln 3) at temperature 2: probabilities 1/4 and 3/4, entropy 0.5623; at temperature 1: 0.3251",
    violation="The entropy in the log, or the bonus, is of a distribution that nobody samples from.")
def entropy_at_the_temperature(adapter: Adapter, tolerance: float) -> None:
    logits = torch.tensor([[[0.0, 2 * math.log(3)]]], requires_grad=True)
    expect(entropy(adapter, logits, 2.0), [[0.56234]], 10 * tolerance)


@claim(
    "score", tolerance=1e-5, cause=causes.EXCLUDED,
    says="A word that the model excludes adds nothing to the entropy.",
    equation="0 log 0 = 0", source="vocabularies padded to a multiple of 64",
    by_hand="(0, -infinity, 0): two equal words, ln 2 = 0.6931",
    violation="0 * infinity: the entropy is NaN, and with a bonus the loss.")
def entropy_with_an_excluded_word(adapter: Adapter, tolerance: float) -> None:
    found = entropy(adapter, torch.tensor([[[0.0, -INF, 0.0]]], requires_grad=True))
    expect_finite(found, "entropy")
    expect(found, [[math.log(2)]], tolerance)


@claim(
    "score", tolerance=1e-4, cause=causes.EXCLUDED,
    says="A word that the model excludes leaves the entropy's gradient finite, and right.",
    equation="dH / dz_v = -p_v (log p_v + H) / temperature, 0 for the excluded word",
    source="pytorch/pytorch issue 68425: NaN from the branch of torch.where that is not taken",
    by_hand="(0, -infinity, ln 3): p = (1/4, 0, 3/4), H = ln 4 - 3/4 ln 3 = 0.5623; 1/4 (1.3863 - 0.5623) = 0.2060 for "
            "the first word, -0.2060 for the third",
    violation="With an entropy bonus all weights become NaN in the first step, although the logged entropy is right.")
def gradient_of_the_entropy_with_an_excluded_word(adapter: Adapter, tolerance: float) -> None:
    logits = torch.tensor([[[0.0, -INF, math.log(3)]]], requires_grad=True)
    found = entropy(adapter, logits)
    if not found.requires_grad:
        raise NotOffered("its entropy has no gradient")
    grad = gradient(found.sum(), logits)[0, 0]
    expect_finite(grad, "gradient")
    expect(grad, [0.2060, 0.0, -0.2060], tolerance, "gradient")
