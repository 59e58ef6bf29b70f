"""An adapter: one Python file that shows the suite your GRPO. At most six functions; leave out what you do not have.

Copy what you need. The folder of the file is on sys.path while it is read: import your code from there. All tensors are
on the CPU, float32 unless said otherwise. N completions, T tokens each, padded; G completions of each of B prompts; V
words. Log-probabilities are natural logarithms. `mask` is bool, True where a token counts. Where it is False the other
tensors may hold anything, as padding does.

    def advantages(rewards):
        # [B, G] rewards, each row the completions of one prompt -> [B, G] advantages.

    def kl(logprob, ref_logprob):
        # [N, T] log-probabilities of the sampled tokens under policy and reference -> [N, T], your estimate of the KL
        # at each token. Keep the gradient to logprob. The suite also calls it in float64 and bfloat16; the answer may
        # have any float dtype. If your code always converts log-probabilities to float32 first, do so here.

    def loss(logprob, old_logprob, advantage, mask, ref_logprob):
        # [N, T], [N, T], [N], [N, T], [N, T] -> one number that you would call .backward() on, with these completions
        # as the whole batch. old_logprob is under the policy that sampled; on the first update it equals logprob.
        # ref_logprob is under the reference: ignore it if you have no KL. logprob requires a gradient.

    def batch_loss(micro_batches):
        # A list of the five arguments of loss, (logprob, old_logprob, advantage, mask, ref_logprob), one for each
        # micro-batch of an optimizer step -> one number whose gradient is the one that you accumulate over them: the
        # sum of what you call .backward() on. N and T differ from one micro-batch to the next. Put in what your
        # training loop does: dividing by the number of micro-batches, or by tokens of all of them.

    def score(logits, tokens, temperature):
        # [N, T, V], [N, T], a number -> the pair ([N, T] log-probability of each token, [N, T] entropy of each
        # distribution). Tokens were sampled at this temperature. None in the place of an entropy that you do not have;
        # detach one that you only log. logits requires a gradient; they may be bfloat16, and one word may have -inf in
        # every row.

    def rank_gradient(weight, tokens, advantage, mask):
        # Called in two processes at once, in which torch.distributed has been set up (gloo). The policy is a table:
        # log_softmax(weight)[tokens], weight [V] is the same on both, requires a gradient. Each process has its own
        # completions, [N, T], [N], [N, T], and N may differ. Return the [V] gradient that your optimizer would apply
        # here, on policy, without a KL, its norm not clipped. Do what your loop does: count over ranks what it counts
        # over ranks, and reduce as it does; if DistributedDataParallel averages gradients, average. You may call
        # .backward() and return weight.grad.

Four constants say what cannot be seen from outside; these are their values if you leave them out:

    NAME = "file name"     # as it stands in the table, with the version
    CLIP = (0.2, 0.2)      # (low, high), in this order: ratios stay in [1 - low, 1 + high]; DAPO has (0.2, 0.28)
    BETA = 0.0             # loss contains BETA * KL; at 0 the claims about this term are not offered
    CONVENTIONS = {}       # what you expect of the claims that name a convention; another answer fails the claim

Names of CONVENTIONS, and what the suite may find, in the words of its table. Declare none, or those that you know:

    "standard deviation"              "sample, of n - 1", "population, of n", "none: divided by nothing", "none, and the
                                      mean is of the others (RLOO)"
    "standard deviation of"           "the group", "the batch"
    "eps of the divisor"              "1e-04", "1e-06", ..., "less than 1e-7"
    "a completion without reward"     "left out", "its group teaches nothing", "its group is not a number"
    "a group of one"                  "0", "its reward", "not a number"
    "estimator"                       "k1", "k2", "k3"
    "gradient of"                     "of KL(policy || reference)", "of KL(reference || policy)", "none: it does not
                                      pull"
    "bounded at"                      "not bounded", or the value where log p - log q = -30, as "4.85e+08"
    "the ratio"                       "of each token", "the mean over a completion (GSPO)"
    "dual clip"                       "none", "at 3", ...
    "times the ratio"                 "no", "yes"
    "mean over"                       "tokens", "completions, then tokens", "completions, tokens added up", "nothing: a
                                      sum", "a constant: 1 / 16 for 2 completions", ...
    "completions that do not count"   "counted", "not counted"

Instead of a file, `FILE.py:NAME` takes an object in it that has these functions and constants as attributes. A
function may raise `NotImplementedError("why")` for what it cannot do: "not offered". Any other error fails the claim.
Nothing here is random, and no function is called with completions of more than 200 tokens.
"""

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo.options.refusal import nearest, refuse

FUNCTIONS = ("advantages", "kl", "loss", "batch_loss", "score", "rank_gradient")
CONVENTIONS = ("standard deviation", "standard deviation of", "eps of the divisor", "a completion without reward",
               "a group of one", "estimator", "gradient of", "bounded at", "the ratio", "dual clip", "times the ratio",
               "mean over", "completions that do not count")


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a file offers: its functions by name, and its constants."""

    name: str
    functions: Mapping[str, Callable[..., Any]]
    clip: tuple[float, float] = (0.2, 0.2)
    beta: float = 0.0
    conventions: Mapping[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self.functions[name]
        except KeyError:
            raise AttributeError(name) from None


def load(where: str) -> Adapter:
    """The adapter in `FILE.py` or `FILE.py:NAME`.

    Raises:
        ValueError: there is no such file or object, it cannot be imported, it has none of the functions, or a constant
            has a value that it cannot have.
    """
    file, _, attribute = where.partition(".py:")
    path = Path(file + ".py" if attribute else file).resolve()
    if not path.is_file():
        raise ValueError(f"adapter={where!r} must be a Python file, or FILE.py:NAME; there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"conformance_adapter_{path.stem}", path)
    found: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses and pickle look there
    sys.path.append(str(path.parent))  # what lies beside it can be imported
    try:
        spec.loader.exec_module(found)
    except Exception as error:
        raise ValueError(f"adapter={where!r} must be importable: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    if attribute:
        names = sorted(name for name, value in vars(found).items() if _offered(value))
        if attribute not in vars(found):
            raise ValueError(f"adapter={where!r} must name an object in the file; it has {', '.join(names) or 'none'}")
        found = getattr(found, attribute)
    functions = _offered(found)
    if not functions:
        raise ValueError(f"adapter={where!r} must have at least one of the functions {', '.join(FUNCTIONS)}")
    adapter = Adapter(
        name=getattr(found, "NAME", attribute or path.stem), functions=functions,
        clip=getattr(found, "CLIP", Adapter.clip), beta=getattr(found, "BETA", Adapter.beta),
        conventions=getattr(found, "CONVENTIONS", {}))
    _check(adapter)
    return adapter


def _check(adapter: Adapter) -> None:
    """Refuse constants that claims cannot be tried with."""
    clip, beta, conventions = adapter.clip, adapter.beta, adapter.conventions
    if not (isinstance(clip, tuple | list) and len(clip) == 2 and all(map(_bound, clip)) and clip[0] <= 1):
        refuse("CLIP", clip, "must be two numbers from 0, (low, high), low at most 1",
               (clip, clip) if _bound(clip) else Adapter.clip)
    if not _bound(beta):
        refuse("BETA", beta, "must be a number from 0", Adapter.beta)
    if not isinstance(conventions, Mapping):
        refuse("CONVENTIONS", conventions, "must be a dict from names of claims to what they find", {})
    for name, value in conventions.items():
        if name not in CONVENTIONS:
            refuse("CONVENTIONS", name, "is a name that no claim about a convention has; their names: "
                   f"{', '.join(CONVENTIONS)}", nearest(str(name), CONVENTIONS))
        if not isinstance(value, str):
            refuse(f"CONVENTIONS[{name!r}]", value, "must be a text, what the table prints", f'"{value}"')


def _bound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _offered(found: Any) -> dict[str, Callable[..., Any]]:
    return {name: getattr(found, name) for name in FUNCTIONS if callable(getattr(found, name, None))}
