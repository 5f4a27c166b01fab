"""What the tests of the hand-off share: requests, settings, and a native part that only remembers what it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kvstored.mooncake.settings import Security
from kvstored.vllm.handoff.configuration import HandoffSettings
from kvstored.vllm.handoff.measures import HANDOFF_MEASURES, TRANSPORTS
from kvstored.vllm.handoff.placement import Place
from kvstored.vllm.handoff.scheduler import HandoffScheduler
from kvstored.vllm.measures import Accumulator

BLOCK = 4
PREFILL = Place("prefill-engine", "10.0.0.1", 20_001, pp_size=1, tp_size=2)
DECODE = Place("decode-engine", "10.0.0.2", 21_001, pp_size=1, tp_size=1)
WANTED = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None, "remote_host": None}
"""What a proxy asks of a prefill instance."""


def settings(**more: Any) -> HandoffSettings:
    nobody = Security(None, None, None, None)
    return HandoffSettings(**{"security": nobody, "listen_host": "127.0.0.1", **more})


class Request:
    """As much of vLLM's request as the connector looks at."""

    def __init__(self, name: str, tokens: int, params: dict[str, Any] | None = None) -> None:
        self.request_id = name
        self.prompt_token_ids = list(range(tokens))
        self.num_prompt_tokens = tokens
        self.max_tokens = 1
        self.output_token_ids = [7]
        self.kv_transfer_params = params
        self.lora_request = None
        self.status = SimpleNamespace(name="WAITING")

    def is_finished(self) -> bool:
        return self.status.name.startswith("FINISHED")

    def end(self, status: str = "FINISHED_LENGTH_CAPPED") -> Request:
        self.status = SimpleNamespace(name=status)
        return self


def scheduler(place: Place, role: str = "kv_both", **more: Any) -> tuple[HandoffScheduler, Accumulator]:
    """A scheduler's side, and where it counts."""
    statistics = Accumulator(HANDOFF_MEASURES)
    side = HandoffScheduler(
        settings(**more),
        place,
        statistics,
        block_tokens=BLOCK,
        produces=role != "kv_consumer",
        consumes=role != "kv_producer",
    )
    return side, statistics


def offered(tokens: int = 10, name: str = "first") -> dict[str, Any]:
    """What a prefill instance answers for a prompt of that many tokens."""
    side, _ = scheduler(PREFILL, "kv_producer")
    kept, params = side.finished(Request(name, tokens, dict(WANTED)).end(), list(range(100, 100 + -(-tokens // BLOCK))))
    assert kept and params is not None
    return params


def reported(*, sent: set[str] | None = None, received: set[str] | None = None) -> SimpleNamespace:
    """What workers tell after a step."""
    return SimpleNamespace(finished_sending=sent, finished_recving=received)


class Native:
    """In place of `kvstored._native.Handoff`: remembers calls, and says what the test wants said."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.released: list[tuple[str, str]] = []
        self.pulled: list[tuple[str, list[int], str]] = []
        self.moved = {f"pulled_bytes_{transport}": 0 for transport in TRANSPORTS} | {"overlapped_bytes": 0}
        self.fails: Exception | None = None

    def hold(self, request: str, blocks: list[int], lease: float) -> None:
        self._told("hold", (request, list(blocks), lease))

    def announce(self, request: str, lease: float) -> None:
        self._told("announce", (request, lease))

    def extend(self, request: str, blocks: list[int]) -> bool:
        self._told("extend", (request, list(blocks)))
        return True

    def advance(self, requests: list[tuple[str, int]], layer: int | None) -> None:
        self._told("advance", (list(requests), layer))

    def complete(self, request: str, lease: float) -> bool:
        self._told("complete", (request, lease))
        return True

    def withdraw(self, requests: list[str], timeout: float) -> None:
        self._told("withdraw", (list(requests), timeout))

    def pull(self, request: str, **named: Any) -> None:
        self._told("pull", (request, named))

    def cancel(self, request: str) -> None:
        self._told("cancel", request)

    def release_remote(self, **named: Any) -> None:
        self._told("release_remote", named)

    def take_released(self) -> list[tuple[str, str]]:
        taken, self.released = self.released, []
        return taken

    def take_pulled(self) -> list[tuple[str, list[int], str]]:
        taken, self.pulled = self.pulled, []
        return taken

    def statistics(self) -> dict[str, int | float]:
        return dict(self.moved)

    def close(self, timeout: float) -> None:
        self._told("close", timeout)

    def _told(self, call: str, what: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.calls.append((call, what))
