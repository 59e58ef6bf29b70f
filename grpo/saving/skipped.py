"""The batch of a gradient that was not finite, stored for whoever looks for the reason."""

import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def dump(output_dir: Path, step: int, tensors: dict[str, torch.Tensor], texts: dict[str, list], *, where: str) -> None:
    """Write `skipped/step-N.safetensors` and `.json`; on a full disk, print a warning that begins with `where`."""
    folder = output_dir / "skipped"
    files = [folder / f"step-{step}.safetensors", folder / f"step-{step}.json"]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        folder.mkdir(exist_ok=True)
        save_file(tensors, files[0])
        files[1].write_text(json.dumps(texts, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        print(f"\nwarning: {where} the batch of this gradient, which is not finite, could not be written to {folder}: "
              f"{error}", file=sys.stderr, flush=True)
        for file in files:  # half a batch helps nobody
            file.unlink(missing_ok=True)
