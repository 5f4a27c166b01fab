"""How fast several requests decode at once while what they computed is being stored, with and without the connector."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from contenders import WORDS, Contender, Field, Setting
from figures import Spread, ratios, table
from lab import prompt
from machine import load_average, wait_until_quiet

REACH = 0.98


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=4, help="how many at once")
    parser.add_argument("--input-tokens", type=int, default=1000)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=["plain", "async", "layerwise"])


def run(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Measures, all contenders in turn in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in options.contenders}
    dumped: dict[str, float] = {}
    with Field(options.contenders, setting) as contest:
        loads = [wait_until_quiet()]
        for number in range(options.rounds):
            for contender in contest.in_turn(number):
                speeds[contender.name].append(_decode(contender, options, number))
                contender.settle()
            latest = ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items())
            print(f"round {number}: {latest} tokens/s", flush=True)
        loads.append(load_average())
        for contender in contest.in_turn():
            dumped[contender.name] = contender.server.metrics().total("vllm:kvstored_dumped_blocks_total")
    return {
        "load_averages": loads,
        "requests": options.requests,
        "input_tokens": options.input_tokens,
        "output_tokens": options.output_tokens,
        "dumped_blocks": dumped,
        "tokens_per_second": speeds,
    }


def report(result: dict[str, Any]) -> str:
    """A table of one run."""
    speeds = result["tokens_per_second"]
    rows = [
        (
            WORDS[name],
            Spread.of(values).shown(digits=1),
            ratios(values, speeds["plain"]).shown(digits=3),
            f"{result['dumped_blocks'][name]:.0f}",
        )
        for name, values in speeds.items()
    ]
    parts = [table(("", "tokens/s", "ratio to none", "blocks stored"), rows)]
    parts.append(f"load averages: {result['load_averages']}")
    parts += [f"missed: {words}" for words in missed(result)]
    return "\n\n".join(parts)


def missed(result: dict[str, Any]) -> list[str]:
    """Which figures aren't reached."""
    speeds = result["tokens_per_second"]
    medians = {name: ratios(values, speeds["plain"]).median for name, values in speeds.items() if name != "plain"}
    return [f"{name}: {ratio:.4f} instead of {REACH}" for name, ratio in medians.items() if ratio < REACH]


def _decode(contender: Contender, options: argparse.Namespace, number: int) -> float:
    """Tokens per second of all requests together, from the first token of any to the last of all."""
    prompts = [prompt(options.input_tokens, seed=number * 100 + index) for index in range(options.requests)]
    with ThreadPoolExecutor(options.requests) as pool:
        done = list(pool.map(lambda tokens: contender.server.complete(tokens, options.output_tokens), prompts))
    # they began together: what a thread is late is nothing to what is measured
    began = min(completion.first_token_seconds for completion in done)
    ended = max(completion.total_seconds for completion in done)
    return sum(len(completion.token_ids) for completion in done) / (ended - began)
