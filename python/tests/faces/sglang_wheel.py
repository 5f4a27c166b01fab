"""SGLang's own storage interface and host pools, without SGLang's dependencies.

Either SGLang is installed, or its wheel is named by the variable below, or it is fetched with pip into a folder that
goes with the session. From a wheel, only the modules of the storage interface and the host pools are run; what those
import of kernels, devices and servers are stand-ins, which nothing here calls.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import MagicMock

WHEEL_VARIABLE = "KVSTORED_SGLANG_WHEEL"
FETCH_SECONDS = 180
SGLANG = "sglang==0.5.23"

_REAL_PARENTS = ("sglang", "sglang.srt", "sglang.srt.mem_cache")
_STAND_INS = (
    "sglang.kernels",
    "sglang.jit_kernel",
    "sglang.srt.utils",
    "sglang.srt.runtime_context",
    "sglang.srt.platforms",
    "sglang.srt.layers",
    "sglang.srt.distributed",
    "sglang.srt.observability",
    "sglang.srt.mem_cache.memory_pool",
    "sglang.srt.mem_cache.device_pool_info",
    "sgl_kernel",
)


class SglangAbsent(RuntimeError):
    """SGLang is neither installed nor to be had."""


def make_importable(folder: Path) -> str:
    """Makes `sglang.srt.mem_cache` importable; says where from. Raises SglangAbsent with the reason."""
    if importlib.util.find_spec("sglang") is not None:
        return "installed"
    wheel = Path(os.environ[WHEEL_VARIABLE]) if os.environ.get(WHEEL_VARIABLE) else _fetch(folder)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("sglang/srt/") and name.endswith(".py"):
                archive.extract(name, folder / "code")
    for name in _REAL_PARENTS:
        module = types.ModuleType(name)
        module.__path__ = [str(folder / "code" / name.replace(".", "/"))]
        sys.modules[name] = module
    sys.meta_path.insert(0, _StandIns())
    return wheel.name


def _fetch(folder: Path) -> Path:
    # an environment made by uv has no pip; the interpreter it was made from has
    interpreter = sys.executable if importlib.util.find_spec("pip") else sys._base_executable
    command = [interpreter, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    # no code of the wheel's own architecture is run, so any interpreter's wheel will do
    target = ["--python-version", "3.12", "--platform", "manylinux_2_34_x86_64", "--platform", "any"]
    try:
        done = subprocess.run(
            [*command, *target, "--dest", str(folder), SGLANG], capture_output=True, text=True, timeout=FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SglangAbsent(f"SGLang's wheel was not fetched within {FETCH_SECONDS} s") from None
    wheels = list(folder.glob("sglang-*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise SglangAbsent(f"SGLang isn't installed and its wheel can't be fetched: {reason}")
    return wheels[0]


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are there for their names alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in _STAND_INS):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        for platform in ("cuda", "hip", "mps", "musa", "npu", "xpu"):
            setattr(module, f"is_{platform}", lambda: False)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass
