"""An adapter: one Python file that shows the suite your GRPO. At most six functions; leave out what you do not have.

Copy what you need. All tensors are on the CPU, float32 unless said otherwise. N completions, T tokens each, padded;
G completions of each of B prompts; V words. Log-probabilities are natural logarithms. `mask` is bool, True where a
token counts. Where it is False the other tensors may hold anything, as padding does.

    def advantages(rewards):
        # [B, G] rewards, each row the completions of one prompt -> [B, G] advantages.

    def kl(logprob, ref_logprob):
        # [N, T] log-probabilities of the sampled tokens under policy and reference -> [N, T], your estimate of the KL
        # at each token. Keep the gradient to logprob. The suite also calls it in float64 and bfloat16.

    def loss(logprob, old_logprob, advantage, mask, ref_logprob):
        # [N, T], [N, T], [N], [N, T], [N, T] -> one number that you would call .backward() on, with these completions
        # as the whole batch. old_logprob is under the policy that sampled; on the first update it equals logprob.
        # ref_logprob is under the reference: ignore it if you have no KL. logprob requires a gradient.

    def batch_loss(micro_batches):
        # A list of the five arguments of loss, (logprob, old_logprob, advantage, mask, ref_logprob), one for each
        # micro-batch of an optimizer step -> one number whose gradient is the one that you accumulate over them.
        # Put in what your training loop does: dividing by the number of micro-batches, or by tokens of all of them.

    def score(logits, tokens, temperature):
        # [N, T, V], [N, T], a number -> the pair ([N, T] log-probability of each token, [N, T] entropy of each
        # distribution). Tokens were sampled at this temperature. None in the place of an entropy that you do not have.
        # logits requires a gradient; they may be bfloat16, and one word may have -inf in every row.

    def rank_gradient(weight, tokens, advantage, mask):
        # Called in two processes at once, in which torch.distributed has been set up (gloo). The policy is a table:
        # log_softmax(weight)[tokens], weight [V] is the same on both, requires a gradient. Each process has its own
        # completions, [N, T], [N], [N, T], and N may differ. Return the [V] gradient that your optimizer would apply
        # here: on policy, without a KL, with your denominators, after your reduction over processes, its norm not
        # clipped.

Four constants say what cannot be seen from outside; these are their values if you leave them out:

    NAME = "file name"     # as it stands in the table, with the version
    CLIP = (0.2, 0.2)      # the clip keeps ratios in [1 - 0.2, 1 + 0.2]
    BETA = 0.0             # loss contains BETA * KL; at 0 the claims about this term are not offered
    CONVENTIONS = {}       # claim name -> what you expect it to find, for claims that name a convention

Instead of a file, `FILE.py:NAME` takes an object in it that has these functions and constants as attributes. A
function may raise `NotImplementedError("why")` for what it cannot do: "not offered". Any other error fails the claim.
Nothing here is random, and no function is called with completions of more than 200 tokens.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FUNCTIONS = ("advantages", "kl", "loss", "batch_loss", "score", "rank_gradient")


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
        ValueError: there is no such file or object, it cannot be imported, or it has none of the functions.
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
    return Adapter(
        name=getattr(found, "NAME", attribute or path.stem), functions=functions,
        clip=getattr(found, "CLIP", Adapter.clip), beta=getattr(found, "BETA", Adapter.beta),
        conventions=getattr(found, "CONVENTIONS", {}))


def _offered(found: Any) -> dict[str, Callable[..., Any]]:
    return {name: getattr(found, name) for name in FUNCTIONS if callable(getattr(found, name, None))}
