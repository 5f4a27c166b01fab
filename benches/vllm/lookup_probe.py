"""Runs inside the engine's process: measures the scheduler's question to its connector."""

from __future__ import annotations

import time
from typing import Any

_samples: list[dict[str, float]] = []


def install(engine: Any) -> None:
    """Puts a clock around `get_num_new_matched_tokens`."""
    connector = engine.llm_engine.engine_core.engine_core.scheduler.connector
    ask = connector.get_num_new_matched_tokens

    def timed(request: Any, computed_tokens: int) -> tuple[int | None, bool]:
        began = time.perf_counter()
        answer = ask(request, computed_tokens)
        seconds = time.perf_counter() - began
        _samples.append({"tokens": request.num_tokens, "found": answer[0] or 0, "seconds": seconds})
        return answer

    connector.get_num_new_matched_tokens = timed


def take(engine: Any) -> list[dict[str, float]]:
    """What was measured since the last call."""
    taken = list(_samples)
    _samples.clear()
    return taken
