"""The servers that are compared: vLLM alone, with kvstored's connector, and with others."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import VllmServer, prompt
from lmcache_server import LmcacheServer, lmcache_python

HERE = Path(__file__).resolve().parent
FACES = HERE.parents[1] / "python" / "tests" / "faces"
MEMORY_BYTES = 1 << 30
DISK_BYTES = 16 << 30
# not part of what is measured: a server's first requests are slow
WARM_UP_SEED = 987_654


@dataclass(frozen=True)
class Setting:
    """What all contenders of a run have in common. Sizes in bytes."""

    model: Path
    folder: Path
    package: Path | None
    """Where kvstored is imported from; None: as it is installed."""
    memory_bytes: int = MEMORY_BYTES
    disk_bytes: int = DISK_BYTES
    block_tokens: int = 128
    max_model_tokens: int = 16_384
    kv_cache_bytes: int = 512 << 20
    warm_up_tokens: int = 8_000


class Contender:
    """One vLLM server with what belongs to it, and a folder of its own."""

    def __init__(
        self,
        name: str,
        setting: Setting,
        transfer: Mapping[str, Any] | None = None,
        *,
        python_path: Path | None = None,
        python: Path | None = None,
        companion: LmcacheServer | None = None,
    ) -> None:
        self.name = name
        self.transfer = transfer
        self.folder = folder_of(name, setting)
        self._companion = companion
        self._warm_up_tokens = setting.warm_up_tokens
        self._warm_ups = 0
        self.server = VllmServer(
            setting.model,
            log=self.folder / "vllm.log",
            kv_transfer=transfer,
            block_tokens=setting.block_tokens,
            max_model_tokens=setting.max_model_tokens,
            kv_cache_bytes=setting.kv_cache_bytes,
            environment={"PYTHONPATH": str(python_path)} if python_path else None,
        )
        if python is not None:
            self.server.command[0] = str(python)

    def start(self) -> None:
        """Starts it and lets it compute a prompt that nobody asks for again, and load another."""
        if self._companion is not None:
            self._companion.start()
        self.server.start()
        self.warm_up()

    def warm_up(self) -> None:
        """Takes every path once: computing, storing and loading."""
        self._warm_ups += 1
        unseen = prompt(self._warm_up_tokens, seed=WARM_UP_SEED + self._warm_ups)
        for _ in range(2):
            self.server.complete(unseen, 2)
            self.settle()
            self.server.reset_prefix_cache()

    def settle(self) -> None:
        """Gives background copies time to end, and the server a step in which it learns of that."""
        time.sleep(1.0)
        self.server.complete(prompt(8, seed=WARM_UP_SEED), 2)

    def stop(self) -> None:
        """Stops it; what it stored on disk stays."""
        self.server.stop()
        if self._companion is not None:
            self._companion.stop()

    def pause(self) -> None:
        """Stops its processes from running: vLLM's spin while they are idle, and would slow the others down."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets its processes run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.server.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def disk_bytes(self) -> int:
        """What its files take."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())


def folder_of(name: str, setting: Setting) -> Path:
    """A contender's own folder."""
    folder = setting.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def plain(setting: Setting) -> Contender:
    """VLLM without any connector."""
    return Contender("plain", setting)


def kvstored(setting: Setting, name: str = "kvstored", **extra: Any) -> Contender:
    """The connector with its engine embedded: memory above a disk."""
    transfer = {
        "kv_connector": "UCMConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "kvstored.vllm",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "daemon": "off",
            "pipeline": "Cache|Posix",
            "storage_backends": str(folder_of(name, setting) / "blocks"),
            "cache_buffer_capacity": str(setting.memory_bytes),
            "posix_capacity": str(setting.disk_bytes),
            **extra,
        },
    }
    return Contender(name, setting, transfer, python_path=setting.package)


def offloading(setting: Setting) -> Contender:
    """VLLM's own offloading: memory above files."""
    transfer = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "CpuTieringSpec",
            "spec_module_path": "cpu_offloading",
            "cpu_bytes_to_use": setting.memory_bytes,
            "secondary_tiers": [{"type": "fs", "root_dir": str(folder_of("offloading", setting) / "files")}],
        },
    }
    return Contender("offloading", setting, transfer, python_path=FACES)


def lmcache(setting: Setting) -> Contender:
    """LMCache with its server: memory above files."""
    companion = LmcacheServer(
        folder_of("lmcache", setting),
        memory_bytes=setting.memory_bytes,
        disk_bytes=setting.disk_bytes,
        chunk_tokens=setting.block_tokens,
    )
    transfer = {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "lmcache_on_cpu",
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": companion.port,
        },
    }
    return Contender("lmcache", setting, transfer, python_path=HERE, python=lmcache_python(), companion=companion)


MAKERS: dict[str, Callable[[Setting], Contender]] = {
    "plain": plain,
    "async": lambda setting: kvstored(setting, "async"),
    "sync": lambda setting: kvstored(setting, "sync", load_async=False),
    "layerwise": lambda setting: kvstored(setting, "layerwise", use_layerwise=True),
    "offloading": offloading,
    "lmcache": lmcache,
}
OURS = ("async", "sync", "layerwise")
WORDS = {
    "plain": "no connector",
    "async": "kvstored, whole blocks between steps",
    "sync": "kvstored, whole blocks inside the step",
    "layerwise": "kvstored, layer by layer",
    "offloading": "vLLM's offloading, `fs` tier",
    "lmcache": "LMCache, multi-process",
}


class Field:
    """The contenders of one run, side by side. A context manager that always stops them and removes their folders."""

    def __init__(self, names: list[str], setting: Setting) -> None:
        if "lmcache" in names and lmcache_python() is None:
            print("LMCache isn't installed: left out", flush=True)
            names = [name for name in names if name != "lmcache"]
        self._setting = setting
        self.contenders = [MAKERS[name](setting) for name in names]

    def start(self) -> None:
        """Starts all, one after the other: starting is heavy."""
        for contender in self.contenders:
            print(f"starting {contender.name}", flush=True)
            contender.start()
            contender.pause()

    def stop(self) -> None:
        """Stops all."""
        for contender in self.contenders:
            contender.resume()
            contender.stop()

    def restart(self, but: str) -> None:
        """Stops and starts all but one: afterwards only their disks hold anything."""
        others = [contender for contender in self.contenders if contender.name != but]
        for contender in others:
            contender.resume()
            contender.stop()
        for contender in others:
            contender.start()
            contender.pause()

    def in_turn(self, round_number: int = 0) -> Iterator[Contender]:
        """All of them, each round beginning with another. Only the one whose turn it is runs."""
        first = round_number % len(self.contenders)
        for contender in self.contenders[first:] + self.contenders[:first]:
            contender.resume()
            time.sleep(0.3)
            yield contender
            contender.pause()

    def __enter__(self) -> Field:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is None:
            shutil.rmtree(self._setting.folder, ignore_errors=True)
        else:
            print(f"logs: {self._setting.folder}", flush=True)
