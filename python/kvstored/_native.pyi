from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstored.identity import Identity

__version__: str

_Hashes = Sequence[bytes] | npt.NDArray[np.uint8]
_Addresses = npt.NDArray[np.uint64]

class Store:
    @property
    def tier_names(self) -> list[str]: ...
    @property
    def is_embedded(self) -> bool: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def remarks(self) -> list[str]: ...
    @staticmethod
    def embedded(
        options: str | None,
        config_file: str | None,
        streams: int,
        timeout_ms: int,
        call_timeout_ms: int,
        listen: str | None,
    ) -> Store: ...
    @staticmethod
    def connect(path: str | None, streams: int, timeout_ms: int, call_timeout_ms: int) -> Store: ...
    def open_namespace(self, identity: Identity, layout: Sequence[Sequence[int]]) -> Namespace: ...
    def statistics(self) -> str: ...
    def namespaces(self) -> str: ...
    def ping(self) -> None: ...
    def take_events(self, after: int, limit: int) -> Events: ...
    def drain(self, timeout: float) -> None: ...
    def close(self, timeout: float) -> None: ...

class Namespace:
    @property
    def digest(self) -> bytes: ...
    def lookup(self, hashes: _Hashes) -> npt.NDArray[np.bool_]: ...
    def lookup_on_prefix(self, hashes: _Hashes) -> int: ...
    def locate_prefix(self, hashes: _Hashes) -> npt.NDArray[np.uint8]: ...
    def prefetch(self, hashes: _Hashes) -> None: ...
    def evict(self, hashes: _Hashes, tier: str | None) -> int: ...
    def purge(self) -> int: ...
    def load(
        self,
        hashes: _Hashes,
        addresses: _Addresses,
        shards: tuple[int, int] | None,
        shard_major: bool,
        timeout_ms: int | None,
        tensors: Any,
    ) -> Task: ...
    def dump(
        self,
        hashes: _Hashes,
        addresses: _Addresses,
        parent: bytes | None,
        durability: str,
        timeout_ms: int | None,
        tensors: Any,
    ) -> Task: ...
    def begin_dump(
        self, hashes: _Hashes, parent: bytes | None, durability: str, timeout_ms: int | None
    ) -> DumpSession: ...

class DumpSession:
    @property
    def task(self) -> Task: ...
    def put_shard(self, shard: int, addresses: _Addresses, tensors: Any = None) -> Task: ...
    def abort(self) -> None: ...

class Events:
    """Events without a gap, oldest first: one in each of `kinds`, `tiers`, `namespace_indices` and `hashes`."""

    @property
    def first(self) -> int:
        """Number of the first event; one more than `next` if there are none."""

    @property
    def next(self) -> int:
        """What to ask for the events after."""

    @property
    def lost(self) -> bool:
        """Whether events between the number asked with and `first` are gone."""

    @property
    def namespaces(self) -> list[bytes]:
        """Digests of the namespaces that occur."""

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """0: the block became visible; 1: it left."""

    @property
    def tiers(self) -> npt.NDArray[np.uint8]:
        """Index of the tier in `Store.tier_names`."""

    @property
    def namespace_indices(self) -> npt.NDArray[np.uint16]:
        """Index in `namespaces`."""

    @property
    def hashes(self) -> list[bytes]:
        """The blocks' hashes."""

    def __len__(self) -> int: ...

class Task:
    """A load or dump under way.

    Dropped before its end, it is cancelled, and dropping waits until nobody touches its memory any more.
    """

    @property
    def blocks(self) -> int: ...
    def wait(self, timeout: float | None = None) -> TaskReport: ...
    def check(self) -> bool: ...
    def report(self) -> TaskReport | None: ...
    def wait_shard(self, shard: int, timeout: float) -> None: ...
    def failed_blocks(self) -> npt.NDArray[np.int64]: ...
    def cancel(self) -> None: ...

class TaskReport:
    @property
    def blocks(self) -> int: ...
    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> npt.NDArray[np.int64]: ...
    @property
    def tiers(self) -> npt.NDArray[np.int8]: ...
    @property
    def missing(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def errors(self) -> list[str]: ...
    @property
    def error_kinds(self) -> list[str]: ...
    @property
    def all_done(self) -> bool: ...

def default_socket() -> str: ...
def check_configuration(text: str) -> str: ...
