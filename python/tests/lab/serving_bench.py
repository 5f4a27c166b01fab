"""`vllm bench serve`: vLLM's own benchmark of a server."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .completions import MODEL_NAME
from .vllm_environment import vllm_environment, vllm_python

SEED = 123456
_VLLM = [str(vllm_python()), "-m", "vllm.entrypoints.cli.main"]


@dataclass(frozen=True)
class Load:
    """What is asked: random prompts, all at once."""

    prompts: int = 10
    input_tokens: int = 2000
    output_tokens: int = 32


@dataclass(frozen=True)
class Figures:
    """What one run measured."""

    completed: int
    failed: int
    first_token_ms: float
    """Mean time to the first token."""
    each_token_ms: float
    """Mean time of each further token."""
    output_tokens_per_second: float
    requests_per_second: float


def bench_command(port: int, model: Path, load: Load, result: Path) -> list[str]:
    """The command, as a user would type it."""
    settings = {
        "--backend": "vllm",
        "--model": MODEL_NAME,
        "--tokenizer": model,
        "--host": "127.0.0.1",
        "--port": port,
        "--seed": SEED,
        "--dataset-name": "random",
        "--num-prompts": load.prompts,
        "--random-input-len": load.input_tokens,
        "--random-output-len": load.output_tokens,
        "--request-rate": "inf",
        "--result-dir": result.parent,
        "--result-filename": result.name,
    }
    command = [*_VLLM, "bench", "serve", *(str(part) for setting in settings.items() for part in setting)]
    return [*command, "--ignore-eos", "--save-result", "--disable-tqdm"]


def run_bench(command: list[str], result: Path, *, timeout: float = 1800.0) -> Figures:
    """Runs it, with its output in a log beside the result. Raises CalledProcessError when it fails."""
    with result.with_suffix(".log").open("w") as log:
        subprocess.run(command, check=True, env=vllm_environment(), stdout=log, stderr=log, timeout=timeout)
    figures = json.loads(result.read_text())
    return Figures(
        completed=int(figures["completed"]),
        failed=int(figures.get("failed", 0)),
        first_token_ms=float(figures["mean_ttft_ms"]),
        each_token_ms=float(figures["mean_tpot_ms"]),
        output_tokens_per_second=float(figures["output_throughput"]),
        requests_per_second=float(figures["request_throughput"]),
    )
