"""What the hand-off measures."""

from __future__ import annotations

from collections.abc import Mapping

from kvstored.vllm.measures import COUNTER, GAUGE, HISTOGRAM, Measure

_PULL_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

TRANSPORTS = ("shm", "tcp", "rdma", "ascend")

_MEASURES = (
    Measure("offered", COUNTER, "Requests whose prompt's blocks were kept for a decode instance."),
    Measure(
        "released",
        COUNTER,
        "Requests whose blocks were let go, once for each worker: every decode worker has taken or declined them, the"
        " lease has ended, or the engine gave them up.",
        "reason",
        ("taken", "expired", "dropped"),
    ),
    Measure("held_requests", GAUGE, "Requests whose blocks are kept for a decode instance."),
    Measure("held_blocks", GAUGE, "Blocks of the KV cache that are kept for decode instances."),
    Measure("pulled_requests", COUNTER, "Requests whose blocks were pulled, once for each worker."),
    Measure("pulled_blocks", COUNTER, "Blocks that were pulled."),
    Measure("pulled_bytes", COUNTER, "Bytes that pulls brought.", "transport", TRANSPORTS),
    Measure(
        "overlapped_bytes",
        COUNTER,
        "Bytes of them that came while the prefill instance still computed the prompt.",
    ),
    Measure("pull_seconds", HISTOGRAM, "Time from a pull's start to its end, in seconds.", buckets=_PULL_BUCKETS),
    Measure(
        "failed_pulls",
        COUNTER,
        "Requests of which blocks could not be pulled and have to be computed, once for each worker.",
        "reason",
        ("unavailable", "timed_out", "not_found", "fenced", "mismatch", "corrupt"),
    ),
    Measure("failed_blocks", COUNTER, "Blocks that could not be pulled and have to be computed."),
    Measure(
        "declined",
        COUNTER,
        "Requests whose kept blocks were not pulled: already in this instance's prefix cache, the client has gone, the"
        " parameters don't fit the request.",
        "reason",
        ("cached", "gone", "unfit"),
    ),
)

HANDOFF_MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _MEASURES}
