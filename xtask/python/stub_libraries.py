"""Stands in for NVIDIA's libraries below torch: `python stub_libraries.py SITE_PACKAGES`.

The registry's torch for Linux is built for CUDA and doesn't load without several gigabytes of NVIDIA's libraries, of
which a machine without such a device never calls anything. This writes small libraries of the same names into torch's
own folder, where its libraries look first. Whatever they export returns "no device". Needs `cc` and `readelf`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

# CUDA's error code for "there is no device"
NO_DEVICE = 100
# the driver's library is looked for at run time, and its absence is how torch notices that there is no device
DRIVER = "libcuda.so.1"
VENDOR_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
VENDOR_SYMBOL = re.compile(r"_*(cu|nv|nccl)", re.IGNORECASE)

_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_SYMBOL = re.compile(r"\s*\d+: [0-9a-f]+ +\S+ +\S+ +(?P<binding>\S+) +\S+ +(?P<section>\S+) (?P<name>\S+)")
_VERSION_FILE = re.compile(r"File: (\S+)")
_VERSION_NAME = re.compile(r"Name: (\S+) +Flags:")


@dataclass
class Library:
    """What one of torch's libraries needs and offers."""

    needed: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)
    undefined: set[tuple[str, str]] = field(default_factory=set)
    """Symbol and version; the version is empty where there is none."""
    version_files: dict[str, str] = field(default_factory=dict)
    """Which library a version of a symbol comes from."""


def read(path: Path) -> Library:
    """Asks readelf."""
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", "--version-info", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    library = Library()
    file = ""
    for line in text.splitlines():
        if symbol := _SYMBOL.match(line):
            name, _, version = symbol["name"].partition("@")
            if symbol["section"] != "UND":
                library.defined.add(name)
            elif symbol["binding"] != "WEAK":
                library.undefined.add((name, version))
        elif needed := _NEEDED.search(line):
            library.needed.add(needed[1])
        elif source := _VERSION_FILE.search(line):
            file = source[1]
        elif file and (version_name := _VERSION_NAME.search(line)):
            library.version_files[version_name[1]] = file
    return library


def exports(folder: Path) -> dict[str, dict[str, set[str]]]:
    """For each library that is missing in the folder: version to symbols, as the libraries there want them."""
    present = {path.name: read(path) for path in sorted(folder.glob("*.so*"))}
    defined = set().union(*(library.defined for library in present.values()))
    wanted: dict[str, dict[str, set[str]]] = {
        name: defaultdict(set)
        for library in present.values()
        for name in library.needed
        if name not in present and name != DRIVER and VENDOR_LIBRARY.match(name)
    }
    if not wanted:
        return {}
    # symbols without a version are found in any library that is loaded
    any_library = min(wanted)
    for library in present.values():
        for name, version in library.undefined:
            owner = library.version_files.get(version, "")
            if owner in wanted:
                wanted[owner][version].add(name)
            elif not version and name not in defined and VENDOR_SYMBOL.match(name):
                wanted[any_library][""].add(name)
    return wanted


def build(target: Path, versions: dict[str, set[str]]) -> int:
    """Compiles one library and returns how many symbols it has."""
    symbols = sorted(set().union(*versions.values()))
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "stub.c"), Path(scratch, "stub.map")
        source.write_text("".join(f"int {symbol}(void) {{ return {NO_DEVICE}; }}\n" for symbol in symbols))
        script.write_text(
            "".join(
                f"{version} {{ global: {' '.join(f'{symbol};' for symbol in sorted(names))} }};\n"
                for version, names in versions.items()
                if version
            )
        )
        command = ["cc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{target.name}", str(source)]
        if any(versions):
            command.append(f"-Wl,--version-script,{script}")
        subprocess.run([*command, "-o", str(target)], check=True)
    return len(symbols)


def main() -> None:
    """Writes every library that is missing."""
    folder = Path(sys.argv[1], "torch", "lib")
    if not folder.is_dir():
        sys.exit(f"{folder} doesn't exist: is torch installed?")
    for name, versions in sorted(exports(folder).items()):
        print(f"{name}: {build(folder / name, versions)} symbols")


if __name__ == "__main__":
    main()
