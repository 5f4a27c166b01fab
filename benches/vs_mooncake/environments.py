"""The two interpreters: the peer's, made below the target directory, and ours with the built package in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: Debian's packages with the libraries that the peer is linked with; unpacked, not installed.
LIBRARIES = ("libibverbs1", "libnl-3-200", "libnl-route-3-200")


def peer(folder: Path) -> tuple[Path, dict[str, str]]:
    """The peer's interpreter, made in that folder, and variables for it."""
    place = folder / "mooncake"
    requirements = (HERE / "requirements.txt").read_text()
    stamp = place / "made-from.txt"
    if not stamp.is_file() or stamp.read_text() != requirements:
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        command = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"]
        subprocess.run(command, check=True)
        stamp.write_text(requirements)
    return place / "bin" / "python", {"LD_LIBRARY_PATH": os.pathsep.join(map(str, _libraries(folder)))}


def _libraries(folder: Path) -> list[Path]:
    """Folders with libraries that this machine lacks; none where it has them."""
    if _installed("libibverbs.so.1"):
        return []
    place = folder / "mooncake-libraries"
    folders = [place / "usr/lib/x86_64-linux-gnu", place / "lib/x86_64-linux-gnu"]
    if not folders[0].is_dir():
        if shutil.which("apt-get") is None:
            raise SystemExit(f"install the libraries of {', '.join(LIBRARIES)}")
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "--quiet", *LIBRARIES], cwd=place, check=True)
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, place], check=True)
    return folders


def _installed(library: str) -> bool:
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    return library in listing


def ours() -> tuple[Path, dict[str, str]]:
    """The running interpreter, with `mooncake` meaning our package."""
    from kvstored.mooncake import shim_folder

    return Path(sys.executable), {"PYTHONPATH": str(shim_folder())}
