"""The machine that figures are measured on: how busy it is, what it is, and how its page cache is emptied."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

QUIET_LOAD = 1.5
PATIENCE_VARIABLE = "KVSTORED_BENCH_PATIENCE_SECONDS"
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_POLL_SECONDS = 5.0


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def wait_until_quiet(limit: float = QUIET_LOAD) -> float:
    """Waits until the load average is below the limit, or patience is out. Returns what it is then."""
    deadline = time.monotonic() + float(os.environ.get(PATIENCE_VARIABLE, "300"))
    while (load := load_average()) >= limit and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if load >= limit:
        print(f"warning: load average {load:.2f}: these figures are not to be relied on", file=sys.stderr, flush=True)
    return load


def drop_page_cache() -> bool:
    """Writes out and drops cached file contents. False where this process may not."""
    os.sync()
    try:
        _DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True


def description() -> dict[str, str | int]:
    """What a reader needs to compare figures with their own."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpu": model, "cpus": os.cpu_count() or 0, "memory_gib": round(pages / (1 << 30))}
