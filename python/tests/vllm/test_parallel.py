"""Several worker processes: each stores its part, and only what all of them have is a hit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from connector_rig import LONG, MODES, Engine, Reference, cached, embedded, through, tokens, transfer
from lab import Daemon, EngineError, is_alive, prompt

TOKENS = 8
ModelMaker = Callable[..., Path]
Start = Callable[..., Engine]


def meeting_places(folder: Path) -> list[str]:
    """Files of the private sockets."""
    return sorted(str(path) for path in (folder / "kvstored").rglob("*") if not path.is_dir())


def test_two_ranks_share_an_engine(connected: Start, tiny_model: Path, reference: Reference, folder: Path) -> None:
    asked = [prompt(700, seed=1), prompt(2000, seed=2)]
    expected = reference.tokens(asked, TOKENS)
    engine = connected(
        tiny_model,
        kv_transfer=transfer(embedded(folder / "blocks")),
        tensor_parallel=2,
        environment={"XDG_RUNTIME_DIR": str(folder)},
    )
    cold = engine.generate(asked, TOKENS)
    engine.settle()
    assert (cached(cold), tokens(cold)) == ([0, 0], expected)
    warm = engine.generate(asked, TOKENS)
    assert (cached(warm), tokens(warm)) == ([640, 1920], expected)
    engine.settle()

    # a part that one rank lost is no part of a hit, wherever it was
    assert engine.probe("evict", prompt=asked[1], first=4, rank=1) > 0
    assert engine.probe("evict", prompt=asked[0], first=0, rank=1) > 0
    shorter = engine.generate(asked, TOKENS)
    assert (cached(shorter), tokens(shorter)) == ([0, 512], expected)
    engine.settle()
    warm = engine.generate(asked, TOKENS)
    assert (cached(warm), tokens(warm)) == ([640, 1920], expected)
    engine.settle()

    # nor one that goes between lookup and load
    for first in (3, 0):
        engine.probe("lose_blocks", first=first, ranks=[1])
        again = engine.generate(asked[:1], TOKENS)
        assert tokens(again) == expected[:1]
        engine.settle()
    assert engine.measure("failed_blocks") > 0

    processes = engine.processes
    engine.stop()
    log = engine.log_text()
    assert not [process for process in processes if is_alive(process)]
    assert "the cache does without" not in log
    assert meeting_places(folder) == []
    assert not [name for name in os.listdir("/dev/shm") if "kvstored" in name]


@LONG
def test_ranks_find_what_they_stored_before_a_restart_and_nobody_elses(
    connected: Start, tiny_model: Path, reference: Reference, folder: Path, start_daemon: Callable[..., Daemon]
) -> None:
    asked = [prompt(600, seed=10), prompt(1300, seed=11)]
    expected = reference.tokens(asked, TOKENS)
    daemon = start_daemon()
    single = connected(tiny_model, kv_transfer=transfer(through(daemon.socket)))
    assert tokens(single.generate(asked, TOKENS)) == expected
    single.settle()
    single.stop()
    for found in ([0, 0], [512, 1280]):
        engine = connected(
            tiny_model,
            kv_transfer=transfer(through(daemon.socket, **MODES["layerwise"])),
            tensor_parallel=2,
        )
        answers = engine.generate(asked, TOKENS)
        assert (cached(answers), tokens(answers)) == (found, expected)
        engine.settle()
        engine.stop()


def test_pipeline_stages(connected: Start, tiny_model: Path, reference: Reference, folder: Path) -> None:
    asked = [prompt(700, seed=20), prompt(2000, seed=21)]
    expected = reference.tokens(asked, TOKENS)
    engine = connected(
        tiny_model,
        kv_transfer=transfer(embedded(folder / "blocks")),
        pipeline_parallel_size=2,
        distributed_executor_backend="mp",
        worker_extension_cls="engine_probe.PipelineRoom",
        environment={"XDG_RUNTIME_DIR": str(folder)},
    )
    engine.probe("make_pipeline_room")
    for found in ([0, 0], [640, 1920]):
        answers = engine.generate(asked, TOKENS)
        assert (cached(answers), tokens(answers)) == (found, expected)
        engine.settle()
    # what the second stage lost is no hit, though the first has it
    assert engine.probe("evict", prompt=asked[1], first=7, rank=1) > 0
    answers = engine.generate(asked, TOKENS)
    assert (cached(answers), tokens(answers)) == ([640, 896], expected)


def test_compressed_latents_are_refused_where_vllm_cannot_continue_them(
    connected: Start, models: ModelMaker, folder: Path
) -> None:
    with pytest.raises(EngineError, match="multi-head latent attention on a CPU is not supported"):
        connected(models("tiny", family="latent"), kv_transfer=transfer(embedded(folder / "blocks")), block_tokens=16)
