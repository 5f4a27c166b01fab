"""A real vLLM whose connector finds the KV on a device: the emulator of an NPU's runtime, kept in step by the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from connector_rig import HERE, MODES, Engine, Reference, cached, embedded, tokens, transfer, whole_blocks
from emulated_device import built
from lab import daemon_binary, prompt

TOKENS = 8
MIRROR = {"kv_connector": "MirroredConnector", "kv_connector_module_path": "mirrored_connector"}
MIRROR_FOLDER = "KVSTORED_TEST_MIRROR"


@pytest.mark.parametrize("mode", MODES)
def test_prompts_come_back_through_the_device(
    connected: Callable[..., Engine], tiny_model: Path, reference: Reference, folder: Path, mode: str
) -> None:
    program = daemon_binary()
    library = built(str(program), "libkvstored_emulated_ascendcl.so") if program else None
    if library is None:
        pytest.skip("the program kvstored or the emulator of libascendcl isn't built")
    settings = embedded(
        folder / "storage",
        kv_device_directory=str(folder / "plugins"),
        kv_device_setting={"library": str(library)},
        **MODES[mode],
    )
    log = folder / "engine.log"
    engine = connected(
        tiny_model,
        kv_transfer={**transfer(settings), **MIRROR},
        environment={"KVSTORED_PROGRAM": str(program), MIRROR_FOLDER: str(folder)},
        python_path=[HERE, HERE.parent],
        log=log,
    )
    asked = [prompt(length, seed=7000 + length) for length in (300, 1000, 257)]
    expected = reference.tokens(asked, TOKENS)
    cold = engine.generate(asked, TOKENS)
    assert (cached(cold), tokens(cold)) == ([0] * 3, expected)
    engine.settle()
    warm = engine.generate(asked, TOKENS)
    assert (cached(warm), tokens(warm)) == ([whole_blocks(one) for one in asked], expected)
    assert engine.measure("loaded_blocks") == sum(whole_blocks(one) for one in asked) // 128
    text = log.read_text()
    assert "KV on npu:0 is copied by plugin ascend, after the engine's events" in text
    assert "the cache does without" not in text
