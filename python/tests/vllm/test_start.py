"""Wrong settings: one message that names what is wrong, and an end instead of a hang."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_rig import LONG, Engine, cached, embedded, through, transfer
from lab import EngineError, VllmServer, prompt

ModelMaker = Callable[..., Path]
Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """An engine configured by a file that has a misspelt key."""
    file = module_folder / "ucm_config.yaml"
    file.write_text(
        f"""ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "{module_folder / "blocks"}"
      cache_buffer_capacity_gb: 1
      posix_capacity_gb: 1
      cache_bufer_capacity_gb: 2
enable_event_sync: true
use_layerwise: true
"""
    )
    settings = {"UCM_CONFIG_FILE": str(file), "daemon": "off", "governor": False, "load_deadline_ms": 60_000}
    with Engine(tiny_model, kv_transfer=transfer(settings), log=module_folder / "engine.log") as started:
        yield started


def test_a_file_with_a_misspelt_key_works_and_is_warned_of(engine: Engine) -> None:
    asked = prompt(600, seed=1)
    for found in (0, 512):
        assert cached(engine.generate([asked], 4)) == [found]
        engine.settle()
    warnings = [line for line in engine.log_text().splitlines() if "cache_bufer_capacity_gb" in line]
    assert any("WARNING" in line and "ucm_config.yaml: line 8" in line for line in warnings), warnings


def wrong_settings(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Settings and what the message has to name."""
    (folder / "file").write_text("")
    (folder / "bad.yaml").write_text(
        "ucm_connectors:\n"
        '  - ucm_connector_name: "UcmPipelineStore"\n'
        "    ucm_connector_config:\n"
        '      store_pipeline: "Cache|Posix"\n'
        "      cache_buffer_capacity_gb: plenty\n"
    )
    return {
        "mistyped value": (
            embedded(folder / "a", cache_buffer_capacity="many"),
            r"cache_buffer_capacity = \"?many",
        ),
        "mistyped value in a file": (
            {"UCM_CONFIG_FILE": str(folder / "bad.yaml"), "daemon": "off"},
            r"bad\.yaml: line 5: .*cache_buffer_capacity_gb = .*plenty",
        ),
        "mistyped own value": (
            embedded(folder / "a", load_async="yes"),
            r"load_async = \"yes\": expected true or false",
        ),
        "own value out of range": (embedded(folder / "a", load_deadline_ms=0), r"load_deadline_ms = 0: expected"),
        "both ways at once": (
            embedded(folder / "a", load_async=True, use_layerwise=True),
            "load_async and use_layerwise",
        ),
        "unknown pipeline": (embedded(folder / "a", pipeline="Cache|Tape"), r"pipeline = \"?Cache\|Tape"),
        "a file in place of a directory": (embedded(folder / "file"), str(folder / "file")),
        "no such file": ({"UCM_CONFIG_FILE": str(folder / "none.yaml")}, r"none\.yaml"),
        "less memory than a block": (
            embedded(folder / "a", pipeline="Cache", cache_buffer_capacity="256KiB"),
            r"cache_buffer_capacity is too small: .*526336|cache_buffer_capacity is too small: .*528384",
        ),
        "less disk than a block": (embedded(folder / "a", posix_capacity="256KiB"), "posix_capacity"),
        "relative socket": (embedded(folder / "a", daemon="somewhere"), r"daemon = \"somewhere\": expected"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "mistyped value",
        "mistyped value in a file",
        "mistyped own value",
        "own value out of range",
        "both ways at once",
        "unknown pipeline",
        "a file in place of a directory",
        "no such file",
        "less memory than a block",
        "less disk than a block",
        "relative socket",
    ],
)
def test_wrong_settings_are_named(engine: Engine, folder: Path, wrong: str) -> None:
    settings, named = wrong_settings(folder)[wrong]
    message = engine.probe("construct", extra=settings)
    assert re.search(named, message), message
    assert len(message) < 500, message


@pytest.mark.parametrize("version", [99, None])
def test_a_daemon_that_speaks_otherwise_is_named(engine: Engine, folder: Path, version: int | None) -> None:
    path = folder / "kvstored.sock"
    with other_protocol(path, version):
        message = engine.probe("construct", extra=through(path))
    assert str(path) in message
    assert "protocol" in message
    if version is not None:
        assert str(version) in message
    assert len(message) < 500, message


@contextlib.contextmanager
def other_protocol(path: Path, version: int | None) -> Iterator[None]:
    """Somebody who listens there and answers in another version of the protocol; without a version, in none."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.settimeout(10)
                        asked = peer.recv(4096)
                        # a frame begins with two bytes of magic, the version and what kind it is
                        answer = b"HTTP/1.1 400" if version is None else asked[:2] + bytes([version]) + asked[3:12]
                        peer.sendall(answer)
                        peer.recv(4096)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@LONG
def test_a_server_with_wrong_settings_ends(tiny_model: Path, folder: Path) -> None:
    (folder / "file").write_text("")
    server = VllmServer(tiny_model, kv_transfer=transfer(embedded(folder / "file")), log=folder / "server.log")
    with pytest.raises(RuntimeError), server:
        pass
    assert str(folder / "file") in server.log_text()


def test_models_that_keep_other_things_than_keys_and_values_are_refused(
    connected: Start, models: ModelMaker, folder: Path
) -> None:
    # vLLM itself gives up: it takes what such models need away where a connector can't keep it, and says so before
    with pytest.raises(EngineError, match=r"hybrid models are not supported|one unified type"):
        connected(models("tiny", family="convolution"), kv_transfer=transfer(embedded(folder / "blocks")))
    assert "selects a KV connector that does not support it" in (folder / "engine-1.log").read_text()


def test_layers_with_a_window_are_kept_whole(connected: Start, models: ModelMaker, folder: Path) -> None:
    # vLLM gives them the whole context's blocks where a connector is to keep them
    engine = connected(models("tiny", family="sliding"), kv_transfer=transfer(embedded(folder / "blocks")))
    asked = prompt(900, seed=5)
    cold = engine.generate_one(asked, 8)
    engine.settle()
    warm = engine.generate_one(asked, 8)
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 896)
    assert warm.token_ids == cold.token_ids
