"""Makes the environment of LMCache, for comparisons: over vLLM's, with LMCache and the few packages it needs on a CPU.

Run by vLLM's interpreter: `target/python/vllm/bin/python benches/vllm/lmcache_environment.py`.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "target" / "python"
# without what they ask for: the rest is in vLLM's environment, or for GPUs and services that aren't here
PACKAGES = (
    "lmcache==0.5.6",
    "aiofile",
    "aiofiles",
    "caio",
    "nvtx",
    "opentelemetry-exporter-prometheus==0.61b0",
    "redis",
    "sortedcontainers",
)


def main() -> None:
    """Makes it anew."""
    place = TARGET / "lmcache"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sys.base_prefix) / "bin" / version
    subprocess.run([interpreter, "-m", "venv", "--clear", "--without-pip", place], check=True)
    packages = place / "lib" / version / "site-packages"
    (packages / "vllm.pth").write_text(sysconfig.get_path("purelib") + "\n")
    installer = TARGET / "tools" / "bin" / "uv"
    python = place / "bin" / "python"
    subprocess.run([installer, "pip", "install", "--quiet", "--no-deps", "--python", python, *PACKAGES], check=True)
    print(python)


if __name__ == "__main__":
    main()
