"""Mooncake's transfer engine: one-sided reads and writes between processes, by address.

Calls answer with Mooncake's numbers, 0 for success; what went wrong is logged (logger ``kvstored.mooncake``). Other
Python threads run meanwhile. What differs from Mooncake:

- Only peers that completed our handshake may touch memory, and only the ranges that are registered here; on addresses
  other than loopback that takes a token and TLS (see :mod:`kvstored.mooncake`).
- ``unregister_memory`` returns when nobody touches the memory any more.
- Local memory has to be registered for every transport, and ``read_bytes_from_buffer`` and ``write_bytes_to_buffer``
  reach registered memory only.
"""

from __future__ import annotations

import enum
import json
import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvstored import _native
from kvstored.errors import AlreadyExists, InvalidInput, KvstoredError, NotFound
from kvstored.mooncake import codes, settings
from kvstored.mooncake.names import EtcdNames
from kvstored.mooncake.plugged import PluggedTransport

__all__ = ["TransferEngine", "TransferNotify", "TransferOpcode"]

_logger = logging.getLogger("kvstored.mooncake")
_PEER_TO_PEER = "P2PHANDSHAKE"
#: Where Mooncake's engines listen if a metadata server is named and no port is.
_NAMED_PORT = 12001
_BYTES_PER_SECOND = 1e9
_UNREGISTER_S = 30.0
_PROBE_S = 3.0


class TransferOpcode(enum.IntEnum):
    """Which way a transfer goes."""

    Read = 0
    Write = 1


@dataclass
class TransferNotify:
    """A message to a peer."""

    name: str = ""
    msg: str = ""


class TransferEngine:
    """An engine; :meth:`initialize` starts it. Any thread may use it. It ends with its last reference."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._native: _native.TransferEngine | None = None
        self._names: EtcdNames | None = None
        self._default_port = 0
        self._timeout_s = 30.0

    def initialize(self, local_hostname: str, metadata_server: str, protocol: str, device_name: str = "") -> int:
        """Starts the engine: it listens on that host, on any free port unless the name has one.

        metadata_server: ``P2PHANDSHAKE``, or ``etcd://HOST:PORT``, where this engine's name is kept and its peers' are
        looked up; any other is accepted and not asked, since peers are found by host and port.
        protocol: ``tcp``, ``shm``, ``rdma``, ``auto``, or ``ascend`` where a plugin is configured for it
        (:mod:`kvstored.mooncake.plugged`). device_name: accepted; devices are found by themselves.
        """
        with self._lock:
            if self._native is not None:
                _logger.warning("initialize: the engine runs already (%d)", codes.INVALID_ARGUMENT)
                return codes.INVALID_ARGUMENT
            try:
                names = EtcdNames.at(metadata_server)
                found_by_address = metadata_server != _PEER_TO_PEER and names is None
                self._default_port = _NAMED_PORT if found_by_address else 0
                security = settings.Security.from_environment()
                plugged = PluggedTransport.configured()
                self._timeout_s = settings.timeout_s()
                listen = settings.address(local_hostname, self._default_port)
                native = _native.TransferEngine.start(
                    listen,
                    settings.transports(protocol, plugged),
                    security.token,
                    security.certificate,
                    security.key,
                    security.authority,
                    plugged,
                )
                if names is not None:
                    host, _ = settings.host_and_port(local_hostname)
                    names.publish(local_hostname, settings.address(host, native.port))
                    weakref.finalize(self, names.close)
            except KvstoredError as error:
                return codes.told(error, codes.INVALID_ARGUMENT, "initialize")
            self._native, self._names = native, names
            _logger.info("kvstored's transfer engine serves on %s", native.address)
            if found_by_address:
                _logger.info("metadata server %s is not asked: peers are found by host and port", metadata_server)
        return 0

    def initialize_ext(
        self, local_hostname: str, metadata_server: str, protocol: str, device_name: str, metadata_type: str
    ) -> int:
        """As :meth:`initialize`."""
        return self.initialize(local_hostname, metadata_server, protocol, device_name)

    def get_rpc_port(self) -> int:
        """The port that peers reach it on; -1 before it is started."""
        return codes.INVALID_ARGUMENT if self._native is None else self._native.port

    def register_memory(self, buffer_addr: int, capacity: int, location: str = "*") -> int:
        """Lets peers read and write that many bytes there, until :meth:`unregister_memory` has returned."""
        return self.batch_register_memory([buffer_addr], [capacity], location)

    def unregister_memory(self, buffer_addr: int) -> int:
        """Ends that; 0 means that nobody touches the memory any more."""
        return self.batch_unregister_memory([buffer_addr])

    def batch_register_memory(
        self, buffer_addresses: Sequence[int], capacities: Sequence[int], location: str = "*"
    ) -> int:
        """As :meth:`register_memory` for several ranges: all of them or none."""
        registered: list[int] = []
        try:
            if len(buffer_addresses) != len(capacities):
                raise InvalidInput(f"{len(buffer_addresses)} addresses and {len(capacities)} capacities")
            for address, capacity in zip(buffer_addresses, capacities, strict=True):
                self._running.register(address, capacity)
                registered.append(address)
        except KvstoredError as error:
            self.batch_unregister_memory(registered)
            overlaps = isinstance(error, AlreadyExists)
            code = codes.ADDRESS_OVERLAPPED if overlaps else codes.INVALID_ARGUMENT
            return codes.told(error, code, "register_memory")
        return 0

    def batch_unregister_memory(self, buffer_addresses: Sequence[int]) -> int:
        """As :meth:`unregister_memory` for several ranges, all of them; the first failure's number."""
        result = 0
        for address in buffer_addresses:
            try:
                self._running.unregister(address, _UNREGISTER_S)
            except KvstoredError as error:
                code = codes.ADDRESS_NOT_REGISTERED if isinstance(error, NotFound) else codes.INVALID_ARGUMENT
                result = result or codes.told(error, code, "unregister_memory")
        return result

    def allocate_managed_buffer(self, length: int) -> int:
        """Address of registered memory of the engine's own, which peers on this host can share; 0 if there is none."""
        try:
            return self._running.allocate(length)
        except KvstoredError as error:
            codes.told(error, 0, "allocate_managed_buffer")
            return 0

    def free_managed_buffer(self, buffer_addr: int, length: int) -> int:
        """Gives it back; the length is Mooncake's and not needed."""
        try:
            self._running.free(buffer_addr, _UNREGISTER_S)
        except KvstoredError as error:
            return codes.told(error, codes.ADDRESS_NOT_REGISTERED, "free_managed_buffer")
        return 0

    def transfer_sync_write(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        """Writes to the peer and waits for the end. 0, or negative."""
        return self.batch_transfer_sync_write(target_hostname, [buffer], [peer_buffer_address], [length])

    def transfer_sync_read(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        """Reads from the peer and waits for the end. 0, or negative."""
        return self.batch_transfer_sync_read(target_hostname, [buffer], [peer_buffer_address], [length])

    def batch_transfer_sync_write(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Writes several ranges to the peer and waits for the end of all. 0, or negative if any failed."""
        return self._transfer(target_hostname, buffers, peer_buffer_addresses, lengths, True)

    def batch_transfer_sync_read(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Reads several ranges from the peer and waits for the end of all. 0, or negative if any failed."""
        return self._transfer(target_hostname, buffers, peer_buffer_addresses, lengths, False)

    def transfer_sync(
        self,
        target_hostname: str,
        buffer: int,
        peer_buffer_address: int,
        length: int,
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        """As :meth:`batch_transfer_sync` for one range."""
        return self.batch_transfer_sync(target_hostname, [buffer], [peer_buffer_address], [length], opcode, notify)

    def batch_transfer_sync(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        opcode: TransferOpcode,
        notify: TransferNotify | None = None,
        transport_hint: str = "",
    ) -> int:
        """Either way; `notify` reaches the peer when the bytes have moved."""
        writes = opcode == TransferOpcode.Write
        result = self._transfer(target_hostname, buffers, peer_buffer_addresses, lengths, writes)
        if result != 0 or notify is None:
            return result
        try:
            self._running.notify(self._peer(target_hostname), notify.name, notify.msg, self._timeout_s)
        except KvstoredError as error:
            return self._failed(target_hostname, error, codes.SOCKET, "notification to")
        return 0

    def batch_transfer_async_write(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Begins to write; a number for :meth:`get_batch_transfer_status`, 0 if it can't begin."""
        return self._begin(target_hostname, buffers, peer_buffer_addresses, lengths, True)

    def batch_transfer_async_read(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        transport_hint: str = "",
    ) -> int:
        """Begins to read; a number for :meth:`get_batch_transfer_status`, 0 if it can't begin."""
        return self._begin(target_hostname, buffers, peer_buffer_addresses, lengths, False)

    def batch_transfer_async(
        self,
        target_hostname: str,
        buffers: Sequence[int],
        peer_buffer_addresses: Sequence[int],
        lengths: Sequence[int],
        opcode: TransferOpcode,
        transport_hint: str = "",
    ) -> int:
        """Begins either way."""
        writes = opcode == TransferOpcode.Write
        return self._begin(target_hostname, buffers, peer_buffer_addresses, lengths, writes)

    def get_batch_transfer_status(self, batch_ids: Sequence[int]) -> int:
        """Waits for the end of transfers that were begun: 0 if all succeeded, -1 if any failed. Forgets them."""
        result = 0
        for number in batch_ids:
            try:
                self._running.wait(number)
            except KvstoredError as error:
                result = codes.told(error, codes.INVALID_ARGUMENT, f"transfer {number}")
        return result

    def transfer_submit_write(
        self, target_hostname: str, buffer: int, peer_buffer_address: int, length: int, transport_hint: str = ""
    ) -> int:
        """Begins one write; a number for :meth:`transfer_check_status`, -1 if it can't begin."""
        number = self._begin(target_hostname, [buffer], [peer_buffer_address], [length], True)
        return number or codes.INVALID_ARGUMENT

    def transfer_check_status(self, batch_id: int) -> int:
        """What became of it, at once: 0 under way, 1 done, -1 failed. Forgets one that has ended."""
        try:
            return int(self._running.check(batch_id))
        except KvstoredError as error:
            return codes.told(error, codes.INVALID_ARGUMENT, f"transfer {batch_id}")

    def get_first_buffer_address(self, segment_name: str) -> int:
        """The address that the peer registered first, 0 if it has none or isn't there."""
        try:
            return self._running.first_address(self._peer(segment_name), self._timeout_s)
        except KvstoredError as error:
            return self._failed(segment_name, error, 0, "first buffer of")

    def read_bytes_from_buffer(self, source_address: int, length: int) -> bytes:
        """Bytes of registered memory. Raises InvalidInput for memory that isn't."""
        return self._running.read_bytes(source_address, length)

    def write_bytes_to_buffer(self, dest_address: int, source: bytes | str, length: int) -> int:
        """Copies the first bytes of `source` (text as UTF-8) to registered memory."""
        data = source.encode() if isinstance(source, str) else bytes(source)
        try:
            if length > len(data):
                raise InvalidInput(f"{length} bytes of {len(data)}")
            self._running.write_bytes(dest_address, data[:length])
        except KvstoredError as error:
            return codes.told(error, codes.INVALID_ARGUMENT, "write_bytes_to_buffer")
        return 0

    def get_notifies(self) -> list[TransferNotify]:
        """Messages that came since the last call."""
        if self._native is None:
            return []
        return [TransferNotify(name, message) for name, message in self._native.take_notifications()]

    def send_probe(self, peer_server_name: str) -> int:
        """0 if the peer answers; negative otherwise."""
        try:
            self._running.probe(self._peer(peer_server_name), _PROBE_S)
        except KvstoredError as error:
            return self._failed(peer_server_name, error, codes.SOCKET, "probe of")
        return 0

    def counters(self) -> list[dict[str, Any]]:
        """What was moved, by peer, transport, and whether it was served (moved by the peer). Not of Mooncake's API.

        Each has ``peer``, ``transport``, ``served``, ``reads``, ``read_bytes``, ``writes``, ``written_bytes``,
        ``failures`` and ``refused``. Who shares memory (``shm``) serves without counting.
        """
        return [] if self._native is None else json.loads(self._native.counters())

    @property
    def _running(self) -> _native.TransferEngine:
        if self._native is None:
            raise InvalidInput("the engine isn't initialized")
        return self._native

    def _peer(self, name: str) -> str:
        if self._names is not None:
            return self._names.find(name)
        return settings.address(name, self._default_port)

    def _failed(self, peer: str, error: KvstoredError, code: int, what: str) -> int:
        if self._names is not None:
            self._names.forget(peer)
        return codes.told(error, code, f"{what} {peer}")

    def _deadline_s(self, lengths: Sequence[int]) -> float:
        return self._timeout_s + sum(lengths) / _BYTES_PER_SECOND

    def _transfer(
        self, target: str, local: Sequence[int], remote: Sequence[int], lengths: Sequence[int], writes: bool
    ) -> int:
        try:
            self._running.transfer(self._peer(target), local, remote, lengths, writes, self._deadline_s(lengths))
        except KvstoredError as error:
            return self._failed(target, error, codes.INVALID_ARGUMENT, "transfer with")
        return 0

    def _begin(
        self, target: str, local: Sequence[int], remote: Sequence[int], lengths: Sequence[int], writes: bool
    ) -> int:
        try:
            return self._running.submit(self._peer(target), local, remote, lengths, writes, self._deadline_s(lengths))
        except KvstoredError as error:
            return self._failed(target, error, 0, "transfer with")
