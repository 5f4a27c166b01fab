"""LMCache's connector for vLLM on a machine without GPU.

LMCache imports numba, and numba's binding of LLVM keeps a library object whose `__dict__` doesn't behave like a
dictionary. vLLM's CPU worker looks through the attributes of all modules once and asks such objects for `get`. With one
that finds nothing, it goes on.
"""

from __future__ import annotations

from typing import Any

from llvmlite.binding import ffi


def _nothing(self: Any, name: str, default: Any = None) -> Any:
    return default


ffi._lib_fn_wrapper.get = _nothing

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_mp_connector import LMCacheMPConnector  # noqa: E402

__all__ = ["LMCacheMPConnector"]
