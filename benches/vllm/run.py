"""Figures of the prefix cache in real vLLM servers: `python run.py ttft | decode | lookup | replay | all`.

Needs an environment with vLLM and this package, as `cargo xtask vllm-bench` sets it up.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python" / "tests")]

from contenders import Setting  # noqa: E402
from lab import make_model  # noqa: E402
from machine import description, load_average  # noqa: E402

BENCHES = ("ttft", "lookup", "decode", "replay")


def main() -> None:
    """Runs one bench or all, prints tables and writes every measurement to a file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "target/python/models", help="folder of made models")
    parser.add_argument("--preset", default="small", help="size of the made model: tiny, small or medium")
    parser.add_argument("--package", type=Path, help="folder from which to import kvstored; else as installed")
    parser.add_argument("--folder", type=Path, help="where to keep stores and logs; else a new temporary one")
    parser.add_argument("--json", type=Path, help="file for all measurements; earlier ones in it stay")
    benches = parser.add_subparsers(dest="bench", required=True)
    modules = {name: importlib.import_module(name) for name in BENCHES}
    for name, module in modules.items():
        module.arguments(benches.add_parser(name, help=module.__doc__.splitlines()[0]))
    benches.add_parser("all", help="each of them with its defaults")
    options = parser.parse_args()
    model = make_model(options.models / f"{options.preset}-float32", options.preset)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kvstored-vllm-bench-"))
    package = options.package.resolve() if options.package else None
    wanted = BENCHES if options.bench == "all" else (options.bench,)
    failed = False
    for name in wanted:
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        chosen = parser.parse_args([*_common(options), name]) if options.bench == "all" else options
        print(f"{name}: load average {load_average():.2f}, {own}", flush=True)
        result = modules[name].run(chosen, Setting(model=model, folder=own, package=package))
        if result is None:
            continue
        print(f"\n{modules[name].report(result)}\n", flush=True)
        failed |= bool(modules[name].missed(result))
        if options.json:
            _keep(options.json, name, result)
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if failed else 0)


def _common(options: argparse.Namespace) -> list[str]:
    parts = ["--models", str(options.models), "--preset", options.preset]
    return parts + (["--package", str(options.package)] if options.package else [])


def _keep(path: Path, name: str, result: dict[str, Any]) -> None:
    known = json.loads(path.read_text()) if path.exists() else {"runs": []}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    known["runs"].append({"bench": name, "time": now, "machine": description(), "result": result})
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
