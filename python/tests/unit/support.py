"""What the unit tests share: blocks, daemons and waiting."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import kvstored

REPOSITORY = Path(__file__).resolve().parents[3]
TENSOR_BYTES = 4096
PATIENCE = 30.0
"""Seconds after which something that must happen is taken not to happen."""


def hashes(count: int, seed: int = 0) -> list[bytes]:
    """Hashes of a run of blocks."""
    return [seed.to_bytes(16, "little") + index.to_bytes(16, "little") for index in range(count)]


def blocks(count: int, tensors: int = 2, tensor_bytes: int = TENSOR_BYTES, seed: int = 0) -> np.ndarray:
    """Memory of blocks with bytes that tell blocks and tensors apart."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, size=(count, tensors, tensor_bytes), dtype=np.uint8)


def addresses(memory: np.ndarray) -> np.ndarray:
    """Addresses of every tensor of every block. Whoever calls keeps the memory."""
    assert memory.flags.c_contiguous
    rows = np.arange(memory.shape[0] * memory.shape[1], dtype=np.uint64)
    return np.uint64(memory.ctypes.data) + rows * np.uint64(memory.shape[2])


def tensors(memory: np.ndarray) -> list[list[np.ndarray]]:
    """The tensors of every block."""
    return [list(block) for block in memory]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"{what} didn't happen"
        time.sleep(0.005)


def threads() -> Counter[str]:
    """Names of this process's threads that belong to the store, and how many have each."""
    found: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            name = (task / "comm").read_text().strip()
            if name.startswith("kvstored"):
                found[name] += 1
    return found


@functools.cache
def binary() -> str | None:
    """The daemon's binary; built where it's missing and can be."""
    named = os.environ.get("KVSTORED_BINARY")
    profiles = [REPOSITORY / "target" / profile / "kvstored" for profile in ("release", "debug")]
    candidates = [Path(named)] if named else profiles
    built = [path for path in candidates if path.is_file()]
    if not built and not named and shutil.which("cargo"):
        subprocess.run(["cargo", "build", "--package", "kvstored"], cwd=REPOSITORY, check=True)
        built = [path for path in candidates if path.is_file()]
    # the one that was built last is likeliest to speak this package's protocol
    return str(max(built, key=lambda path: path.stat().st_mtime)) if built else None


def python(code: str, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
    )


class Daemon:
    """A daemon process on a socket of its own."""

    def __init__(self, program: str, folder: Path, *flags: str) -> None:
        self.socket = str(folder / "d.sock")
        self.log = folder / "daemon.log"
        self.command = [program, "--listen", f"unix:{self.socket}", "--http", "off", *flags]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                with kvstored.Store.connect(self.socket) as store:
                    return store.ping()
            except kvstored.Unsupported as error:
                raise AssertionError(f"{self.command[0]} was built from other sources: {error}") from None
            except kvstored.KvstoredError:
                pass  # not yet
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """End it without giving it a chance."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
