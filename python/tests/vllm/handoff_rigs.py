"""What the tests of the hand-off in real engines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from connector_rig import Engine
from lab.ports import free_ports

TOKENS = 8
PREFIX = "vllm:kvstored_handoff_"


def handoff(role: str, *, prefill: int = 1, decode: int = 1, **more: Any) -> dict[str, Any]:
    """vLLM's configuration of our connector, for instances of these tensor-parallel sizes."""
    return {
        "kv_connector": "MooncakeConnectorV1",
        "kv_connector_module_path": "kvstored.vllm",
        "kv_role": role,
        "kv_port": free_ports(prefill if role == "kv_producer" else decode),
        "kv_connector_extra_config": {
            "prefill": {"dp_size": 1, "tp_size": prefill},
            "decode": {"dp_size": 1, "tp_size": decode},
            **more,
        },
    }


@dataclass(frozen=True)
class Pair:
    """A prefill and a decode engine, and what a proxy does between them."""

    prefill: Engine
    decode: Engine

    def compute(self, prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
        """The prefill engine's part: it keeps the prompts' blocks."""
        return self.prefill.run("handoff_probe:prefill", prompts=list(prompts))

    def fetch(self, prompts: Sequence[list[int]], computed: Sequence[dict[str, Any]]) -> list[list[int]]:
        """The decode engine's part: it has the blocks sent and goes on from there."""
        params = [one["params"] for one in computed]
        return self.decode.run("handoff_probe:decode", prompts=list(prompts), params=params, max_tokens=TOKENS)

    def complete(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Both, at once for all prompts."""
        return self.fetch(prompts, self.compute(prompts))

    def settle(self) -> None:
        """Lets both go on until nothing is held any more."""
        for engine in (self.prefill, self.decode):
            engine.probe("settle")
            free, blocks = engine.probe("free_blocks")
            # one is never given to anybody
            assert free == blocks - 1, "blocks are held"


def measure(engine: Engine, name: str, **labels: str) -> int:
    """One of the connector's counters."""
    return int(engine.metrics().total(f"{PREFIX}{name}_total", **labels))
