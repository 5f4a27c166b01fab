"""The same prompts to a real vLLM twice, restarted in between: the second time, their KV blocks come from kvstored.

Run by `cargo xtask vllm-demo`, which builds what this needs and puts the tests' `lab` on the path.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab import MODEL_NAME, Daemon, VllmServer, make_model, prompt, vllm_environment, vllm_python
from lab.metrics import PrefixCache

# a configuration file of UCM, as its users have it
CONFIGURATION = """\
ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "{storage}"
      cache_buffer_capacity_gb: 64
enable_event_sync: true
use_layerwise: true
"""
SEED = 123456
VLLM = [str(vllm_python()), "-m", "vllm.entrypoints.cli.main"]
FIGURES = {"mean": "mean_ttft_ms", "median": "median_ttft_ms", "p99": "p99_ttft_ms"}


@dataclass(frozen=True)
class Run:
    """What one run of the benchmark measured."""

    first_token_ms: dict[str, float]
    prompt_tokens: int
    completed: int
    found: PrefixCache


def main() -> None:
    """Runs the demonstration; exits with an error when the second run found nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True, help="the kvstored program")
    parser.add_argument("--models", type=Path, required=True, help="folder that keeps made models")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--input-tokens", type=int, default=4000)
    parser.add_argument("--output-tokens", type=int, default=8)
    options = parser.parse_args()
    model = make_model(options.models / f"{options.preset}-float32", options.preset)
    folder = Path(tempfile.mkdtemp(prefix="kvstored-vllm-demo-"))
    try:
        cold, warm = serve_twice(options, model, folder)
    except BaseException:
        shutil.rmtree(folder / "blocks", ignore_errors=True)
        print(f"\nlogs: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(f"\n{table(options, cold, warm)}")
    for name, run in (("first", cold), ("second", warm)):
        if run.completed != options.prompts:
            sys.exit(f"only {run.completed} of {options.prompts} requests of the {name} run were answered")
    if warm.found.external_hits == 0:
        sys.exit("the second run found nothing outside vLLM")


def serve_twice(options: argparse.Namespace, model: Path, folder: Path) -> tuple[Run, Run]:
    """One daemon, one server after the other."""
    configuration = folder / "ucm_config_example.yaml"
    with Daemon(binary=options.binary, folder=folder, cache_capacity="1GiB", posix_capacity="8GiB") as daemon:
        show(daemon.command)
        configuration.write_text(CONFIGURATION.format(storage=daemon.storage))
        transfer = {
            "kv_connector": "UCMConnector",
            "kv_role": "kv_both",
            "kv_connector_module_path": "kvstored.vllm",
            "kv_connector_extra_config": {"UCM_CONFIG_FILE": str(configuration)},
        }
        runs = []
        for name in ("first", "second"):
            server = VllmServer(
                model,
                log=folder / f"vllm-{name}.log",
                kv_transfer=transfer,
                kv_cache_bytes=1 << 30,
                environment=daemon.client_environment,
            )
            show(server.command)
            with server:
                runs.append(measure(options, server, folder / f"{name}.json"))
            daemon.drain()
        return runs[0], runs[1]


def measure(options: argparse.Namespace, server: VllmServer, result: Path) -> Run:
    """Runs vLLM's own benchmark against the server."""
    # a server's first request is slow, whatever it is
    server.complete(prompt(200, seed=SEED), 2)
    before = server.metrics().prefix_cache()
    settings = {
        "--backend": "vllm",
        "--base-url": server.address(),
        "--model": MODEL_NAME,
        "--tokenizer": server.model,
        "--seed": SEED,
        "--dataset-name": "random",
        "--num-prompts": options.prompts,
        "--random-input-len": options.input_tokens,
        "--random-output-len": options.output_tokens,
        # one after the other, so that the time until the first token is not that of a queue
        "--max-concurrency": 1,
        "--percentile-metrics": "ttft",
        "--metric-percentiles": "99",
        "--result-dir": result.parent,
        "--result-filename": result.name,
    }
    command = [*VLLM, "bench", "serve"]
    command += [str(part) for setting in settings.items() for part in setting]
    command += ["--ignore-eos", "--save-result", "--disable-tqdm"]
    show(command)
    with (result.with_suffix(".log")).open("w") as log:
        subprocess.run(command, check=True, env=vllm_environment(), stdout=log, stderr=log, timeout=3600)
    figures = json.loads(result.read_text())
    return Run(
        first_token_ms={name: float(figures[key]) for name, key in FIGURES.items()},
        prompt_tokens=int(figures["total_input_tokens"]),
        completed=int(figures["completed"]),
        found=server.metrics().prefix_cache() - before,
    )


def show(command: list[str]) -> None:
    """Prints a command as one would type it."""
    line = shlex.join(command).replace(shlex.join(VLLM), "vllm")
    print(f"\n$ {line}", flush=True)


def table(options: argparse.Namespace, cold: Run, warm: Run) -> str:
    """Both runs side by side."""
    rows = [("", "first run", "after restart", "ratio")]
    for name in FIGURES:
        before, after = cold.first_token_ms[name], warm.first_token_ms[name]
        ratio = f"{before / after:.1f}x" if after > 0 else ""
        rows.append((f"time to first token, {name}", f"{before:.1f} ms", f"{after:.1f} ms", ratio))
    for title, count in (
        ("prompt tokens", lambda run: run.prompt_tokens),
        ("found in vLLM's own cache", lambda run: run.found.local_hits),
        ("found in kvstored", lambda run: run.found.external_hits),
    ):
        rows.append((title, f"{count(cold):,}", f"{count(warm):,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3))]).rstrip()
        for row in rows
    ]
    title = f"{options.prompts} prompts of {options.input_tokens:,} tokens, model {options.preset}, float32"
    return "\n".join([title, *lines])


if __name__ == "__main__":
    main()
