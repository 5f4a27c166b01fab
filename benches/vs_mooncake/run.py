"""Head to head with Mooncake, both through its Python API, in turn: `python run.py [engine | store] [--rounds N]`.

Needs an interpreter with the kvstored package and the kvstored program, both built for figures; makes the peer's
environment by itself. Prints, for each figure, both contenders' medians and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environments

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "vllm"))

from figures import Spread, ratios, table  # noqa: E402
from machine import description, load_average  # noqa: E402

OURS, PEER = "kvstored", "mooncake"
KIB, MIB = 1 << 10, 1 << 20
#: What is reached, as a ratio of ours to the peer's: at least for speeds, at most for costs and times.
REACH = {
    "tcp_read_1MiB_x32": 2.0,
    "tcp_write_1MiB_x32": 2.0,
    "tcp_read_1MiB_x32_cpu": 0.5,
    "tcp_write_1MiB_x32_cpu": 0.5,
    "tcp_read_4KiB_x1_p50": 0.87,
    "pool_put_1MiB_x1": 4.0,
    "pool_get_1MiB_x1": 4.0,
    "pool_put_4MiB_x1": 4.0,
    "pool_get_4MiB_x1": 4.0,
    "exist_64": 3.0,
}
COSTS = ("_cpu", "_p50", "_p99", "_percent")


class Contender:
    """The process that makes one contender's calls."""

    def __init__(self, name: str, interpreter: Path, variables: dict[str, str], log: Path) -> None:
        self.name = name
        self._log = log.open("w")
        environment = {**os.environ, **variables, "MC_LOG_LEVEL": "WARNING", "GLOG_minloglevel": "2"}
        command = [interpreter, Path(__file__).parent / "contender.py"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )

    def call(self, name: str, call: str, **arguments: Any) -> Any:
        """One call; raises RuntimeError with what went wrong."""
        return self._ask({"name": name, "call": call, "arguments": arguments})

    def open(self, name: str, kind: str, **arguments: Any) -> None:
        """Starts one side of something."""
        self._ask({"name": name, "call": "open", "kind": kind, "arguments": arguments})

    def _ask(self, request: dict[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; see {self._log.name}")
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(f"{self.name}: {said['error']}; see {self._log.name}")
        return said["result"]

    def close(self) -> None:
        """Ends it."""
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def master(command: list[str], variables: dict[str, str], log: Path) -> Iterator[str]:
    """A master of either kind; they take the same flags. Gives its address."""
    port = free_port()
    with log.open("w") as output:
        arguments = [*command, f"--rpc_port={port}", f"--metrics_port={free_port()}", "--default_kv_lease_ttl=2000"]
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env={**os.environ, **variables})
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the master doesn't come up; see {log}")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def size(length: int) -> str:
    """A length in the unit that makes it short."""
    return f"{length // MIB}MiB" if length % MIB == 0 else f"{length // KIB}KiB"


def engine_tasks() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, side, call and arguments of what is measured of engines."""
    for direction in ("read", "write"):
        for length, entries in ((4 * KIB, 1), (4 * KIB, 128), (64 * KIB, 32), (MIB, 1), (MIB, 32), (16 * MIB, 8)):
            arguments = {"direction": direction, "length": length, "entries": entries}
            yield f"tcp_{direction}_{size(length)}_x{entries}", "transfers", "measure", arguments


def store_tasks() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """The same of stores: memory of another process, and of the caller's own."""
    for side, prefix in (("lent", "pool"), ("own", "pool_own")):
        for verb in ("put", "get"):
            for length, entries in ((MIB, 1), (4 * MIB, 1), (MIB, 8)):
                arguments = {"verb": verb, "length": length, "entries": entries}
                yield f"{prefix}_{verb}_{size(length)}_x{entries}", side, "measure", arguments
    # every second key is there, all are, none is
    for name, present in (("exist_64", 1), ("exist_64_present", 2), ("exist_64_absent", 0)):
        yield name, "lent", "exist", {"keys": 64, "present": present}
    yield "exist_2", "lent", "exist", {"keys": 2, "present": 1}


def main() -> None:
    """Measures, prints the table and ends with 1 if something isn't reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["engine", "store", []], help="engine, store or, by default, both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="figures by the start of their names")
    parser.add_argument("--idle-seconds", type=float, default=10.0)
    parser.add_argument("--protocol", default="tcp", help="ours only; the peer's is tcp")
    parser.add_argument("--store-protocol", default="auto", help="ours only; the peer's is tcp")
    parser.add_argument("--target", type=Path, default=ROOT / "target", help="where everything is built")
    parser.add_argument("--binary", type=Path, help="the kvstored program; else the target's release")
    parser.add_argument("--logs", type=Path, help="folder; else one in the target")
    parser.add_argument("--json", type=Path, help="file for all measurements")
    options = parser.parse_args()
    target = options.target.resolve()
    binary = options.binary or target / "release/kvstored"
    logs = options.logs or target / "python/vs-mooncake"
    logs.mkdir(parents=True, exist_ok=True)
    what = options.what or ["engine", "store"]
    found: dict[str, dict[str, list[float]]] = {}
    print(f"load average {load_average():.2f}", flush=True)
    with contextlib.ExitStack() as stack:
        contenders = []
        places = {OURS: environments.ours(), PEER: environments.peer(target / "python")}
        for name, (interpreter, variables) in places.items():
            contender = Contender(name, interpreter, variables, logs / f"{name}.log")
            stack.callback(contender.close)
            contenders.append(contender)
            is_ours = name == OURS
            if "engine" in what:
                contender.open("transfers", "transfers", protocol=options.protocol if is_ours else "tcp")
            if "store" in what:
                command = [str(binary), "master"] if is_ours else [str(interpreter.parent / "mooncake_master")]
                protocol = options.store_protocol if is_ours else "tcp"
                for side in ("lent", "own"):
                    log = logs / f"{name}-master-{side}.log"
                    address = stack.enter_context(master(command, variables, log))
                    contender.open(side, "store", master=address, protocol=protocol, own=side == "own")
        tasks = [*(engine_tasks() if "engine" in what else ()), *(store_tasks() if "store" in what else ())]
        for name, side, call, arguments in tasks:
            if options.only and not name.startswith(tuple(options.only)):
                continue
            measure(found, contenders, options.rounds, name, side, call, arguments)
        if "engine" in what and not options.only:
            for contender in contenders:
                percent = contender.call("transfers", "idle", seconds=options.idle_seconds)["rate"]
                found.setdefault("idle_percent", {})[contender.name] = [percent]
    missed = report(found)
    if options.json:
        options.json.write_text(json.dumps({"machine": description(), "figures": found}, indent=1) + "\n")
    sys.exit(1 if missed else 0)


def measure(
    found: dict[str, dict[str, list[float]]],
    contenders: list[Contender],
    rounds: int,
    name: str,
    side: str,
    call: str,
    arguments: dict[str, Any],
) -> None:
    """Both in turn, the one first in even rounds and the other in odd ones; the first try doesn't count."""
    for number in range(rounds + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            result = contender.call(side, call, **arguments)
            if number == 0:
                continue
            for figure, value in result.items():
                key = name if figure == "rate" else f"{name}_{figure}"
                found.setdefault(key, {}).setdefault(contender.name, []).append(value)
    line = " ".join(f"{who} {Spread.of(values).shown(digits=2)}" for who, values in found[name].items())
    print(f"  {name}: {line}", flush=True)


def report(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Prints the table; the names of what wasn't reached."""
    rows = []
    missed = []
    for name, values in found.items():
        ratio = ratios(values[OURS], values[PEER]).median
        reach = REACH.get(name)
        verdict = ""
        if reach is not None:
            good = ratio <= reach if name.endswith(COSTS) else ratio >= reach
            verdict = f"{reach:g} {'reached' if good else 'MISSED'}"
            if not good:
                missed.append(name)
        shown = [Spread.of(values[who]).shown(digits=3) for who in (OURS, PEER)]
        rows.append([name, *shown, f"{ratio:.2f}", verdict])
    print("\n" + table(["figure", OURS, PEER, "ratio", "reach"], rows), flush=True)
    return missed


if __name__ == "__main__":
    main()
