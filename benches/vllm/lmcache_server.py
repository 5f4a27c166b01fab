"""LMCache's cache server as a child process."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from lab import Tree, free_port, start_leashed

PYTHON_VARIABLE = "KVSTORED_LMCACHE_PYTHON"
READY_SECONDS = 120.0
_POLL_SECONDS = 0.2


def lmcache_python() -> Path | None:
    """The interpreter that has LMCache beside vLLM; None where there is none."""
    named = os.environ.get(PYTHON_VARIABLE)
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "target/python/lmcache/bin/python"
    return path if path.exists() else None


class LmcacheServer:
    """One server in front of memory and, below it, a folder of files, over which it is restarted."""

    def __init__(self, folder: Path, *, memory_bytes: int, disk_bytes: int, chunk_tokens: int) -> None:
        self.port, self._http_port = free_port(), free_port()
        self._log = folder / "lmcache-server.log"
        self._name = f"lmcache-bench-{os.getpid()}"
        self._tree: Tree | None = None
        storage = folder / "files"
        storage.mkdir(parents=True, exist_ok=True)
        disk = {
            "type": "fs_native",
            "base_path": str(storage),
            "max_capacity_gb": disk_bytes / (1 << 30),
            "eviction": {"eviction_policy": "LRU"},
        }
        options = {
            "--host": "127.0.0.1",
            "--port": self.port,
            "--http-host": "127.0.0.1",
            "--http-port": self._http_port,
            "--chunk-size": chunk_tokens,
            "--max-workers": 2,
            # the engine copies by itself from and to shared memory: what LMCache has for CPUs
            "--supported-transfer-mode": "auto",
            "--shm-name": self._name,
            "--l1-size-gb": memory_bytes / (1 << 30),
            "--eviction-policy": "LRU",
            "--l2-adapter": json.dumps(disk),
        }
        python = lmcache_python()
        if python is None:
            raise FileNotFoundError("no LMCache")
        self.command = [str(python), "-m", "lmcache.cli.main", "server"]
        self.command += [str(part) for option in options.items() for part in option]
        self.command += ["--no-l1-use-lazy", "--disable-observability"]

    def start(self) -> None:
        """Starts it and waits until it answers. Raises RuntimeError when it doesn't."""
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
        }
        environment |= {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "DO_NOT_TRACK": "1"}
        self._tree = Tree(start_leashed(self.command, environment=environment, log=self._log))
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._tree.root.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"LMCache's server didn't come up; see {self._log}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stops it; what is in its files stays."""
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.terminate(20.0)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}/healthcheck", timeout=2):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


def version() -> str:
    """Of the LMCache that is installed."""
    code = "import importlib.metadata as m; print(m.version('lmcache'))"
    return subprocess.run([str(lmcache_python()), "-c", code], capture_output=True, text=True).stdout.strip()
