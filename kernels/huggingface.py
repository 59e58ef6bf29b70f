"""Hugging Face's package of the same name, which transformers and bitsandbytes import where it is installed.

Ours hides theirs, because the project's root comes first on sys.path. For both to work, `kernels.__path__` also holds
their folder, so their submodules (`kernels.layer`) import as ever, and a name that ours does not have
(`from kernels import get_kernel`) is looked up in their `__init__.py`, run on first need as `kernels._huggingface`.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

MODULE = "kernels._huggingface"


def attribute(name: str, *, folders: list[str]) -> Any:
    """What their package calls `name`.

    Args:
        name: a name that our package does not have.
        folders: `kernels.__path__`, ours first.

    Raises:
        AttributeError: their package is not installed or has no such name.
    """
    if MODULE not in sys.modules:
        init = _their_init(folders)
        if init is None:
            raise AttributeError(f"module 'kernels' has no attribute {name!r}; Hugging Face's is not installed")
        _run(init)
    return getattr(sys.modules[MODULE], name)


def _their_init(folders: list[str]) -> Path | None:
    inits = [Path(folder, "__init__.py") for folder in folders]
    ours = Path(__file__).parent
    return next((init for init in inits if init.is_file() and not init.parent.samefile(ours)), None)


def _run(init: Path) -> None:
    # Without folders of its own it is a plain module of `kernels`, so `from .layer import` means `kernels.layer`: one
    # copy of each submodule, whichever way it is imported.
    spec = importlib.util.spec_from_file_location(MODULE, init, submodule_search_locations=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE]  # as `import` does, so that the next attempt fails in the same way
        raise
