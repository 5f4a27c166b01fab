"""The connector's statistics within vLLM's own machinery: carried, logged and exported."""

from __future__ import annotations

import pickle
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM isn't installed")

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorLogging
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector, MultiKVConnectorStats
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from kvstored.vllm.measures import MEASURES, SAMPLES
from kvstored.vllm.statistics import Accumulator, ConnectorPrometheus, ConnectorStatistics, register_by_name


class MeasuringConnector:
    """As much of a connector as statistics need."""

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ConnectorStatistics:
        return ConnectorStatistics.of(data)


def measured(blocks: int = 8) -> ConnectorStatistics:
    accumulator = Accumulator()
    accumulator.add("lookups", 1, "hit")
    accumulator.add("lookup_seconds", 0.001)
    accumulator.add("lookup_blocks", 2 * blocks)
    accumulator.add("hit_blocks", blocks, "Cache")
    accumulator.add("hit_tokens", blocks * 128, "Cache")
    accumulator.add("loaded_blocks", blocks, "Cache")
    accumulator.add("loaded_bytes", blocks * 1_000_000, "Cache")
    accumulator.add("load_seconds", 0.004)
    accumulator.add("failed_blocks", 1, "late")
    accumulator.add("prefill_tokens_per_second", 1_234)
    accumulator.add("tier_bytes_per_second", 2.5e9, "Cache")
    statistics = ConnectorStatistics.take(accumulator)
    assert statistics is not None and ConnectorStatistics.take(accumulator) is None
    return statistics


def test_empty_statistics() -> None:
    statistics = ConnectorStatistics()
    assert statistics.is_empty() and statistics.reduce() == {} and statistics.to_dict() == {}
    assert ConnectorStatistics.of(None).is_empty()
    full = measured()
    assert not full.is_empty()
    full.reset()
    assert full.is_empty()


def test_statistics_survive_both_ways_through_processes() -> None:
    statistics = measured()
    assert pickle.loads(pickle.dumps(statistics)) == statistics
    stats = SchedulerStats(kv_connector_stats=statistics.to_dict())
    decoded = MsgpackDecoder(SchedulerStats).decode(MsgpackEncoder().encode(stats))
    assert ConnectorStatistics.of(decoded.kv_connector_stats) == statistics


def test_ranks_are_aggregated() -> None:
    outputs = []
    for blocks in (8, 4):
        output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
        output.kv_connector_output = KVConnectorOutput(kv_connector_stats=measured(blocks))
        outputs.append(output)
    combined = KVOutputAggregator(2).aggregate(outputs)
    statistics = combined.kv_connector_output.kv_connector_stats
    assert statistics.data["loaded_blocks"] == {"Cache": 12}
    assert statistics.data["load_seconds"][""]["count"] == 2
    assert statistics.data["prefill_tokens_per_second"] == {"": 1_234}


def test_the_line_of_the_log() -> None:
    line = measured().aggregate(measured()).reduce()
    assert line == {
        "Lookups": 2,
        "Avg lookup (ms)": 1.0,
        "Blocks looked up": 32,
        "Hit blocks in Cache": 16,
        "Hit tokens": 2_048,
        "Loaded blocks": 16,
        "Loaded (MB)": 16.0,
        "P90 load (ms)": 4.0,
        "MB/s of a load": 2_000.0,
        "Blocks not loaded (late)": 2,
        "Prefill (tokens/s)": 1_234,
        "Cache (MB/s)": 2_500.0,
    }


def test_several_loggers_of_one_process_do_not_disturb_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "get_connector_class", lambda config: MeasuringConnector)
    loggers = [KVConnectorLogging(SimpleNamespace(kv_connector="x")) for _ in range(2)]
    lines: list[str] = []
    for payload in (measured().to_dict(), measured().to_dict()):
        for logger in loggers:
            logger.observe(payload)
    for logger in loggers:
        logger.log(lambda text, line: lines.append(line))
        logger.log(lambda text, line: lines.append(line))
    assert len(lines) == 2 and all("Loaded blocks=16," in line for line in lines)


class Exported:
    """ConnectorPrometheus on a registry of its own."""

    def __init__(self, engines: int = 1) -> None:
        self.registry = CollectorRegistry()
        types = {kind: partial(kind, registry=self.registry) for kind in (Counter, Gauge, Histogram)}
        labels = {engine: ["model", str(engine)] for engine in range(engines)}
        config: Any = SimpleNamespace(kv_transfer_config=None)
        self.prometheus = ConnectorPrometheus(config, types, ["model_name", "engine"], labels)  # type: ignore[arg-type]

    def value(self, name: str, engine: int = 0, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "model", "engine": str(engine), **labels})


def test_metrics_are_exported_by_engine() -> None:
    exported = Exported(engines=2)
    exported.prometheus.observe(measured().to_dict(), 1)
    exported.prometheus.observe(measured().to_dict(), 1)
    exported.prometheus.observe(measured(4).to_dict(), 0)
    exported.prometheus.observe(measured().to_dict(), 5)
    assert exported.value("vllm:kvstored_loaded_blocks_total", 1, tier="Cache") == 16
    assert exported.value("vllm:kvstored_loaded_blocks_total", 0, tier="Cache") == 4
    assert exported.value("vllm:kvstored_load_seconds_count", 1) == 2
    assert exported.value("vllm:kvstored_load_seconds_bucket", 1, le="0.005") == 2
    assert exported.value("vllm:kvstored_load_seconds_bucket", 1, le="0.002") == 0
    assert exported.value("vllm:kvstored_prefill_tokens_per_second", 1) == 1_234
    assert exported.value("vllm:kvstored_failed_blocks_total", 1, cause="late") == 2
    assert exported.value("vllm:kvstored_failed_blocks_total", 1, cause="missing") == 0, "begins at 0"
    assert exported.value("vllm:kvstored_decisions_total", 0, reason="skipped") == 0
    assert exported.value("vllm:kvstored_dumped_blocks_total", 0) == 0


def test_a_histogram_without_all_samples_keeps_its_count_and_sum() -> None:
    accumulator = Accumulator()
    for _ in range(SAMPLES + 44):
        accumulator.add("dump_seconds", 0.25)
    exported = Exported()
    exported.prometheus.observe(accumulator.take() or {}, 0)
    assert exported.value("vllm:kvstored_dump_seconds_count") == SAMPLES + 44
    assert exported.value("vllm:kvstored_dump_seconds_sum") == pytest.approx((SAMPLES + 44) / 4)


def test_every_measure_can_be_exported() -> None:
    accumulator = Accumulator()
    for measure in MEASURES.values():
        accumulator.add(measure.name, 1, "label" if measure.label else None)
    exported = Exported()
    exported.prometheus.observe(accumulator.take() or {}, 0)
    text = generate_latest(exported.registry).decode()
    for name in MEASURES:
        assert f"vllm:kvstored_{name}" in text


def test_a_payload_of_another_version_is_no_error() -> None:
    exported = Exported()
    exported.prometheus.observe({"new_measure": {"": 1}, "loaded_blocks": 7, "dumped_blocks": {"": 2}}, 0)
    assert exported.value("vllm:kvstored_dumped_blocks_total") == 2


def test_multi_connector_finds_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVConnectorFactory, "_registry", dict(KVConnectorFactory._registry))
    payload = MultiKVConnectorStats(data={"MeasuringConnector": measured()}).to_dict()
    with pytest.raises(ValueError, match="not registered"):
        MultiConnector.build_kv_connector_stats(payload)
    register_by_name(MeasuringConnector)
    register_by_name(MeasuringConnector)
    one, other = (MultiConnector.build_kv_connector_stats(payload) for _ in range(2))
    line = one.aggregate(other).reduce()
    assert line["MeasuringConnector"]["Loaded blocks"] == 16
    assert issubclass(KVConnectorFactory.get_connector_class_by_name("NixlConnector"), KVConnectorBase_V1)
