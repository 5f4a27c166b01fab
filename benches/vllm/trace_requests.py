"""Requests of a trace, scaled down so that a small machine serves them in minutes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.prompts import FIRST_WORD, VOCABULARY

#: Tokens that one hash of a trace stands for.
TRACE_BLOCK_TOKENS = 512


@dataclass(frozen=True)
class TraceRequest:
    """One request: its prompt, and how much of it can be known from requests before it."""

    tokens: list[int]
    reusable_tokens: int
    """Of whole blocks at the prompt's start that an earlier request had, too; the last token never counts."""


def read_trace(path: Path, count: int, *, block_tokens: int, most_tokens: int) -> Iterator[TraceRequest]:
    """The first requests of a trace whose blocks of 512 tokens become blocks of `block_tokens`.

    A hash always becomes the same tokens, so prompts share what they shared in the trace. The last block of a prompt is
    cut as it was there. Prompts longer than `most_tokens` are cut.
    """
    seen: set[int] = set()
    with path.open() as file:
        for _, line in zip(range(count), file, strict=False):
            request = json.loads(line)
            length = min(max(request["input_length"] * block_tokens // TRACE_BLOCK_TOKENS, 2), most_tokens)
            tokens = [token for name in request["hash_ids"] for token in _block(name, block_tokens)][:length]
            known = next((n for n, name in enumerate(request["hash_ids"]) if name not in seen), len(tokens))
            seen.update(request["hash_ids"][: len(tokens) // block_tokens])
            yield TraceRequest(tokens, min(known * block_tokens, (len(tokens) - 1) // block_tokens * block_tokens))


def _block(name: int, tokens: int) -> list[int]:
    source = random.Random(f"trace block {name}")
    return [source.randrange(FIRST_WORD, VOCABULARY) for _ in range(tokens)]
