"""The scheduler's side: what to load, what to dump, and when blocks may be freed."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kvstored import KvstoredError
from kvstored.vllm.configuration import ConnectorSettings
from kvstored.vllm.governor import Governor, LoadsUnderWay
from kvstored.vllm.identity import lora_name
from kvstored.vllm.measures import Accumulator
from kvstored.vllm.metadata import DumpRun, LoadObservation, LoadRun, StepMetadata, Variant, WorkerReport
from kvstored.vllm.namespaces import RankNamespaces
from kvstored.vllm.request_state import Match, RequestState
from kvstored.vllm.step_clock import StepClock

if TYPE_CHECKING:
    from kvstored.vllm.event_feed import EventFeed
    from kvstored.vllm.events import EventTranslator

_MATCH_LIFETIME_S = 0.5
_SUCCESSFUL = ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED")

logger = logging.getLogger("vllm.kvstored")


class SchedulerEvents(NamedTuple):
    """Where KV events come from, and what tells it of tokens."""

    translator: EventTranslator
    feed: EventFeed


class SchedulerSide:
    """Lives in the process that schedules. Every method is called from the scheduler's thread."""

    def __init__(
        self,
        settings: ConnectorSettings,
        namespaces: RankNamespaces,
        governor: Governor,
        statistics: Accumulator,
        events: SchedulerEvents | None = None,
        *,
        block_tokens: int,
        hashes_per_block: int,
        loads: bool,
        dumps: bool,
    ) -> None:
        self._settings = settings
        self._namespaces = namespaces
        self._governor = governor
        self._statistics = statistics
        self._events = events
        self._block_tokens = block_tokens
        self._hashes_per_block = hashes_per_block
        self._loads = loads
        self._dumps = dumps
        self._states: dict[str, RequestState] = {}
        self._planned: list[LoadRun] = []
        self._final_dumps: list[DumpRun] = []
        self._retained: set[str] = set()
        self._abandoned: set[str] = set()
        self._step = 0
        self._settled_step = 0
        self._last_sync_load_step = -1
        self._dumps_done_through = 0
        self._under_way = LoadsUnderWay()
        self._epoch = ""
        self._clock = StepClock()

    # --- requests ------------------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """A request has arrived."""
        self._state(request)

    def matched_tokens(self, request: Any, computed_tokens: int) -> tuple[int, bool]:
        """Tokens behind `computed_tokens` to load, and whether outside the step."""
        if not self._loads:
            return 0, False
        state = self._state(request)
        first = computed_tokens // self._block_tokens
        # the last token has to be computed: its logits are wanted
        last = (request.num_tokens - 1) // self._block_tokens
        if not state.may_load or last <= first or computed_tokens % self._block_tokens:
            return 0, False
        now = time.monotonic()
        match = state.match
        if match is None or match.first != first or now - match.found_at > _MATCH_LIFETIME_S:
            match = state.match = Match(first, self._match(state, first, last), now)
        return match.blocks * self._block_tokens, bool(match.blocks) and self._settings.load_async

    def allocated(self, request: Any, block_ids: list[int], external_tokens: int) -> bool:
        """The engine gave a request blocks, of which `external_tokens` are to be loaded. Whether they will be."""
        state = self._state(request)
        match, state.match = state.match, None
        if match is None:
            return False
        count = external_tokens // self._block_tokens
        hashes = self._hashes(request, match.first, match.first + count)
        ids = list(block_ids[match.first : match.first + count])
        if not len(hashes) == len(ids) == count:
            raise ValueError(f"{external_tokens} tokens to load, but {len(hashes)} hashes and {len(ids)} blocks")
        state.block_ids = list(block_ids)
        state.dumped_blocks = max(state.dumped_blocks, match.first + count)
        run = LoadRun(
            request.request_id,
            state.variant,
            hashes,
            ids,
            asynchronous=self._settings.load_async,
            timeout_ms=self._settings.load_deadline_ms,
        )
        self._planned.append(run)
        state.loading = run.asynchronous
        self._under_way.start(request.request_id, state.hit_tiers[:count])
        return True

    def not_loaded(self, request_id: str, block_ids: list[int]) -> None:
        """The engine counts on blocks that can't be loaded: a run without hashes makes the workers report them."""
        asynchronous = self._settings.load_async
        if state := self._states.get(request_id):
            state.loading = asynchronous
        self._planned.append(LoadRun(request_id, Variant(), [], list(block_ids), asynchronous=asynchronous))

    def abandoned(self, request_id: str) -> None:
        """A request's blocks are freed now, whatever reads them."""
        self._abandoned.add(request_id)

    def finished(self, request: Any) -> bool:
        """A request has ended. True if its blocks have to stay until their dumps are done."""
        self._under_way.end(request.request_id)
        state = self._states.pop(request.request_id, None)
        if state is None or not self._dumps or state.loading:
            # a load that goes on: the engine frees the blocks at its end, and earlier dumps ended with the preemption
            return False
        status = getattr(getattr(request, "status", None), "name", "")
        state.computed_tokens = min(state.computed_tokens, request.num_computed_tokens)
        if status in _SUCCESSFUL and (run := self._due(state, before_step=True)):
            self._final_dumps.append(run)
        elif state.last_dump_step <= self._dumps_done_through:
            return False
        self._retained.add(request.request_id)
        return True

    # --- steps ---------------------------------------------------------------------------------------------------

    def begin_step(self, output: Any) -> StepMetadata:
        """What the workers have to do in this step, without dumps."""
        self._step += 1
        loads, self._planned = self._planned, []
        preempted = set(output.preempted_req_ids or ()) | self._abandoned
        self._abandoned = set()
        if any(not run.asynchronous for run in loads):
            self._last_sync_load_step = self._step
        return StepMetadata(self._step, loads, preempted=preempted)

    def plan_dumps(self, output: Any, metadata: StepMetadata) -> None:
        """Follows what is scheduled, and adds the dumps that are due."""
        for new in output.scheduled_new_reqs:
            self._scheduled(new.req_id, new.num_computed_tokens, output, list(new.block_ids[0]), replace=True)
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            new_ids = cached.new_block_ids[index]
            self._scheduled(
                request_id,
                cached.num_computed_tokens[index],
                output,
                list(new_ids[0]) if new_ids else [],
                replace=request_id in cached.resumed_req_ids,
            )
        for request_id in metadata.preempted:
            if state := self._states.get(request_id):
                state.block_ids = []
                state.computed_tokens = state.computed_before = 0
        metadata.dumps = self._due_dumps(output)
        # a request whose last dump has to wait keeps its blocks until the workers know of that dump
        waiting = {run.request_id for run in self._final_dumps}
        metadata.retained = self._retained - waiting
        self._retained &= waiting
        if self._last_sync_load_step != self._step:
            self._clock.scheduled(self._step, output)

    def _scheduled(self, request_id: str, computed: int, output: Any, block_ids: list[int], *, replace: bool) -> None:
        state = self._states.get(request_id)
        if state is None:
            return
        if replace:
            state.block_ids = block_ids
            # found in the engine's own cache, or loaded: whoever computed it has dumped it
            state.dumped_blocks = max(state.dumped_blocks, computed // self._block_tokens)
        else:
            state.block_ids = state.block_ids + block_ids
        state.loading = False
        state.computed_before = computed
        state.computed_tokens = computed + output.num_scheduled_tokens[request_id]

    def _due_dumps(self, output: Any) -> list[DumpRun]:
        """Runs whose KV is complete after this step.

        None while a load inside a step is not known to have worked on every rank: what was computed behind a block
        that turns out not to be loaded is wrong, and so is everything that shares it.
        """
        if not self._dumps or self._last_sync_load_step > self._settled_step:
            return []
        runs, self._final_dumps = self._final_dumps, []
        for request_id in output.num_scheduled_tokens:
            state = self._states.get(request_id)
            if state is not None and (run := self._due(state)):
                runs.append(run)
        return runs

    def _due(self, state: RequestState, *, before_step: bool = False) -> DumpRun | None:
        """The run of blocks of a request that are complete and not dumped yet."""
        request = state.request
        # drafts may be rejected: only what is known to be part of the text counts, and that is what has hashes
        tokens = min(state.computed_tokens, request.num_tokens)
        end = min(
            tokens // self._block_tokens,
            len(request.block_hashes) // self._hashes_per_block,
            len(state.block_ids),
        )
        first = state.dumped_blocks
        if end <= first:
            return None
        parent = self._hashes(request, first - 1, first)[0] if first else None
        hashes = self._hashes(request, first, end)
        if self._events is not None:
            self._events.translator.remember(request, hashes, first, parent)
        state.dumped_blocks = end
        state.last_dump_step = self._step + 1 if before_step else self._step
        return DumpRun(
            request.request_id,
            state.variant,
            hashes,
            state.block_ids[first:end],
            parent=parent,
            computed_before=before_step or end * self._block_tokens <= state.computed_before,
        )

    def worker_output(self, output: Any) -> None:
        """What the workers of all ranks reported of a step."""
        report = output.kv_connector_worker_meta
        if output.invalid_block_ids:
            self._forget_computed(output.invalid_block_ids)
        if not isinstance(report, WorkerReport):
            return
        self._settled_step = max(self._settled_step, report.step)
        self._dumps_done_through = max(self._dumps_done_through, report.dumps_done_through)
        for request_id in report.failed_requests:
            if state := self._states.get(request_id):
                state.may_load = False
        slowest: dict[str, LoadObservation] = {}
        for seen in report.observations:
            other = slowest.get(seen.request_id)
            if other is None or seen.seconds > other.seconds:
                slowest[seen.request_id] = seen
        for seen in slowest.values():
            load = self._under_way.end(seen.request_id)
            self._governor.observe_load(
                seen.blocks_by_tier if not seen.late or load is None else load.blocks,
                self._namespaces.block_bytes,
                seen.seconds,
                ahead=load.ahead if load else None,
                failed=seen.late,
            )
        self._clock.finished(report.step, self._governor)

    def _forget_computed(self, invalid: Iterable[int]) -> None:
        """Blocks weren't loaded: what lies behind them has to be computed and dumped anew."""
        invalid = set(invalid)
        for state in self._states.values():
            for index, block in enumerate(state.block_ids):
                if block in invalid:
                    state.dumped_blocks = min(state.dumped_blocks, index)
                    state.computed_tokens = min(state.computed_tokens, index * self._block_tokens)
                    state.may_load = False
                    break

    # --- the rest ------------------------------------------------------------------------------------------------

    def forget_everything(self) -> bool:
        """The engine's weights may have changed: nothing stored so far is served to it any more."""
        if self._events is not None:
            self._events.feed.forget()
        self._epoch = secrets.token_hex(8)
        for state in self._states.values():
            state.variant = dataclasses.replace(state.variant, weights_epoch=self._epoch)
            state.match = None
        logger.info("kvstored: cache reset: blocks stored so far are not used by this engine any more")
        return True

    def hit_tiers(self, request: Any, blocks: int) -> dict[str, int]:
        """How many of the blocks a request was given to load come from each tier, by name."""
        state = self._states.get(request.request_id)
        return self._by_tier(state.hit_tiers[:blocks]) if state else {}

    def take_events(self) -> list[Any]:
        """KV events since the last call."""
        return self._events.feed.take() if self._events is not None else []

    def close(self) -> None:
        """Stops asking the store for events."""
        if self._events is not None:
            self._events.feed.close()

    def take_governor_measures(self) -> None:
        """Adds what the governor decided and estimates to the statistics."""
        self._statistics.add_governor(self._governor, self._namespaces.tier_names)

    def _state(self, request: Any) -> RequestState:
        state = self._states.get(request.request_id)
        if state is None:
            variant = Variant(lora_name(request.lora_request), request.cache_salt or "", self._epoch)
            state = self._states[request.request_id] = RequestState(request, variant)
        return state

    def _hashes(self, request: Any, first: int, end: int) -> list[bytes]:
        step = self._hashes_per_block
        if step == 1:
            return list(request.block_hashes[first:end])
        return list(request.block_hashes[(first + 1) * step - 1 : end * step : step])

    def _match(self, state: RequestState, first: int, last: int) -> int:
        """How many blocks from `first` are worth loading."""
        hashes = self._hashes(state.request, first, last)
        if not hashes:
            return 0
        began = time.perf_counter()
        try:
            tiers = self._namespaces.locate(state.variant, hashes)
        except KvstoredError as error:
            self._namespaces.failed(error)
            self._statistics.add("lookups", 1, "unavailable")
            self._statistics.add("unavailable", 1, "lookup")
            return 0
        finally:
            self._statistics.add("lookup_seconds", time.perf_counter() - began)
        self._statistics.add("lookups", 1, "hit" if len(tiers) else "miss")
        self._statistics.add("lookup_blocks", len(hashes))
        if not len(tiers):
            return 0
        decision = self._governor.decide(
            tiers,
            self._block_tokens,
            self._namespaces.block_bytes,
            first * self._block_tokens,
            self._under_way.blocks,
        )
        for name, count in self._by_tier(tiers).items():
            self._statistics.add("hit_blocks", count, name)
            self._statistics.add("hit_tokens", count * self._block_tokens, name)
        state.hit_tiers = tiers[: decision.blocks]
        return decision.blocks

    def _by_tier(self, tiers: np.ndarray) -> dict[str, int]:
        names = self._namespaces.tier_names
        order = tiers.tobytes()
        return {names[tier] if tier < len(names) else str(tier): order.count(tier) for tier in sorted(set(order))}
