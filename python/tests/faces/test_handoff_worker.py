"""A worker's side with a native part that moves nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytest.importorskip("vllm")

from handoff_rig import Native, settings

from kvstored import Busy
from kvstored.vllm.handoff.measures import HANDOFF_MEASURES
from kvstored.vllm.handoff.metadata import HandoffStep, Pull
from kvstored.vllm.handoff.parameters import Source
from kvstored.vllm.handoff.worker import HandoffWorker
from kvstored.vllm.measures import Accumulator

SOURCE = Source("prefill-engine", "first", ("10.0.0.1:20001", "10.0.0.1:20002"))
REMOTE = {
    "remote_engine_id": "prefill-engine",
    "remote_request": "first",
    "producers": ["10.0.0.1:20001", "10.0.0.1:20002"],
    "timeout": 30.0,
}


class Rig:
    def __init__(self) -> None:
        self.native = Native()
        self.statistics = Accumulator(HANDOFF_MEASURES)
        self.worker = HandoffWorker(self.native, settings(), self.statistics)

    def counted(self) -> dict[str, Any]:
        counts = self.statistics.take() or {}
        counts.pop("pull_seconds", None)
        return counts

    def pull(self, name: str = "b") -> None:
        self.worker.begin(HandoffStep(pulls={name: Pull(SOURCE, [1, 2, 3], 2)}))


def test_kept_blocks_are_free_when_the_native_part_says_so() -> None:
    rig = Rig()
    rig.worker.begin(HandoffStep(holds={"a": [4, 5]}))
    assert rig.native.calls == [("hold", ("a", [4, 5], 120.0))]
    assert rig.worker.finished() == (set(), set())
    rig.native.released = [("a", "taken"), ("never held", "dropped")]
    assert rig.worker.finished() == ({"a"}, set())
    rig.native.released = [("a", "taken")]
    assert rig.worker.finished() == (set(), set()), "told once"
    assert rig.counted() == {"released": {"taken": 1}}


def test_a_lease_that_ended_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.worker.begin(HandoffStep(holds={"a": [4, 5]}))
    rig.native.released = [("a", "expired")]
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        assert rig.worker.finished() == ({"a"}, set())
    assert "no decode instance fetched request a within 120 s" in caplog.text
    assert rig.counted() == {"released": {"expired": 1}}


def test_blocks_that_cannot_be_kept_are_freed() -> None:
    rig = Rig()
    rig.native.fails = Busy("full")
    rig.worker.begin(HandoffStep(holds={"a": [4, 5]}))
    assert rig.worker.finished() == ({"a"}, set())


def test_a_pull() -> None:
    rig = Rig()
    rig.pull()
    assert rig.native.calls == [("pull", ("b", {**REMOTE, "blocks": [1, 2, 3], "first_block": 2}))]
    assert rig.worker.finished() == (set(), set())
    rig.native.moved["pulled_bytes_shm"] = 100
    rig.native.pulled = [("b", [], ""), ("of nobody", [9], "lost")]
    assert rig.worker.finished() == (set(), {"b"})
    assert rig.worker.take_failed_blocks() == set()
    assert rig.counted() == {"pulled_requests": {"": 1}, "pulled_blocks": {"": 3}, "pulled_bytes": {"shm": 100}}


def test_blocks_that_did_not_come_are_told_with_the_request(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.pull()
    rig.native.moved["pulled_bytes_tcp"] = 10
    rig.native.pulled = [("b", [2, 3], "unavailable: nobody listens")]
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        assert rig.worker.finished() == (set(), {"b"})
    assert rig.worker.take_failed_blocks() == {2, 3}
    assert rig.worker.take_failed_blocks() == set()
    assert "2 of 3 blocks of request b can't be pulled from 10.0.0.1:20001" in caplog.text
    assert "nobody listens" in caplog.text
    assert rig.counted() == {
        "pulled_blocks": {"": 1},
        "pulled_bytes": {"tcp": 10},
        "failed_pulls": {"unavailable": 1},
        "failed_blocks": {"": 2},
    }


@pytest.mark.parametrize(
    ("message", "reason"),
    [("fenced: another engine", "fenced"), ("corrupt: 3 blocks have another checksum than at the producer", "corrupt")],
)
def test_reasons(message: str, reason: str) -> None:
    rig = Rig()
    rig.pull()
    rig.native.pulled = [("b", [1, 2, 3], message)]
    rig.worker.finished()
    assert rig.counted()["failed_pulls"] == {reason: 1}


def test_a_pull_that_cannot_begin_fails() -> None:
    rig = Rig()
    rig.native.fails = Busy("full")
    rig.pull()
    assert rig.worker.finished() == (set(), {"b"})
    assert rig.worker.take_failed_blocks() == {1, 2, 3}


def test_a_cancelled_pull_keeps_its_blocks_until_nothing_writes_to_them(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.pull()
    rig.worker.begin(HandoffStep(cancelled={"b", "unknown"}))
    assert ("cancel", "b") in rig.native.calls
    assert ("cancel", "unknown") not in rig.native.calls
    assert rig.worker.finished() == (set(), set())
    rig.native.pulled = [("b", [1, 2, 3], "cancelled: by the caller")]
    with caplog.at_level(logging.WARNING, "vllm.kvstored"):
        assert rig.worker.finished() == (set(), {"b"})
    assert not caplog.text
    assert "failed_pulls" not in rig.counted()


def test_what_nobody_fills_and_what_is_not_wanted() -> None:
    rig = Rig()
    rig.worker.begin(HandoffStep(lost={"b": [1, 2]}, given_back=[SOURCE]))
    assert rig.native.calls == [("release_remote", REMOTE)]
    assert rig.worker.finished() == (set(), {"b"})
    assert rig.worker.take_failed_blocks() == {1, 2}
    rig.worker.close(5.0)
    assert rig.native.calls[-1] == ("close", 5.0)
