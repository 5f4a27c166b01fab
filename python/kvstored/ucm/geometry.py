"""The layout of UCM's blocks: from its configuration, and from worker to scheduler."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from kvstored import InvalidInput, Layout, default_socket
from kvstored.opening import private_directory

_MAX_NOTE_BYTES = 1 << 20
_PRUNE_AFTER_S = 600.0


def layout_of(config: Mapping[str, object]) -> Layout | None:
    """The layout that `tensor_size_list` or `tensor_size`, `shard_size` and `block_size` describe, sizes in bytes.

    UCM rounds `shard_size` up to whole pages; what is stored are the tensors. None where no tensor size is given, as in
    the scheduler. Raises InvalidInput, naming the key, when the sizes don't fit one another.
    """
    tensors = config.get("tensor_size_list")
    if tensors is None:
        tensors = config.get("tensor_size")
    if tensors is None:
        return None
    if isinstance(tensors, int):
        shard_bytes = _size(config, "shard_size", tensors)
        count, rest = divmod(shard_bytes, _positive("tensor_size", tensors))
        if rest or count == 0:
            raise InvalidInput(f"shard_size {shard_bytes} is no multiple of tensor_size {tensors}")
        tensors = [tensors] * count
    if not isinstance(tensors, (list, tuple)) or not tensors:
        raise InvalidInput(f"tensor_size_list is {tensors!r}; a list of sizes in bytes is expected")
    sizes = tuple(_positive("tensor_size_list", size) for size in tensors)
    shard_bytes = _size(config, "shard_size", sum(sizes))
    block_bytes = _size(config, "block_size", shard_bytes)
    if shard_bytes < sum(sizes):
        raise InvalidInput(f"shard_size {shard_bytes} is less than the {sum(sizes)} bytes of its tensors")
    shards, rest = divmod(block_bytes, shard_bytes)
    if rest or shards == 0:
        raise InvalidInput(f"block_size {block_bytes} is no multiple of shard_size {shard_bytes}")
    return Layout(shards=(sizes,) * shards)


class LayoutNote:
    """A file by which the workers of an engine tell its scheduler the layout, which UCM does not.

    One per engine (`unique_id`), private to the user, replaced as a whole.
    """

    def __init__(self, unique_id: str) -> None:
        digest = hashlib.blake2b(unique_id.encode(), digest_size=12).hexdigest()
        self._path = Path(os.path.dirname(default_socket())) / f"ucm-layout-{digest}.json"
        self._read: tuple[int, int] | None = None

    def write(self, layout: Layout) -> None:
        """Publishes the layout. Raises OSError or PermissionDenied when the directory can't be used."""
        private_directory(str(self._path.parent))
        self._prune()
        note = {"version": 1, "process": os.getpid(), "shards": [list(shard) for shard in layout.shards]}
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(note))
        os.replace(draft, self._path)

    def read_if_new(self) -> Layout | None:
        """The layout, where the file has changed since the last call; None where not, or where there is none."""
        try:
            with open(self._path, "rb") as file:
                about = os.fstat(file.fileno())
                mark = (about.st_ino, about.st_mtime_ns)
                if mark == self._read or about.st_uid != os.geteuid():
                    return None
                note = json.loads(file.read(_MAX_NOTE_BYTES))
            layout = Layout(shards=tuple(tuple(int(size) for size in shard) for shard in note["shards"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._read = mark
        return layout

    def _prune(self) -> None:
        """Removes what engines that are gone have left."""
        for path in self._path.parent.glob("ucm-layout-*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if time.time() - path.stat().st_mtime < _PRUNE_AFTER_S:
                    continue
                process = int(json.loads(path.read_bytes()[:_MAX_NOTE_BYTES])["process"])
                if not os.path.exists(f"/proc/{process}"):
                    path.unlink()


def _size(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    return default if value is None else _positive(key, value)


def _positive(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidInput(f"{key} is {value!r}; a number of bytes above 0 is expected")
    return value
