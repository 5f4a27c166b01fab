"""Greedy completions from an OpenAI-compatible server on this machine, streamed."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MODEL_NAME = "made-model"


class CompletionError(RuntimeError):
    """The server refused the request or failed while it answered."""


@dataclass(frozen=True)
class Completion:
    """What came back, and when."""

    token_ids: list[int]
    prompt_tokens: int
    """As the server counted them."""
    cached_tokens: int | None
    """Prompt tokens that weren't computed, where the server tells (`--enable-prompt-tokens-details`)."""
    finish_reason: str | None
    first_token_seconds: float
    """From the request's start until the first token arrived."""
    total_seconds: float
    kv_transfer_params: dict[str, Any] | None


def complete(
    port: int,
    prompt: Sequence[int] | str,
    max_tokens: int = 16,
    *,
    timeout: float = 300.0,
    headers: dict[str, str] | None = None,
    **body: Any,
) -> Completion:
    """Sends one request and reads its stream to the end.

    `body` holds further fields of the request and wins over the defaults: greedy, no stop at the end token, the model's
    name of `VllmServer`. `timeout`, in seconds, is that of one read. Raises CompletionError, and OSError when the
    connection breaks.
    """
    request = {
        "model": MODEL_NAME,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **body,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    start = time.perf_counter()
    try:
        connection.request(
            "POST", "/v1/completions", json.dumps(request), {"content-type": "application/json", **(headers or {})}
        )
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise CompletionError(f"status {response.status}: {response.read(2000).decode(errors='replace')}")
        return _collect(_events(response), start)
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        kind, _, data = line.decode().strip().partition(": ")
        if kind != "data":
            continue
        if data == "[DONE]":
            return
        yield json.loads(data)
    raise CompletionError("the stream ended early")


def _collect(events: Iterator[dict[str, Any]], start: float) -> Completion:
    token_ids: list[int] = []
    first_token_seconds = float("nan")
    finish_reason: str | None = None
    usage: dict[str, Any] = {}
    transfer: dict[str, Any] | None = None
    for event in events:
        if "error" in event:
            raise CompletionError(str(event["error"]))
        usage = event.get("usage") or usage
        transfer = event.get("kv_transfer_params") or transfer
        for choice in event.get("choices", []):
            finish_reason = choice.get("finish_reason") or finish_reason
            new_tokens = choice.get("token_ids") or []
            if new_tokens and not token_ids:
                first_token_seconds = time.perf_counter() - start
            token_ids += new_tokens
    details = usage.get("prompt_tokens_details") or {}
    return Completion(
        token_ids=token_ids,
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        cached_tokens=details.get("cached_tokens"),
        finish_reason=finish_reason,
        first_token_seconds=first_token_seconds,
        total_seconds=time.perf_counter() - start,
        kv_transfer_params=transfer,
    )
