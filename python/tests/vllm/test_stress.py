"""Blocks of memory are used again by other requests while loads and dumps go on, and nobody ever reads another's KV."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_rig import MODES, Engine, Reference, embedded, tokens, transfer
from lab import prompt

BLOCK_TOKENS = 32
KV_BLOCKS = 64
"""Of 32 tokens each: room for about five of the requests below, and for two of the longest."""

SEEDS = {"async": 1, "layerwise": 2, "sync": 1}
"""Of the disorder that each mode sees."""


@pytest.fixture(scope="module", params=MODES)
def engine(request: pytest.FixtureRequest, tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    # a small cache too: blocks come from the disk, and go while they are wanted
    settings = embedded(module_folder / request.param, cache_buffer_capacity="24MiB", **MODES[request.param])
    log = module_folder / f"{request.param}.log"
    with Engine(
        tiny_model,
        kv_transfer=transfer(settings),
        log=log,
        block_tokens=BLOCK_TOKENS,
        max_model_tokens=1024,
        num_gpu_blocks_override=KV_BLOCKS,
        max_num_batched_tokens=192,
        prefix_caching=request.param != "layerwise",
    ) as started:
        yield started
    text = log.read_text()
    assert "the cache does without" not in text
    assert "Traceback" not in text


def test_preempted_requests_go_on_rightly(engine: Engine, reference: Reference) -> None:
    asked = [prompt(300 + 17 * index, seed=100 + index) for index in range(10)]
    expected = reference.tokens(asked, 64)
    before = engine.metrics().total("vllm:num_preemptions_total")
    assert tokens(engine.generate(asked, 64)) == expected
    assert engine.metrics().total("vllm:num_preemptions_total") > before, "nothing was preempted"
    engine.settle()
    hits = engine.external_hits()
    assert tokens(engine.generate(asked, 64)) == expected
    assert engine.external_hits() > hits
    engine.settle()
    free, total = engine.probe("free_blocks")
    assert free >= total - 1, "blocks are lost"  # one of them is never given out


def test_requests_that_come_and_go_in_disorder(
    engine: Engine, reference: Reference, request: pytest.FixtureRequest
) -> None:
    seed = SEEDS[request.node.callspec.params["engine"]]
    requests = disorder(seed, 60)
    expected = reference.tokens([one["prompt"] for one in requests], requests[0]["max_tokens"])
    loaded = engine.measure("loaded_blocks")
    answers = engine.probe("run_schedule", requests=requests)
    stayed = [index for index, one in enumerate(requests) if one["leaves"] is None]
    assert len(stayed) > 30
    wrong = [index for index in stayed if answers[index] != expected[index]]
    assert not wrong
    assert engine.measure("loaded_blocks") > loaded
    engine.settle()
    free, total = engine.probe("free_blocks")
    assert free >= total - 1, "blocks are lost"

    # what was stored by all that is right too
    again = [requests[index]["prompt"] for index in stayed]
    assert tokens(engine.generate(again, requests[0]["max_tokens"])) == [expected[index] for index in stayed]
    engine.settle()


def disorder(seed: int, count: int) -> list[dict[str, Any]]:
    """Requests that share beginnings of some length, arrive in bursts, and of which a third is aborted."""
    chance = random.Random(seed)
    trunks = [prompt(900, seed=1000 * seed + index) for index in range(5)]
    requests = []
    step = 0
    for index in range(count):
        step += chance.choice([0, 0, 0, 1, 3, 10])
        shared = chance.choice(trunks)[: chance.choice([32, 64, 200, 320, 333, 512])]
        own = prompt(chance.choice([1, 5, 31, 32, 33, 150]), seed=100_000 * seed + index)
        aborted = chance.random() < 0.35
        requests.append(
            {
                "prompt": shared + own,
                "max_tokens": 12,
                "arrives": step,
                "leaves": step + chance.choice([1, 2, 3, 5, 9]) if aborted else None,
            }
        )
    return requests
