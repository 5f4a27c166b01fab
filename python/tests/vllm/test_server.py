"""A real server: its metrics, its KV events, and what a client sees when a load fails and the policy is to say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from connector_rig import Reference, through, transfer
from lab import Completion, CompletionError, Daemon, VllmServer, daemon_binary, free_port, is_alive, prompt
from test_daemon import damage

TOKENS = 8

pytestmark = pytest.mark.skipif(daemon_binary() is None, reason="the kvstored program isn't built")


class EventLog:
    """KV events as a subscriber sees them."""

    def __init__(self, port: int) -> None:
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self.events: list[dict[str, Any]] = []

    def read(self, patience_ms: int = 500) -> list[dict[str, Any]]:
        """Everything published until nothing came for so long."""
        while self._socket.poll(patience_ms):
            _, _, payload = self._socket.recv_multipart()
            for event in msgspec.msgpack.decode(payload)[1]:
                self.events.append(event)
        return self.events

    def close(self) -> None:
        """Ends the subscription."""
        self._socket.close(0)


@pytest.fixture(scope="module")
def daemon(module_folder: Path) -> Iterator[Daemon]:
    with Daemon(folder=module_folder, options={"cache_buffer_capacity": "16MiB"}) as started:
        yield started


@pytest.fixture(scope="module")
def events(module_folder: Path) -> Iterator[tuple[int, EventLog]]:
    port = free_port()
    log = EventLog(port)
    yield port, log
    log.close()


@pytest.fixture(scope="module")
def server(tiny_model: Path, module_folder: Path, daemon: Daemon, events: tuple[int, EventLog]) -> Iterator[VllmServer]:
    publish = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{events[0]}"}
    with VllmServer(
        tiny_model,
        kv_transfer=transfer(through(daemon.socket), policy="fail"),
        log=module_folder / "server.log",
        arguments=["--kv-events-config", json.dumps(publish)],
    ) as started:
        yield started


def ask(server: VllmServer, prompts: list[list[int]]) -> list[Completion]:
    """Answers to prompts sent at once."""
    with ThreadPoolExecutor(len(prompts)) as clients:
        return list(clients.map(lambda one: server.complete(one, TOKENS), prompts))


def test_clients_get_the_same_tokens_from_the_store(server: VllmServer, reference: Reference) -> None:
    asked = [prompt(500 + 10 * index, seed=index) for index in range(8)]
    expected = reference.tokens(asked, TOKENS)
    cold = ask(server, asked)
    assert [one.token_ids for one in cold] == expected
    for answer, one in zip(cold, asked, strict=True):
        assert (answer.prompt_tokens, answer.finish_reason) == (len(one), "length")
        assert answer.first_token_seconds <= answer.total_seconds
    server.reset_prefix_cache()
    warm = ask(server, asked)
    assert [one.token_ids for one in warm] == expected
    assert [one.cached_tokens for one in warm] == [(len(one) - 1) // 128 * 128 for one in asked]


def test_the_metrics_tell_what_happened(server: VllmServer) -> None:
    metrics = server.metrics()
    blocks = metrics.total("vllm:kvstored_loaded_blocks_total")
    assert blocks == sum((500 + 10 * index - 1) // 128 for index in range(8))
    assert metrics.total("vllm:kvstored_dumped_blocks_total") >= blocks
    assert metrics.total("vllm:kvstored_loaded_bytes_total") == blocks * (512 << 10)
    assert metrics.total("vllm:kvstored_lookups_total", outcome="hit") == 8
    assert metrics.total("vllm:kvstored_lookups_total", outcome="miss") == 8
    assert metrics.total("vllm:kvstored_decisions_total", reason="off") == 8
    assert metrics.total("vllm:kvstored_load_seconds_count") == 8
    assert metrics.total("vllm:kvstored_failed_blocks_total") == 0
    assert metrics.prefix_cache().external_hits == blocks * 128
    assert {"vllm:kvstored_skipped_blocks_total", "vllm:kvstored_unavailable_total"} <= metrics.names()


def test_events_tell_what_is_stored_and_removed(server: VllmServer, events: tuple[int, EventLog]) -> None:
    log = events[1]
    asked = prompt(700, seed=50)
    server.complete(asked, TOKENS)
    # the events come with the engine's steps
    for index in range(40):
        server.complete(prompt(200 + index, seed=60 + index), 2)
        stored = [one for one in log.read(200) if one["type"] == "BlockStored" and one.get("ownership") == "kvstored"]
        removed = [one for one in log.events if one["type"] == "BlockRemoved" and one.get("ownership") == "kvstored"]
        if removed and any(one["token_ids"][:128] == asked[:128] for one in stored):
            break
    assert {one["medium"] for one in stored} >= {"CPU"}
    ours = [one for one in stored if one["token_ids"][:128] == asked[:128]]
    assert ours, "nobody told of the prompt's blocks"
    assert ours[0]["block_size"] == 128
    assert ours[0]["parent_block_hash"] is None
    own = [one for one in log.events if one["type"] == "BlockStored" and one.get("ownership") != "kvstored"]
    assert ours[0]["block_hashes"][0] in [hash for one in own for hash in one["block_hashes"]]
    known = {hash for one in stored for hash in one["block_hashes"]}
    assert removed, "nothing left the small cache"
    assert {hash for one in removed for hash in one["block_hashes"]} <= known


def test_a_failed_load_is_an_error_to_its_client_alone(
    server: VllmServer, daemon: Daemon, reference: Reference
) -> None:
    asked = prompt(900, seed=70)
    expected = reference.tokens([asked], TOKENS)[0]
    server.complete(asked, 1)
    server.reset_prefix_cache()
    daemon.drain()
    daemon.stop()
    assert damage(daemon.storage, seed=7) > 0
    daemon.start()
    answers: list[Completion | CompletionError] = []
    for _ in range(60):
        # the engine asks a daemon that was away less often
        server.reset_prefix_cache()
        try:
            answers.append(server.complete(asked, TOKENS))
        except CompletionError as error:
            answers.append(error)
        if failed(answers[-1]):
            break
    assert failed(answers[-1]), answers
    assert all(one.token_ids == expected for one in answers if isinstance(one, Completion) and not failed(one))
    assert server.metrics().total("vllm:kvstored_failed_blocks_total") > 0
    # the server is there for others
    other = prompt(300, seed=7000)
    assert server.complete(other, TOKENS).token_ids == reference.tokens([other], TOKENS)[0]
    daemon.kill()


def test_a_server_that_is_stopped_leaves_nothing(server: VllmServer) -> None:
    processes = server.processes
    assert len(processes) > 1
    assert server.stop()
    assert not [process for process in processes if is_alive(process)]


def failed(answer: Completion | CompletionError) -> bool:
    """Whether the server said that it couldn't answer."""
    return isinstance(answer, CompletionError) or answer.finish_reason == "error"
