"""Digests that tell one set of weights from another without reading all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
"""File names that hold weights."""
DESCRIPTION_SUFFIXES = (".json", ".model", ".txt")
"""Small files beside them that change what the weights mean."""
_HEADER_BYTES = 1 << 20
_SAMPLE_BYTES = 64 << 10
_SAMPLES = 32
_MAX_DESCRIPTION_BYTES = 64 << 20


def files_digest(folder: Path) -> str:
    """Digest of a folder with weights: of every small file, and of name, size, head and samples of every large one.

    Reads at most 3 MiB of each file of weights: 1 MiB at its start (the header with names, types and places of all
    tensors) and 32 samples of 64 KiB spread evenly to its end. Training changes nearly every value, so another set of
    weights differs in the samples; where weights were edited by hand in a few places, give `weights_digest` yourself.

    Raises:
        OSError: when a file can't be read.
    """
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted(_interesting(folder)):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with open(path, "rb") as file:
            if not path.name.endswith(WEIGHT_SUFFIXES):
                digest.update(file.read(_MAX_DESCRIPTION_BYTES))
                continue
            digest.update(file.read(_HEADER_BYTES))
            for start in _sample_starts(size):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def model_folder(model: str, revision: str | None = None) -> Path | None:
    """Where the files of a model lie on this machine; None if they don't."""
    if os.path.isdir(model):
        return Path(model)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:  # not installed, not a hub's name, not downloaded: the caller falls back to the name
        return None


def _interesting(folder: Path) -> Iterable[Path]:
    for path in folder.rglob("*"):
        name = path.name
        if name.startswith(".") or not path.is_file():
            continue
        if name.endswith(WEIGHT_SUFFIXES) or (name.endswith(DESCRIPTION_SUFFIXES) and path.parent == folder):
            yield path


def _sample_starts(size: int) -> list[int]:
    last = size - _SAMPLE_BYTES
    if last <= _HEADER_BYTES:
        return [_HEADER_BYTES] if size > _HEADER_BYTES else []
    return [_HEADER_BYTES + (last - _HEADER_BYTES) * index // (_SAMPLES - 1) for index in range(_SAMPLES)]
