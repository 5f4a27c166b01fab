"""Requests of a trace: how much of the prompts is found, and time to the first token, under equal caps."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

from contenders import WORDS, Field, Setting
from figures import table
from machine import load_average, wait_until_quiet
from trace_requests import read_trace

TRACE = Path(__file__).resolve().parents[3] / "shared/traces/conversation_trace.jsonl"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--trace", type=Path, default=TRACE, help="one JSON object a line: input_length, hash_ids")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--block-tokens", type=int, default=32, help="what 512 tokens of the trace become")
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--disk-mib", type=int, default=1024)
    parser.add_argument("--own-mib", type=int, default=80, help="vLLM's own KV cache")
    parser.add_argument("--most-tokens", type=int, default=8000, help="longer prompts are cut")
    parser.add_argument(
        "--contenders", type=lambda text: text.split(","), default=["plain", "async", "offloading", "lmcache"]
    )


def run(options: argparse.Namespace, setting: Setting) -> dict[str, Any] | None:
    """Measures, one request at a time, each of them sent to all contenders in turn. None without a trace."""
    if not options.trace.is_file():
        print(f"replay: left out, there is no trace at {options.trace}", flush=True)
        return None
    setting = dataclasses.replace(
        setting,
        memory_bytes=options.memory_mib << 20,
        disk_bytes=options.disk_mib << 20,
        block_tokens=options.block_tokens,
        max_model_tokens=options.most_tokens + 192,
        kv_cache_bytes=options.own_mib << 20,
        warm_up_tokens=500,
    )
    requests = list(
        read_trace(options.trace, options.requests, block_tokens=options.block_tokens, most_tokens=options.most_tokens)
    )
    seconds: dict[str, list[float]] = {name: [] for name in options.contenders}
    cached: dict[str, list[int]] = {name: [] for name in options.contenders}
    own: dict[str, int] = {}
    disk: dict[str, int] = {}
    different = 0
    with Field(options.contenders, setting) as contest:
        options.contenders = [contender.name for contender in contest.contenders]
        loads = [wait_until_quiet()]
        before = {c.name: c.server.metrics().prefix_cache() for c in contest.in_turn()}
        most: dict[str, int] = dict.fromkeys(options.contenders, 0)
        for number, request in enumerate(requests):
            first: list[int] | None = None
            for contender in contest.in_turn(number):
                completion = contender.server.complete(request.tokens, 2)
                seconds[contender.name].append(completion.first_token_seconds)
                cached[contender.name].append(completion.cached_tokens or 0)
                first = first or completion.token_ids
                different += first != completion.token_ids
            if number % 50 == 49:
                loads.append(load_average())
                for contender in contest.in_turn():
                    most[contender.name] = max(most[contender.name], contender.disk_bytes())
                shown = ", ".join(f"{n} {_hit(cached[n], requests):.3f}" for n in options.contenders)
                print(f"{number + 1} requests: {shown}", flush=True)
        time.sleep(2.0)
        for contender in contest.in_turn():
            own[contender.name] = (contender.server.metrics().prefix_cache() - before[contender.name]).local_hits
            disk[contender.name] = max(most[contender.name], contender.disk_bytes())
    return {
        "load_averages": loads,
        "requests": len(requests),
        "prompt_tokens": sum(len(request.tokens) for request in requests),
        "reusable_tokens": sum(request.reusable_tokens for request in requests),
        "caps": {"memory_mib": options.memory_mib, "disk_mib": options.disk_mib, "own_mib": options.own_mib},
        "different_tokens": different,
        "own_hits": own,
        "disk_bytes": disk,
        "cached_tokens": {name: cached[name] for name in options.contenders},
        "seconds": {name: seconds[name] for name in options.contenders},
    }


def report(result: dict[str, Any]) -> str:
    """A table of one run."""
    total = result["prompt_tokens"]
    rows = []
    for name, seconds in result["seconds"].items():
        found = sum(result["cached_tokens"][name])
        rows.append(
            (
                WORDS[name],
                f"{found / total:.3f}",
                f"{result['own_hits'][name] / total:.3f}",
                f"{statistics.mean(seconds) * 1e3:.0f}",
                f"{statistics.median(seconds) * 1e3:.0f}",
                f"{result['disk_bytes'][name] / (1 << 20):.0f}",
            )
        )
    header = ("", "hit ratio", "of it in vLLM's own cache", "mean, ms", "median, ms", "most on disk, MiB")
    caps = result["caps"]
    return "\n\n".join(
        [
            table(header, rows),
            f"{result['requests']} requests, {total} prompt tokens, {result['reusable_tokens'] / total:.3f} of them "
            f"in earlier prompts; caps: {caps}",
            f"answers with other tokens: {result['different_tokens']}; load averages: {result['load_averages']}",
        ]
    )


def missed(result: dict[str, Any]) -> list[str]:
    """Nothing: these figures are compared, not judged."""
    return []


def _hit(cached: list[int], requests: list[Any]) -> float:
    return sum(cached) / max(sum(len(request.tokens) for request in requests[: len(cached)]), 1)
