"""MooncakeConnectorV1 in real engines, without servers: prompts computed by one are answered by another."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from connector_rig import BLOCK_TOKENS, Engine, Reference, combined, embedded, transfer, whole_blocks
from handoff_rigs import PREFIX, TOKENS, Pair, handoff, measure
from lab import prompt

CONCURRENCY = 16
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def first(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """A prefill engine that has a prefix cache beside the hand-off."""
    cache = transfer(embedded(module_folder / "blocks"))
    both = combined(handoff("kv_producer"), cache) | {"kv_role": "kv_producer"}
    with Engine(tiny_model, log=module_folder / "first.log", kv_transfer=both) as engine:
        yield engine


@pytest.fixture(scope="module")
def second(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """A decode engine. Its default for failed loads is vLLM's, `fail`."""
    alone = handoff("kv_consumer", load_timeout_seconds=60)
    with Engine(
        tiny_model, log=module_folder / "second.log", kv_transfer=alone, prefix_caching=True, max_num_seqs=CONCURRENCY
    ) as engine:
        yield engine


@pytest.fixture
def pair(first: Engine, second: Engine) -> Pair:
    return Pair(first, second)


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of somebody who takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_many_at_once_and_a_prefix_cache_beside_it(pair: Pair, reference: Reference) -> None:
    asked = [[*prompt(300, seed=index % 3), *prompt(90 + 70 * index, seed=10 + index)] for index in range(CONCURRENCY)]
    expected = reference.tokens(asked, TOKENS)
    computed = pair.compute(asked)
    # prompts that begin alike may find what one of a step before brought to the store
    assert all(one["cached"] <= 300 // BLOCK_TOKENS * BLOCK_TOKENS for one in computed)
    assert pair.prefill.run("handoff_probe:held") >= CONCURRENCY, "kept until they were fetched"
    assert pair.fetch(asked, computed) == expected
    pair.settle()
    blocks = sum(-(-len(one) // BLOCK_TOKENS) for one in asked)
    # what an earlier prompt brought is in the decode engine's own cache
    assert 0.5 * blocks < measure(pair.decode, "pulled_blocks") <= blocks
    assert measure(pair.decode, "pulled_requests") == CONCURRENCY
    assert measure(pair.prefill, "released", reason="taken") == CONCURRENCY
    assert pair.prefill.metrics().total(f"{PREFIX}held_requests") == 0

    # the same again: the prefill engine finds them in its store, the decode engine has most of each
    pair.prefill.reset_prefix_cache()
    computed = pair.compute(asked)
    assert [one["cached"] for one in computed] == [whole_blocks(one) for one in asked]
    assert pair.fetch(asked, computed) == expected
    pair.settle()
    # only the last, incomplete block of each was wanted
    assert measure(pair.decode, "pulled_blocks") <= blocks + CONCURRENCY
    assert measure(pair.prefill, "released", reason="taken") == 2 * CONCURRENCY
    assert measure(pair.decode, "failed_pulls") == 0


def test_all_of_it_cached_gives_the_blocks_back(pair: Pair, reference: Reference) -> None:
    asked = [prompt(4 * BLOCK_TOKENS + 1, seed=40)]
    expected = reference.tokens(asked, TOKENS)
    assert pair.complete(asked) == expected
    pulled = measure(pair.decode, "pulled_requests")
    assert pair.complete(asked) == expected
    pair.settle()
    assert measure(pair.decode, "pulled_requests") == pulled
    assert measure(pair.decode, "declined", reason="cached") == 1


def test_nobody_comes(pair: Pair) -> None:
    pair.prefill.run("handoff_probe:set_lease", seconds=0.5)
    try:
        pair.compute([prompt(300, seed=50)])
        pair.settle()
    finally:
        pair.prefill.run("handoff_probe:set_lease", seconds=120.0)
    assert measure(pair.prefill, "released", reason="expired") == 1
    assert "no decode instance fetched request" in pair.prefill.log_text()


def test_aborted(pair: Pair, reference: Reference, mute: int) -> None:
    asked = prompt(700, seed=60)
    pair.prefill.run("handoff_probe:abort_prefill", prompt=prompt(6000, seed=61))
    assert pair.prefill.run("handoff_probe:held") == 0

    # while it waits for blocks that don't come
    params = pair.compute([asked])[0]["params"]
    pair.decode.run("handoff_probe:abort_while_waiting", prompt=asked, params=params | {"remote_port": mute})
    assert pair.prefill.run("handoff_probe:held") == 1, "it was somebody else's"

    # before anything was fetched
    pair.decode.run("handoff_probe:abort_before_it_runs", prompt=asked, params=params)
    pair.settle()

    # between the legs, by way of the proxy
    params = pair.compute([asked])[0]["params"] | {"kvstored_abandon": True}
    pair.decode.run("handoff_probe:decode", prompts=[[5]], params=[params], max_tokens=1)
    pair.settle()
    assert measure(pair.decode, "declined", reason="gone") == 2
    assert measure(pair.prefill, "released", reason="expired") == 1, "of the test before"
    assert pair.complete([asked]) == reference.tokens([asked], TOKENS)


def test_another_prompts_blocks_are_never_used(pair: Pair, reference: Reference) -> None:
    asked, other = prompt(500, seed=70), prompt(500, seed=71)
    assert pair.fetch([other], pair.compute([asked])) == reference.tokens([other], TOKENS)
    pair.settle()
    assert measure(pair.decode, "declined", reason="unfit") == 1


@pytest.fixture(scope="module")
def wide_prefill(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """A prefill engine of two ranks, each with half of the heads."""
    settings = handoff("kv_producer", prefill=2)
    log = module_folder / "wide-prefill.log"
    with Engine(tiny_model, log=log, kv_transfer=settings, tensor_parallel=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def wide_decode(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """A decode engine of two ranks."""
    settings = handoff("kv_consumer", prefill=2, decode=2, load_timeout_seconds=60)
    log = module_folder / "wide-decode.log"
    with Engine(tiny_model, log=log, kv_transfer=settings, tensor_parallel=2) as engine:
        yield engine


def test_other_numbers_of_ranks(
    first: Engine, second: Engine, wide_prefill: Engine, wide_decode: Engine, reference: Reference
) -> None:
    for pair in (Pair(wide_prefill, second), Pair(first, wide_decode), Pair(wide_prefill, wide_decode)):
        decode_ranks = 2 if pair.decode is wide_decode else 1
        number = 100 * (pair.prefill is wide_prefill) + 10 * decode_ranks
        asked = [prompt(200 + 150 * index, seed=200 + number + index) for index in range(6)]
        before = measure(pair.decode, "pulled_requests")
        assert pair.complete(asked) == reference.tokens(asked, TOKENS)
        pair.settle()
        assert measure(pair.decode, "pulled_requests") - before == decode_ranks * len(asked)
        assert measure(pair.decode, "failed_pulls") == 0


def test_a_prefill_engine_that_is_gone(first: Engine, second: Engine, reference: Reference) -> None:
    pair = Pair(first, second)
    asked = [prompt(400 + 200 * index, seed=80 + index) for index in range(3)]
    computed = pair.compute(asked)
    first.kill()
    started = time.monotonic()
    assert pair.fetch(asked, computed) == reference.tokens(asked, TOKENS), "computed, though the policy was `fail`"
    assert time.monotonic() - started < PATIENCE_S
    second.probe("settle")
    assert measure(second, "failed_pulls") == len(asked)
    assert "have to be computed" in second.log_text()
