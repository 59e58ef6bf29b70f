"""Options: what they are, how they are spelled, how a mistake is refused."""
