from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

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
        pieces: Sequence[int] | None,
        device: Device | None,
        after: DeviceEvent | int | None,
    ) -> Task: ...
    def dump(
        self,
        hashes: _Hashes,
        addresses: _Addresses,
        parent: bytes | None,
        durability: str,
        timeout_ms: int | None,
        tensors: Any,
        pieces: Sequence[int] | None,
        device: Device | None,
        after: DeviceEvent | int | None,
    ) -> Task: ...
    def begin_dump(
        self, hashes: _Hashes, parent: bytes | None, durability: str, timeout_ms: int | None
    ) -> DumpSession: ...

class DumpSession:
    @property
    def task(self) -> Task: ...
    def put_shard(
        self,
        shard: int,
        addresses: _Addresses,
        tensors: Any,
        pieces: Sequence[int] | None,
        device: Device | None,
        after: DeviceEvent | int | None,
    ) -> Task: ...
    def abort(self) -> None: ...

class Device:
    @property
    def name(self) -> str: ...
    @property
    def is_lost(self) -> bool: ...
    @property
    def counts(self) -> tuple[int, int, int]: ...
    @staticmethod
    def open(plugin: str, directory: str | None, settings: Sequence[tuple[str, str]], timeout_ms: int) -> Device: ...
    def record(self, stream: int) -> DeviceEvent: ...

class DeviceEvent:
    """A point of a stream of a device; made by `kvstored.Device.record`."""

    @property
    def handle(self) -> int:
        """The event in the device's runtime."""
    def is_reached(self) -> bool:
        """Whether the device has come to it."""

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

_Numbers = Sequence[int] | npt.NDArray[np.uint64]

class _Plugged(Protocol):
    """What the transport `ascend` is; see `kvstored.mooncake.plugged`."""

    @property
    def plugin(self) -> str: ...
    @property
    def directory(self) -> str | None: ...
    @property
    def settings(self) -> Mapping[str, str]: ...
    @property
    def timeout_ms(self) -> int | None: ...

class TransferEngine:
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @staticmethod
    def start(
        listen: str,
        transports: Sequence[str],
        token: bytes | None,
        certificate: str | None,
        key: str | None,
        authority: str | None,
        ascend: _Plugged | None = None,
    ) -> TransferEngine: ...
    def register(self, address: int, length: int) -> None: ...
    def unregister(self, address: int, timeout: float) -> None: ...
    def allocate(self, length: int) -> int: ...
    def free(self, address: int, timeout: float) -> None: ...
    def transfer(
        self, peer: str, local: _Numbers, remote: _Numbers, lengths: _Numbers, writes: bool, timeout: float
    ) -> None: ...
    def submit(
        self, peer: str, local: _Numbers, remote: _Numbers, lengths: _Numbers, writes: bool, timeout: float
    ) -> int: ...
    def wait(self, number: int) -> None: ...
    def check(self, number: int) -> bool: ...
    def notify(self, peer: str, name: str, message: str, timeout: float) -> None: ...
    def take_notifications(self) -> list[tuple[str, str]]: ...
    def probe(self, peer: str, timeout: float) -> None: ...
    def first_address(self, peer: str, timeout: float) -> int: ...
    def read_bytes(self, address: int, length: int) -> bytes: ...
    def write_bytes(self, address: int, data: bytes) -> None: ...
    def counters(self) -> str: ...
    def close(self) -> None: ...

class PoolStore:
    @property
    def hostname(self) -> str: ...
    @staticmethod
    def start(
        listen: str,
        transports: Sequence[str],
        token: bytes | None,
        certificate: str | None,
        key: str | None,
        authority: str | None,
        masters: list[str],
        lent_bytes: int,
        buffer_bytes: int,
        tenant: str,
        timeout: float,
        ascend: _Plugged | None = None,
    ) -> PoolStore: ...
    def register(self, address: int, length: int) -> None: ...
    def unregister(self, address: int, timeout: float) -> None: ...
    def get_bytes(self, keys: list[str]) -> list[bytes]: ...
    def put_from(
        self,
        keys: list[str],
        addresses: Sequence[Sequence[int]],
        lengths: Sequence[Sequence[int]],
        replicas: int,
        pinned: bool,
        preferred: list[str],
        near: bool,
    ) -> list[int]: ...
    def get_into(
        self, keys: list[str], addresses: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]]
    ) -> list[int]: ...
    def exist(self, keys: list[str]) -> list[int]: ...
    def sizes(self, keys: list[str]) -> list[int]: ...
    def remove(self, keys: list[str], force: bool) -> list[int]: ...
    def remove_all(self, force: bool) -> int: ...
    def is_healthy(self) -> bool: ...
    def counters(self) -> str: ...
    def close(self) -> None: ...

_Blocks = Sequence[int] | npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
_Piece = tuple[int, int, int, int, int, int]

class Handoff:
    """One worker rank's part in handing KV blocks from prefill to decode engines.

    Errors are those of `kvstored.errors`. No call but `start`, `describe` and `close` waits for anything.
    """

    @property
    def address(self) -> str:
        """Where other ranks reach it, as `host:port`."""
    @property
    def port(self) -> int: ...
    @staticmethod
    def start(
        listen: str,
        transports: Sequence[str],
        token: bytes | None,
        certificate: str | PathLike[str] | None,
        key: str | PathLike[str] | None,
        authority: str | PathLike[str] | None,
        verify: bool = True,
        pull_threads: int = 4,
        ascend: _Plugged | None = None,
    ) -> Handoff:
        """One that serves consumers and can pull.

        `listen` is `host:port`, port 0 for a free one; addresses that aren't loopback need a token and certificates.
        `transports` are of shm, rdma, tcp, in the order in which they're tried; none for all of these. ascend is what
        `ascend` says. With `verify`, checksums of what is pulled are compared with the producer's.
        """
    def describe(
        self,
        *,
        engine_id: str,
        fingerprint: bytes,
        block_tokens: int,
        total_heads: int,
        first_head: int,
        heads: int,
        tp_rank: int,
        tp_size: int,
        pp_rank: int,
        pp_size: int,
        layers: Sequence[tuple[str, Sequence[_Piece]]],
    ) -> None:
        """Says what this rank's KV memory looks like; once, before anything is held or pulled.

        A piece is (address, length_bytes, block_stride, block_bytes, rows, heads): block b lies at address + b *
        block_stride, as rows x heads equal runs of bytes. Its heads are the rank's, or 1 where it isn't divided. The
        memory must live until `close` has returned.
        """
    def hold(self, request: str, blocks: _Blocks, lease: float) -> None:
        """Lets consumers pull blocks for `lease` seconds at most. Nobody may write them before `take_released`."""
    def announce(self, request: str, lease: float) -> None:
        """Lets consumers follow a request that is computed from now on, for `lease` seconds at most."""
    def extend(self, request: str, blocks: _Blocks) -> bool:
        """Where further blocks of an announced request lie, in order. Whether it's held still."""
    def advance(self, requests: Sequence[tuple[str, int]], layer: int | None) -> None:
        """How many blocks of announced requests are good: in one layer of `describe`, or in all."""
    def complete(self, request: str, lease: float) -> bool:
        """All blocks of an announced request are good, and held for `lease` seconds. Whether it's held still."""
    def withdraw(self, requests: Sequence[str], timeout: float) -> None:
        """Ends holds and waits until nobody reads their blocks. Raises Busy when that takes longer."""
    def drop(self, request: str) -> None:
        """Ends a hold, if there is one; `take_released` tells when its blocks may be reused."""
    def take_released(self) -> list[tuple[str, str]]:
        """Requests whose blocks nobody reads any more, each once, with "taken", "expired" or "dropped"."""
    def pull(
        self,
        request: str,
        *,
        remote_engine_id: str,
        remote_request: str,
        producers: Sequence[str],
        blocks: _Blocks,
        first_block: int,
        timeout: float,
        follows: bool = False,
    ) -> None:
        """Begins to pull the remote request's blocks from `first_block` on into these blocks.

        With `follows`, the producer may compute it still: blocks come as they get good, always checked.
        `producers` are the addresses of all of its ranks, at pp_rank * tp_size + tp_rank. Raises for bad arguments
        only; `take_pulled` tells how it ended, soon after `timeout` seconds at the latest.
        """
    def cancel(self, request: str) -> None:
        """Ends a pull, if there is one; `take_pulled` tells when nothing writes to its blocks any more."""
    def take_pulled(self) -> list[tuple[str, list[int], str]]:
        """Pulls that are over, each once: the request, the blocks that didn't come, and why ("" where all did)."""
    def release_remote(
        self, *, remote_engine_id: str, remote_request: str, producers: Sequence[str], timeout: float
    ) -> None:
        """Tells the producers, in the background, that this rank wants nothing of a request."""
    def statistics(self) -> dict[str, int | float]:
        """What happened so far, by name.

        Bytes: `pulled_bytes_tcp`, `pulled_bytes_shm`, `pulled_bytes_rdma`, `pulled_bytes_ascend`, `served_bytes_tcp`,
        `served_bytes_ascend`. Pulls by how they ended:
        `pulls_ok`, `pulls_gone`, `pulls_mismatched`, `pulls_timed_out`, `pulls_cancelled`, `pulls_unavailable`,
        `pulls_corrupt`, `pulls_failed_otherwise`. Holds by how they ended: `holds_taken`, `holds_expired`,
        `holds_dropped`. Words to producers that weren't delivered: `undelivered_endings`. At this moment:
        `held_requests`, `held_blocks`, `publications`, `pending_pulls`.
        """
    def close(self, timeout: float) -> None:
        """Ends everything and lets go of the memory. Idempotent; may be called again when it raises."""
