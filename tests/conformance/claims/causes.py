"""What several failed claims most likely have in common, and the remedy."""

from tests.conformance.claim import Cause

DIVISOR = Cause(
    "a divisor of a micro-batch or a rank in place of the whole batch's",
    "count tokens (or completions) over all micro-batches and ranks first; divide each micro-batch's sum by that, and "
    "add up. What averages gradients over ranks needs the ranks as a factor. At least 1, where nothing counts.")
MASKED = Cause(
    "what masked places hold gets into the loss",
    "torch.where(mask, logprob - old, 0) before exp, and the same before the KL. A product with the mask keeps NaN.")
OVERFLOW = Cause(
    "an exponential without a bound",
    "clamp the log-ratio to [-20, 20] before exp, and d of the KL likewise, in both of its terms. Any bound below 88 "
    "passes; clamping the result is too late, its gradient is 0 * infinity.")
HALF_BOUND = Cause("a bound in one term of the KL only", "d = d.clamp(-20, 20), once, then expm1(-d) + d.")
DIGITS = Cause("exp(-d) - 1 + d loses its digits", "torch.expm1(-d) + d, in float32.")
ROUNDING = Cause(
    "nobody asks whether rewards are equal",
    "where the largest reward of a group is the smallest, the advantage is 0. No eps in the divisor will do: rounding "
    "grows with the rewards.")
ONE = Cause("0 / 0 in a group of one", "the advantage of a completion that has none beside it is 0, or its reward.")
EXCLUDED = Cause(
    "0 * infinity where a word is excluded",
    "fill log p with 0 where it is -infinity, before the product with p. A torch.where after the product mends the "
    "value, and its gradient is still NaN.")
CLIP = Cause(
    "other bounds of the clip than the adapter says",
    "clamp(ratio, 1 - low, 1 + high). If that is what it does: CLIP in the adapter is (low, high), in this order.")
