"""Beside other connectors, behind vLLM's MultiConnector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from connector_rig import MODES, Engine, Reference, cached, combined, embedded, tokens, transfer
from lab import prompt

TOKENS = 8
Start = Callable[..., Engine]


def test_two_of_ours_with_directories_of_their_own(
    connected: Start, tiny_model: Path, reference: Reference, folder: Path
) -> None:
    asked = [prompt(600, seed=1), prompt(2000, seed=2)]
    expected = reference.tokens(asked, TOKENS)
    first, second = (transfer(embedded(folder / name)) for name in ("first", "second"))
    engine = connected(tiny_model, kv_transfer=combined(first, second))
    for found in ([0, 0], [512, 1920], [512, 1920]):
        answers = engine.generate(asked, TOKENS)
        assert (cached(answers), tokens(answers)) == (found, expected)
        engine.settle()
    # both stored everything
    assert engine.measure("dumped_blocks") == 2 * (4 + 15)
    engine.probe("lose_blocks", first=2)
    assert tokens(engine.generate(asked, TOKENS)) == expected
    engine.settle()
    engine.stop()

    # the second alone has it too
    alone = connected(tiny_model, kv_transfer=second)
    answers = alone.generate(asked, TOKENS)
    assert (cached(answers), tokens(answers)) == ([512, 1920], expected)


def test_beside_vllms_example(connected: Start, tiny_model: Path, reference: Reference, folder: Path) -> None:
    asked = [prompt(600, seed=10), prompt(1300, seed=11)]
    expected = reference.tokens(asked, TOKENS)
    ours = transfer(embedded(folder / "blocks", **MODES["layerwise"]))
    example = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "example")},
    }
    engine = connected(tiny_model, kv_transfer=combined(ours, example))
    for found in ([0, 0], [512, 1280], [512, 1280]):
        answers = engine.generate(asked, TOKENS)
        assert (cached(answers), tokens(answers)) == (found, expected)
        engine.settle()
    assert engine.measure("loaded_blocks") == 2 * (4 + 10)
