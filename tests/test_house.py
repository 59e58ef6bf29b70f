"""The map of the house: who imports whom, and how many files lie side by side."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ranks import ROOT

PACKAGES = ("grpo", "kernels", "rewards", "data")
EVERYWHERE = {"types", "distributed", "options/refusal"}  # of grpo, for every room
RUN = {"config", "options", "advantage", "ratio", "loss", "packing", "schedule", "sampler", "trainer", "loading",
       "memory", "report", "evaluation", "saving", "health", "update", "rewards", "data", "kernels"}
# Whoever stands on the left may import what stands on the right.
MAY_IMPORT = {
    "types": {"data"},
    "distributed": set(),
    "options": {"rewards"},
    "advantage": set(),
    "ratio": set(),
    "loss": {"ratio"},
    "schedule": set(),
    "packing": set(),
    "config": {"options", "rewards"},
    "health": set(),
    "sampler": {"packing", "health", "kernels"},
    "trainer": {"health", "kernels"},
    "trainer/zero": {"config"},
    "loading": {"sampler", "trainer", "config", "options"},
    "saving": {"trainer", "config", "options", "data"},
    "evaluation": {"sampler", "rewards", "data"},
    "memory": {"loading", "trainer", "sampler", "packing", "config", "options", "kernels"},
    "report": {"evaluation", "advantage", "ratio", "loss", "config", "options", "rewards", "health", "trainer"},
    "update": {"ratio", "loss", "schedule", "packing", "trainer", "report", "config"},
    "run": RUN,
    "export": {"loading", "evaluation", "report", "saving", "memory", "packing", "run", "config", "options", "data"},
    "step": {"run", "update", "advantage", "schedule", "sampler", "report", "health", "rewards", "data"},
    "doctor": RUN | {"step", "run"},
    "grpo": {"config", "run"},  # grpo/__init__.py, what grpo.train takes and gives
    "__main__": {"config", "options", "run"},
    "kernels": set(),
    "rewards": set(),
    "data": set(),
}


def place(module: str) -> tuple[str, str]:
    """The room of a module, and the module within grpo: grpo.sampler.draw gives ("sampler", "sampler/draw")."""
    package, *rest = module.split(".")
    return (rest[0], "/".join(rest)) if package == "grpo" and rest else (package, package)


def imports(path: Path) -> list[str]:
    """The project's modules that a file imports, with dots."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{name.name}" for name in node.names]
            found += [one if is_module(one) else node.module for one in whole]
    return [one for one in found if one.split(".")[0] in PACKAGES]


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def arrows() -> dict[str, list[str]]:
    """What each module of the project imports of it."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    return {module: imports(path) for module, path in modules.items()}


def wrong_ways(arrows: dict[str, list[str]]) -> list[str]:
    """The imports that the table does not allow."""
    wrong = []
    for module, imported in arrows.items():
        room, name = place(module)
        allowed = {room} | MAY_IMPORT.get(room, set()) | MAY_IMPORT.get(name, set())
        allowed |= EVERYWHERE if module.startswith("grpo") else set()
        wrong += [f"{module} imports {other}" for other in imported
                  if other != "grpo" and not {*place(other)} & allowed]
    return wrong


def test_imports_go_one_way() -> None:
    assert wrong_ways(arrows()) == []


@pytest.mark.parametrize(("module", "imported"), [
    ("grpo.sampler.draw", "grpo.config"), ("grpo.sampler.draw", "grpo.trainer.engine"), ("grpo.loss", "grpo.config"),
    ("grpo.trainer.engine", "grpo.config"), ("grpo.step", "grpo.doctor.trial"), ("kernels.choice", "grpo.types"),
    ("grpo.loss", "grpo.options.recipe"),
])
def test_a_wrong_import_is_noticed(module: str, imported: str) -> None:
    assert wrong_ways({module: [imported]}) == [f"{module} imports {imported}"]


def test_no_room_needs_itself() -> None:
    rooms = defaultdict(set)
    for module, imported in arrows().items():
        rooms[place(module)[0]] |= {place(other)[0] for other in imported} - {place(module)[0], "grpo"}
    assert len(list(TopologicalSorter(rooms).static_order())) >= 20  # raises CycleError where there is a circle


def test_a_folder_is_seen_at_a_glance() -> None:
    assert len(list((ROOT / "grpo").glob("[!_]*.py"))) <= 10
    folders = [ROOT / "benchmarks", *(path for package in PACKAGES for path in (ROOT / package).rglob("*"))]
    for folder in folders:
        assert not folder.is_dir() or len(list(folder.glob("*.py"))) <= 14, folder
