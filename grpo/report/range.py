"""Where a metric should stay: one range, which the table of metrics prints and the watch acts on."""

import math
from typing import Literal, NamedTuple

# "with a signal": there are advantages or a KL that are not 0, so that there must be a gradient.
When = Literal["", "at step 0", "later", "on policy", "off policy", "in float32", "in bfloat16 or tf32",
               "with a signal"]


class Range(NamedTuple):
    """A healthy value is in it: low <= value <= high.

    >>> print(Range(0.25, 4, of="the start"))
    0.25 to 4 times the start

    Args:
        low: in the metric's unit, or in multiples of what `of` names.
        high: likewise.
        when: where it applies; "" everywhere.
        of: the mean of the run's first steps, or the value of the step before; "" for an absolute range.
        patience: steps in a row outside of it before there is a warning; 1 where no noise leads outside.
    """

    low: float = -math.inf
    high: float = math.inf
    when: When = ""
    of: Literal["", "the start", "the step before"] = ""
    patience: int = 5

    def holds(self, value: float, base: float) -> bool:
        """Is the value healthy? `base` is what `of` names, 1 for an absolute range."""
        # An open end times a base of 0 would be NaN.
        low, high = (bound if math.isinf(bound) else bound * base for bound in (self.low, self.high))
        return low <= value <= high

    def __str__(self) -> str:
        if self.low == self.high:
            bounds = f"{self.low:g}"
        elif math.isinf(self.low):
            bounds = f"at most {self.high:g}"
        elif math.isinf(self.high):
            bounds = f"at least {self.low:g}"
        else:
            bounds = f"{self.low:g} to {self.high:g}"
        return " ".join(part for part in (bounds, self.of and f"times {self.of}", self.when) if part)
