"""A HiCache storage backend for SGLang: pages of its host pools, kept in a kvstored store."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolHitPolicy, PoolName, PoolTransferResult

from kvstored import InvalidInput, Layout, Namespace, Task
from kvstored.complaints import Complaints
from kvstored.ending import end_surely
from kvstored.opening import durability_of, open_store
from kvstored.sglang.keys import block_hash, block_hashes
from kvstored.sglang.pools import KV_POOL, PagePool, flat_page_bytes, page_identity, weights_digest_of

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, HiCacheStorageExtraInfo, PoolTransfer

logger = logging.getLogger("kvstored.sglang")
Method = TypeVar("Method", bound=Callable[..., Any])

# SGLang's own keys among the backend's configuration
_SGLANG_KEYS = frozenset(
    [
        "backend_name",
        "module_path",
        "class_name",
        "interface_v1",
        "allocator",
        "prefetch_threshold",
        "prefetch_timeout_base",
        "prefetch_timeout_per_ki_token",
        "hicache_storage_pass_prefix_keys",
        "tp_lcm_size",
    ]
)
_OURS = frozenset(("tenant", "cache_salt", "weights_digest", "durability"))
_METRIC_SAMPLES = 1000
_GB = 1 << 30


def _guarded(fallback: Callable[..., Any]) -> Callable[[Method], Method]:
    """Keeps a method from raising into SGLang's threads: a failure is reported and answered with the fallback."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def guarded(self: KvstoredHiCache, first: Any, *arguments: Any, **named: Any) -> Any:
            try:
                return method(self, first, *arguments, **named)
            except Exception as error:
                self._complaints.report(method.__name__, f"{method.__name__} failed", error)
                return fallback(first)

        return guarded  # type: ignore[return-value]

    return decorate


def _none_each(keys: Sequence[str]) -> list[Any]:
    return [None] * len(keys)


def _false_each(keys: Sequence[str]) -> list[bool]:
    return [False] * len(keys)


def _false_each_pool(transfers: Sequence[PoolTransfer]) -> dict[str, list[bool]]:
    return {transfer.name: [False] * len(transfer.keys or []) for transfer in transfers}


class KvstoredHiCache(HiCacheStorage):
    """Keeps HiCache's pages in a kvstored store.

    Loaded by `--hicache-storage-backend dynamic`; see docs/guides/other-engines.md for the keys. With `interface_v1`
    pages move in place between the host pool and the store. A page that can't be had is a miss, one that can't be
    stored is not stored; nothing raises once the backend is attached.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, context: dict[str, Any] | None = None) -> None:
        """Opens the store. Raises InvalidInput on a wrong configuration, so that attaching fails."""
        self._config = storage_config
        self._complaints = Complaints(logger)
        extra = dict(storage_config.extra_config or {})
        self._in_place = bool(extra.get("interface_v1", 0))
        self._durability = durability_of(extra)
        self._timeout_ms = int(extra.get("timeout_ms", 30_000))
        digest = extra.get("weights_digest")
        self._identity_options = {
            "tenant": str(extra.get("tenant", "")),
            "cache_salt": str(extra.get("cache_salt", "")),
            "weights_digest": weights_digest_of(storage_config.model_name) if digest is None else str(digest),
        }
        self._lock = threading.Lock()
        self._page_pools: dict[str, PagePool] = {}
        self._flat: dict[int, Namespace] = {}
        self._flat_page_bytes: int | None = None
        self._samples: dict[str, list[float]] = {}
        self.registered_pools: dict[str, Any] = {}
        self._lease = open_store({key: value for key, value in extra.items() if key not in _SGLANG_KEYS | _OURS})

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Takes the pool that holds the KV pages. Raises InvalidInput when its pages can't move in place."""
        anchor = getattr(mem_pool_host, "anchor_entry", None)
        pool = anchor.host_pool if anchor is not None else mem_pool_host
        super().register_mem_pool_host(pool)
        with self._lock:
            self._page_pools.pop(KV_POOL, None)
            self._flat.clear()
            self._flat_page_bytes = None
        if self._in_place:
            self._page_pool(KV_POOL)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Takes a further pool."""
        name = _pool_name(host_pool_name)
        self.registered_pools[name] = host_pool
        with self._lock:
            if name != KV_POOL:
                self._page_pools.pop(name, None)

    # pages in place

    @_guarded(_false_each)
    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Loads pages into the pool's slots; tells for each whether it is there now."""
        return self._move(KV_POOL, keys, host_indices, is_load=True)

    @_guarded(_false_each)
    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Stores pages from the pool's slots; tells for each whether it is stored now, or was already."""
        before = getattr(extra_info, "prefix_keys", None)
        return self._move(KV_POOL, keys, host_indices, is_load=False, parent=block_hash(before[-1]) if before else None)

    @_guarded(_false_each_pool)
    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Loads pages of several pools."""
        return {transfer.name: self._transfer(transfer, is_load=True) for transfer in transfers}

    @_guarded(_false_each_pool)
    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Stores pages of several pools."""
        return {transfer.name: self._transfer(transfer, is_load=False) for transfer in transfers}

    # flat copies of pages

    @_guarded(lambda key: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        """Loads a page into a tensor; None: it isn't stored."""
        return self._get([key], [target_location])[0]

    @_guarded(_none_each)
    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """Loads pages into tensors; None for each that isn't stored."""
        return self._get(keys, target_locations)

    @_guarded(lambda key: False)
    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Stores a page from a tensor; tells whether it is stored now."""
        return self._set([key], [value if value is not None else target_location])

    @_guarded(lambda keys: False)
    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """Stores pages from tensors; tells whether all are stored now."""
        return self._set(keys, values if values is not None else target_locations)

    # what is there

    def exists(self, key: str) -> bool:
        """Tells whether a page is stored."""
        return self.batch_exists([key]) == 1

    @_guarded(lambda keys: 0)
    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """How many pages at the start are stored without a gap."""
        return self._kv_namespace().lookup_on_prefix(block_hashes(keys)) if keys else 0

    @_guarded(lambda keys: PoolTransferResult.empty())
    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The longest prefix that every pool can restore, and how far each pool goes."""
        hashes = block_hashes(keys)
        pages = self.batch_exists(keys)
        reached: dict[Any, int] = {PoolName.KV: pages} if pages else {}
        restorable = set(range(1, pages + 1))
        for transfer in pool_transfers or ():
            if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
                boundary = self._page_pool(transfer.name).namespace.lookup_on_prefix(hashes[:pages]) if pages else 0
                ends = set(range(1, boundary + 1))
            elif transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
                ends = self._restorable_ends(transfer, hashes[:pages])
            else:
                # such a pool never shortens the prefix, and says nothing of its own here
                continue
            if ends:
                reached[transfer.name] = max(ends)
            restorable &= ends
        return PoolTransferResult(max(restorable, default=0), reached, sorted(restorable))

    def clear(self) -> bool:
        """Drops the pages of all pools used since the backend was attached, in all processes that share them.

        False where there is none, since what an earlier process stored can't be named then, or the store didn't answer.
        """
        with self._lock:
            namespaces = [pool.namespace for pool in self._page_pools.values()] + list(self._flat.values())
        if not namespaces:
            logger.warning(
                "no pool was used yet, so no pages are dropped; kvstored ctl purge drops a namespace by name"
            )
            return False
        try:
            for namespace in namespaces:
                namespace.purge()
        except Exception as error:
            self._complaints.report("clear", "pages could not be dropped", error)
            return False
        return True

    def get_stats(self) -> Any:
        """Pages and GB/s since the last call, as SGLang's metrics want them; None where they are off."""
        if not self._config.enable_storage_metrics:
            return None
        from sglang.srt.observability.metrics_collector import StorageMetrics

        with self._lock:
            samples, self._samples = self._samples, {}
        return StorageMetrics(**{name: list(values) for name, values in samples.items()})

    def close(self) -> None:
        """Gives the store up."""
        with self._lock:
            self._page_pools.clear()
            self._flat.clear()
        self._lease.release()

    def _transfer(self, transfer: PoolTransfer, *, is_load: bool) -> list[bool]:
        keys = transfer.keys or []
        try:
            if transfer.host_indices is None:
                raise InvalidInput("no slots are given")
            return self._move(_pool_name(transfer.name), keys, transfer.host_indices, is_load=is_load)
        except Exception as error:
            self._complaints.report(f"pool {transfer.name}", f"pages of pool {transfer.name} did not move", error)
            return _false_each(keys)

    def _move(
        self, name: str, keys: list[str], host_indices: torch.Tensor, *, is_load: bool, parent: bytes | None = None
    ) -> list[bool]:
        if not keys:
            return []
        pool = self._page_pool(name)
        rows, hashes = pool.addresses(host_indices, len(keys)), block_hashes(keys)
        started = time.monotonic()
        if is_load:
            task = pool.namespace.load(hashes, rows, timeout_ms=self._timeout_ms)
        else:
            task = pool.namespace.dump(
                hashes, rows, parent=parent, durability=self._durability, timeout_ms=self._timeout_ms
            )
        done = self._done(task, len(keys))
        self._sample(is_load, int(done.sum()), sum(pool.namespace.layout.shards[0]), started)
        return done.tolist()

    def _get(self, keys: list[str], targets: Any) -> list[torch.Tensor | None]:
        if not keys or targets is None:
            return _none_each(keys)
        targets = list(targets)
        namespace = self._flat_namespace(targets[0].nbytes)
        started = time.monotonic()
        task = namespace.load_tensors(block_hashes(keys), [[t] for t in targets], timeout_ms=self._timeout_ms)
        done = self._done(task, len(keys))
        self._sample(True, int(done.sum()), targets[0].nbytes, started)
        return [target if is_there else None for target, is_there in zip(targets, done.tolist(), strict=True)]

    def _set(self, keys: list[str], values: Any) -> bool:
        if not keys or values is None:
            return False
        values = [value.contiguous() for value in values]
        namespace = self._flat_namespace(values[0].nbytes)
        started = time.monotonic()
        task = namespace.dump_tensors(
            block_hashes(keys),
            [[value] for value in values],
            durability=self._durability,
            timeout_ms=self._timeout_ms,
        )
        done = self._done(task, len(keys))
        self._sample(False, int(done.sum()), values[0].nbytes, started)
        return bool(done.all())

    def _done(self, task: Task, pages: int) -> np.ndarray:
        done = np.zeros(pages, dtype=bool)
        report = end_surely(task, self._timeout_ms / 1000 + 1.0)
        if report is not None:
            done[:] = True
            done[np.asarray(report.failed, dtype=np.int64)] = False
            for error in report.errors:
                self._complaints.report(f"transfer {error.split(':', 1)[0]}", "pages were not transferred", error)
        return done

    def _restorable_ends(self, transfer: PoolTransfer, hashes: list[bytes]) -> AbstractSet[int]:
        """The prefix lengths whose last pages this pool has all of."""
        if not hashes:
            return set()
        window = max(1, len(transfer.keys or ()))
        present = self._page_pool(transfer.name).namespace.lookup(hashes)
        return {end for end in range(1, len(hashes) + 1) if present[max(0, end - window) : end].all()}

    def _page_pool(self, pool_name: Any) -> PagePool:
        name = _pool_name(pool_name)
        with self._lock:
            made = self._page_pools.get(name)
            if made is None:
                pool = self._host_pool(name)
                identity = page_identity(self._config, pool, name, **self._identity_options)
                made = self._page_pools[name] = PagePool(self._lease.store, identity, pool)
            return made

    def _host_pool(self, name: str) -> Any:
        pool = getattr(self, "mem_pool_host", None) if name == KV_POOL else None
        pool = pool if pool is not None else self.registered_pools.get(name)
        if pool is None:
            raise InvalidInput(f"pool {name} was not registered")
        return pool

    def _kv_namespace(self) -> Namespace:
        if self._in_place:
            return self._page_pool(KV_POOL).namespace
        if self._flat_page_bytes is None:
            self._flat_page_bytes = flat_page_bytes(self._host_pool(KV_POOL))
        return self._flat_namespace(self._flat_page_bytes)

    def _flat_namespace(self, page_bytes: int) -> Namespace:
        with self._lock:
            namespace = self._flat.get(page_bytes)
            if namespace is None:
                pool = self._host_pool(KV_POOL)
                identity = page_identity(self._config, pool, f"{KV_POOL}-flat", **self._identity_options)
                namespace = self._lease.store.open_namespace(identity, Layout.uniform(1, 1, page_bytes))
                self._flat[page_bytes] = namespace
            return namespace

    def _sample(self, is_load: bool, pages: int, page_bytes: int, started_s: float) -> None:
        if not self._config.enable_storage_metrics or pages == 0:
            return
        speed = pages * page_bytes / max(time.monotonic() - started_s, 1e-9) / _GB
        names = ("prefetch_pgs", "prefetch_bandwidth") if is_load else ("backup_pgs", "backup_bandwidth")
        with self._lock:
            for name, value in zip(names, (pages, speed), strict=True):
                values = self._samples.setdefault(name, [])
                if len(values) < _METRIC_SAMPLES:
                    values.append(value)


def _pool_name(name: Any) -> str:
    return str(getattr(name, "value", name))
