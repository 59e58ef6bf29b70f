"""Group relative policy optimisation: the mathematics, the policy, the rollout and what holds them together."""

import logging

# When imported on a CPU it looks for a compiled kernel on the Hub and warns, although it does without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
