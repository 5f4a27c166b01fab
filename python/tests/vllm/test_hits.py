"""What was computed once is loaded, and the tokens are those that would have been computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_rig import MODES, Engine, Reference, cached, embedded, tokens, transfer, whole_blocks
from lab import prompt

TOKENS = 8
LENGTHS = (300, 2000, 6000)
# of 16 different prompts; lengths that end inside a block, at its end and one behind it
MIXED = (300, 256, 257, 300, 2000, 385, 300, 2000, 6000, 300, 128, 127, 129, 640, 300, 1)

# the other tests load without the engine's own cache
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "async in small chunks beside the own cache": ("async", {"prefix_caching": True, "max_num_batched_tokens": 512}),
    "sync in small chunks": ("sync", {"prefix_caching": True, "max_num_batched_tokens": 512}),
    "layerwise beside the own cache": ("layerwise", {"prefix_caching": True}),
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    mode, options = ENGINES[request.param]
    name = request.param.replace(" ", "-")
    settings = embedded(module_folder / name, **MODES[mode])
    log = module_folder / f"{name}.log"
    with Engine(tiny_model, kv_transfer=transfer(settings), log=log, **options) as started:
        yield started
    text = log.read_text()
    assert "the cache does without" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("length", LENGTHS)
def test_a_prompt_that_comes_again_is_loaded(engine: Engine, reference: Reference, length: int) -> None:
    asked = prompt(length, seed=length)
    expected = reference.tokens([asked], TOKENS)
    before = engine.external_hits()
    cold = engine.generate([asked], TOKENS)
    engine.settle()
    assert (cached(cold), tokens(cold)) == ([0], expected)
    assert engine.external_hits() == before

    loaded = engine.measure("loaded_blocks")
    warm = engine.generate([asked], TOKENS)
    assert (cached(warm), tokens(warm)) == ([whole_blocks(asked)], expected)
    assert engine.external_hits() - before == whole_blocks(asked)
    assert engine.measure("loaded_blocks") - loaded == whole_blocks(asked) // 128
    engine.settle()


def test_sixteen_prompts_at_once(engine: Engine, reference: Reference) -> None:
    asked = [prompt(length, seed=1000 + index) for index, length in enumerate(MIXED)]
    expected = reference.tokens(asked, TOKENS)
    cold = engine.generate(asked, TOKENS)
    engine.settle()
    assert (cached(cold), tokens(cold)) == ([0] * 16, expected)

    before = engine.external_hits()
    warm = engine.generate(asked, TOKENS)
    assert (cached(warm), tokens(warm)) == ([whole_blocks(one) for one in asked], expected)
    assert engine.external_hits() - before == sum(whole_blocks(one) for one in asked)
    engine.settle()


def test_one_prompt_sixteen_times_at_once(engine: Engine, reference: Reference) -> None:
    short, long = prompt(300, seed=2000), prompt(6000, seed=2001)
    cold = engine.generate([short] * 16, TOKENS)
    engine.generate([long], TOKENS)
    engine.settle()
    assert tokens(cold) == reference.tokens([short] * 16, TOKENS)

    warm = engine.generate([short] * 8 + [long] * 8, TOKENS)
    assert tokens(warm) == reference.tokens([short] * 8 + [long] * 8, TOKENS)
    # one of them may still find in the engine's own cache what another has loaded
    assert cached(warm) == [whole_blocks(short)] * 8 + [whole_blocks(long)] * 8
    engine.settle()


def test_what_was_generated_counts_as_well(engine: Engine, reference: Reference) -> None:
    asked = prompt(250, seed=3000)
    (answer,) = engine.generate([asked], 140)
    assert [answer.token_ids] == reference.tokens([asked], 140)
    engine.settle()
    # 390 tokens, of which the last has no KV yet: three blocks
    longer = [*asked, *answer.token_ids, *prompt(20, seed=3001)]
    warm = engine.generate([longer], TOKENS)
    assert (cached(warm), tokens(warm)) == ([384], reference.tokens([longer], TOKENS))
    engine.settle()


def test_a_longer_prompt_uses_the_part_that_is_known(engine: Engine, reference: Reference) -> None:
    asked = prompt(900, seed=4000)
    engine.generate([asked], 1)
    engine.settle()
    others = [asked[:700] + prompt(500, seed=4001 + index) for index in range(4)]
    warm = engine.generate(others, TOKENS)
    assert (cached(warm), tokens(warm)) == ([640] * 4, reference.tokens(others, TOKENS))
    engine.settle()


@pytest.mark.parametrize("first", [0, 5])
def test_blocks_that_go_between_lookup_and_load_are_computed(engine: Engine, reference: Reference, first: int) -> None:
    asked = prompt(1500, seed=5000 + first)
    expected = reference.tokens([asked], TOKENS)
    engine.generate([asked], 1)
    engine.settle()
    missing = engine.measure("failed_blocks", cause="missing")
    engine.probe("lose_blocks", first=first)
    assert tokens(engine.generate([asked], TOKENS)) == expected
    # a block whose write to disk was still under way when it was evicted may be found there after all
    assert 0 < engine.measure("failed_blocks", cause="missing") - missing <= 11 - first
    engine.settle()
    # they were stored again
    again = engine.generate([asked], TOKENS)
    assert (cached(again), tokens(again)) == ([1408], expected)
    engine.settle()


def test_a_reset_forgets_what_was_stored(engine: Engine, reference: Reference) -> None:
    asked = prompt(600, seed=6000)
    engine.generate([asked], 1)
    engine.settle()
    engine.reset_prefix_cache(connector=True)
    for found in (0, 512):
        answer = engine.generate([asked], TOKENS)
        assert (cached(answer), tokens(answer)) == ([found], reference.tokens([asked], TOKENS))
        engine.settle()
