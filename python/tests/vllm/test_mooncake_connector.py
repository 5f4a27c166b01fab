"""vLLM's own MooncakeConnector, unmodified, over our transfer engine: a prefill and a decode instance on this CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from connector_rig import BLOCK_TOKENS, HERE, LONG, Reference, whole_blocks
from lab import MooncakePair, VllmServer, prompt

from kvstored.mooncake import shim_folder

TOKENS = 12
BLOCK_BYTES = 512 << 10
"""Of the tiny model's keys and values in float32."""
COUNTERS_VARIABLE = "MOONCAKE_ON_CPU_COUNTERS"
PERIOD_S = 0.1
"""How often the counters are written."""


@dataclass(frozen=True)
class Moved:
    """What a server's transfer engines have moved, by all transports."""

    sent_bytes: int
    received_bytes: int
    failures: int
    transports: frozenset[str]


@dataclass(frozen=True)
class Rig:
    """The pair, and what can be seen of its engines."""

    pair: MooncakePair
    protocol: str
    counters: Path

    def moved(self, server: VllmServer) -> Moved:
        """A server's counters, as they were written last."""
        rows: list[dict[str, Any]] = []
        for process in server.processes:
            with contextlib.suppress(FileNotFoundError):
                rows += json.loads((self.counters / f"{process}.json").read_text())
        return Moved(
            sent_bytes=sum(row["written_bytes"] for row in rows if not row["served"]),
            received_bytes=sum(row["written_bytes"] for row in rows if row["served"]),
            failures=sum(row["failures"] + row["refused"] for row in rows),
            transports=frozenset(row["transport"] for row in rows if row["written_bytes"]),
        )


@pytest.fixture(scope="module", params=["tcp", pytest.param("shm", marks=LONG)])
def rig(request: pytest.FixtureRequest, tiny_model: Path, module_folder: Path) -> Iterator[Rig]:
    folder = module_folder / request.param
    folder.mkdir()
    connector = {
        "kv_connector": "MooncakeConnector",
        "kv_connector_module_path": "mooncake_on_cpu",
        "kv_connector_extra_config": {"mooncake_protocol": request.param, "num_workers": 2},
    }
    # `mooncake` is ours, and the connector is found
    environment = {"PYTHONPATH": os.pathsep.join([str(shim_folder()), str(HERE)]), COUNTERS_VARIABLE: str(folder)}
    # blocks that come from elsewhere must not have been there before
    arguments = ["--no-enable-prefix-caching"]
    options = {"connector": connector, "environment": environment, "arguments": arguments}
    with MooncakePair(tiny_model, folder=folder, **options) as started:
        yield Rig(started, request.param, folder)


@pytest.fixture
def pair(rig: Rig) -> MooncakePair:
    return rig.pair


def test_both_instances_use_our_engine(pair: MooncakePair) -> None:
    assert importlib.util.find_spec("mooncake") is None, "Mooncake itself is installed here"
    for server in (pair.prefill, pair.decode):
        assert any("kvstored/_native" in loaded_files(process) for process in server.processes)


def test_tokens_are_those_of_one_instance(rig: Rig, reference: Reference) -> None:
    asked = [prompt(length, seed=length) for length in (300, 1000, 4000)]
    expected = reference.tokens(asked, TOKENS)
    hits = external_hits(rig.pair)
    assert [rig.pair.complete(one, TOKENS).token_ids for one in asked] == expected
    # the decode instance has computed none of the prompts' whole blocks: they came through our engine
    tokens = sum(whole_blocks(one) for one in asked)
    assert external_hits(rig.pair) - hits >= tokens
    wanted = tokens // BLOCK_TOKENS * BLOCK_BYTES
    time.sleep(5 * PERIOD_S)
    sent, received = rig.moved(rig.pair.prefill), rig.moved(rig.pair.decode)
    assert sent.sent_bytes >= wanted
    assert sent.transports == {rig.protocol}
    # whoever shares memory is written to without doing anything
    assert received.received_bytes == (sent.sent_bytes if rig.protocol == "tcp" else 0)
    assert (sent.failures, received.failures) == (0, 0)


def test_many_at_once(rig: Rig, reference: Reference) -> None:
    pair = rig.pair
    asked = [prompt(400 + 60 * index, seed=100 + index) for index in range(8)]
    expected = reference.tokens(asked, TOKENS)
    with ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda one: pair.complete(one, TOKENS), asked))
    assert [one.token_ids for one in answers] == expected
    assert rig.moved(pair.prefill).failures == 0


def test_a_prefill_instance_that_dies_fails_only_what_it_held(rig: Rig, reference: Reference) -> None:
    pair = rig.pair
    held = prompt(700, seed=900)
    transfer = f"transfer-{uuid.uuid4().hex}"
    pair.compute(held, transfer)
    pair.prefill.kill()
    alone = prompt(400, seed=902)
    assert pair.decode.complete(alone, TOKENS).token_ids == reference.tokens([alone], TOKENS)[0]
    if rig.protocol == "shm":
        # it's the death of who shared memory that is different here; that an instance comes back is seen over sockets
        return
    try:
        pair.prefill.start()
        # the decode instance finds the new engine, and opens it anew
        asked = prompt(900, seed=901)
        assert pair.complete(asked, TOKENS).token_ids == reference.tokens([asked], TOKENS)[0]
    finally:
        # nobody but the last test of a pair may take one away
        pair.prefill.stop()


def external_hits(pair: MooncakePair) -> int:
    """Tokens that the decode instance got from elsewhere."""
    return pair.decode.metrics().prefix_cache().external_hits


def loaded_files(process: int) -> str:
    """Names of the files that a process has mapped."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/maps").read_text(errors="replace")
    return ""
