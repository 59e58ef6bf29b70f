"""Stands for what peers import that is not installed here and that no claim reaches: empty modules.

Ray starts processes, vLLM samples, these parts of flash-attention pack rows without padding, aiohttp asks servers for
rewards, pylatexenc reads formulas, and torchdata loads data. In each module every name is an empty class. Where one of
them is installed, it is used.
"""

import importlib.machinery
import sys
import types
from collections.abc import Sequence

PACKAGES = ("aiohttp", "pylatexenc", "ray", "torchdata", "vllm")  # with all that is below them
MODULES = ("flash_attn", "flash_attn.bert_padding", "flash_attn.utils", "flash_attn.utils.distributed")


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        # Where one is a decorator with arguments, what it decorates stays as it is.
        return type(name, (), {"__init__": lambda self, *given, **options: None, "__call__": lambda self, it: it})


class _Finder:
    """Finds empty modules, after everything else has found none."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = name in MODULES or name.partition(".")[0] in PACKAGES
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.append(_Finder())
