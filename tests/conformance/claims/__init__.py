"""All claims, in the order in which a table shows them."""

from importlib import import_module

from tests.conformance.claim import CLAIMS

__all__ = ["CLAIMS"]

for name in ("advantages", "group_conventions", "kl", "kl_conventions", "ratio", "far", "penalty", "mask", "weighing",
             "micro_batches", "score", "ranks"):
    import_module(f"{__name__}.{name}")  # in this order, which is that of the table
