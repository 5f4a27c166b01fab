"""Time to the first token: computed, found in memory, and found on disk, of all contenders side by side."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

from contenders import OURS, WORDS, Contender, Field, Setting
from figures import Spread, ratios, table
from lab import Completion, prompt
from machine import drop_page_cache, load_average, wait_until_quiet

OUTPUT_TOKENS = 8
PHASES = ("cold", "local", "memory", "disk")
#: The figures that are to be reached, as ratios of medians to vLLM without a connector, for the longest prompt.
REACH = {"cold": 1.02, "memory": 0.04, "disk": 0.08}


@dataclass
class Measured:
    """Of one contender and one length of prompt."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    cached_tokens: dict[str, list[int]] = field(default_factory=lambda: {phase: [] for phase in PHASES})


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=_numbers, default=[8000, 2000], help="tokens of the prompts")
    parser.add_argument("--contenders", type=_names, default=list(WORDS), help=", ".join(WORDS))
    parser.add_argument("--no-disk", action="store_true", help="leave out the restart and the loads from disk")


def run(options: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Measures; the result holds every single measurement."""
    measured = {name: {length: Measured() for length in options.lengths} for name in options.contenders}
    answers: dict[tuple[int, int], list[int]] = {}
    different: list[str] = []

    def ask(contender: Contender, length: int, number: int, phase: str) -> Completion:
        completion = contender.server.complete(_prompt(length, number), OUTPUT_TOKENS)
        into = measured[contender.name][length]
        into.seconds[phase].append(completion.first_token_seconds)
        into.cached_tokens[phase].append(completion.cached_tokens or 0)
        if answers.setdefault((length, number), completion.token_ids) != completion.token_ids:
            different.append(f"{contender.name} {phase} {length} round {number}")
        return completion

    loads = []
    with Field(options.contenders, setting) as contest:
        options.contenders = [contender.name for contender in contest.contenders]
        loads.append(wait_until_quiet())
        for number in range(options.rounds):
            for length in options.lengths:
                for contender in contest.in_turn(number):
                    ask(contender, length, number, "cold")
                    contender.settle()
                    ask(contender, length, number, "local")
                    contender.server.reset_prefix_cache()
                    if contender.name != "plain":
                        time.sleep(0.5)
                        ask(contender, length, number, "memory")
                        contender.settle()
            print(f"round {number}: {_line(measured, options)}", flush=True)
        loads.append(load_average())
        counters = _counters(contest)
        dropped = None
        if not options.no_disk:
            contest.restart("plain")
            loads.append(wait_until_quiet())
            for number in range(options.rounds):
                for length in options.lengths:
                    for contender in contest.in_turn(number):
                        if contender.name == "plain":
                            continue
                        dropped = drop_page_cache()
                        time.sleep(0.5)
                        ask(contender, length, number, "disk")
                        contender.settle()
            loads.append(load_average())
    return {
        "load_averages": loads,
        "page_cache_dropped": dropped,
        "different_tokens": different,
        "counters": counters,
        "measured": {
            name: {str(length): vars(values) for length, values in measured[name].items()}
            for name in options.contenders
        },
    }


def report(result: dict[str, Any]) -> str:
    """Tables of one run."""
    parts = []
    lengths = sorted({int(length) for values in result["measured"].values() for length in values}, reverse=True)
    for length in lengths:
        rows = [_row(name, values[str(length)], result, length) for name, values in result["measured"].items()]
        header = ("", "cold, ms", "ratio to none", "own cache, ms", "memory, ms", "to cold", "disk, ms", "to cold")
        parts.append(f"{length} tokens\n\n{table(header, rows)}")
    different = result["different_tokens"]
    parts.append(f"other tokens than the first answer: {', '.join(different) if different else 'none'}")
    parts.append(f"load averages: {result['load_averages']}, page cache dropped: {result['page_cache_dropped']}")
    parts += [f"missed: {words}" for words in missed(result)]
    return "\n\n".join(parts)


def missed(result: dict[str, Any]) -> list[str]:
    """Which of our figures aren't reached."""
    found = []
    length = max((length for values in result["measured"].values() for length in values), key=int, default="0")
    for name in OURS:
        if name not in result["measured"] or "plain" not in result["measured"]:
            continue
        cold = result["measured"]["plain"][length]["seconds"]["cold"]
        for phase, limit in REACH.items():
            values = result["measured"][name][length]["seconds"][phase]
            ratio = _to_cold(values, cold, phase)
            if values and ratio > limit:
                found.append(f"{name}, {phase}, {length} tokens: {ratio:.4f} instead of {limit}")
    return found


def _to_cold(values: list[float], cold: list[float], phase: str) -> float:
    if phase == "cold":
        return ratios(values, cold).median
    return Spread.of(values).median / Spread.of(cold).median


def _row(name: str, values: dict[str, Any], result: dict[str, Any], length: int) -> tuple[str, ...]:
    reference = result["measured"].get("plain", result["measured"][name])[str(length)]["seconds"]["cold"]
    seconds = values["seconds"]
    cells = [WORDS[name], Spread.of(seconds["cold"]).shown(1e3)]
    cells.append(ratios(seconds["cold"], reference).shown(digits=3))
    cells.append(Spread.of(seconds["local"]).shown(1e3))
    for phase in ("memory", "disk"):
        spread = Spread.of(seconds[phase])
        if name == "plain" or not spread.count:
            cells += ["", ""]
            continue
        hits = Spread.of(values["cached_tokens"][phase])
        lacking = "" if hits.lowest >= length - 256 else f", only {hits.median:.0f} tokens found"
        cells += [spread.shown(1e3) + lacking, f"{spread.median / Spread.of(reference).median:.4f}"]
    return tuple(cells)


def _line(measured: dict[str, dict[int, Measured]], options: argparse.Namespace) -> str:
    parts = []
    for name in options.contenders:
        for length in options.lengths:
            seconds = measured[name][length].seconds
            latest = (f"{(seconds[phase] or [math.nan])[-1] * 1e3:.0f}" for phase in PHASES[:3])
            parts.append(f"{name}/{length} {'/'.join(latest)}")
    return ", ".join(parts)


def _counters(contest: Field) -> dict[str, dict[str, float]]:
    """Our connector's own counts and sums."""
    found: dict[str, dict[str, float]] = {}
    for contender in contest.in_turn():
        values: dict[str, float] = {}
        for sample in contender.server.metrics().samples:
            if sample.name.startswith("vllm:kvstored_") and not sample.name.endswith(("_bucket", "_created")):
                labels = {key: value for key, value in sample.labels.items() if key not in ("engine", "model_name")}
                if sample.value:
                    values[sample.name[14:] + (json.dumps(labels) if labels else "")] = sample.value
        if values:
            found[contender.name] = values
    return found


def _prompt(length: int, number: int) -> list[int]:
    return prompt(length, seed=length * 1000 + number)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in WORDS:
            raise argparse.ArgumentTypeError(f"{name}: expected some of {', '.join(WORDS)}")
    return names
