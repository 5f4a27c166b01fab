"""The environment itself: a real vLLM computes here, always the same, and prompts have their exact length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import InProcessEngine, make_model, prompt, text

TOKENS = 8


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessEngine]:
    """One engine without a connector for the tests that don't restart it."""
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    with InProcessEngine(tiny_model, log=log) as started:
        yield started


def test_one_prompt_gives_the_same_tokens_whether_computed_or_found(engine: InProcessEngine) -> None:
    tokens = prompt(700, seed=1)
    computed = engine.generate_one(tokens, TOKENS)
    found = engine.generate_one(tokens, TOKENS)
    engine.reset_prefix_cache()
    computed_again = engine.generate_one(tokens, TOKENS)
    assert len(computed.token_ids) == TOKENS
    assert found.token_ids == computed.token_ids
    assert computed_again.token_ids == computed.token_ids
    # whole blocks of 128 tokens
    assert [one.cached_tokens for one in (computed, found, computed_again)] == [0, 640, 0]


def test_other_prompts_give_other_tokens(engine: InProcessEngine) -> None:
    first, second = engine.generate([prompt(300, seed=2), prompt(300, seed=3)], TOKENS)
    assert first.token_ids != second.token_ids


def test_a_token_far_back_decides_what_is_generated(engine: InProcessEngine) -> None:
    tokens = prompt(600, seed=4)
    changed = [tokens[0] % 1000 + 4, *tokens[1:]]
    assert changed != tokens
    outputs = engine.generate([tokens, changed], 16)
    assert outputs[0].token_ids != outputs[1].token_ids


@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000])
def test_prompts_have_their_exact_length_as_ids_and_as_text(engine: InProcessEngine, length: int) -> None:
    tokens = prompt(length, seed=length)
    by_ids, by_text = engine.generate([tokens, {"prompt": text(tokens)}], 1)
    assert by_ids.prompt_tokens == by_text.prompt_tokens == length
    assert by_ids.token_ids == by_text.token_ids


def test_longer_prompts_of_a_seed_begin_with_shorter_ones() -> None:
    assert prompt(1000, seed=9)[:300] == prompt(300, seed=9)
    assert prompt(300, seed=9) != prompt(300, seed=10)


def test_a_model_is_made_again_byte_by_byte(tiny_model: Path, folder: Path) -> None:
    again = make_model(folder / "model", "tiny")
    names = sorted(path.name for path in tiny_model.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (tiny_model / name).read_bytes() == (again / name).read_bytes(), name


# those that are refused with a connector; others run with one in other tests
@pytest.mark.parametrize("family", ["convolution", "latent"])
def test_other_families_run_too(
    models: Callable[..., Path], start_engine: Callable[..., InProcessEngine], family: str
) -> None:
    # the reference kernel for compressed latents knows only blocks of 16 tokens
    engine = start_engine(models("tiny", family=family), block_tokens=16 if family == "latent" else 128)
    tokens = prompt(600, seed=5)
    first = engine.generate_one(tokens, TOKENS)
    engine.reset_prefix_cache()
    assert engine.generate_one(tokens, TOKENS).token_ids == first.token_ids
    assert len(set(first.token_ids)) > 1


def test_a_failing_call_is_told_and_does_not_end_the_engine(engine: InProcessEngine) -> None:
    with pytest.raises(RuntimeError, match="no_such_module"):
        engine.run("no_such_module:function")
    assert len(engine.generate_one(prompt(10), 2).token_ids) == 2
