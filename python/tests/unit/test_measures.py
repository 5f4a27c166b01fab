"""The connector's measures: added up, merged, and always plain data."""

from __future__ import annotations

import json
import logging
import threading

import numpy as np
import pytest

from kvstored.vllm.governor import Governor, GovernorSettings
from kvstored.vllm.measures import (
    HISTOGRAM,
    LABELS,
    MEASURES,
    OTHER_LABEL,
    SAMPLES,
    UNKNOWN_LABEL,
    Accumulator,
    merge,
)


def test_what_was_added_is_taken_once() -> None:
    accumulator = Accumulator()
    assert accumulator.take() is None
    accumulator.add("lookup_blocks", 10)
    accumulator.add("lookup_blocks", 5)
    accumulator.add("hit_blocks", 3, "Cache")
    accumulator.add("hit_blocks", 4, "Posix")
    accumulator.add("lookup_seconds", 0.25)
    accumulator.add("lookup_seconds", 0.5)
    assert accumulator.take() == {
        "lookup_blocks": {"": 15},
        "hit_blocks": {"Cache": 3, "Posix": 4},
        "lookup_seconds": {"": {"count": 2, "sum": 0.75, "samples": [0.25, 0.5]}},
    }
    assert accumulator.take() is None


def test_payloads_are_plain_data() -> None:
    accumulator = Accumulator()
    accumulator.add("loaded_bytes", np.int64(4096), "Cache")
    accumulator.add("loaded_blocks", np.uint8(2), "Cache")
    accumulator.add("load_seconds", np.float32(0.5))
    payload = accumulator.take()
    assert json.loads(json.dumps(payload)) == payload
    assert payload is not None and type(payload["loaded_bytes"]["Cache"]) is int


def test_a_gauge_is_sent_when_it_changed() -> None:
    accumulator = Accumulator()
    accumulator.add("tier_bytes_per_second", 1e9, "Cache")
    assert accumulator.take() == {"tier_bytes_per_second": {"Cache": 10**9}}
    accumulator.add("tier_bytes_per_second", 1.001e9, "Cache")
    assert accumulator.take() is None
    accumulator.add("tier_bytes_per_second", 1.1e9, "Cache")
    accumulator.add("tier_bytes_per_second", 1.2e9, "Cache")
    assert accumulator.take() == {"tier_bytes_per_second": {"Cache": 1_200_000_000}}


def test_nonsense_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    accumulator = Accumulator()
    with caplog.at_level(logging.WARNING, logger="vllm.kvstored"):
        for _ in range(3):
            accumulator.add("no_such_measure")
            for value in (float("nan"), float("inf"), -1, "three", None):
                accumulator.add("lookup_blocks", value)  # type: ignore[arg-type]
        accumulator.add("lookup_blocks", 0)
    assert accumulator.take() is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages)) == 6


def test_samples_and_labels_are_bounded() -> None:
    accumulator = Accumulator()
    for index in range(SAMPLES + 50):
        accumulator.add("load_seconds", 0.5)
        accumulator.add("hit_blocks", 1, f"tier {index}")
        accumulator.add("tier_latency_seconds", 1, f"tier {index}")
    payload = accumulator.take()
    assert payload is not None
    histogram = payload["load_seconds"][""]
    assert (histogram["count"], histogram["sum"], len(histogram["samples"])) == (SAMPLES + 50, 153.0, SAMPLES)
    assert len(payload["hit_blocks"]) == LABELS + 1
    assert payload["hit_blocks"][OTHER_LABEL] == SAMPLES + 50 - LABELS
    assert len(payload["tier_latency_seconds"]) == LABELS

    merged: dict = {}
    for _ in range(3):
        merge(merged, payload)
    assert merged["load_seconds"][""]["count"] == 3 * (SAMPLES + 50)
    assert len(merged["load_seconds"][""]["samples"]) == SAMPLES
    assert sum(merged["hit_blocks"].values()) == 3 * (SAMPLES + 50)


def test_merging_shares_nothing() -> None:
    first, second = Accumulator(), Accumulator()
    for accumulator in (first, second):
        accumulator.add("load_seconds", 0.5)
        accumulator.add("loaded_blocks", 2, "Cache")
        accumulator.add("prefill_tokens_per_second", 100)
    one, other = first.take(), second.take()
    assert one is not None and other is not None
    merged: dict = {}
    merge(merged, one)
    merge(merged, other)
    assert merged == {
        "load_seconds": {"": {"count": 2, "sum": 1.0, "samples": [0.5, 0.5]}},
        "loaded_blocks": {"Cache": 4},
        "prefill_tokens_per_second": {"": 100},
    }
    assert (
        one
        == other
        == {
            "load_seconds": {"": {"count": 1, "sum": 0.5, "samples": [0.5]}},
            "loaded_blocks": {"Cache": 2},
            "prefill_tokens_per_second": {"": 100},
        }
    )


@pytest.mark.parametrize(
    "payload",
    [
        {"loaded_blocks": 3},
        {"loaded_blocks": {"Cache": "x"}},
        {"loaded_blocks": {"Cache": -5}},
        {"load_seconds": {"": 3}},
        {"load_seconds": {"": {"count": 1, "sum": 1.0}}},
        {"load_seconds": {"": {"count": float("nan"), "sum": 1.0, "samples": []}}},
        {"of_another_version": {"": 1}},
    ],
)
def test_a_malformed_payload_is_left_out(payload: dict) -> None:
    merged: dict = {}
    merge(merged, payload)
    assert merged == {}


def test_a_governor_is_added_with_its_tiers_by_name() -> None:
    governor = Governor(GovernorSettings(load_deadline_ms=1_000), clock=lambda: 0.0)
    accumulator = Accumulator()
    accumulator.add_governor(governor, ["Cache"])
    assert accumulator.take() is None
    governor.observe_load({0: 4, 7: 4}, 1 << 20, 0.01)
    governor.observe_prefill(512, 0, 0.1)
    governor.decide([0] * 4, 128, 1 << 20, 0)
    accumulator.add_governor(governor, ["Cache"])
    payload = accumulator.take()
    assert payload is not None
    assert payload["decisions"] == {"all": 1}
    assert "declined_blocks" not in payload
    assert payload["prefill_tokens_per_second"][""] > 0
    assert set(payload["tier_bytes_per_second"]) == set(payload["tier_latency_seconds"]) == {"Cache", "7"}
    governor.decide([0] * 4, 128, 1 << 50, 0)
    accumulator.add_governor(governor, ["Cache"])
    assert accumulator.take() == {"decisions": {"skipped": 1}, "declined_blocks": {"": 4}}
    accumulator.add_governor(governor, ["Cache"])
    assert accumulator.take() is None


def test_a_missing_label_is_called_unknown() -> None:
    accumulator = Accumulator()
    accumulator.add("failed_blocks", 2)
    accumulator.add("lookup_blocks", 1, "a label that it doesn't have")
    accumulator.add_by_label("unavailable", {"load": 2, "dump": 0})
    assert accumulator.take() == {
        "failed_blocks": {UNKNOWN_LABEL: 2},
        "lookup_blocks": {"": 1},
        "unavailable": {"load": 2},
    }


def test_threads_lose_nothing() -> None:
    accumulator = Accumulator()

    def work() -> None:
        for _ in range(2_000):
            accumulator.add("dumped_blocks", 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads):
        payload = accumulator.take()
        taken += payload["dumped_blocks"][""] if payload else 0
    for thread in threads:
        thread.join()
    payload = accumulator.take()
    taken += payload["dumped_blocks"][""] if payload else 0
    assert taken == 8_000


def test_measures_are_well_formed() -> None:
    for name, measure in MEASURES.items():
        assert name == measure.name and measure.documentation.endswith(".")
        assert (measure.kind == HISTOGRAM) == bool(measure.buckets)
        assert list(measure.buckets) == sorted(set(measure.buckets))
        assert measure.label or not measure.values
