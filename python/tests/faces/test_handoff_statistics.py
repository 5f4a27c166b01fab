"""The hand-off's statistics beside those of the prefix cache."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector, MultiKVConnectorStats

from kvstored.vllm import MooncakeConnectorV1, UCMConnector
from kvstored.vllm.handoff.measures import HANDOFF_MEASURES
from kvstored.vllm.handoff.statistics import HandoffStatistics
from kvstored.vllm.measures import Accumulator

LABELS = {"model_name": "model", "engine": "0"}


def measured() -> HandoffStatistics:
    accumulator = Accumulator(HANDOFF_MEASURES)
    accumulator.add("offered", 3)
    accumulator.add("held_requests", 2)
    accumulator.add("pulled_blocks", 8)
    accumulator.add("pulled_bytes", 5_000_000, "shm")
    accumulator.add("pull_seconds", 0.25)
    accumulator.add("failed_pulls", 1, "unavailable")
    accumulator.add("lookups", 1, "hit")
    statistics = HandoffStatistics.take(accumulator)
    assert statistics is not None
    return statistics


def test_the_line_of_the_log() -> None:
    statistics = measured()
    assert "lookups" not in statistics.data, "a measure of the prefix cache"
    assert statistics.aggregate(measured()).reduce() == {
        "Offered": 6,
        "Held": 2,
        "Pulled (MB)": 10.0,
        "P90 pull (ms)": 250.0,
        "Not pulled (unavailable)": 2,
    }


def test_both_connectors_export_theirs_beside_one_another() -> None:
    registry = CollectorRegistry()
    types = {kind: partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)}
    config: Any = SimpleNamespace(kv_transfer_config=None)
    exported = [
        connector.build_prom_metrics(config, types, list(LABELS), {0: list(LABELS.values())})
        for connector in (UCMConnector, MooncakeConnectorV1)
    ]
    exported[1].observe(measured().to_dict(), 0)
    prefix = "vllm:kvstored_handoff_"
    assert registry.get_sample_value(f"{prefix}pulled_bytes_total", {**LABELS, "transport": "shm"}) == 5_000_000
    assert registry.get_sample_value(f"{prefix}released_total", {**LABELS, "reason": "expired"}) == 0
    assert registry.get_sample_value(f"{prefix}held_requests", LABELS) == 2
    text = generate_latest(registry).decode()
    assert all(f"{prefix}{name}" in text for name in HANDOFF_MEASURES)
    assert "vllm:kvstored_lookups_total" in text


def test_multi_connector_finds_the_statistics() -> None:
    assert KVConnectorFactory.get_connector_class_by_name("MooncakeConnectorV1") is MooncakeConnectorV1
    payload = MultiKVConnectorStats(data={"MooncakeConnectorV1": measured()}).to_dict()
    statistics = MultiConnector.build_kv_connector_stats(payload)
    assert isinstance(statistics["MooncakeConnectorV1"], HandoffStatistics)
    assert statistics.reduce()["MooncakeConnectorV1"]["Offered"] == 3
