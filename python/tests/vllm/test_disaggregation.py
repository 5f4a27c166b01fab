"""Prefill apart from decode, whole: the proxy before vLLM instances of both roles, daemon and master, and faults.

Answers are those of one instance, or there is an error; never anything else.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from connector_rig import LONG, UNHURRIED, Engine, Reference, whole_blocks
from lab import MODEL_NAME, CompletionError, VllmServer, daemon_binary, is_alive, prompt
from lab.deployment import CONCURRENCY, SCENARIOS, Deployment, Scenario, under_way
from lab.deployment_files import Group
from lab.services import wait_until
from lab.token_stream import TokenStream

TOKENS = 12
MANY_TOKENS = 300
"""Of an answer that takes a while."""
LEASE_S = 15
PATIENCE_S = 60.0
OPTIONS: dict[str, Any] = {
    "max_model_tokens": 6144,
    "kv_cache_bytes": 128 << 20,
    # an instance that comes back is seen soon
    "proxy_arguments": ["--health-interval-ms", "500", "--log-level", "INFO"],
    "load_failure": "recompute",
    "handoff": {"lease_seconds": LEASE_S},
    # every hit is loaded, however slow the machine
    "cache": {"governor": False, **UNHURRIED},
}
ModelMaker = Callable[..., Path]

pytestmark = pytest.mark.skipif(daemon_binary() is None, reason="the kvstored program isn't built")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """What a test restarts belongs to the deployment, at whose end it is looked for."""


def deployed(scenario: Scenario, model: Path, folder: Path, **options: Any) -> Iterator[Deployment]:
    with Deployment(scenario, model, folder=folder, **{**OPTIONS, **options}) as deployment:
        yield deployment
        processes = [process for server in deployment.servers if server.is_running for process in server.processes]
    assert not [process for process in processes if is_alive(process)]


@pytest.fixture(scope="module")
def deployment(tiny_model: Path, module_folder: Path) -> Iterator[Deployment]:
    """Two prefill instances and a decode instance. After each test all are up again."""
    yield from deployed(Scenario("two and one", Group(instances=2), Group()), tiny_model, module_folder)


@pytest.fixture
def first(deployment: Deployment) -> Iterator[VllmServer]:
    """The first prefill instance, for a test that kills it: it comes up again, and the proxy sees that."""
    server = deployment.prefill[0]
    yield server
    bring_back(deployment, server)


def test_tokens_are_those_of_one_instance(deployment: Deployment, reference: Reference) -> None:
    asked = [[*prompt(300, seed=index % 3), *prompt(150 + 60 * index, seed=10 + index)] for index in range(CONCURRENCY)]
    expected = reference.tokens(asked, TOKENS)
    before = deployment.counts()
    assert tokens(deployment.complete_all(asked, TOKENS)) == expected
    cold = deployment.settle()
    # no decode instance has computed a prompt, and each prefill instance some
    assert cold.spared_tokens - before.spared_tokens >= sum(map(whole_blocks, asked))
    assert cold.moved_bytes > before.moved_bytes
    assert all(server.metrics().total("vllm:prompt_tokens_total") for server in deployment.prefill)

    deployment.forget()
    assert tokens(deployment.complete_all(asked, TOKENS)) == expected
    warm = deployment.settle()
    # nor did a prefill instance compute what was stored, or came with a prompt before
    found = warm.stored_hits + warm.own_hits - cold.stored_hits - cold.own_hits
    assert warm.stored_hits > cold.stored_hits
    assert found >= sum(map(whole_blocks, asked))
    assert warm.spared_tokens - cold.spared_tokens >= sum(map(whole_blocks, asked))


def test_whoever_is_never_pulled_from_keeps_nothing(deployment: Deployment) -> None:
    server = deployment.prefill[1]
    for seed in range(3):
        answer = prefill_only(server, prompt(700, seed=100 + seed))
        assert answer["kv_transfer_params"]["do_remote_prefill"] is True
    # metrics follow a step later
    wait_until(lambda: deployment.counts().held_blocks > 0, LEASE_S / 2, "nothing is kept")
    deployment.settle(PATIENCE_S)
    assert server.metrics().total("vllm:kvstored_handoff_released_total", reason="expired") == 3


def test_a_client_that_goes_leaves_nothing(deployment: Deployment, reference: Reference) -> None:
    with ExitStack() as streams:
        gone = [
            streams.enter_context(TokenStream(deployment.proxy.port, long_prompt(index), 4000)) for index in range(4)
        ]
        for stream in gone[:2]:
            stream.read(2)
        # two before their first token, two behind it
    deployment.settle(PATIENCE_S)
    check(deployment, reference, seed=200)


def test_daemon_and_master_come_and_go(deployment: Deployment, reference: Reference) -> None:
    asked = [[*prompt(400, seed=300), *prompt(200 + 40 * index, seed=310 + index)] for index in range(24)]
    expected = reference.tokens(asked, TOKENS)
    with ThreadPoolExecutor(CONCURRENCY) as clients:
        answers = [clients.submit(deployment.complete, one, TOKENS) for one in asked]
        for service in (deployment.daemon, deployment.master):
            service.kill()
        time.sleep(1)
        for service in (deployment.daemon, deployment.master):
            service.start()
        assert tokens([answer.result() for answer in answers]) == expected
    deployment.settle()


@LONG
def test_a_prefill_instance_killed_behind_the_transfer(
    deployment: Deployment, first: VllmServer, reference: Reference
) -> None:
    asked = [long_prompt(400 + index) for index in range(4)]
    expected = reference.tokens(asked, MANY_TOKENS)
    with ExitStack() as opened:
        streams = [opened.enter_context(TokenStream(deployment.proxy.port, one, MANY_TOKENS)) for one in asked]
        for stream in streams:
            stream.read(1)
        first.kill()
        # what has its first token needs nothing of it any more
        assert [stream.read().tokens for stream in streams] == expected
        assert all(stream.done for stream in streams)
    # and it is not asked any more
    check(deployment, reference, seed=410)


def test_a_prefill_instance_killed_before_and_during_the_transfer(
    deployment: Deployment, first: VllmServer, reference: Reference
) -> None:
    decode = deployment.decode[0]
    pulled = [long_prompt(500 + index) for index in range(3)]
    asked = [prompt(300 + 60 * index, seed=510 + index) for index in range(CONCURRENCY)]
    expected, pulled_expected = reference.tokens(asked, TOKENS), reference.tokens(pulled, TOKENS)
    wanted = [prefill_only(first, one)["kv_transfer_params"] for one in pulled]
    for process in first.processes:
        os.kill(process, signal.SIGSTOP)
    with ExitStack() as opened, ThreadPoolExecutor(CONCURRENCY) as clients:
        streams = [
            opened.enter_context(TokenStream(decode.port, one, TOKENS, kv_transfer_params=params))
            for one, params in zip(pulled, wanted, strict=True)
        ]
        answers = [clients.submit(deployment.complete, one, TOKENS) for one in asked]
        wait_until(lambda: under_way(decode.metrics()) >= len(pulled), PATIENCE_S, "nobody waits for a transfer")
        wait_until(lambda: prefills_at(deployment, first) > 0, PATIENCE_S, "nobody waits for a prefill")
        first.kill()
        for stream, right in zip(streams, pulled_expected, strict=True):
            assert (stream.read().tokens, stream.error) == (right, None)
        # the other one computes what this one had
        assert tokens([answer.result() for answer in answers]) == expected
    deployment.settle(PATIENCE_S)


def test_a_decode_instance_killed_in_the_middle(deployment: Deployment, reference: Reference) -> None:
    asked = [long_prompt(700 + index) for index in range(3)]
    expected = reference.tokens(asked, MANY_TOKENS)
    with ExitStack() as opened:
        streams = [opened.enter_context(TokenStream(deployment.proxy.port, one, MANY_TOKENS)) for one in asked]
        for stream in streams:
            stream.read(1)
        deployment.decode[0].kill()
        for stream, right in zip(streams, expected, strict=True):
            stream.read()
            assert not stream.done
            assert stream.error
            assert right[: len(stream.tokens)] == stream.tokens
    with pytest.raises(CompletionError, match=r"status 50\d"):
        deployment.complete(prompt(300, seed=710), TOKENS)
    bring_back(deployment, deployment.decode[0])
    check(deployment, reference, seed=720)
    deployment.settle(PATIENCE_S)


@LONG
@pytest.mark.parametrize("name", ["hetero-2-1", "hetero-1-2"])
def test_ranks_that_differ(name: str, tiny_model: Path, reference: Reference, folder: Path) -> None:
    for deployment in deployed(SCENARIOS[name], tiny_model, folder):
        twice_the_same(deployment, reference)


@LONG
def test_prompts_that_are_pulled_while_they_are_computed(tiny_model: Path, reference: Reference, folder: Path) -> None:
    settings = {"lease_seconds": LEASE_S, "overlap": True}
    for deployment in deployed(Scenario("overlap", Group(), Group()), tiny_model, folder, handoff=settings):
        # the proxy learns from the first answer that it can send both legs at once
        deployment.complete(prompt(300, seed=900), TOKENS)
        asked = [prompt(5000, seed=910 + index) for index in range(2)]
        assert tokens(deployment.complete_all(asked, TOKENS)) == reference.tokens(asked, TOKENS)
        deployment.settle()
        counted = deployment.decode[0].metrics()
        assert counted.total("vllm:kvstored_handoff_overlapped_bytes_total") > 0
        twice_the_same(deployment, reference)
        assert deployment.decode[0].metrics().total("vllm:kvstored_handoff_failed_pulls_total") == 0


@LONG
@pytest.mark.parametrize("decode_ranks", [1, 2])
def test_experts_over_data_parallel_ranks(decode_ranks: int, models: ModelMaker, folder: Path) -> None:
    model = models("tiny", family="experts")
    with Engine(model, log=folder / "reference.log") as engine:
        reference = Reference(engine)
        reference.tokens(some_prompts(), TOKENS)
    scenario = replace(SCENARIOS["moe"], decode=Group(data_parallel=decode_ranks))
    for deployment in deployed(scenario, model, folder):
        twice_the_same(deployment, reference)


def some_prompts() -> list[list[int]]:
    return [prompt(200 + 45 * index, seed=800 + index) for index in range(CONCURRENCY)]


def twice_the_same(deployment: Deployment, reference: Reference) -> None:
    """Cold, and from what is stored."""
    asked = some_prompts()
    expected = reference.tokens(asked, TOKENS)
    assert tokens(deployment.complete_all(asked, TOKENS)) == expected
    cold = deployment.settle()
    assert cold.spared_tokens >= sum(map(whole_blocks, asked))
    deployment.forget()
    assert tokens(deployment.complete_all(asked, TOKENS)) == expected
    warm = deployment.settle()
    assert warm.stored_hits - cold.stored_hits >= sum(map(whole_blocks, asked))


def check(deployment: Deployment, reference: Reference, *, seed: int) -> None:
    """It serves, whatever happened before."""
    asked = [prompt(250 + 70 * index, seed=seed + index) for index in range(4)]
    assert tokens(deployment.complete_all(asked, TOKENS)) == reference.tokens(asked, TOKENS)


def prefills_at(deployment: Deployment, server: VllmServer) -> float:
    """Prefills that the proxy waits for."""
    labels = {"role": "prefill", "instance": f"127.0.0.1:{server.port}"}
    return deployment.proxy.metrics().total("kvstored_proxy_instance_requests", **labels)


def bring_back(deployment: Deployment, server: VllmServer) -> None:
    if not server.is_running:
        server.start()
    deployment.proxy.wait_for_all()


def long_prompt(seed: int) -> list[int]:
    return prompt(900, seed=seed)


def tokens(answers: Sequence[Any]) -> list[list[int]]:
    return [one.token_ids for one in answers]


def prefill_only(server: VllmServer, asked: Sequence[int]) -> dict[str, Any]:
    """What the proxy asks of a prefill instance."""
    nothing_yet = ["remote_engine_id", "remote_block_ids", "remote_host", "remote_port"]
    body = {
        "model": MODEL_NAME,
        "prompt": list(asked),
        "max_tokens": 1,
        "min_tokens": 1,
        "temperature": 0,
        "stream": False,
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            **dict.fromkeys(nothing_yet),
        },
    }
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(server.address("/v1/completions"), json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return dict(json.load(response))
