"""Write, find and read checkpoints; export an adapter. Safetensors and JSON only: nothing is ever unpickled.

A checkpoint holds what cannot be recomputed: per trained tensor its float32 master and AdamW's two moments, and the
number of steps done. Everything else is a function of the recipe and the step number (data order, sampling noise,
learning rate), which is why a run can go on at another number of ranks.
"""

import importlib.metadata
import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftConfig
from safetensors.torch import load_file, save_file

from grpo.distributed import rank
from grpo.engine import MOMENTS, Engine
from grpo.model import public_name

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def export(engine: Engine, parent: Path, peft_config: PeftConfig | None) -> Path:
    """Write the trained weights, read them back, compare, and only then say so.

    Args:
        engine: what is trained.
        parent: where the folder goes: `adapter` in peft's layout, or `model` in transformers' when all weights train.
        peft_config: the adapter's description; None without an adapter.

    Returns:
        The folder written.

    Raises:
        RuntimeError: what was read back is not what was trained.

    Collective: every rank; rank 0 writes.
    """
    # A tied matrix goes out under both of its names, because peft asks for both.
    named = engine.policy.model.named_parameters(remove_duplicate=False)
    trained = {public_name(name): parameter for name, parameter in named if parameter.requires_grad}
    with engine.gathered(engine.trainable.values()):
        if rank() == 0:
            tensors = {name: parameter.detach().cpu().clone().contiguous() for name, parameter in trained.items()}
    folder = parent / ("model" if peft_config is None else "adapter")
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if peft_config is None:
            model = engine.policy.model
            file = folder / "model.safetensors"
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
        else:
            file = folder / "adapter_model.safetensors"
            tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
            peft_config.save_pretrained(folder)
        save_file(tensors, file, metadata={"format": "pt"})
        read = load_file(file)
        empty = [name for name, tensor in read.items() if tensor.numel() == 0]
        equal = read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
        if empty or not equal:
            raise RuntimeError(f"export to {folder} does not read back as written (empty: {empty[:3]})")
    dist.barrier()
    return folder


def save(engine: Engine, output_dir: Path, *, step: int, peft_config: PeftConfig | None) -> Path:
    """Write `checkpoints/step-N` beside its final place, then rename it: a folder of that name is complete.

    Args:
        engine: what is trained.
        output_dir: the run's folder.
        step: number of steps done.
        peft_config: for the adapter that goes with the checkpoint.

    Collective: every rank; rank 0 writes.
    """
    final = output_dir / "checkpoints" / f"step-{step}"
    partial = final.with_name(f".step-{step}.partial")
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    state = {}
    for name, parameter in engine.trainable.items():
        for kind, tensor in engine.state(parameter).items():
            if rank() == 0:
                state[f"{name}:{kind}"] = tensor.detach().float().cpu().clone()
    export(engine, partial, peft_config)
    if rank() == 0:
        save_file(state, partial / "state.safetensors")
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
        counts = {"optimizer_steps": engine.optimizer_steps, "skipped_steps": engine.skipped_steps}
        record = {"step": step, **counts, "versions": versions}
        (partial / "state.json").write_text(json.dumps(record, indent=2))
        _sync_to_disk(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    dist.barrier()
    return final


def latest(output_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    folders = (output_dir / "checkpoints").glob("step-*")
    return max(folders, key=lambda folder: int(folder.name.removeprefix("step-")), default=None)


def restore(engine: Engine, folder: Path) -> int:
    """Put a checkpoint back: float32 masters, the engine's own copies of them, and AdamW's moments.

    Returns:
        Number of steps done.

    Raises:
        ValueError: the checkpoint is of other trained tensors than this run's.

    Collective: every rank; every rank reads.
    """
    state = load_file(folder / "state.safetensors")
    record = json.loads((folder / "state.json").read_text())
    _check_names(engine, state, folder)
    engine.start_optimizer(record["optimizer_steps"])
    for name, parameter in engine.trainable.items():
        engine.set_state(parameter, {kind: state[f"{name}:{kind}"] for kind in ("master", *MOMENTS)})
    engine.skipped_steps = record["skipped_steps"]
    return record["step"]


def _check_names(engine: Engine, state: dict[str, torch.Tensor], folder: Path) -> None:
    shape = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.trainable.items()}
    saved = {name.removesuffix(":master"): tuple(t.shape) for name, t in state.items() if name.endswith(":master")}
    if saved != shape:
        differing = sorted(name for name in saved.keys() | shape.keys() if saved.get(name) != shape.get(name))
        raise ValueError(f"resume: {folder} holds other trained tensors than this recipe, first {differing[0]}")


def _sync_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
