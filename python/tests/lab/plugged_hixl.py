"""The plugin `hixl` as an operator installs it, on an emulator of its library."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from .daemon import daemon_binary

PLUGIN, EMULATOR = "libkvstored_plugin_hixl.so", "libkvstored_emulated_hixl.so"
#: Each process that serves takes one.
PORTS = 16


def built(name: str) -> Path:
    """What cargo has built beside the daemon. Skips where it isn't."""
    program = daemon_binary()
    if program is None:
        pytest.skip("there is no kvstored binary, which tries plugins")
    folders = [program.parent / "deps", program.parent]
    found = [folder / name for folder in folders if (folder / name).is_file()]
    if not found:
        pytest.skip(
            f"{name} isn't built beside {program}; cargo build -p kvstored-plugin-hixl -p kvstored-emulated-hixl"
        )
    return found[0]


def plugin_directory(folder: Path) -> Path:
    """A directory with the plugin and the list of its sum, which nobody else can write."""
    directory = folder / "plugins"
    directory.mkdir(mode=0o700)
    library = directory / "hixl.so"
    shutil.copyfile(built(PLUGIN), library)
    library.chmod(0o755)
    sums = directory / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(library.read_bytes()).hexdigest()}  hixl.so\n")
    sums.chmod(0o644)
    return directory


def settings(first_port: int) -> dict[str, str]:
    """What the plugin is told; processes that share this listen on one of `PORTS` each."""
    return {
        "hixl.address": "127.0.0.1",
        "hixl.listen": f"127.0.0.1:{first_port}-{first_port + PORTS - 1}",
        "hixl.library": str(built(EMULATOR)),
    }


def environment(directory: Path, first_port: int) -> dict[str, str]:
    """The same as variables."""
    told = settings(first_port).items()
    return {
        "KVSTORED_POOL_ASCEND": "Plugin(hixl)",
        "KVSTORED_PLUGIN_DIRECTORY": str(directory),
        "KVSTORED_PLUGIN_SETTING": "; ".join(f"{name}={value}" for name, value in told),
        "KVSTORED_PROGRAM": str(daemon_binary()),
    }
