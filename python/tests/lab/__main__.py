"""Makes a model from the command line: `python -m lab DIRECTORY [--preset P] [--family F] [--seed N] [--dtype D]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .architectures import FAMILIES, PRESETS
from .models import make_model

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lab", description="make a small random model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    arguments = vars(parser.parse_args())
    print(make_model(arguments.pop("directory"), arguments.pop("preset"), **arguments))
