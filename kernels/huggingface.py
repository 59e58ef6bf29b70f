"""Hugging Face's package of the same name, which transformers and bitsandbytes import where it is installed.

Ours hides theirs, because the project's root comes first on sys.path. So `kernels.__path__` also holds their folder:
their submodules (`kernels.layer`) import as usual. A name that ours does not have (`from kernels import get_kernel`) is
looked up in their `__init__.py`, which runs when it is first needed, as the module `kernels._huggingface`.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

MODULE = "kernels._huggingface"


def attribute(name: str, *, folders: list[str]) -> Any:
    """Their `name`; `folders` is `kernels.__path__`. AttributeError: not installed, or no such name."""
    if MODULE not in sys.modules:
        ours = Path(__file__).parent
        inits = [Path(folder, "__init__.py") for folder in folders]
        theirs = [init for init in inits if init.is_file() and not init.parent.samefile(ours)]
        if not theirs:
            raise AttributeError(f"module 'kernels' has no attribute {name!r}; Hugging Face's is not installed")
        _run(theirs[0])
    return getattr(sys.modules[MODULE], name)


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
