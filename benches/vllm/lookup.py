"""How long the scheduler waits for a lookup of a long prompt: in a real scheduler's process, and alone."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from contenders import Setting, kvstored
from figures import Spread, table
from lab import InProcessEngine, prompt, vllm_environment, vllm_python
from machine import load_average, wait_until_quiet

REACH_SECONDS = 200e-6
BLOCK_TOKENS = 128
BLOCK_BYTES = 1 << 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=11, help="of the engine")
    parser.add_argument("--alone", type=int, default=2000, help="lookups without an engine")


def run(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Measures in an engine, then without one in a process of its own."""
    loads = [wait_until_quiet()]
    result: dict[str, Any] = {"engine": _in_engine(options, setting)}
    loads.append(wait_until_quiet())
    result["server"] = _in_server(options, setting)
    loads.append(wait_until_quiet())
    path = ([str(setting.package)] if setting.package else []) + [str(Path(__file__).parent)]
    tests = Path(__file__).resolve().parents[2] / "python" / "tests"
    code = (
        "import json, lookup; "
        f"print('result', json.dumps(lookup.alone({options.tokens}, {options.alone}, {str(setting.folder)!r})))"
    )
    answer = subprocess.run(
        [str(vllm_python()), "-P", "-W", "ignore", "-c", code],
        env=vllm_environment({"PYTHONPATH": ":".join([*path, str(tests)])}),
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    ).stdout
    line = next(line for line in answer.splitlines() if line.startswith("result "))
    loads.append(load_average())
    return {"load_averages": loads, "tokens": options.tokens, **result, "alone": json.loads(line[7:])}


def report(result: dict[str, Any]) -> str:
    """A table of one run."""
    rows = []
    for name, values in _all(result).items():
        rows.append((name, Spread.of(values).shown(1e6, digits=0), str(len(values))))
    for name, sums in result["server"].items():
        mean = sums["seconds"] / max(sums["count"], 1) * 1e6
        rows.append((f"in a server, {name}, the histogram's mean", f"{mean:.0f}", f"{sums['count']:.0f}"))
    parts = [table((f"lookup of {result['tokens']} tokens", "µs", "lookups"), rows)]
    parts.append(f"load averages: {result['load_averages']}")
    parts += [f"missed: {words}" for words in missed(result)]
    return "\n\n".join(parts)


def missed(result: dict[str, Any]) -> list[str]:
    """Which figures aren't reached."""
    medians = {name: Spread.of(values).median for name, values in _all(result).items()}
    return [f"{name}: {value * 1e6:.0f} µs instead of 200" for name, value in medians.items() if value > REACH_SECONDS]


def alone(tokens: int, lookups: int, folder: str) -> dict[str, list[float]]:
    """Seconds of the scheduler side's lookups over an embedded store that has all blocks, or none."""
    import numpy as np
    from kvstored import Identity, Layout, Store
    from kvstored.vllm.configuration import ConnectorSettings
    from kvstored.vllm.governor import Governor
    from kvstored.vllm.measures import Accumulator
    from kvstored.vllm.metadata import Variant
    from kvstored.vllm.namespaces import RankNamespaces
    from kvstored.vllm.scheduler import SchedulerSide

    blocks = tokens // BLOCK_TOKENS
    options = {
        "pipeline": "Cache|Posix",
        "storage_backends": f"{folder}/alone",
        "cache_buffer_capacity": "256MiB",
        "posix_capacity": "1GiB",
    }
    store = Store.embedded(options)
    access: Any = _Open(store)
    layout = Layout.uniform(8, 1, BLOCK_BYTES // 8)
    namespaces = RankNamespaces(access, Identity(model="bench", block_tokens=BLOCK_TOKENS), [layout], [0])
    side = SchedulerSide(
        ConnectorSettings(),
        namespaces,
        Governor(),
        Accumulator(),
        block_tokens=BLOCK_TOKENS,
        hashes_per_block=1,
        loads=True,
        dumps=True,
    )
    hashes = [hashlib.sha256(f"{tokens} {index}".encode()).digest() for index in range(blocks)]
    memory = np.ones((blocks, 8, BLOCK_BYTES // 8), dtype=np.uint8)
    bases = memory.ctypes.data + np.arange(blocks * 8, dtype=np.uint64) * np.uint64(BLOCK_BYTES // 8)
    report = namespaces.ranks[0].get(Variant()).dump(hashes, bases.reshape(blocks, 8)).wait(30.0)
    assert report.all_done, report
    missing = [hashlib.sha256(f"missing {index}".encode()).digest() for index in range(blocks)]
    seconds: dict[str, list[float]] = {"all found": [], "nothing found": []}
    for number in range(lookups):
        for name, wanted in (("all found", hashes), ("nothing found", missing)):
            request = SimpleNamespace(
                request_id=f"{name} {number}",
                num_tokens=tokens,
                num_computed_tokens=0,
                block_hashes=wanted,
                lora_request=None,
                cache_salt=None,
                status=SimpleNamespace(name="RUNNING"),
            )
            began = time.perf_counter()
            found, _ = side.matched_tokens(request, 0)
            seconds[name].append(time.perf_counter() - began)
            assert found == (blocks * BLOCK_TOKENS if wanted is hashes else 0), found
            side.finished(request)
    store.close()
    return seconds


class _Open:
    """A store that is always there, as the namespaces ask for it."""

    generation = 1

    def __init__(self, store: Any) -> None:
        self._store = store
        self.tier_names: list[str] = store.tier_names

    def get(self) -> Any:
        """The store."""
        return self._store

    def succeeded(self) -> None:
        """Nobody has to know."""

    def failed(self, error: Exception) -> None:
        """Ends the bench."""
        raise error


def _in_engine(options: argparse.Namespace, setting: Setting) -> dict[str, list[float]]:
    transfer = kvstored(setting, "engine").transfer
    found: dict[str, list[float]] = {"cold": [], "found": []}
    folders = [Path(__file__).parent] + ([setting.package] if setting.package else [])
    engine = InProcessEngine(
        setting.model, log=setting.folder / "engine.log", kv_transfer=transfer, python_path=folders
    )
    with engine:
        for seed in (1, 1, 2, 2):
            _forgotten(engine, options.tokens, seed)
        engine.run("lookup_probe:install")
        for number in range(options.rounds):
            for name in ("cold", "found"):
                _forgotten(engine, options.tokens, 100 + number)
                sample = next(s for s in engine.run("lookup_probe:take") if s["tokens"] == options.tokens)
                found[name].append(sample["seconds"])
                _check(sample["found"], options.tokens if name == "found" else 0)
    return found


def _forgotten(engine: InProcessEngine, tokens: int, seed: int) -> None:
    """Asks for a prompt that is then in no cache but ours."""
    engine.generate_one(prompt(tokens, seed=seed), 2)
    time.sleep(0.3)
    # a step in which the engine learns that the prompt's blocks are stored
    engine.generate_one(prompt(8, seed=seed), 2)
    engine.reset_prefix_cache()


def _check(found: float, tokens: int) -> None:
    expected = max(tokens - 1, 0) // BLOCK_TOKENS * BLOCK_TOKENS
    if found != expected:
        raise RuntimeError(f"{found} tokens were found instead of {expected}")


def _in_server(options: argparse.Namespace, setting: Setting) -> dict[str, dict[str, float]]:
    """The connector's own histogram of a server's scheduler, which has a process of its own: sums and counts."""
    contender = kvstored(setting, "server")
    measured = {name: {"seconds": 0.0, "count": 0.0} for name in ("cold", "found")}
    try:
        contender.start()
        before = contender.server.metrics()
        for number in range(options.rounds):
            for name, sums in measured.items():
                completion = contender.server.complete(prompt(options.tokens, seed=100 + number), 2)
                _check(completion.cached_tokens or 0, options.tokens if name == "found" else 0)
                contender.settle()
                contender.server.reset_prefix_cache()
                after = contender.server.metrics()
                for key, kind in (("seconds", "sum"), ("count", "count")):
                    metric = f"vllm:kvstored_lookup_seconds_{kind}"
                    sums[key] += after.total(metric) - before.total(metric)
                before = after
    finally:
        contender.stop()
    return measured


def _all(result: dict[str, Any]) -> dict[str, list[float]]:
    named = {f"in the engine, {name}": values for name, values in result["engine"].items()}
    return named | {f"alone, {name}": values for name, values in result["alone"].items()}
