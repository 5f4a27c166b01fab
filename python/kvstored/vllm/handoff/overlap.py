"""The scheduler's side of prompts that decode instances follow while they are computed.

A block is told to be good only when it's certain that its bytes stay: they may be pulled from that moment on. Blocks
that the engine takes back - it preempts or aborts the request - are withdrawn before the step that overwrites them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvstored.vllm.handoff.metadata import HandoffReport, OverlapStep


@dataclass
class _Followed:
    """A prompt on its way."""

    name: str
    tokens: int
    blocks: int
    """Of the whole prompt."""
    block_ids: list[int] = field(default_factory=list)
    """As far as the engine has given them."""
    good: int = 0
    """Blocks that are complete after the last scheduled step."""


class Overlap:
    """Lives in the process that schedules. Every method is called from its thread. Requests go by this engine's ids."""

    def __init__(self, block_tokens: int) -> None:
        """Takes the tokens of a block."""
        self._block_tokens = block_tokens
        self._followed: dict[str, _Followed] = {}
        self._withdrawn: set[str] = set()
        """Requests whose blocks were taken back in the midst."""
        self._pending: list[tuple[int, str, int]] = []
        """Step, request and good blocks of what isn't known to have gone well."""
        self._next = OverlapStep()
        self._number = 0
        self._settled = 0
        self._last_sync_load = -1

    def announce(self, request: Any, name: str) -> None:
        """A request has arrived whose prompt a decode instance will follow under that name."""
        # with more than one token the last block would be written to after it's told to be good
        if request.max_tokens != 1 or request.request_id in self._followed:
            return
        tokens = request.num_prompt_tokens
        self._followed[request.request_id] = _Followed(name, tokens, -(-tokens // self._block_tokens))
        self._next.announced.append(name)

    def was_withdrawn(self, request_id: str) -> bool:
        """Whether the blocks of a request that has ended now were taken back before."""
        taken_back = request_id in self._withdrawn
        self._withdrawn.discard(request_id)
        return taken_back

    def name(self, request_id: str) -> str | None:
        """The name under which a request that has ended well was followed, if it was; else it isn't followed now."""
        followed = self._followed.get(request_id)
        if followed is not None and len(followed.block_ids) < followed.blocks:
            self.withdraw(request_id)
            return None
        return followed.name if followed is not None else None

    def complete(self, request_id: str) -> None:
        """The blocks of a request that has ended well stay."""
        if (followed := self._followed.pop(request_id, None)) is not None:
            self._next.completed[request_id] = followed.name

    def withdraw(self, request_id: str) -> None:
        """The blocks of a request don't stay."""
        if (followed := self._followed.pop(request_id, None)) is not None:
            self._next.withdrawn.append(followed.name)

    def give_up(self) -> OverlapStep:
        """Nothing is followed any more. What the workers have to know."""
        self._next.withdrawn += [followed.name for followed in self._followed.values()]
        self._followed.clear()
        return OverlapStep(withdrawn=self._next.withdrawn, completed=self._next.completed)

    def take_step(self, output: Any) -> OverlapStep:
        """What the workers have to know of a step that is scheduled."""
        self._number += 1
        if getattr(output, "has_sync_kv_loads", False):
            self._last_sync_load = self._number
        for request_id in output.preempted_req_ids or ():
            self._take_back(request_id)
        step = self._next
        step.number = self._number
        for new in output.scheduled_new_reqs:
            self._scheduled(step, output, new.req_id, new.num_computed_tokens, new.block_ids)
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            computed, ids = cached.num_computed_tokens[index], cached.new_block_ids[index]
            self._scheduled(step, output, request_id, computed, ids or ((),))
        self._settle(step)
        self._next = OverlapStep()
        return step

    def worker_output(self, output: Any) -> None:
        """What the workers of all ranks reported of a step."""
        if invalid := set(output.invalid_block_ids or ()):
            # a load inside the step failed, and what was computed behind it is wrong
            for request_id, followed in list(self._followed.items()):
                if not invalid.isdisjoint(followed.block_ids):
                    self._take_back(request_id)
        report = output.kv_connector_worker_meta
        if isinstance(report, HandoffReport):
            self._settled = max(self._settled, report.step)

    def _scheduled(
        self, step: OverlapStep, output: Any, request_id: str, computed: int, block_ids: Sequence[Sequence[int]]
    ) -> None:
        followed = self._followed.get(request_id)
        if followed is None:
            return
        more = list(block_ids[0])[: followed.blocks - len(followed.block_ids)]
        followed.block_ids += more
        if more:
            step.extended[followed.name] = more
        computed += output.num_scheduled_tokens[request_id]
        # whatever was found in a cache counts with this step, too: another request of the step may be computing it
        good = followed.blocks if computed >= followed.tokens else computed // self._block_tokens
        good = min(good, len(followed.block_ids))
        if good <= followed.good:
            return
        followed.good = good
        self._pending.append((self._number, request_id, good))
        # while a load inside a step isn't known to have gone well, nothing that may have come of it is good
        if self._last_sync_load <= self._settled:
            step.computing[followed.name] = good

    def _settle(self, step: OverlapStep) -> None:
        waiting = []
        for number, request_id, good in self._pending:
            if (followed := self._followed.get(request_id)) is None:
                continue
            if number <= self._settled:
                step.settled[followed.name] = good
            else:
                waiting.append((number, request_id, good))
        self._pending = waiting

    def _take_back(self, request_id: str) -> None:
        if request_id in self._followed:
            self._withdrawn.add(request_id)
            self.withdraw(request_id)
