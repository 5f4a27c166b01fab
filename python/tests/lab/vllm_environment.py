"""The environment in which vLLM comes up fast, offline and the same every time."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PYTHON_VARIABLE = "KVSTORED_VLLM_PYTHON"

_SETTINGS = {
    # nothing is fetched and nothing is reported
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # never the address of some interface
    "VLLM_HOST_IP": "127.0.0.1",
    # engines share the cores; the system places their threads
    "OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 2)),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # hashes seeded the same way in every process
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
}
# with the first, every start compiles all of vLLM again; the others would override what a test says
_REMOVED = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VLLM_CPU_KVCACHE_SPACE", "VLLM_SERVER_DEV_MODE")


def vllm_python() -> Path:
    """The interpreter of the environment that has vLLM: the variable's, or this one."""
    return Path(os.environ.get(PYTHON_VARIABLE) or sys.executable)


def vllm_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of this process with what vLLM needs; `extra` wins."""
    inherited = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    # programs that vLLM looks for lie beside its interpreter
    inherited["PATH"] = os.pathsep.join([str(vllm_python().parent), inherited.get("PATH", os.defpath)])
    return {**inherited, **_SETTINGS, **(extra or {})}
