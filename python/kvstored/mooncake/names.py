"""Engines' names in etcd, for deployments whose engines find one another there instead of by host and port.

Each engine keeps its name and address under a lease that ends with it. Asked over etcd's JSON gateway, which its
members serve on the clients' port.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from kvstored.errors import InvalidInput, NotFound, Unavailable

_logger = logging.getLogger("kvstored.mooncake")
_SCHEME = "etcd://"
_PREFIX = "kvstored/transfer/engines/"
_DEFAULT_PORT = 2379
_CALL_S = 2.0
_LEASE_S = 10
_RENEWAL_S = 3.0


class EtcdNames:
    """Names in an etcd of one or several members, which stand in for each other. Any thread may use it."""

    def __init__(self, members: Sequence[str]) -> None:
        self._members = list(members)
        # no proxy is between members of a cluster
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._ended = threading.Event()
        self._lease: str | None = None
        self._process = os.getpid()

    @classmethod
    def at(cls, metadata_server: str) -> EtcdNames | None:
        """Those of `etcd://HOST[:PORT]`, with commas or semicolons between several; None for another kind of server.

        Raises InvalidInput for an address that is none.
        """
        if not metadata_server.startswith(_SCHEME):
            return None
        text = metadata_server.removeprefix(_SCHEME).replace(";", ",")
        hosts = [part.strip().removeprefix(_SCHEME).rstrip("/") for part in text.split(",")]
        if not all(hosts) or any("/" in host for host in hosts):
            raise InvalidInput(f'metadata server "{metadata_server}"; etcd://HOST:PORT is accepted')
        return cls([host if ":" in host else f"{host}:{_DEFAULT_PORT}" for host in hosts])

    def publish(self, name: str, address: str) -> None:
        """Keeps a name there until `close`, or until this process has ended. Raises Unavailable without an etcd."""
        self._put(name, address)
        threading.Thread(target=self._renew, args=[name, address], name="kvstored-names", daemon=True).start()

    def find(self, name: str) -> str:
        """The address of a name, as it was known last. Raises NotFound, and Unavailable without an etcd."""
        with self._lock:
            known = self._known.get(name)
        if known is not None:
            return known
        found = self._ask("kv/range", {"key": _text(_PREFIX + name)}).get("kvs")
        if not found:
            raise NotFound(f'no engine is called "{name}" in etcd')
        address = base64.b64decode(found[0]["value"]).decode(errors="replace")
        with self._lock:
            self._known[name] = address
        return address

    def forget(self, name: str) -> None:
        """The engine of that name couldn't be reached: the next one to ask looks it up again."""
        with self._lock:
            self._known.pop(name, None)

    def close(self) -> None:
        """Takes the name back. Waits a few seconds for etcd at most."""
        self._ended.set()
        with self._lock:
            lease, self._lease = self._lease, None
        # in a fork, the lease is the parent's
        if lease is None or os.getpid() != self._process:
            return
        try:
            self._ask("lease/revoke", {"ID": lease})
        except Unavailable as error:
            _logger.warning("a name stays in etcd until its lease ends: %s", str(error))

    def _put(self, name: str, address: str) -> None:
        lease = str(self._ask("lease/grant", {"TTL": _LEASE_S}).get("ID"))
        self._ask("kv/put", {"key": _text(_PREFIX + name), "value": _text(address), "lease": lease})
        with self._lock:
            self._lease = lease

    def _renew(self, name: str, address: str) -> None:
        reached = True
        while not self._ended.wait(_RENEWAL_S):
            try:
                answer = self._ask("lease/keepalive", {"ID": self._lease}).get("result", {})
                if int(answer.get("TTL", 0)) <= 0 and not self._ended.is_set():
                    self._put(name, address)
                reached = True
            except Unavailable as error:
                if reached:
                    _logger.warning("the name %s isn't renewed: %s", name, str(error))
                reached = False

    def _ask(self, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """The first member's answer, or the next one's where that can't be reached."""
        # what failed, as text: a kept exception would keep its callers, and an engine among them, from ending
        failure = ""
        for member in list(self._members):
            url = f"http://{member}/v3/{path}"
            request = urllib.request.Request(
                url, json.dumps(question).encode(), {"Content-Type": "application/json"}, method="POST"
            )
            try:
                with self._opener.open(request, timeout=_CALL_S) as response:
                    # a stream's answers are one a line
                    answer = json.loads(response.readline())
            except (OSError, ValueError) as error:
                failure = str(error)
                continue
            if isinstance(answer, dict):
                return answer
        raise Unavailable(f"etcd at {', '.join(self._members)}: {failure}")


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
