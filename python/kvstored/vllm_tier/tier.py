"""A secondary tier for vLLM's native KV offloading: chunks of its host memory, kept in a kvstored store."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingMetricMetadata,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from kvstored import KvstoredError, Layout, Namespace
from kvstored.complaints import Complaints
from kvstored.opening import durability_of, open_store
from kvstored.vllm_tier import metrics
from kvstored.vllm_tier.chains import Chain
from kvstored.vllm_tier.identity import chunk_identities
from kvstored.vllm_tier.jobs import Job, Outcome, Part
from kvstored.vllm_tier.lookups import Lookups
from kvstored.vllm_tier.removals import Removals

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import OffloadingSpec
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector

logger = logging.getLogger("vllm.kvstored.tier")
Method = TypeVar("Method", bound=Callable[..., Any])

_GROUP_BYTES = 4
_SHUTDOWN_TIMEOUT_S = 10.0


def _guarded(fallback: Callable[[], Any]) -> Callable[[Method], Method]:
    """Keeps a method from raising into the scheduler: a failure is reported and answered with the fallback."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def guarded(self: KvstoredTier, *arguments: Any, **named: Any) -> Any:
            try:
                return method(self, *arguments, **named)
            except Exception as error:
                self._complaints.report(method.__name__, f"{method.__name__} of tier {self.tier_type} failed", error)
                return fallback()

        return guarded  # type: ignore[return-value]

    return decorate


class KvstoredTier(SecondaryTierManager):
    """Keeps the primary tier's chunks in a kvstored store, moved straight between its rows and the store.

    Configured in vLLM's `secondary_tiers`; see docs/guides/other-engines.md for the keys. Runs in the scheduler's
    thread and neither blocks nor raises there: what fails is a miss or a failed job.
    """

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: OffloadingSpec,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: BackpressureDetector | None = None,
        *,
        locality: str | None = None,
        enable_kv_events: bool = False,
        tenant: str = "",
        cache_salt: str = "",
        weights_digest: str | None = None,
        durability: str = "memory",
        timeout_ms: int = 30_000,
        stores_in_flight_ratio: float = 0.5,
        **options: object,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality(locality) if locality is not None else None
        self._complaints = Complaints(logger)
        self._durability = durability_of({"durability": durability})
        self._timeout_ms = timeout_ms
        # the view is exported as long as a transfer may touch its rows, so that nobody can unmap them
        self._rows: np.ndarray | None = np.asarray(primary_kv_view)
        self._base_address = int(self._rows.ctypes.data)
        self._chunk_bytes = _chunk_bytes(offloading_spec, self.block_size_bytes)
        self._store_limit = max(1, int(primary_kv_view.shape[0] * stores_in_flight_ratio))
        self._storing = 0
        self._jobs: dict[int, Job] = {}
        self._failed_at_once: list[JobResult] = []
        self._counters = metrics.Counters(tier_type)
        self._events: list[OffloadingEvent] | None = None
        if enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events:
            self._events = []
        elif enable_kv_events:
            logger.warning("enable_kv_events has no effect on tier %s: KV events are off in vLLM", tier_type)

        identities = chunk_identities(
            offloading_spec.config, tenant=tenant, cache_salt=cache_salt, weights_digest=weights_digest
        )
        self._lease = open_store({**options, "timeout_ms": timeout_ms})
        store = self._lease.store
        try:
            layout = Layout.uniform(1, 1, self._chunk_bytes)
            self._namespaces = {group: store.open_namespace(identity, layout) for group, identity in identities.items()}
        except BaseException:
            self._lease.release()
            raise
        self._lookups = Lookups(self._probe, self._complaints, in_step=store.is_embedded)
        wants_events = self._events is not None
        self._removals = Removals(store, self._namespaces, self._complaints) if wants_events else None
        logger.info("tier %s: %s, chunks of %d bytes", tier_type, "|".join(store.tier_names), self._chunk_bytes)

    # lookups

    @_guarded(lambda: LookupResult.MISS)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """Tells whether the chunk is stored; RETRY while the answer is on its way."""
        found = self._lookups.lookup(key, req_context.req_id, _keys_of(req_context, key))
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    @_guarded(lambda: None)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Sends the step's lookups on their way."""
        self._lookups.flush()

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Asks for the ordinary policy: newly computed chunks as they come."""
        return RequestOffloadingContext()

    @_guarded(lambda: None)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """Drops what was kept for the request."""
        self._lookups.forget(req_context.req_id)

    def has_pending_work(self) -> bool:
        """Tells whether the scheduler must go on stepping for this tier's sake."""
        return self._lookups.waits() or bool(self._jobs) or bool(self._failed_at_once)

    # transfers

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Begins to store chunks; those that are stored already are found out by the store."""
        count = len(job_metadata.keys)
        if self._storing + count > self._store_limit:
            self._counters.add(metrics.STORE_REFUSED_CHUNKS, count)
            self._failed_at_once.append(JobResult(job_id=job_metadata.job_id, success=False, transfer_bytes=0))
            return
        self._storing += count
        self._submit(job_metadata, is_promotion=False)

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Begins to load chunks into their rows."""
        self._submit(job_metadata, is_promotion=True)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """The jobs that ended since the last call. A partial load says which chunks are there."""
        results, self._failed_at_once = self._failed_at_once, []
        try:
            for job in [job for job in self._jobs.values() if job.has_ended()]:
                del self._jobs[job.job_id]
                results.append(self._result(job))
        except Exception as error:
            self._complaints.report("finished jobs", "collecting finished transfers failed", error)
        return results

    def drain_jobs(self) -> None:
        """Waits until no transfer touches the primary tier's rows; their results remain to be collected.

        Raises RuntimeError when a transfer can't be ended: the rows must not be used again then.
        """
        for job in self._jobs.values():
            if not job.wait(self._timeout_ms / 1000):
                raise RuntimeError(f"transfer {job.job_id} of tier {self.tier_type} does not end")

    # the rest

    @_guarded(tuple)
    def take_events(self) -> Iterable[OffloadingEvent]:
        """The chunks stored, found missing, and removed by the store, since the last call."""
        if self._events is None:
            return ()
        if self._removals is not None:
            self._announce(self._removals.take(), removed=True)
        events, self._events = self._events, []
        return events

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """The tier's metrics."""
        return metrics.definitions()

    @_guarded(lambda: None)
    def get_stats(self) -> OffloadingConnectorStats | None:
        """The counts since the last call."""
        return self._counters.take(len(self._jobs))

    def shutdown(self) -> None:
        """Ends transfers and gives the store up; what was stored reaches the next tier before an embedded store closes.

        Raises RuntimeError when a transfer can't be ended, so that vLLM keeps the rows mapped.
        """
        self._lookups.shutdown(_SHUTDOWN_TIMEOUT_S)
        if self._removals is not None:
            self._removals.close(_SHUTDOWN_TIMEOUT_S)
        self.drain_jobs()
        self._jobs.clear()
        self._namespaces = {}
        self._rows = None
        self._lease.release()

    def _probe(self, keys: Collection[bytes]) -> np.ndarray:
        keys = list(keys)
        found = np.zeros(len(keys), dtype=bool)
        for namespace, positions, hashes in self._by_group(keys):
            found[positions] = namespace.lookup(hashes)
        return found

    def _by_group(self, keys: list[bytes]) -> Iterable[tuple[Namespace, np.ndarray, list[bytes]]]:
        groups: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            groups.setdefault(key[-_GROUP_BYTES:], []).append(position)
        for group, positions in groups.items():
            namespace = self._namespaces.get(int.from_bytes(group, "big"))
            if namespace is None:
                self._complaints.report("group", f"KV cache group {group.hex()} is unknown; taken as misses")
                continue
            yield namespace, np.array(positions), [keys[position][:-_GROUP_BYTES] for position in positions]

    def _submit(self, metadata: TransferJob, *, is_promotion: bool) -> None:
        job = Job(metadata.job_id, list(metadata.keys), is_promotion)
        self._jobs[job.job_id] = job
        begun = np.zeros(len(job.keys), dtype=bool)
        try:
            addresses = self._base_address + np.asarray(metadata.chunk_ids).astype(np.uint64) * self.block_size_bytes
            for namespace, positions, hashes in self._by_group(job.keys):
                rows = np.ascontiguousarray(addresses[positions], dtype=np.uint64)
                if is_promotion:
                    task = namespace.load(hashes, rows, timeout_ms=self._timeout_ms)
                else:
                    parent = Chain.of(metadata.req_context).parent(job.keys[positions[0]])
                    task = namespace.dump(
                        hashes,
                        rows,
                        parent=parent[:-_GROUP_BYTES] if parent else None,
                        durability=self._durability,
                        timeout_ms=self._timeout_ms,
                    )
                job.parts.append(Part(task, positions))
                begun[positions] = True
        except KvstoredError as error:
            self._complaints.report(f"submit {error.kind}", "a transfer was not begun", error)
        except Exception as error:
            self._complaints.report("submit", "a transfer was not begun", error)
        job.refused = np.flatnonzero(~begun).tolist()

    def _result(self, job: Job) -> JobResult:
        outcome = job.outcome()
        for error in outcome.errors:
            self._complaints.report(f"transfer {error.split(':', 1)[0]}", "chunks were not transferred", error)
        done = len(job.keys) - outcome.failures
        loaded = None
        if job.is_promotion:
            loaded = self._after_load(outcome, done)
        else:
            self._after_store(outcome, done)
        return JobResult(
            job_id=job.job_id,
            success=outcome.failures == 0,
            successful_keys=loaded,
            transfer_time=outcome.duration_s,
            transfer_bytes=done * self._chunk_bytes,
        )

    def _after_load(self, outcome: Outcome, done: int) -> list[OffloadKey] | None:
        self._counters.add(metrics.LOADED_CHUNKS, done)
        if outcome.failures == 0:
            return None
        self._counters.add(metrics.LOAD_FAILED_CHUNKS, outcome.failures)
        missing = outcome.keys(failed=True)
        # asked again, the same verdict would start the same load for ever
        self._lookups.mark_missing(missing)
        self._announce(missing, removed=True)
        return outcome.keys(failed=False)

    def _after_store(self, outcome: Outcome, done: int) -> None:
        self._storing -= len(outcome.job.keys)
        self._counters.add(metrics.STORED_CHUNKS, done)
        self._counters.add(metrics.STORE_FAILED_CHUNKS, outcome.failures)
        self._announce(outcome.keys(failed=False), removed=False)

    def _announce(self, keys: list[OffloadKey], *, removed: bool) -> None:
        if self._events is not None and keys:
            self._events.append(
                OffloadingEvent(
                    keys=keys, medium=self.medium, removed=removed, locality=self.locality, ownership=self.tier_type
                )
            )


def _keys_of(context: ReqContext, key: OffloadKey) -> Iterable[OffloadKey]:
    """The keys the scheduler has made for the request; at least the one it asks for."""
    return getattr(context, "_offload_key_positions", None) or (key,)


def _chunk_bytes(spec: OffloadingSpec, row_bytes: int) -> int:
    """Bytes of a row that hold KV; the rest pads it to whole pages and is not stored."""
    per_worker = getattr(spec, "cpu_page_size_per_worker", 0)
    copies = 1 if spec.replicated_layout else spec.config.parallel.world_size
    if spec.config.canonical_layout:
        return row_bytes
    return per_worker * copies if 0 < per_worker * copies <= row_bytes else row_bytes
