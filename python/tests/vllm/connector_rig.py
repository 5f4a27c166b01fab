"""What the tests of the connector share: its settings, engines to compare with, and prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lab import Generation, InProcessEngine

HERE = Path(__file__).parent
LONG = pytest.mark.skipif(not os.environ.get("KVSTORED_LONG_TESTS"), reason="takes long: set KVSTORED_LONG_TESTS")
"""Of tests that `cargo xtask vllm-test` runs and `cargo xtask test`, which has an hour, leaves out."""
BLOCK_TOKENS = 128
MODES: Mapping[str, Mapping[str, Any]] = {
    "async": {},
    "layerwise": {"use_layerwise": True},
    "sync": {"load_async": False},
}
"""Settings that make the connector load outside the step, inside it layer by layer, and inside it as a whole.

Tests that leave some out leave out the last ones: pytest runs those of one engine together by their place here.
"""
UNHURRIED = {"load_deadline_ms": 60_000, "dump_deadline_ms": 60_000, "lookup_deadline_ms": 10_000}
"""Deadlines that a busy machine keeps too."""


def embedded(storage: Path, **more: Any) -> dict[str, Any]:
    """Settings of a connector with an engine of its own; every hit is loaded, however slow the machine."""
    return {
        "daemon": "off",
        "storage_backends": str(storage),
        "cache_buffer_capacity": "256MiB",
        "posix_capacity": "2GiB",
        "governor": False,
        **UNHURRIED,
        **more,
    }


def through(socket: Path, **more: Any) -> dict[str, Any]:
    """Settings of a connector that uses the daemon at a socket."""
    return {"daemon": str(socket), "governor": False, **UNHURRIED, **more}


def transfer(extra: Mapping[str, Any], *, policy: str = "recompute", role: str = "kv_both") -> dict[str, Any]:
    """vLLM's configuration of our connector."""
    return {
        "kv_connector": "UCMConnector",
        "kv_connector_module_path": "kvstored.vllm",
        "kv_role": role,
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": dict(extra),
    }


def combined(*connectors: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's configuration of several connectors behind its MultiConnector."""
    children = [{name: value for name, value in one.items() if name != "kv_load_failure_policy"} for one in connectors]
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": children},
    }


class Engine(InProcessEngine):
    """An engine whose prompts are counted, and that can be looked into."""

    def __init__(self, model: Path, **options: Any) -> None:
        # workers don't end by themselves on a CPU, with or without a connector: vLLM ends them after this many seconds
        environment = {"VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1", **options.pop("environment", {})}
        options = {"python_path": [HERE], "prefix_caching": False, **options}
        super().__init__(model, environment=environment, **options)

    def probe(self, function: str, **arguments: Any) -> Any:
        """Calls one of engine_probe's functions."""
        return self.run(f"engine_probe:{function}", **arguments)

    def settle(self) -> None:
        """Waits until everything computed so far is stored; afterwards the engine's own prefix cache is empty."""
        self.probe("settle")
        self.reset_prefix_cache()

    def external_hits(self) -> int:
        """Tokens found through the connector so far."""
        return self.metrics().prefix_cache().external_hits

    def measure(self, name: str, **labels: str) -> float:
        """One of the connector's counters, summed over labels that aren't given."""
        return self.metrics().total(f"vllm:kvstored_{name}_total", **labels)


class Reference:
    """Answers of an engine without any connector; each prompt is computed once."""

    def __init__(self, engine: InProcessEngine) -> None:
        self._engine = engine
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def tokens(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """What comes after each prompt."""
        keys = [(tuple(prompt), max_tokens) for prompt in prompts]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            answers = self._engine.generate([key[0] for key in new], max_tokens, timeout=300)
            self._known.update((key, one.token_ids) for key, one in zip(new, answers, strict=True))
        return [self._known[key] for key in keys]


def tokens(answers: Sequence[Generation]) -> list[list[int]]:
    """The tokens of each answer."""
    return [one.token_ids for one in answers]


def cached(answers: Sequence[Generation]) -> list[int | None]:
    """How many tokens of each prompt weren't computed."""
    return [one.cached_tokens for one in answers]


def whole_blocks(prompt: Sequence[int], block_tokens: int = BLOCK_TOKENS) -> int:
    """Tokens of a prompt that can be found: whole blocks, without the last token."""
    return (len(prompt) - 1) // block_tokens * block_tokens
