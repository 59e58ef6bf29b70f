"""A fingerprint of a model's files: the same one wherever they lie, so that a resumed run knows them again."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import get_checkpoint_shard_files

from grpo.loading.model_config import SAVED_MODEL
from grpo.options.refusal import refusing

# At the start, in the middle and at the end of each tensor so many bytes are read. Training moves nearly every number
# of a matrix that it trains, so they tell two models apart; they do not tell that a few rows between them were edited.
# All bytes of a model of 15 GB would take a core 40 seconds at each start.
BLOCK = 4096
WRITER = ("_name_or_path", "transformers_version")  # of a JSON file: who wrote it from where


def fingerprint(name: str, *, revision: str) -> str:
    """SHA-256 over a model's settings and a sample of its weights; a Hub's files are fetched, as loading would.

    Raises:
        ValueError: a file is there and cannot be read or fetched.
    """
    def find(file: str) -> str | None:
        if Path(name).is_dir():
            return str(path) if (path := Path(name, file)).exists() else None
        try:
            return hf_hub_download(name, file, revision=revision)
        except EntryNotFoundError as error:
            # A Hub that does not answer has not said that the file is missing. Without a Hub, what is here is all.
            if isinstance(error, LocalEntryNotFoundError) and not is_offline_mode():
                raise
            return None

    digest = hashlib.sha256()
    with refusing("model_name_or_path", name, "cannot be loaded", SAVED_MODEL):
        for file in ("config.json", "generation_config.json"):
            found = json.loads(Path(path).read_text(encoding="utf-8")) if (path := find(file)) else {}
            digest.update(json.dumps({key: found[key] for key in sorted(found) if key not in WRITER}).encode())
        files = [one] if (one := find(SAFE_WEIGHTS_NAME)) else []
        if not files and (index := find(SAFE_WEIGHTS_INDEX_NAME)):
            files = get_checkpoint_shard_files(name, index, revision=revision)[0]
        for line in sorted(line for file in files for line in _samples(Path(file))):  # into whatever files it is split
            digest.update(line.encode())
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[str]:
    """One line for each tensor of a safetensors file: name, type, shape, and the digest of its blocks."""
    with safe_open(path, "pt"), path.open("rb") as file:  # the library refuses a broken header
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            first, end = tensor["data_offsets"]
            digest = hashlib.sha256()
            for place in (first, (first + end) // 2, max(end - BLOCK, first)):
                file.seek(start + place)
                digest.update(file.read(min(BLOCK, end - place)))
            yield json.dumps([name, tensor["dtype"], tensor["shape"], digest.hexdigest()])
