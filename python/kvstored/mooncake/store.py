"""Mooncake's distributed store: objects in memory that the nodes of a pool lend.

Calls answer with Mooncake's numbers: 0 or more for success, negative for what went wrong, which is logged (logger
``kvstored.mooncake``) where it isn't an answer by itself, as -704 for an object that isn't there is. Other Python
threads run meanwhile.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstored import _native
from kvstored.errors import InvalidInput, KvstoredError, Unavailable
from kvstored.mooncake import codes, settings
from kvstored.mooncake.plugged import KEYS, PluggedTransport

__all__ = ["MooncakeDistributedStore", "ReplicateConfig"]

_logger = logging.getLogger("kvstored.mooncake")
_DEFAULT_BYTES = 16 << 20
_UNREGISTER_S = 30.0
# keys of a dictionary for `setup` that this store knows and that change nothing here
_WITHOUT_EFFECT = {
    "ipc_socket_path",
    "enable_ssd_offload",
    "ssd_offload_path",
    "enable_client_http_server",
    "client_http_port",
    "client_http_host",
    "rdma_devices",
    "metadata_server",
}


@dataclass
class ReplicateConfig:
    """How an object is kept."""

    replica_num: int = 1
    """In how many nodes' memory."""
    with_soft_pin: bool = False
    """Whether it is evicted after those that aren't pinned."""
    with_hard_pin: bool = False
    """Taken as a soft pin."""
    preferred_segment: str = ""
    """The node that shall keep it, by its host name and port."""
    preferred_segments: list[str] = field(default_factory=list)
    """Several, for several replicas."""
    prefer_alloc_in_same_node: bool = False
    """Whether this node shall keep it."""


class MooncakeDistributedStore:
    """A member of a pool, after :meth:`setup`. Any thread may use it. It leaves the pool on :meth:`close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._native: _native.PoolStore | None = None

    def setup(
        self,
        local_hostname: str | Mapping[str, Any],
        metadata_server: str = "P2PHANDSHAKE",
        global_segment_size: int | str = _DEFAULT_BYTES,
        local_buffer_size: int | str = _DEFAULT_BYTES,
        protocol: str = "tcp",
        rdma_devices: str = "",
        master_server_addr: str = "",
        engine: object = None,
        tenant_id: str = "default",
        **others: object,
    ) -> int:
        """Joins a pool and lends it ``global_segment_size`` bytes.

        master_server_addr: where the pool's master answers, or several with commas that stand in for each other.
        local_hostname: what other nodes reach this one by; or a mapping with all of these by name. local_buffer_size:
        memory through which bytes go whose own memory isn't registered. Sizes are bytes or as in "1GB". engine: not
        used, a member has an engine of its own. others: what stands behind the protocol ``ascend``, by the keys of
        :mod:`kvstored.mooncake.plugged`, which a mapping may have too.
        """
        if isinstance(local_hostname, Mapping):
            given = dict(local_hostname)
            known = {"local_hostname", "global_segment_size", "local_buffer_size", "protocol", "master_server_addr"}
            known |= {"tenant_id", *KEYS}
            unknown = sorted(map(str, given.keys() - known - _WITHOUT_EFFECT))
            if unknown:
                _logger.warning("setup: nobody knows %s", ", ".join(unknown))
            return self.setup(given.pop("local_hostname", ""), **{key: given[key] for key in given.keys() & known})
        with self._lock:
            try:
                if self._native is not None:
                    raise InvalidInput("the store is set up already")
                if not master_server_addr:
                    raise InvalidInput("master_server_addr is missing")
                security = settings.Security.from_environment()
                plugged = PluggedTransport.configured(others)
                self._native = _native.PoolStore.start(
                    settings.address(local_hostname),
                    settings.transports(protocol, plugged),
                    security.token,
                    security.certificate,
                    security.key,
                    security.authority,
                    re.split(r"[,;]\s*", master_server_addr),
                    settings.size_bytes(global_segment_size),
                    settings.size_bytes(local_buffer_size),
                    tenant_id,
                    settings.timeout_s(),
                    plugged,
                )
            except KvstoredError as error:
                code = codes.RPC_FAILED if isinstance(error, Unavailable) else codes.store_code(error.kind)
                return codes.told(error, code, "setup")
            _logger.info("kvstored's pool member serves on %s", self._native.hostname)
        return 0

    def put(self, key: str, value: Any, config: ReplicateConfig | None = None) -> int:
        """Stores bytes, or anything with a buffer of them. An object that is there already stays as it is: 0, too."""
        return self._first(self._put([key], [value], config))

    def put_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig | None = None) -> int:
        """Stores several; 0, or the first failure's number."""
        return self._first(self._put(keys, values, config))

    def put_parts(self, key: str, *parts: Any, config: ReplicateConfig | None = None) -> int:
        """Stores the parts, one after the other, as one object."""
        return self.put(key, b"".join(bytes(memoryview(part).cast("B")) for part in parts), config)

    def get(self, key: str) -> bytes:
        """The object's bytes; none if it isn't there."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[str]) -> list[bytes]:
        """Those of several; none for each that isn't there."""
        if self._native is None:
            return [b""] * len(keys)
        return self._native.get_bytes(list(keys))

    def put_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig | None = None) -> int:
        """Stores bytes from memory; they take the shortest way if it is registered."""
        return self.batch_put_from([key], [buffer_ptr], [size], config)[0]

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Fetches an object into memory of at least its size. How many bytes it has, or a negative number."""
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_put_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """As :meth:`put_from` for several; each one's number."""
        parts = [[pointer] for pointer in buffer_ptrs], [[size] for size in sizes]
        return self.batch_put_from_multi_buffers(keys, *parts, config)

    def batch_get_into(self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """As :meth:`get_into` for several; each one's number."""
        return self.batch_get_into_multi_buffers(
            keys, [[pointer] for pointer in buffer_ptrs], [[size] for size in sizes]
        )

    def batch_put_from_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        config: ReplicateConfig | None = None,
    ) -> list[int]:
        """The same where an object's bytes lie in several places, one after the other."""
        if self._native is None or not len(keys) == len(all_buffer_ptrs) == len(all_sizes):
            return [codes.INVALID_PARAMETERS] * len(keys)
        return self._native.put_from(list(keys), all_buffer_ptrs, all_sizes, *_kept(config))

    def batch_get_into_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """The same where an object's bytes go to several places, one after the other."""
        if self._native is None or not len(keys) == len(all_buffer_ptrs) == len(all_sizes):
            return [codes.INVALID_PARAMETERS] * len(keys)
        return self._native.get_into(list(keys), all_buffer_ptrs, all_sizes)

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Lets bytes go straight from and to that memory, until :meth:`unregister_buffer` has returned."""
        try:
            self._member.register(buffer_ptr, size)
        except KvstoredError as error:
            return codes.told(error, codes.INVALID_PARAMETERS, "register_buffer")
        return 0

    def unregister_buffer(self, buffer_ptr: int) -> int:
        """Ends that; 0 means that nobody touches the memory any more."""
        try:
            self._member.unregister(buffer_ptr, _UNREGISTER_S)
        except KvstoredError as error:
            return codes.told(error, codes.INVALID_PARAMETERS, "unregister_buffer")
        return 0

    def is_exist(self, key: str) -> int:
        """1 if the object is there, 0 if it isn't, negative if nobody can tell."""
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: Sequence[str]) -> list[int]:
        """As :meth:`is_exist` for several, with one question."""
        if self._native is None:
            return [codes.INVALID_PARAMETERS] * len(keys)
        return self._native.exist(list(keys))

    def get_size(self, key: str) -> int:
        """Bytes of the object, or a negative number."""
        return codes.INVALID_PARAMETERS if self._native is None else self._native.sizes([key])[0]

    def remove(self, key: str, force: bool = False) -> int:
        """Removes it; -706 while somebody has a lease on it, unless by force."""
        return self.batch_remove([key], force)[0]

    def batch_remove(self, keys: Sequence[str], force: bool = False) -> list[int]:
        """As :meth:`remove` for several."""
        if self._native is None:
            return [codes.INVALID_PARAMETERS] * len(keys)
        return self._native.remove(list(keys), force)

    def remove_all(self, force: bool = False) -> int:
        """Removes this tenant's objects, but for those on lease unless by force. How many, or a negative number."""
        return codes.INVALID_PARAMETERS if self._native is None else self._native.remove_all(force)

    def health_check(self) -> int:
        """0 if all is well, 1 if this isn't set up or is closed, 2 if the master doesn't answer."""
        if self._native is None:
            return 1
        return 0 if self._native.is_healthy() else 2

    def get_hostname(self) -> str:
        """What other nodes reach this one by, with its port; empty before it is set up."""
        return "" if self._native is None else self._native.hostname

    def counters(self) -> list[dict[str, Any]]:
        """What was moved, by peer and transport, as :meth:`TransferEngine.counters` tells it. Not of Mooncake's API."""
        return [] if self._native is None else json.loads(self._native.counters())

    def close(self) -> int:
        """Leaves the pool: what this node lent is no longer there. 0, also for one that was never set up."""
        with self._lock:
            native, self._native = self._native, None
        if native is not None:
            native.close()
        return 0

    @property
    def _member(self) -> _native.PoolStore:
        if self._native is None:
            raise InvalidInput("the store isn't set up")
        return self._native

    def _put(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig | None) -> list[int]:
        if self._native is None or len(keys) != len(values):
            return [codes.INVALID_PARAMETERS]
        # they hold the bytes in place until the call has ended
        arrays = [np.frombuffer(value, np.uint8) for value in values]
        addresses = [[array.ctypes.data] for array in arrays]
        return self._native.put_from(list(keys), addresses, [[array.nbytes] for array in arrays], *_kept(config))

    @staticmethod
    def _first(results: Sequence[int]) -> int:
        """The first failure of several, or 0."""
        return next((result for result in results if result < 0), 0)


def _kept(config: ReplicateConfig | None) -> tuple[int, bool, list[str], bool]:
    """Replicas, whether pinned, preferred nodes, and whether this node comes first."""
    if config is None:
        return 1, False, [], False
    preferred = [name for name in (config.preferred_segment, *config.preferred_segments) if name]
    pinned = config.with_soft_pin or config.with_hard_pin
    return config.replica_num, pinned, preferred, config.prefer_alloc_in_same_node
