"""Our proxy beside vllm-router and the example of vLLM-Ascend, before instances that compute nothing: `python run.py`.

Needs the programs kvstored and router-load, both built for figures; makes the peers' environment by itself. A peer that
can't be had is left out, saying so. Contenders take turns; every figure is the median of the rounds, with the extremes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contenders import (
    EXAMPLE,
    OURS,
    ROUTER,
    Running,
    Unavailable,
    environment,
    example,
    raise_descriptor_limit,
    running,
)
from contenders import command as command_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches" / "vllm"))

from figures import Spread, ratios, table  # noqa: E402
from machine import description, load_average  # noqa: E402

FIGURES = ("rate", "added", "held", "killed")
MIB, KIB = 1 << 20, 1 << 10
#: Streams held take two descriptors of the proxy each; so many more stay free for all else.
SPARE_DESCRIPTORS = 200
#: Events come so far apart where an instance is killed, so that there are answers under way at it.
KILL_PAUSE_US = 1000
#: What is to be reached.
REACH = {
    "rate to vllm-router": (1.2, "at least"),
    "rate to the example": (25.0, "at least"),
    "added ms p50": (0.25, "at most"),
    "added ms p99": (1.0, "at most"),
    "peak MB under load": (40.0, "at most"),
    "KiB of a held stream": (64.0, "at most"),
    "p99 ratio when killed": (2.0, "at most"),
    "lost when killed": (0.0, "at most"),
}


class Instances:
    """The process with the instances."""

    def __init__(self, load: Path, count: int, pause_us: int | None = None) -> None:
        words = [str(load), "instances", "--count", str(count)]
        if pause_us is not None:
            words += ["--event-pause-us", str(pause_us)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ports: list[int] = json.loads(self._process.stdout.readline())

    def say(self, word: str) -> None:
        """`close` or `open` its streams."""
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """As a crash would."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def __enter__(self) -> Instances:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """What all measurements share."""

    def __init__(self, options: argparse.Namespace, programs: dict[str, Path]) -> None:
        self.options = options
        self.programs = programs
        self.load: Path = options.load
        self.logs: Path = options.logs
        self.found: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        """Adds a measurement."""
        self.found.setdefault(name, []).append(value)

    @contextlib.contextmanager
    def proxy(self, name: str, prefill: list[int], decode: list[int]) -> Iterator[Running]:
        """A contender before those instances."""
        port = free_port()
        words = command_of(name, self.programs[name], prefill, decode, port)
        if name == EXAMPLE:
            words = [str(self.programs["python"]), *words]
        with running(name, words, port, self.logs / f"{name}.log", self.load) as started:
            yield started

    def drive(self, *words: str) -> dict[str, Any]:
        """One run of the clients."""
        done = subprocess.run([str(self.load), *words], capture_output=True, text=True, check=True, timeout=300)
        return json.loads(done.stdout)

    def contenders(self, number: int) -> list[str]:
        """In this round's order."""
        names = [name for name in (OURS, ROUTER, EXAMPLE) if name in self.programs]
        return names if number % 2 else names[::-1]


def rate(bench: Bench) -> None:
    """Requests a second over 64 connections, and what they cost; memory under that load."""
    connections = str(bench.options.connections)
    for kind, pause in (("at once", None), ("apart", 0)):
        with Instances(bench.load, 4, pause) as instances, contextlib.ExitStack() as stack:
            ports = instances.ports
            proxies = {
                name: stack.enter_context(bench.proxy(name, ports[:2], ports[2:])) for name in bench.contenders(1)
            }
            for number in range(1, bench.options.rounds + 1):
                for name in bench.contenders(number):
                    proxy = proxies[name]
                    warm = ("drive", proxy.address, "--connections", connections)
                    bench.drive(*warm, "--seconds", "0.5")
                    before = proxy.cpu_seconds()
                    result = bench.drive(*warm, "--seconds", str(bench.options.seconds))
                    if result["lost"] or result["broken"] or not result["requests"]:
                        print(f"warning: {name}: {result}", file=sys.stderr, flush=True)
                    bench.note(f"{name} requests/s, events {kind}", result["rate"])
                    cpu = (proxy.cpu_seconds() - before) / max(result["requests"], 1)
                    bench.note(f"{name} CPU µs, events {kind}", cpu * 1e6)
                    bench.note(f"{name} p99 ms, events {kind}", result["p99_ms"] or float("nan"))
            for name, proxy in proxies.items():
                bench.note(f"{name} peak MB, events {kind}", proxy.peak_bytes() / 1e6)


def added(bench: Bench) -> None:
    """What a proxy adds to the two calls, one request at a time."""
    seconds = ("--seconds", str(bench.options.seconds / 2))
    with Instances(bench.load, 2) as instances, contextlib.ExitStack() as stack:
        prefill, decode = instances.ports
        proxies = {name: stack.enter_context(bench.proxy(name, [prefill], [decode])) for name in bench.contenders(1)}
        for number in range(1, bench.options.rounds + 1):
            direct = bench.drive("direct", f"127.0.0.1:{prefill}", f"127.0.0.1:{decode}", *seconds)
            for at in ("p50", "p99"):
                bench.note(f"two direct calls ms {at}", direct[f"{at}_ms"])
            for name in bench.contenders(number):
                result = bench.drive("drive", proxies[name].address, "--connections", "1", *seconds)
                for at in ("p50", "p99"):
                    bench.note(f"{name} added ms {at}", result[f"{at}_ms"] - direct[f"{at}_ms"])


def held(bench: Bench) -> None:
    """Memory of streams that have begun and don't end. Ours only: the peers' figures would need their own limits."""
    streams = min(bench.options.streams, (raise_descriptor_limit() - SPARE_DESCRIPTORS) // 2)
    if streams < bench.options.streams:
        print(f"only {streams} streams are held: this machine allows no more open files", flush=True)
    for _ in range(bench.options.rounds):
        with (
            Instances(bench.load, 4) as instances,
            bench.proxy(OURS, instances.ports[:2], instances.ports[2:]) as proxy,
        ):
            before = proxy.resident_bytes()
            instances.say("close")
            words = [str(bench.load), "hold", proxy.address, "--streams", str(streams)]
            clients = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            count = json.loads(clients.stdout.readline())["held"]
            bench.note("streams held", count)
            bench.note(f"{OURS} KiB a held stream", (proxy.resident_bytes() - before) / count / KIB)
            instances.say("open")
            out, _ = clients.communicate("\n", timeout=120)
            bench.note("held streams that ended well", json.loads(out)["whole"])


def killed(bench: Bench) -> None:
    """One instance of each role is killed under load: the requests' times before and then, and what was lost."""
    for _ in range(bench.options.rounds):
        for name in [name for name in (OURS, ROUTER) if name in bench.programs]:
            with contextlib.ExitStack() as stack:
                staying = stack.enter_context(Instances(bench.load, 2, KILL_PAUSE_US))
                doomed = stack.enter_context(Instances(bench.load, 2, KILL_PAUSE_US))
                pairs = [[staying.ports[role], doomed.ports[role]] for role in (0, 1)]
                proxy = stack.enter_context(bench.proxy(name, *pairs))
                words = ["drive", proxy.address, "--connections", "32", "--seconds", str(bench.options.seconds)]
                before = bench.drive(*words)
                clients = subprocess.Popen([str(bench.load), *words], stdout=subprocess.PIPE, text=True)
                time.sleep(bench.options.seconds / 3)
                doomed.kill()
                out, _ = clients.communicate(timeout=300)
                after = json.loads(out)
                bench.note(f"{name} p99 ms before the kill", before["p99_ms"])
                bench.note(f"{name} p99 ratio when killed", after["p99_ms"] / before["p99_ms"])
                bench.note(f"{name} lost when killed", after["lost"])
                bench.note(f"{name} cut off when killed", after["broken"])


def report(bench: Bench) -> list[str]:
    """Prints all figures and what is to be reached; the names of what wasn't."""
    found = bench.found
    rows = [[name, Spread.of(values).shown(digits=3)] for name, values in found.items()]
    print("\n" + table(["figure", "median (lowest to highest)"], rows), flush=True)
    reached: dict[str, list[float]] = {}

    def against(name: str, peer: str) -> None:
        kind = "requests/s, events at once"
        if f"{OURS} {kind}" in found and f"{peer} {kind}" in found:
            spread = ratios(found[f"{OURS} {kind}"], found[f"{peer} {kind}"])
            reached[name] = [spread.median, spread.lowest, spread.highest]

    against("rate to vllm-router", ROUTER)
    against("rate to the example", EXAMPLE)
    for name, source in (
        ("added ms p50", f"{OURS} added ms p50"),
        ("added ms p99", f"{OURS} added ms p99"),
        ("peak MB under load", f"{OURS} peak MB, events at once"),
        ("KiB of a held stream", f"{OURS} KiB a held stream"),
        ("p99 ratio when killed", f"{OURS} p99 ratio when killed"),
        ("lost when killed", f"{OURS} lost when killed"),
    ):
        if source in found:
            reached[name] = found[source]
    rows, missed = [], []
    for name, values in reached.items():
        limit, way = REACH[name]
        spread = Spread.of(values)
        good = spread.median >= limit if way == "at least" else spread.median <= limit
        rows.append([name, spread.shown(digits=3), f"{way} {limit:g}", "reached" if good else "MISSED"])
        if not good:
            missed.append(name)
    if rows:
        print("\n" + table(["figure", "median (lowest to highest)", "wanted", ""], rows), flush=True)
    return missed


def main() -> None:
    """Measures, prints the tables and ends with 1 if something isn't reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"{', '.join(FIGURES)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--without", nargs="*", default=[], choices=[ROUTER, EXAMPLE], help="leave a peer out")
    parser.add_argument("--example", type=Path, help="the example's file; else it is fetched")
    parser.add_argument("--target", type=Path, default=ROOT / "target", help="where everything is built")
    parser.add_argument("--logs", type=Path, help="folder; else one in the target")
    parser.add_argument("--json", type=Path, help="file for all measurements")
    options = parser.parse_args()
    unknown = set(options.what) - set(FIGURES)
    if unknown:
        parser.error(f"what: {' '.join(sorted(unknown))}: one of {', '.join(FIGURES)} is needed")
    target = options.target.resolve()
    options.load = target / "release/router-load"
    options.logs = options.logs or target / "python/vs-router"
    options.logs.mkdir(parents=True, exist_ok=True)
    raise_descriptor_limit()
    bench = Bench(options, programs(options, target))
    print(f"load average {load_average():.2f}", flush=True)
    for name in options.what or FIGURES:
        {"rate": rate, "added": added, "held": held, "killed": killed}[name](bench)
    missed = report(bench)
    if options.json:
        options.json.write_text(json.dumps({"machine": description(), "figures": bench.found}, indent=1) + "\n")
    sys.exit(1 if missed else 0)


def programs(options: argparse.Namespace, target: Path) -> dict[str, Path]:
    """What can be started here, by name."""
    found = {OURS: target / "release/kvstored"}
    wanted = [name for name in (ROUTER, EXAMPLE) if name not in options.without]
    try:
        if wanted:
            found["python"] = environment(target / "python")
        if ROUTER in wanted:
            found[ROUTER] = found["python"]
    except Unavailable as error:
        print(f"left out: {' and '.join(wanted)}: {error}", flush=True)
        return found
    if EXAMPLE in wanted:
        try:
            found[EXAMPLE] = example(target / "python", options.example)
        except Unavailable as error:
            print(f"left out: the example: {error}", flush=True)
    return found


if __name__ == "__main__":
    main()
