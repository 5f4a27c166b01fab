"""Nothing of ours is raised into the engine's step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_SAME_FAULT_S = 10.0

logger = logging.getLogger("vllm.kvstored")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Guard:
    """Makes calls whose faults are logged and answered instead of raised. For one thread."""

    def __init__(self, consequence: str) -> None:
        """`consequence`: what a fault means for the user, for the log."""
        self._consequence = consequence
        self._faults: dict[str, float] = {}

    def __call__(
        self,
        otherwise: Result,
        call: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """What the call returns, or `otherwise` where it raises. The same call's faults are logged now and then."""
        try:
            return call(*arguments, **named)
        except Exception as error:
            where = getattr(call, "__qualname__", str(call))
            now = time.monotonic()
            if now - self._faults.get(where, -_SAME_FAULT_S) >= _SAME_FAULT_S:
                self._faults[where] = now
                logger.exception("kvstored: %s failed, %s: %s", where, self._consequence, error)
            return otherwise
