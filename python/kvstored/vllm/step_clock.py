"""How long steps take, as the scheduler sees them: what the governor learns a prompt's cost from."""

from __future__ import annotations

import collections
import time
from typing import Any

from kvstored.vllm.governor import Governor


class StepClock:
    """Measures how long steps take, as the scheduler sees them: from their start to their output.

    Steps may overlap in the engine's pipeline; then a step begins when the one before it ended.
    """

    def __init__(self) -> None:
        self._open: collections.deque[tuple[int, float, int, int, int]] = collections.deque(maxlen=64)
        self._last_end = 0.0

    def scheduled(self, step: int, output: Any) -> None:
        """A step was handed to the workers."""
        total = output.total_num_scheduled_tokens
        if total:
            largest, context = max(
                (
                    (output.num_scheduled_tokens[new.req_id], new.num_computed_tokens)
                    for new in output.scheduled_new_reqs
                ),
                default=(0, 0),
            )
            cached = output.scheduled_cached_reqs
            for index, request_id in enumerate(cached.req_ids):
                tokens = output.num_scheduled_tokens[request_id]
                if tokens > largest:
                    largest, context = tokens, cached.num_computed_tokens[index]
            self._open.append((step, time.monotonic(), total, largest, context))

    def finished(self, step: int, governor: Governor) -> None:
        """A step's output is there."""
        now = time.monotonic()
        while self._open and self._open[0][0] <= step:
            number, began, total, largest, context = self._open.popleft()
            # a step that is mostly one prompt says what a prompt costs
            if number == step and largest >= 64 and largest * 10 >= total * 9:
                governor.observe_prefill(largest, context, now - max(began, self._last_end))
        self._last_end = now
