"""The secondary tier under vLLM's native offloading, in real engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.v1.kv_offload.tiering.base", reason="no vLLM with tiered offloading is installed")

from lab import Daemon, InProcessEngine, prompt

FACES = Path(__file__).parent
STOP_SECONDS = 90
PROMPT_TOKENS = 1000
BLOCKS = PROMPT_TOKENS // 128


def offloading(folder: Path, **tier: Any) -> dict[str, Any]:
    embedded = {
        "pipeline": "Cache|Posix",
        "storage_backends": str(folder / "store"),
        "cache_buffer_capacity": "64MiB",
        "posix_capacity": "256MiB",
        "posix_segment_bytes": "64MiB",
    }
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "cpu_offloading",
            "cpu_bytes_to_use": 64 << 20,
            "secondary_tiers": [
                {
                    "type": "KvstoredTier",
                    "module_path": "kvstored.vllm_tier",
                    **(tier or embedded),
                }
            ],
        },
    }


@pytest.fixture
def engine(
    start_engine: Callable[..., InProcessEngine], tiny_model: Path, folder: Path
) -> Callable[..., InProcessEngine]:
    # without its own prefix cache every reuse comes through the offloading connector
    def start(**tier: Any) -> InProcessEngine:
        return start_engine(
            tiny_model, kv_transfer=offloading(folder, **tier), prefix_caching=False, python_path=[FACES]
        )

    return start


def counted(engine: InProcessEngine, name: str) -> float:
    return engine.metrics().total(f"vllm:kvstored_tier_{name}")


def settled(engine: InProcessEngine) -> None:
    # a short request makes the engine step until transfers of earlier ones are done
    engine.generate_one(prompt(8, seed=99), 2)


def test_a_restarted_engine_finds_what_the_last_one_stored(engine: Callable[..., InProcessEngine]) -> None:
    first = engine()
    computed = first.generate_one(prompt(PROMPT_TOKENS))
    assert not computed.cached_tokens
    first.stop(STOP_SECONDS)

    again = engine()
    found = again.generate_one(prompt(PROMPT_TOKENS))
    assert found.token_ids == computed.token_ids
    assert found.cached_tokens == BLOCKS * 128
    # another prompt with the same beginning
    longer = again.generate_one(prompt(PROMPT_TOKENS + 500))
    assert longer.cached_tokens == BLOCKS * 128
    settled(again)
    assert counted(again, "loaded_chunks_total") == BLOCKS
    assert counted(again, "load_failed_chunks_total") == 0
    again.stop(STOP_SECONDS)


def test_damaged_files_cost_time_and_change_no_token(engine: Callable[..., InProcessEngine], folder: Path) -> None:
    first = engine()
    computed = first.generate_one(prompt(PROMPT_TOKENS))
    first.stop(STOP_SECONDS)

    damage(folder / "store")
    again = engine()
    recomputed = again.generate_one(prompt(PROMPT_TOKENS))
    assert recomputed.token_ids == computed.token_ids
    settled(again)
    assert (recomputed.cached_tokens or 0) < BLOCKS * 128
    assert counted(again, "load_failed_chunks_total") > 0
    again.stop(STOP_SECONDS)


def test_chunks_at_a_daemon_outlive_an_engine_that_is_killed(
    engine: Callable[..., InProcessEngine], start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon()
    first = engine(socket=str(daemon.socket))
    computed = first.generate_one(prompt(PROMPT_TOKENS))
    settled(first)
    first.kill()

    again = engine(socket=str(daemon.socket))
    found = again.generate_one(prompt(PROMPT_TOKENS))
    assert found.token_ids == computed.token_ids
    assert found.cached_tokens == BLOCKS * 128
    daemon.stop()
    # without the store, prompts are computed
    assert not again.generate_one(prompt(PROMPT_TOKENS, seed=1)).cached_tokens
    again.stop(STOP_SECONDS)


def damage(store: Path) -> None:
    """Flips a byte in every 64 KiB of every segment, past the descriptors that a restart reads."""
    segments = [path for path in store.rglob("*") if path.is_file() and path.stat().st_size > 8 << 20]
    assert segments
    for path in segments:
        with open(path, "r+b") as file:
            for offset in range(40_000, path.stat().st_size - (1 << 20), 64 << 10):
                file.seek(offset)
                byte = file.read(1)
                if byte != b"\0":
                    file.seek(offset)
                    file.write(bytes([byte[0] ^ 0xFF]))
