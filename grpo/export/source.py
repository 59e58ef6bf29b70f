"""What is exported: a run's adapter or model, or an adapter from elsewhere, with what its prompts look like."""

from dataclasses import dataclass
from pathlib import Path

from grpo.config import Config
from grpo.loading.adapter import read_adapter_config
from grpo.options import recipe
from grpo.options.refusal import refuse
from grpo.options.surroundings import check_folder, located

SHOTS = 2  # examples in front of the word problems that an adapter from elsewhere is compared with


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights to export."""

    base: str  # folder or Hub name of the model that was trained
    adapter: Path | None  # None: every weight was trained, and `model` has them
    model: Path | None
    run: Path | None  # the run's folder; None for an adapter from elsewhere
    config: Config  # of the run; else the defaults, which say what a problem looks like


def find(folder: Path, base: str | None) -> Source:
    """What lies in `folder`; `base` is the base model's place if it is not where the folder says.

    Raises:
        ValueError: the base model is not there, or the adapter is not plain LoRA.
    """
    if folder.name == "adapter" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    if not (folder / "config.yaml").is_file():
        return _elsewhere(folder, base)
    config = _read(folder / "config.yaml", base)
    whole = (folder / "model" / "config.json").is_file()
    return Source(base=config.model_name_or_path, adapter=None if whole else folder / "adapter",
                  model=folder / "model" if whole else None, run=folder, config=config)


def _elsewhere(folder: Path, base: str | None) -> Source:
    kind = read_adapter_config(str(folder))
    base = base or kind.base_model_name_or_path
    if base is None:
        refuse("model", None, f"must name the base model: {folder}/adapter_config.json does not", "its Hub name")
    check_folder("model", base, holding="config.json")
    config = Config(model_name_or_path=base, model_revision=kind.revision or "main", load_in_4bit=False,
                    num_shots=SHOTS)
    return Source(base=base, adapter=folder, model=None, run=None, config=config)


def _read(file: Path, base: str | None) -> Config:
    """The options of a run, with its base model where it is now."""
    given = recipe.read(file) | ({"model_name_or_path": base, "tokenizer_name_or_path": None} if base else {})
    values, _ = recipe.resolve(given, {}, Config, world_size=1)
    names = ("model_name_or_path", "tokenizer_name_or_path", "train_dataset_id_or_path", "test_dataset_id_or_path")
    values |= located({name: values.get(name) for name in names})
    check_folder("model", values["model_name_or_path"], holding="config.json")
    return Config(**values)
