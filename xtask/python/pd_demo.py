"""Prefill apart from decode, in real vLLM instances on this machine, beside one instance that does both.

Run by `cargo xtask pd-demo`, which builds what this needs and puts the tests' `lab` on the path.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import VllmServer, make_model, prompt, vllm_python
from lab.deployment import (
    CONCURRENCY,
    ENGINE_ENVIRONMENT,
    SCENARIOS,
    Deployment,
    Scenario,
    complete_all,
    server_arguments,
)
from lab.serving_bench import Figures, Load, bench_command, run_bench

# several scenarios of the command line are one deployment after the other
NAMES = {"dense": ["dense"], "moe": ["moe"], "hetero": ["hetero-2-1", "hetero-1-2"]}
VLLM = shlex.join([str(vllm_python()), "-m", "vllm.entrypoints.cli.main"])
# room for all prompts and their answers at once
KV_CACHE_BYTES = 512 << 20
CHECKED_PROMPTS = 16
CHECKED_TOKENS = 24


@dataclass(frozen=True)
class Column:
    """One run of the benchmark."""

    title: str
    figures: Figures
    own_hits: int
    """Prompt tokens found in the prefix caches of the instances that compute prompts."""
    stored_hits: int
    """Those found in kvstored."""
    moved_bytes: int
    """What decode instances pulled."""
    failed_pulls: int
    """Prompts that decode instances couldn't pull, and computed."""
    held_blocks: int
    """Blocks that are kept for decode instances when all is over."""


def main() -> None:
    """Runs the demonstration; exits with an error when tokens differ or anything is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True, help="the kvstored program")
    parser.add_argument("--models", type=Path, required=True, help="folder that keeps made models")
    parser.add_argument("--scenario", choices=sorted(NAMES))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--input-tokens", type=int, default=2000)
    parser.add_argument("--output-tokens", type=int, default=32)
    options = parser.parse_args()
    load = Load(options.prompts, options.input_tokens, options.output_tokens)
    chosen = NAMES[options.scenario] if options.scenario else [name for names in NAMES.values() for name in names]
    complaints: list[str] = []
    tables: list[str] = []
    plain: dict[str, tuple[list[list[int]], list[Column]]] = {}
    for name in chosen:
        scenario = SCENARIOS[name]
        model = make_model(
            options.models / model_name(options.preset, scenario), options.preset, family=scenario.family
        )
        folder = Path(tempfile.mkdtemp(prefix="kvstored-pd-"))
        try:
            if scenario.family not in plain:
                plain[scenario.family] = one_instance(scenario, model, folder, load)
            expected, single = plain[scenario.family]
            columns, different = apart(scenario, model, folder, load, expected, options.binary)
        except BaseException:
            shutil.rmtree(folder / "blocks", ignore_errors=True)
            print(f"\nlogs: {folder}", file=sys.stderr)
            raise
        shutil.rmtree(folder)
        complaints += judge(name, columns, different, load)
        same = f"{len(expected) - different} of {len(expected)} answers through the proxy equal one instance's"
        tables.append(f"{title(scenario, options.preset, load)}\n{same}\n{table([*single, *columns])}")
    print("\n" + "\n\n".join(tables))
    if complaints:
        sys.exit("\n".join(complaints))


def model_name(preset: str, scenario: Scenario) -> str:
    """Of the model's folder."""
    parts = [preset, "float32"] if scenario.family == "llama" else [preset, scenario.family, "float32"]
    return "-".join(parts)


def checked_prompts() -> list[list[int]]:
    """What is asked besides the benchmark, to compare tokens: some with a beginning in common."""
    shared = prompt(400, seed=1)
    return [
        [*shared[: 400 * (index % 2)], *prompt(150 + 50 * index, seed=100 + index)] for index in range(CHECKED_PROMPTS)
    ]


def one_instance(scenario: Scenario, model: Path, folder: Path, load: Load) -> tuple[list[list[int]], list[Column]]:
    """The tokens of one instance without anything of ours, and its figures cold and with its own prefix cache."""
    server = VllmServer(
        model,
        log=folder / "one.log",
        max_model_tokens=17_000,
        kv_cache_bytes=KV_CACHE_BYTES,
        arguments=server_arguments(scenario),
        environment=ENGINE_ENVIRONMENT,
    )
    show(server.command)
    with server:
        answers = complete_all(server.port, checked_prompts(), CHECKED_TOKENS)
        columns = []
        for name in ("cold", "again"):
            before = server.metrics().prefix_cache()
            figures = bench(server.port, model, load, folder / f"one-{name}.json")
            found = server.metrics().prefix_cache() - before
            columns.append(Column(f"one, {name}", figures, found.local_hits, found.external_hits, 0, 0, 0))
    return [one.token_ids for one in answers], columns


def apart(
    scenario: Scenario, model: Path, folder: Path, load: Load, expected: Sequence[Sequence[int]], binary: Path
) -> tuple[list[Column], int]:
    """Figures of the deployment, cold and from the stored prefixes, and how many answers are other than expected."""
    deployment = Deployment(scenario, model, folder=folder, binary=binary, kv_cache_bytes=KV_CACHE_BYTES)
    for part in (deployment.daemon, deployment.master, *deployment.servers, deployment.proxy):
        show(part.command)
    with deployment:
        answers = deployment.complete_all(checked_prompts(), CHECKED_TOKENS)
        different = sum(one.token_ids != wanted for one, wanted in zip(answers, expected, strict=True))
        columns = []
        for name in ("cold", "again"):
            # what is found then is found in kvstored
            deployment.settle()
            deployment.forget()
            before = deployment.counts()
            figures = bench(deployment.proxy.port, model, load, folder / f"apart-{name}.json")
            after = deployment.settle()
            columns.append(
                Column(
                    f"apart, {name}",
                    figures,
                    after.own_hits - before.own_hits,
                    after.stored_hits - before.stored_hits,
                    after.moved_bytes - before.moved_bytes,
                    after.failed_pulls - before.failed_pulls,
                    after.held_blocks,
                )
            )
    return columns, different


def bench(port: int, model: Path, load: Load, result: Path) -> Figures:
    """Runs vLLM's benchmark and shows the command."""
    command = bench_command(port, model, load, result)
    show(command)
    return run_bench(command, result)


def show(command: Sequence[str]) -> None:
    """Prints a command as one would type it."""
    print(f"\n$ {shlex.join(command).replace(VLLM, 'vllm')}", flush=True)


def judge(name: str, columns: Sequence[Column], different: int, load: Load) -> list[str]:
    """What isn't as it should be."""
    complaints = []
    if different:
        complaints.append(f"{name}: {different} answers differ from one instance's")
    for column in columns:
        if column.figures.completed != load.prompts:
            complaints.append(f"{name}: {column.title}: only {column.figures.completed} requests were answered")
        if column.failed_pulls:
            complaints.append(f"{name}: {column.title}: {column.failed_pulls} prompts couldn't be pulled")
        if column.held_blocks:
            complaints.append(f"{name}: {column.title}: {column.held_blocks} blocks are still kept at the end")
        if column.moved_bytes == 0:
            complaints.append(f"{name}: {column.title}: nothing moved to the decode instances")
    if columns[-1].stored_hits == 0:
        complaints.append(f"{name}: the second run found nothing in kvstored")
    return complaints


def title(scenario: Scenario, preset: str, load: Load) -> str:
    """What the table is about."""
    sides = []
    for role, group in (("prefill", scenario.prefill), ("decode", scenario.decode)):
        sides.append(f"{group.instances} {role} (dp {group.data_parallel}, tp {group.tensor_parallel})")
    return (
        f"{scenario.name}: {' → '.join(sides)}; model {preset} ({scenario.family}), float32; {load.prompts} prompts of "
        f"{load.input_tokens:,} tokens at once, {load.output_tokens} tokens each (compared: {CONCURRENCY} at once)"
    )


ROWS: list[tuple[str, Callable[[Column], str]]] = [
    ("time to first token, mean ms", lambda one: f"{one.figures.first_token_ms:.0f}"),
    ("time of each further token, mean ms", lambda one: f"{one.figures.each_token_ms:.1f}"),
    ("output tokens/s", lambda one: f"{one.figures.output_tokens_per_second:.1f}"),
    ("requests/s", lambda one: f"{one.figures.requests_per_second:.2f}"),
    ("prompt tokens found in vLLM", lambda one: f"{one.own_hits:,}"),
    ("prompt tokens found in kvstored", lambda one: f"{one.stored_hits:,}"),
    ("MiB moved to decode instances", lambda one: f"{one.moved_bytes / (1 << 20):.1f}"),
    ("blocks kept at the end", lambda one: f"{one.held_blocks}"),
]


def table(columns: Sequence[Column]) -> str:
    """All runs side by side."""
    rows = [("", *(column.title for column in columns))]
    rows += [(name, *(cell(column) for column in columns)) for name, cell in ROWS]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns) + 1)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(part.rjust(width) for part, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    main()
