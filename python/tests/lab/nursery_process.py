"""Imports vLLM once and forks engines' drivers from that: `python nursery_process.py SOCKET`.

Each message on the socket holds variables of the environment and who shall be the parent, and brings standard input,
output and error with it. The answer is the number of a process that has become `engine_driver.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

DRIVER = Path(__file__).with_name("engine_driver.py")
# what an engine on a CPU takes seconds to import; nothing of it computes, as threads that do don't outlive a fork
MODULES = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.model_executor.models.llama",
    "prometheus_client",
)
MESSAGE_BYTES = 256 << 10
PR_SET_PDEATHSIG = 1
ADOPTION_SECONDS = 10.0


def main() -> None:
    """Serves until the other end of the socket is closed."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    for module in MODULES:
        # another version of vLLM may have another name for it: then every engine imports it by itself
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    # so that the forks share it
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 3)
        if not message:
            return
        if is_forked(channel, files):
            become(json.loads(message), files)
            runpy.run_path(str(DRIVER), run_name="__main__")
            return


def is_forked(channel: socket.socket, files: list[int]) -> bool:
    """Forks twice, so that the new process is an orphan whom its owner adopts. True in that process."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        for file in files:
            os.close(file)
        return False
    child = os.fork()
    if child:
        channel.send(str(child).encode())
        os._exit(0)
    channel.close()
    return True


def become(request: dict[str, object], files: list[int]) -> None:
    """Takes over the environment and the files; ends with the owner from now on."""
    owner = request["owner"]
    deadline = time.monotonic() + ADOPTION_SECONDS
    while os.getppid() != owner:
        if time.monotonic() > deadline:
            sys.exit(1)
        time.sleep(0.001)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != owner:
        sys.exit(1)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


if __name__ == "__main__":
    main()
