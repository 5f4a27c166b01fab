"""Child processes that can't outlive their test: started on a leash, stopped as whole trees with their memory files."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

SHARED_MEMORY = Path("/dev/shm")
_LEASH = Path(__file__).with_name("leash.py")
_POLL_SECONDS = 0.05


def start_leashed(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    log: Path,
    pipes: bool = False,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[str]:
    """Starts a program that gets SIGTERM when this process ends, however it ends.

    Its output goes to the end of `log`; with `pipes`, its standard input and output are pipes of text lines instead.
    `inherited`: open files that it keeps, under their numbers.
    Call it from a thread that lives as long as the program shall: the leash is the thread's.
    """
    leashed = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *map(str, command)]
    with log.open("a") as output:
        return subprocess.Popen(
            leashed,
            env=dict(environment),
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            text=True,
            pass_fds=inherited,
        )


def is_alive(process: int) -> bool:
    """Whether the process runs; one that ended and wasn't waited for yet doesn't count."""
    fields = _stat(process)
    return fields is not None and fields[0] != "Z"


def descendants(process: int) -> list[int]:
    """Every process below this one, parents before their children, without those that have ended."""
    children: dict[int, list[int]] = {}
    for candidate in _all_processes():
        fields = _stat(candidate)
        if fields is not None and fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(candidate)
    found: list[int] = []
    level = [process]
    while level:
        level = [child for parent in level for child in children.get(parent, [])]
        found += level
    return found


def resident_bytes(processes: Sequence[int]) -> int:
    """Memory of these processes; what several of them share counts once."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += int(text.split("Pss:")[1].split()[0]) * 1024
    return total


class Root(Protocol):
    """What a tree needs of its first process, as `subprocess.Popen` has it."""

    pid: int
    stdin: IO[str] | None
    stdout: IO[str] | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...


@dataclass
class Tree:
    """A program and everything that it started, seen whenever `refresh` is called."""

    root: Root
    _seen: set[int] = field(default_factory=set)
    _memory_inodes: set[int] = field(default_factory=set)

    def refresh(self) -> list[int]:
        """The tree's living processes. Remembers them, and the files that they have in shared memory."""
        self._seen.update([self.root.pid, *descendants(self.root.pid)])
        for process in [process for process in self._seen if process != self.root.pid]:
            # a process whose parent ended hangs elsewhere, but its own children are still below it
            self._seen.update(descendants(process))
        living = [process for process in sorted(self._seen) if is_alive(process)]
        for process in living:
            self._memory_inodes |= _shared_memory_inodes(process)
        return living

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to every living process of the tree."""
        for process in self.refresh():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def terminate(self, timeout: float = 30.0) -> bool:
        """Asks the root to end and waits for all of it, then kills what is left. Whether nothing was left."""
        living = self.refresh()
        if self.root.poll() is None:
            # a stopped process would not notice
            self.root.send_signal(signal.SIGCONT)
            self.root.send_signal(signal.SIGTERM)
        gentle = self._wait(timeout, living)
        self.kill()
        return gentle

    def kill(self) -> None:
        """Kills all of it at once, waits, and removes what it left in shared memory."""
        self.signal(signal.SIGKILL)
        if not self._wait(10.0, self.refresh()):
            raise RuntimeError(f"processes {self.refresh()} survive SIGKILL")
        self.root.wait(timeout=10)
        self._remove_memory_files()

    def _wait(self, timeout: float, living: list[int]) -> bool:
        deadline = time.monotonic() + timeout
        while living:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
            self.root.poll()
            living = self.refresh()
        return True

    def _remove_memory_files(self) -> None:
        left = [path for path in SHARED_MEMORY.iterdir() if _inode(path) in self._memory_inodes]
        if left:
            # others may use what this tree shared with them
            used = set().union(*map(_shared_memory_inodes, _all_processes()))
            for path in left:
                if _inode(path) not in used:
                    path.unlink(missing_ok=True)
        self._memory_inodes.clear()


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _all_processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _stat(process: int) -> list[str] | None:
    """State, parent and so on: the fields behind the name, which may hold any character."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _shared_memory_inodes(process: int) -> set[int]:
    """Of the files in shared memory that the process has mapped or open; a semaphore's is mapped by another name."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        maps = Path(f"/proc/{process}/maps").read_text(errors="replace")
        found.update(int(line.split()[4]) for line in maps.splitlines() if f" {SHARED_MEMORY}/" in line)
    with contextlib.suppress(OSError):
        device = SHARED_MEMORY.stat().st_dev
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                status = descriptor.stat()
                if status.st_dev == device:
                    found.add(status.st_ino)
    return found
