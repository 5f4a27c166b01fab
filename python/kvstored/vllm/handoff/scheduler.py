"""The scheduler's side: which blocks are kept for whom, and which are fetched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvstored import InvalidInput
from kvstored.complaints import Complaints
from kvstored.vllm.handoff.configuration import HandoffSettings
from kvstored.vllm.handoff.metadata import HandoffStep, Pull
from kvstored.vllm.handoff.overlap import Overlap
from kvstored.vllm.handoff.parameters import (
    ABANDONED,
    HAS_HANDOFF,
    MOST_NAME_BYTES,
    WANTS_HANDOFF,
    Source,
    check_prompt,
    offer,
    read_source,
    transfer_name,
)
from kvstored.vllm.handoff.placement import Place
from kvstored.vllm.measures import Accumulator

_SUCCESSFUL = ("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED")

logger = logging.getLogger("vllm.kvstored")


@dataclass
class _Arrival:
    """A request of which a prefill instance has kept blocks."""

    source: Source | None
    """Whose; None once that is settled: they are here, or won't be fetched."""
    pulling: bool = False


class HandoffScheduler:
    """Lives in the process that schedules. Every method is called from its thread."""

    def __init__(
        self,
        settings: HandoffSettings,
        place: Place,
        statistics: Accumulator,
        *,
        block_tokens: int,
        produces: bool,
        consumes: bool,
    ) -> None:
        """Takes what this engine is; `produces`: it keeps blocks for others, `consumes`: it fetches them."""
        self._settings = settings
        self._place = place
        self._statistics = statistics
        self._block_tokens = block_tokens
        self._produces = produces
        self._consumes = consumes
        self._complaints = Complaints(logger)
        self._arrivals: dict[str, _Arrival] = {}
        self._held: dict[str, int] = {}
        self._step = HandoffStep()
        self._overlap = Overlap(block_tokens) if settings.overlap and produces else None

    def on_new_request(self, request: Any) -> None:
        """A request has arrived."""
        self._arrival(request)
        params = request.kv_transfer_params
        if self._overlap is None or not params or not params.get(WANTS_HANDOFF):
            return
        try:
            name = transfer_name(params, request)
        except InvalidInput as error:
            self._complaints.report("transfer", "kvstored: a prompt can't be followed while it's computed", error)
            return
        if name is not None:
            self._overlap.announce(request, name)

    def matched_tokens(self, request: Any, computed_tokens: int) -> tuple[int, bool]:
        """Tokens behind `computed_tokens` to fetch, and whether outside the step."""
        arrival = self._arrival(request)
        if arrival is None or arrival.source is None or arrival.pulling or computed_tokens % self._block_tokens:
            return 0, False
        tokens = request.num_prompt_tokens - computed_tokens
        # the last one is computed in any case: its logits are wanted
        return (tokens, True) if tokens > 1 else (0, False)

    def allocated(self, request: Any, block_ids: Sequence[int], external_tokens: int) -> bool:
        """The engine gave a request blocks, of which `external_tokens` are to be fetched. Whether they will be."""
        arrival = self._arrivals.get(request.request_id)
        if arrival is None or arrival.source is None or arrival.pulling:
            return not external_tokens
        if not external_tokens:
            self._decline(arrival, "cached")
            return True
        first = (request.num_prompt_tokens - external_tokens) // self._block_tokens
        end = -(-request.num_prompt_tokens // self._block_tokens)
        ids = list(block_ids[first:end])
        if len(ids) != end - first:
            raise ValueError(f"{external_tokens} tokens to fetch, but blocks {first} to {end} of {len(block_ids)}")
        self._step.pulls[request.request_id] = Pull(arrival.source, ids, first)
        arrival.pulling = True
        return True

    def not_fetched(self, request_id: str, block_ids: Sequence[int]) -> None:
        """The engine counts on blocks that nobody will fill: the workers have to report them."""
        if (arrival := self._arrivals.get(request_id)) is not None and not arrival.pulling:
            self._decline(arrival, "unfit")
        self._step.lost[request_id] = list(block_ids)

    def finished(self, request: Any, block_ids: Sequence[int]) -> tuple[bool, dict[str, Any] | None]:
        """A request has ended: whether its blocks stay for a decode instance, and what that has to know."""
        arrival = self._arrival(request)
        self._arrivals.pop(request.request_id, None)
        if arrival is not None and arrival.pulling:
            self._step.cancelled.add(request.request_id)
        elif arrival is not None:
            self._decline(arrival, "gone")
        params = request.kv_transfer_params
        if not params or not params.get(WANTS_HANDOFF):
            return False, None
        if self._overlap is not None and self._overlap.was_withdrawn(request.request_id):
            # who followed it computes it by now
            return False, None
        if request.status.name not in _SUCCESSFUL:
            self.abandoned(request.request_id)
            return False, None
        if not self._produces:
            self._complaints.report("role", "kvstored: asked to keep a prompt's blocks, but kv_role is kv_consumer")
            return False, None
        count = -(-request.num_prompt_tokens // self._block_tokens)
        if not self._can_keep(request, count, len(block_ids)):
            self.abandoned(request.request_id)
            return False, None
        ids = list(block_ids[:count])
        name = self._overlap.name(request.request_id) if self._overlap is not None else None
        answer = offer(
            self._place,
            request,
            ids,
            self._block_tokens,
            name or request.request_id,
            overlaps=self._overlap is not None,
        )
        if self._overlap is not None:
            self._overlap.complete(request.request_id)
        self._step.holds[request.request_id] = ids
        self._held[request.request_id] = count
        self._statistics.add("offered")
        self._measure_held()
        return True, answer

    def abandoned(self, request_id: str) -> None:
        """The blocks of a request that has ended are freed now, whoever follows it."""
        if self._overlap is not None:
            self._overlap.withdraw(request_id)

    def take_step(self, output: Any = None) -> HandoffStep:
        """What the workers have to do in a step that is scheduled so."""
        step, self._step = self._step, HandoffStep()
        if self._overlap is not None and output is not None:
            try:
                step.overlap = self._overlap.take_step(output)
            except Exception:
                logger.exception("kvstored: prompts aren't followed any more while they are computed")
                step.overlap = self._overlap.give_up()
                self._overlap = None
        return step

    def worker_output(self, output: Any) -> None:
        """What the workers of all ranks reported of a step."""
        if self._overlap is not None:
            self._overlap.worker_output(output)
        for request_id in output.finished_recving or ():
            if arrival := self._arrivals.get(request_id):
                arrival.source, arrival.pulling = None, False
        released = [request_id for request_id in output.finished_sending or () if request_id in self._held]
        for request_id in released:
            del self._held[request_id]
        if released:
            self._measure_held()

    def _can_keep(self, request: Any, count: int, blocks: int) -> bool:
        if not 0 < count <= blocks:
            self._complaints.report("blocks", f"kvstored: a prompt of {count} blocks ended with {blocks}")
            return False
        if len(request.request_id.encode()) > MOST_NAME_BYTES:
            self._complaints.report(
                "name", f"kvstored: request {request.request_id} has too long a name to be handed over"
            )
            return False
        return True

    def _arrival(self, request: Any) -> _Arrival | None:
        arrival = self._arrivals.get(request.request_id)
        params = request.kv_transfer_params
        if arrival is None and params and params.get(HAS_HANDOFF):
            arrival = self._arrivals[request.request_id] = self._read(request, params)
        return arrival

    def _read(self, request: Any, params: Any) -> _Arrival:
        if not self._consumes:
            self._complaints.report("role", "kvstored: given a prompt's blocks to fetch, but kv_role is kv_producer")
            return _Arrival(None)
        try:
            arrival = _Arrival(read_source(params, self._settings.prefill, request))
        except InvalidInput as error:
            # whose it is isn't known, so nobody can be told
            self._complaints.report(
                "params", "kvstored: kv_transfer_params can't be used, the prompt is computed", error
            )
            self._statistics.add("declined", 1, "unfit")
            return _Arrival(None)
        if params.get(ABANDONED) or request.is_finished():
            self._decline(arrival, "gone")
            return arrival
        try:
            check_prompt(params, request, self._block_tokens)
        except InvalidInput as error:
            self._complaints.report("prompt", "kvstored: kv_transfer_params don't fit, the prompt is computed", error)
            self._decline(arrival, "unfit")
        return arrival

    def _decline(self, arrival: _Arrival, reason: str) -> None:
        """Nobody here will fetch it: the prefill instance need not keep it longer."""
        if arrival.source is not None:
            self._step.given_back.append(arrival.source)
            self._statistics.add("declined", 1, reason)
            arrival.source = None

    def _measure_held(self) -> None:
        self._statistics.add("held_requests", len(self._held))
        self._statistics.add("held_blocks", sum(self._held.values()))
