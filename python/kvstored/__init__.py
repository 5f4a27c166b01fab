"""KV-cache store for LLM inference engines: a client of the daemon, or an engine in this process.

::

    store = Store.embedded({"pipeline": "Cache", "cache_buffer_capacity": "512MiB"})
    namespace = store.open_namespace(Identity(model="m"), Layout.uniform(shards=1, tensors=1, tensor_bytes=65536))
    namespace.dump_tensors(hashes, tensors).wait()
    namespace.load_tensors(hashes[: namespace.lookup_on_prefix(hashes)], tensors).wait()
"""

from __future__ import annotations

from kvstored._native import DeviceEvent, Events, Task, TaskReport, __version__
from kvstored.device import Device
from kvstored.errors import (
    AlreadyExists,
    Busy,
    Cancelled,
    Corrupt,
    Fenced,
    InternalError,
    InvalidInput,
    IoFailed,
    KvstoredError,
    Mismatch,
    NoSpace,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    TimedOut,
    TooLarge,
    Unavailable,
    Unsupported,
)
from kvstored.identity import Identity, Layout
from kvstored.namespace import DumpSession, Namespace
from kvstored.store import Store, check_configuration, default_socket

__all__ = [
    "Store",
    "Namespace",
    "DumpSession",
    "Device",
    "DeviceEvent",
    "Identity",
    "Layout",
    "Task",
    "TaskReport",
    "Events",
    "check_configuration",
    "default_socket",
    "KvstoredError",
    "AlreadyExists",
    "Busy",
    "Cancelled",
    "Corrupt",
    "Fenced",
    "InternalError",
    "InvalidInput",
    "IoFailed",
    "Mismatch",
    "NoSpace",
    "NotFound",
    "PermissionDenied",
    "QuotaExceeded",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "Unsupported",
    "__version__",
]
