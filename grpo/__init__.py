"""Group relative policy optimisation: the mathematics, the policy, the rollout and what holds them together."""
