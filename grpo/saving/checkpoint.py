"""Write, find and read checkpoints; export the trained weights. Safetensors and JSON only: nothing is ever unpickled.

A checkpoint has what cannot be recomputed: the float32 master and AdamW's two moments of each trained tensor, and the
number of steps done. Everything else (data order, sampling noise, learning rate) is a function of the recipe and the
step number. So a run can be resumed with another number of ranks, ZeRO stage or length of packed batches.
"""

import importlib.metadata
import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpo.distributed import gather_objects, rank
from grpo.saving.sealed_folder import damage, make_readable, seal, sync
from grpo.trainer.engine import MOMENTS, Engine
from grpo.trainer.policy import public_name

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")  # what a run computes with
WRITE_ERRORS = (OSError, SafetensorError)


def export(engine: Engine, parent: Path, peft_config: PeftConfig | None) -> Path:
    """Write the trained weights to `adapter` in peft's layout, or without peft_config to `model` in transformers'.

    Raises:
        OSError: the disk did not take them, or what was read back is not what was trained; on every rank.

    Collective: every rank; rank 0 writes.
    """
    tensors, problem = _trained_tensors(engine), ""
    folder = parent / ("model" if peft_config is None else "adapter")
    if rank() == 0:
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            _write_weights(engine, partial, tensors, peft_config)
            make_readable(partial)
            _publish(partial, folder)
        except WRITE_ERRORS as error:
            problem = f"export to {folder}: {error}"
            shutil.rmtree(partial, ignore_errors=True)
    problem = gather_objects(problem)[0]
    if problem:
        raise OSError(problem)
    return folder


def save(engine: Engine, output_dir: Path, *, step: int, peft_config: PeftConfig | None, facts: dict[str, Any],
         save_total_limit: int | None = None, keep: int | None = None) -> str:
    """Write `checkpoints/step-N`, with `facts` of continuation.py; a folder of that name is complete.

    Returns why it could not be written, the same on every rank; "" when it was. Older checkpoints stay as they were
    then; else those beyond the limit go, but for that of the step `keep`.

    Collective: every rank; rank 0 writes.
    """
    state, problem = {}, ""
    if engine.optimizer_steps == 0:
        engine.start_optimizer(0)  # no step, no moments
    for name, parameter in engine.trainable.items():
        for kind, tensor in engine.state(parameter).items():  # on every rank: it gathers the shards
            if rank() == 0:
                state[f"{name}:{kind}"] = tensor.detach().float().cpu().clone()
    tensors = _trained_tensors(engine)
    if rank() == 0:
        final = output_dir / "checkpoints" / f"step-{step}"
        partial = final.with_name(f".{final.name}.partial")
        counts = {"optimizer_steps": engine.optimizer_steps, "skipped_steps": engine.skipped_steps}
        content = {"step": step, **counts, **facts, "versions": versions()}
        try:
            for left in final.parent.glob(".step-*"):  # of a run that was killed while it wrote
                shutil.rmtree(left, ignore_errors=True)
            _write_weights(engine, partial / ("model" if peft_config is None else "adapter"), tensors, peft_config)
            save_file(state, partial / "state.safetensors")
            (partial / "state.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
            seal(partial)  # last, so that a checkpoint with a whole list of checksums is whole
            _publish(partial, final)
            for old in _superfluous(output_dir, step, save_total_limit, keep):
                doomed = old.with_name(f".{old.name}.old")
                os.replace(old, doomed)  # a half removed folder must not have a checkpoint's name
                shutil.rmtree(doomed)
        except WRITE_ERRORS as error:
            problem = str(error)
            shutil.rmtree(partial, ignore_errors=True)
    return gather_objects(problem)[0]


def find(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, or None; and one line for each newer one that is damaged.

    Collective: every rank; rank 0 reads them.
    """
    found, lines = None, []
    for folder in _numbered(output_dir) if rank() == 0 else []:
        wrong = damage(folder)
        if not wrong:
            found = folder
            break
        lines.append(f"{folder} is damaged and passed over: {wrong}")
    return gather_objects((found, lines))[0]


@cache  # looking them up takes 50 ms
def versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def record(folder: Path) -> dict[str, Any]:
    """What a checkpoint has besides its tensors."""
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def restore(engine: Engine, folder: Path) -> int:
    """Load float32 masters and AdamW's moments, and return the number of steps done.

    ValueError if the checkpoint has other trained tensors than this run. Collective: every rank; every rank reads.
    """
    state, saved = load_file(folder / "state.safetensors"), record(folder)
    _check_names(engine, state, folder)
    engine.start_optimizer(saved["optimizer_steps"])
    for name, parameter in engine.trainable.items():
        engine.set_state(parameter, {kind: state[f"{name}:{kind}"] for kind in ("master", *MOMENTS)})
    engine.skipped_steps = saved["skipped_steps"]
    return saved["step"]


def take_weights(engine: Engine, folder: Path) -> None:
    """Load a checkpoint's weights, for an export: what the optimizer has stays. Collective: every rank; each reads."""
    state = load_file(folder / "state.safetensors")
    _check_names(engine, state, folder)
    for name, parameter in engine.trainable.items():
        with engine.gathered([parameter], write=True), torch.no_grad():
            parameter.copy_(state[f"{name}:master"])


def _trained_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """The trained weights by public name, not sharded, on rank 0; empty elsewhere. Collective: every rank."""
    named = engine.policy.model.named_parameters(remove_duplicate=False)  # peft wants both names of a tied matrix
    trained = {public_name(name): parameter for name, parameter in named if parameter.requires_grad}
    with engine.gathered(engine.trainable.values()):
        if rank() > 0:
            return {}
        return {name: parameter.detach().cpu().clone().contiguous() for name, parameter in trained.items()}


def _write_weights(engine: Engine, folder: Path, tensors: dict[str, torch.Tensor],
                   peft_config: PeftConfig | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if peft_config is None:
        file = folder / "model.safetensors"
        engine.policy.model.config.save_pretrained(folder)
        engine.policy.model.generation_config.save_pretrained(folder)
    else:
        file = folder / "adapter_model.safetensors"
        tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        peft_config.save_pretrained(folder)
    save_file(tensors, file, metadata={"format": "pt"})
    read = load_file(file)
    empty = [name for name, tensor in read.items() if tensor.numel() == 0]  # what ZeRO-3 leaves of a sharded weight
    equal = read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    if empty or not equal:
        raise OSError(f"{file} does not read back as written (empty: {empty[:3]})")


def _publish(partial: Path, final: Path) -> None:
    """Give a written folder its name; only then remove the folder that had this name before."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _numbered(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    folders = [path for path in (output_dir / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def _superfluous(output_dir: Path, step: int, save_total_limit: int | None, keep: int | None) -> list[Path]:
    """Checkpoints beyond the limit, and those of later steps."""
    kept = [folder for folder in _numbered(output_dir) if int(folder.name[5:]) <= step]
    later = [folder for folder in _numbered(output_dir) if folder not in kept]  # damaged: the run resumed before them
    old = kept[save_total_limit:] if save_total_limit else []
    return later + [folder for folder in old if folder.name != f"step-{keep}"]


def _check_names(engine: Engine, state: dict[str, torch.Tensor], folder: Path) -> None:
    # Under ZeRO-3 p.shape is that of a shard.
    shape = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.trainable.items()}
    saved = {name.removesuffix(":master"): tuple(t.shape) for name, t in state.items() if name.endswith(":master")}
    if saved != shape:
        differing = sorted(name for name in saved.keys() | shape.keys() if saved.get(name) != shape.get(name))
        raise ValueError(f"resume: {folder} has other trained tensors than this recipe, first {differing[0]}")
