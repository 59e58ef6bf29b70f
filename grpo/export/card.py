"""The card of what a run wrote: README.md, as the Hub shows it."""

from pathlib import Path
from typing import Any

import yaml

from grpo.config import Config
from grpo.evaluation.answers import answers_path, load_answers
from grpo.evaluation.record import PREFIX, percent
from grpo.evaluation.statistics import compare, summarize
from grpo.run.provenance import code
from grpo.saving.checkpoint import versions

SHOWN = (
    "num_shots", "reward_funcs", "prompts_per_step", "num_generations", "max_completion_length", "temperature",
    "loss_type", "scale_rewards", "beta", "learning_rate", "lr_scheduler_type", "load_in_4bit", "lora_r", "lora_alpha",
    "lora_target_modules", "lora_modules_to_save", "seed",
)


def card(config: Config, *, run: Path | None, library: str, base: str) -> str:
    """The text; `run` is the output folder of the run that `config` is of, `library` peft or transformers."""
    name, licence = base_name(base), licence_of(base)
    facts: dict[str, Any] = {"base_model": name, "library_name": library, "pipeline_tag": "text-generation",
                             "tags": ["grpo", "reinforcement-learning"] + (["lora"] if library == "peft" else [])}
    facts |= {"license": licence} if licence else {}
    lines = ["---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", f"# {Path(name).name}, trained with GRPO",
             "", f"Base model: {name}. " + (f"Its licence, {licence}, holds for this model too." if licence else
                                           "Its licence holds for this model too."), ""]
    if run is not None:
        data = base_name(config.train_dataset_id_or_path)
        lines += [f"Trained on {data} ({config.dataset_splits}) with GRPO (arXiv:2402.03300).", "", *_accuracy(run),
                  "| option | value |", "|---|---|", *(f"| {one} | {getattr(config, one)} |" for one in SHOWN), ""]
    made = [*(f"{package} {version}" for package, version in versions().items()), *filter(None, [code()])]
    return "\n".join([*lines, f"Made with {', '.join(made)}."]) + "\n"


def write_card(folder: Path, config: Config, *, run: Path | None, library: str, base: str) -> None:
    """Write the card into a folder of weights."""
    (folder / "README.md").write_text(card(config, run=run, library=library, base=base), encoding="utf-8")


def base_name(name: str) -> str:
    """A model or dataset as others find it: a folder's last part, a Hub name as it is."""
    return Path(name).resolve().name if Path(name).exists() else name


def licence_of(base: str) -> str | None:
    """The licence that the card of the base model names; None if there is no card within reach."""
    from huggingface_hub import ModelCard

    file = Path(base) / "README.md"
    try:
        found = ModelCard.load(file if Path(base).is_dir() else base).data.license
    except Exception:  # no card, no network, no such name, broken YAML: a card may say nothing
        return None
    return found if isinstance(found, str) else None


def _accuracy(run: Path) -> list[str]:
    """A table of the held-out problems before and after."""
    rows = []
    for mode in PREFIX:
        paths = [answers_path(run, mode, when) for when in ("before", "after")]
        if all(path.is_file() for path in paths):
            before, after = map(load_answers, paths)
            size = summarize(before)["num_problems"]
            rows.append(f"| {mode}, {size} problems | {percent(summarize(before), 'strict')} | "
                        f"{percent(summarize(after), 'strict')} | {compare(before, after)['p_value']:.2g} |")
    return ["Held-out problems with the right number in the asked format, with 95 % intervals:", "",
            "| answers | before | after | p, paired |", "|---|---|---|---|", *rows, ""] if rows else []
