"""The other side of tests of Mooncake's API, as a process: calls what each line of its input names, and answers.

`python mooncake_peer.py MODULE CLASS`: an object of the class is made; a line is a JSON array of a method's name and
its arguments, the answer is its JSON result. `memory` makes registered memory of that many bytes, filled with a byte.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from typing import Any


def plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list):
        return [plain(one) for one in value]
    return vars(value) if hasattr(value, "__dict__") else value


def main() -> None:
    """Answers until its input ends."""
    subject = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()
    kept = []

    def memory(length: int, byte: int) -> int:
        kept.append(ctypes.create_string_buffer(bytes([byte]) * length, length))
        address = ctypes.addressof(kept[-1])
        assert subject.register_memory(address, length) == 0
        return address

    for line in sys.stdin:
        name, *arguments = json.loads(line)
        call = memory if name == "memory" else getattr(subject, name)
        print(json.dumps(plain(call(*arguments))), flush=True)


if __name__ == "__main__":
    main()
