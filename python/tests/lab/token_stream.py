"""An answer while it comes: its tokens so far, and how it ended."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from .completions import MODEL_NAME


class TokenStream:
    """A greedy completion that is read step by step. A context manager that closes the connection at its end.

    tokens: those that came so far. done: whether the answer came to its end. error: what the server, or the connection,
    said instead.
    """

    def __init__(
        self, port: int, prompt: Sequence[int], max_tokens: int, *, timeout: float = 120.0, **body: Any
    ) -> None:
        self.tokens: list[int] = []
        self.done = False
        self.error: str | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        request = {
            "model": MODEL_NAME,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            **body,
        }
        self._connection.request("POST", "/v1/completions", json.dumps(request), {"content-type": "application/json"})
        self._response: http.client.HTTPResponse | None = None

    def read(self, tokens: int | None = None) -> Self:
        """Reads until that many tokens have come, or to the end."""
        with contextlib.suppress(StopIteration):
            while tokens is None or len(self.tokens) < tokens:
                self._next()
        return self

    def close(self) -> None:
        """Goes away, whatever is still to come."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _next(self) -> None:
        """Takes one event in. Raises StopIteration behind the last one."""
        if self.done or self.error is not None:
            raise StopIteration
        try:
            if self._response is None:
                self._response = self._connection.getresponse()
                if self._response.status != http.HTTPStatus.OK:
                    raise _Failure(f"status {self._response.status}: {self._response.read(2000).decode()}")
            self._take(self._response.readline().decode())
        except (_Failure, OSError, http.client.HTTPException) as error:
            self.error = str(error) or type(error).__name__
            raise StopIteration from error

    def _take(self, line: str) -> None:
        if not line:
            raise _Failure("the stream ended early")
        kind, _, data = line.strip().partition(": ")
        if kind != "data":
            return
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise _Failure(str(event["error"]))
        for choice in event.get("choices", []):
            self.tokens += choice.get("token_ids") or []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Failure(Exception):
    """The answer ends here."""
