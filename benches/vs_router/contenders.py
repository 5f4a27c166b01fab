"""The proxies that are compared: how each is got, started and looked at."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OURS, ROUTER, EXAMPLE = "kvstored", "vllm-router", "example"
#: The example of vLLM-Ascend, at one commit and by its digest; it is fetched and never kept in the tree.
EXAMPLE_URL = (
    "https://raw.githubusercontent.com/vllm-project/vllm-ascend/182b75ea84ff13ece27b57391331ef8935410aea"
    "/examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py"
)
EXAMPLE_SHA256 = "85d4ab58c77c4252a03cf1689b6910544d5fa10ab2a19ec7f844b39c9eda55ed"
MAX_EXAMPLE_BYTES = 1 << 20
START_SECONDS = 60.0


class Unavailable(RuntimeError):
    """A contender can't be had here; says why."""


def environment(folder: Path) -> Path:
    """The peers' interpreter, made in that folder."""
    place = folder / "router"
    requirements = (HERE / "requirements.txt").read_text()
    stamp = place / "made-from.txt"
    if not stamp.is_file() or stamp.read_text() != requirements:
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        command = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"]
        if subprocess.run(command, check=False).returncode != 0:
            raise Unavailable("its environment can't be made: see what pip says above")
        stamp.write_text(requirements)
    return place / "bin" / "python"


def example(folder: Path, given: Path | None) -> Path:
    """The example's file: the one given, or fetched; its bytes are the pinned ones."""
    place = given or folder / "load_balance_proxy_server_example.py"
    if not place.is_file():
        if given:
            raise Unavailable(f"{given} isn't there")
        try:
            with urllib.request.urlopen(EXAMPLE_URL, timeout=30) as answer:
                data = answer.read(MAX_EXAMPLE_BYTES)
        except (OSError, urllib.error.URLError) as error:
            raise Unavailable(f"can't be fetched ({error}); get {EXAMPLE_URL} and name it with --example") from error
        place.write_bytes(data)
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    if digest != EXAMPLE_SHA256:
        raise Unavailable(f"{place} has the digest {digest} and not {EXAMPLE_SHA256}")
    return place


def command(name: str, program: Path, prefill: Sequence[int], decode: Sequence[int], port: int) -> list[str]:
    """How a contender is started; `program` is ours, the peers' interpreter or the example's file beside it."""
    words = ["--host", "127.0.0.1", "--port", str(port)]
    if name == ROUTER:
        words += ["--vllm-pd-disaggregation", "--policy", "round_robin", "--log-level", "warning"]
        for role, ports in (("--prefill", prefill), ("--decode", decode)):
            for one in ports:
                words += [role, f"http://127.0.0.1:{one}"]
        return [str(program.parent / "vllm-router"), *words]
    for role, ports in (("prefiller", prefill), ("decoder", decode)):
        words += [f"--{role}-hosts", *["127.0.0.1"] * len(ports), f"--{role}-ports", *map(str, ports)]
    words += ["--log-level", "WARNING"]
    return [str(program), "proxy", *words] if name == OURS else [str(program), *words]


@dataclass
class Running:
    """A started proxy."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def peak_bytes(self) -> int:
        """The most memory that it has had resident."""
        return self._status("VmHWM")

    def resident_bytes(self) -> int:
        """The memory that it has resident."""
        return self._status("VmRSS")

    def cpu_seconds(self) -> float:
        """The time it has computed, in the kernel too."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, field: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
        raise RuntimeError(f"{self.name} has no {field}")


def raise_descriptor_limit() -> int:
    """As many open files as this process may have; what it starts has the same."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def running(name: str, words: list[str], port: int, log: Path, probe: Path) -> Iterator[Running]:
    """Starts a proxy and waits until it answers a request; ends it afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    started = Running(name, port, process)
    try:
        deadline = time.monotonic() + START_SECONDS
        drive = [str(probe), "drive", started.address, "--connections", "1", "--seconds", "0.05"]
        while True:
            done = subprocess.run(drive, capture_output=True, text=True, check=True, timeout=60)
            if '"lost":0' in done.stdout and '"requests":0' not in done.stdout:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"it doesn't come up; see {log}; the last answer: {done.stdout.strip()}")
            time.sleep(0.2)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
