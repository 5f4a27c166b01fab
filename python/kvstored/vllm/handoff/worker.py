"""A worker's side: has its blocks kept and fetched by native threads, and learns at each step what has ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvstored import InternalError, KvstoredError
from kvstored.complaints import Complaints
from kvstored.errors import BY_KIND
from kvstored.vllm.handoff.configuration import HandoffSettings
from kvstored.vllm.handoff.following import Following
from kvstored.vllm.handoff.measures import TRANSPORTS
from kvstored.vllm.handoff.metadata import HandoffReport, HandoffStep, Pull
from kvstored.vllm.handoff.parameters import Source
from kvstored.vllm.measures import Accumulator

logger = logging.getLogger("vllm.kvstored")


@dataclass
class _UnderWay:
    pull: Pull
    started: float
    cancelled: bool = False


class HandoffWorker:
    """Lives in each process that computes. Every method is called from the worker's thread; none waits for a peer."""

    def __init__(
        self, native: Any, settings: HandoffSettings, statistics: Accumulator, layer_names: Sequence[str] = ()
    ) -> None:
        """Takes what moves the bytes: a `kvstored._native.Handoff` that is described, and the names of its layers."""
        self._native = native
        self._settings = settings
        self._statistics = statistics
        self._complaints = Complaints(logger)
        self._following = Following(native, settings, self._attempt, layer_names) if settings.overlap else None
        self._held: dict[str, str] = {}
        """This engine's own names of requests by those under which they are kept."""
        self._pulls: dict[str, _UnderWay] = {}
        self._freed: set[str] = set()
        self._ended: set[str] = set()
        self._failed_blocks: set[int] = set()
        self._bytes = dict.fromkeys(TRANSPORTS, 0)
        self._overlapped = 0

    def prepare(self, step: HandoffStep) -> None:
        """Before anything of a step is computed or loaded."""
        if self._following is not None:
            self._following.begin(step.overlap)

    def layer_done(self, layer_name: str) -> None:
        """A layer has been through the step's computation."""
        if self._following is not None:
            self._following.layer_done(layer_name)

    def report(self) -> HandoffReport | None:
        """What the scheduler's side learns of the step."""
        return None if self._following is None else HandoffReport(self._following.step)

    def begin(self, step: HandoffStep) -> None:
        """Begins what the scheduler's side decided."""
        for request_id in step.cancelled:
            if (under_way := self._pulls.get(request_id)) is not None:
                under_way.cancelled = True
                self._attempt("cancel a pull", self._native.cancel, request_id)
        for source in step.given_back:
            self._give_back(source)
        for request_id, block_ids in step.holds.items():
            lease = self._settings.lease_seconds
            name = step.overlap.completed.get(request_id)
            if self._following is not None and name is not None:
                kept = self._following.complete(name, lease)
            else:
                name = request_id
                kept = self._attempt("keep blocks", self._native.hold, request_id, block_ids, lease) is None
            if kept:
                self._held[name] = request_id
            else:
                self._freed.add(request_id)
        for request_id, pull in step.pulls.items():
            self._pull(request_id, pull)
        for request_id, block_ids in step.lost.items():
            self._failed_blocks.update(block_ids)
            self._ended.add(request_id)

    def finished(self) -> tuple[set[str], set[str]]:
        """Requests whose blocks may be freed, and requests that needn't wait for blocks any more."""
        for name, reason in self._native.take_released():
            followed = self._following is not None and self._following.released(name)
            if followed or name in self._held:
                self._statistics.add("released", 1, reason)
            if name in self._held:
                request_id = self._held.pop(name)
                self._freed.add(request_id)
                if reason == "expired":
                    self._complaints.report(
                        "expired",
                        f"kvstored: no decode instance fetched request {request_id} within "
                        f"{self._settings.lease_seconds:g} s; its blocks are freed",
                    )
        pulled = self._native.take_pulled()
        for request_id, failed, message in pulled:
            under_way = self._pulls.pop(request_id, None)
            if under_way is not None:
                self._ended.add(request_id)
                self._pulled(request_id, under_way, failed, message)
        if pulled:
            self._measure_bytes()
        freed, self._freed = self._freed, set()
        ended, self._ended = self._ended, set()
        return freed, ended

    def take_failed_blocks(self) -> set[int]:
        """Blocks that were to be fetched and weren't, of the requests that `finished` told."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def close(self, timeout_s: float) -> None:
        """Ends everything under way."""
        self._native.close(timeout_s)

    def _pull(self, request_id: str, pull: Pull) -> None:
        self._pulls[request_id] = _UnderWay(pull, time.monotonic())
        refused = self._attempt(
            "pull blocks",
            self._native.pull,
            request_id,
            remote_engine_id=pull.source.engine_id,
            remote_request=pull.source.request_id,
            producers=list(pull.source.addresses),
            blocks=pull.block_ids,
            first_block=pull.first_block,
            timeout=self._timeout(pull),
            **({"follows": True} if pull.source.follows else {}),
        )
        if refused is not None:
            under_way = self._pulls.pop(request_id)
            self._ended.add(request_id)
            self._pulled(
                request_id, under_way, pull.block_ids, f"{getattr(refused, 'kind', InternalError.kind)}: {refused}"
            )
            self._give_back(pull.source)

    def _timeout(self, pull: Pull) -> float:
        # what is followed has to be computed first
        longest = self._settings.lease_seconds if pull.source.follows else 0.0
        return max(self._settings.load_timeout_seconds, longest)

    def _pulled(self, request_id: str, under_way: _UnderWay, failed: list[int], message: str) -> None:
        pull = under_way.pull
        self._failed_blocks.update(failed)
        got = len(pull.block_ids) - len(failed)
        self._statistics.add("pulled_blocks", got)
        self._statistics.add("pull_seconds", time.monotonic() - under_way.started)
        if not failed:
            self._statistics.add("pulled_requests")
            return
        if under_way.cancelled:
            return
        self._statistics.add("failed_pulls", 1, _reason(message))
        self._statistics.add("failed_blocks", len(failed))
        self._complaints.report(
            _reason(message),
            f"kvstored: {len(failed)} of {len(pull.block_ids)} blocks of request {request_id} can't be pulled from "
            f"{pull.source.addresses[0]} and have to be computed",
            message,
        )

    def _measure_bytes(self) -> None:
        moved = self._native.statistics()
        for transport, before in self._bytes.items():
            self._bytes[transport] = int(moved[f"pulled_bytes_{transport}"])
            self._statistics.add("pulled_bytes", self._bytes[transport] - before, transport)
        before, self._overlapped = self._overlapped, int(moved["overlapped_bytes"])
        self._statistics.add("overlapped_bytes", self._overlapped - before)

    def _give_back(self, source: Source) -> None:
        self._attempt(
            "give blocks back",
            self._native.release_remote,
            remote_engine_id=source.engine_id,
            remote_request=source.request_id,
            producers=list(source.addresses),
            timeout=self._settings.load_timeout_seconds,
        )

    def _attempt(self, what: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Exception | None:
        """Makes a call; why it couldn't be made."""
        try:
            call(*arguments, **named)
        except (KvstoredError, ValueError, TypeError, OverflowError) as error:
            self._complaints.report(what, f"kvstored: can't {what}", error)
            return error
        return None


def _reason(message: str) -> str:
    """The kind of a failure, for a label: what its text begins with."""
    kind = message.partition(":")[0]
    return kind if kind in BY_KIND else InternalError.kind
