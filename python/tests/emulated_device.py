"""An NPU that isn't one: the emulator of its runtime, as an engine in this process uses it, and torch's view of it."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_MAPPED = 2
_PATIENCE_MS = 30_000
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def built(program: str | None, name: str) -> Path | None:
    """A library that was built beside the program `kvstored`."""
    folder = Path(program).parent if program else Path()
    found = [path for path in (folder / name, folder / "deps" / name) if program and path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def _wait(event: threading.Event) -> None:
    event.wait(_PATIENCE_MS / 1000)


class EmulatedDevice:
    """Device 0 with the engine's memory and stream."""

    def __init__(self, program: str, folder: Path) -> None:
        """Loads the emulator and lays out a plugin directory below `folder`."""
        library, plugin = (built(program, f"libkvstored_{name}.so") for name in ("emulated_ascendcl", "plugin_ascend"))
        assert library is not None and plugin is not None
        self.program = program
        self.library_path = library
        self.directory = folder / "plugins"
        self.directory.mkdir(mode=0o700)
        copy = shutil.copy(plugin, self.directory / "ascend.so")
        os.chmod(copy, 0o755)
        digest = hashlib.sha256(Path(copy).read_bytes()).hexdigest()
        sums = self.directory / "SHA256SUMS"
        sums.write_text(f"{digest}  ascend.so\n")
        sums.chmod(0o644)
        self._acl = ctypes.CDLL(str(library))
        self._check(self._acl.aclInit(None), already=100_002)
        self._check(self._acl.aclrtSetDevice(0))
        self._kept: list[object] = []
        self.stream = self._create_stream()

    @property
    def setting(self) -> dict[str, str]:
        """What the plugin is told."""
        return {"library": str(self.library_path)}

    def allocate(self, nbytes: int) -> int:
        """Device memory, by its address."""
        address = ctypes.c_void_p()
        self._check(self._acl.aclrtMalloc(ctypes.byref(address), ctypes.c_size_t(nbytes), 0))
        assert address.value is not None
        return address.value

    def write(self, address: int, memory: np.ndarray) -> None:
        """Fills device memory, now."""
        self._copy(address, memory.ctypes.data, memory.nbytes, _HOST_TO_DEVICE)

    def read(self, address: int, nbytes: int) -> np.ndarray:
        """What device memory has now."""
        memory = np.empty(nbytes, dtype=np.uint8)
        self._copy(memory.ctypes.data, address, nbytes, _DEVICE_TO_HOST)
        return memory

    @contextmanager
    def computing(self, address: int, result: np.ndarray) -> Iterator[None]:
        """The engine's stream fills device memory, but gets to it only when this context ends."""
        go_on = threading.Event()
        function = _HOST_FUNCTION(lambda _: _wait(go_on))
        # asynchronous copies are so only from memory that the device knows, whole pages
        pages = mmap.mmap(-1, result.nbytes)
        known = np.frombuffer(pages, dtype=np.uint8)
        known[:] = result.reshape(-1)
        self._kept += [function, known]
        stream = ctypes.c_void_p(self.stream)
        where = ctypes.c_void_p(known.ctypes.data)
        whole = -(-result.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._check(self._acl.aclrtHostRegisterV2(where, ctypes.c_uint64(whole), _MAPPED))
        self._check(self._acl.aclrtLaunchHostFunc(stream, function, None))
        size = ctypes.c_size_t(result.nbytes)
        status = self._acl.aclrtMemcpyAsync(ctypes.c_void_p(address), size, where, size, _HOST_TO_DEVICE, stream)
        self._check(status)
        try:
            yield
        finally:
            go_on.set()
            self.synchronize()
            self._check(self._acl.aclrtHostUnregister(where))

    def synchronize(self) -> None:
        """Waits for the engine's stream."""
        self._check(self._acl.aclrtSynchronizeStreamWithTimeout(ctypes.c_void_p(self.stream), _PATIENCE_MS))

    def set_fault(self, name: str, value: int) -> None:
        """Sets one of the emulator's switches."""
        self._check(self._acl.kvstored_emulator_set(name.encode(), ctypes.c_uint64(value)))

    def torch_module(self) -> SimpleNamespace:
        """What torch has for this kind of device, as far as it's used: streams and their handles."""
        stream = SimpleNamespace(npu_stream=self.stream, synchronize=self.synchronize)
        return SimpleNamespace(is_available=lambda: True, current_stream=lambda _number: stream)

    def _create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._check(self._acl.aclrtCreateStream(ctypes.byref(stream)))
        assert stream.value is not None
        return stream.value

    def _copy(self, destination: int, source: int, nbytes: int, direction: int) -> None:
        size = ctypes.c_size_t(nbytes)
        places = ctypes.c_void_p(destination), size, ctypes.c_void_p(source), size
        self._check(self._acl.aclrtMemcpy(*places, direction))

    @staticmethod
    def _check(status: int, already: int = 0) -> None:
        assert status in (0, already), f"the emulator answered {status}"


class DeviceTensor:
    """As much of a tensor on a device as is asked of one; slices have shapes only."""

    def __init__(self, address: int, like: Any, kind: str = "npu", index: int = 0) -> None:
        """Takes where it lies, a tensor of its shape without memory (torch's device "meta"), and the device."""
        self._like = like
        self._address = address
        self.device = SimpleNamespace(type=kind, index=index)

    def data_ptr(self) -> int:
        """Where it lies on the device."""
        return self._address

    def __getattr__(self, name: str) -> Any:
        return getattr(self._like, name)

    def __getitem__(self, place: Any) -> Any:
        return self._like[place]
