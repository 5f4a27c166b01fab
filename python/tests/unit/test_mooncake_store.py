"""Mooncake's distributed store over a real master and nodes in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from mooncake_rig import Master, Memory, PeerProcess
from support import binary, wait_for

from kvstored.mooncake import codes
from kvstored.mooncake.store import MooncakeDistributedStore, ReplicateConfig

MIB = 1 << 20
LENT = 64 * MIB
LEASE_MS = 500


def start_master() -> Master:
    program = binary()
    if program is None:
        pytest.skip("there is no kvstored binary: none is built, and KVSTORED_BINARY names none")
    return Master(program, f"--default_kv_lease_ttl={LEASE_MS}", "--client_ttl=2")


def start_node(master: Master) -> PeerProcess:
    """A node that lends memory."""
    other = PeerProcess("kvstored.mooncake.store", "MooncakeDistributedStore")
    assert other.call("setup", "127.0.0.1", "P2PHANDSHAKE", LENT, 16 * MIB, "tcp", "", master.address) == 0
    return other


def join(master: Master, protocol: str) -> MooncakeDistributedStore:
    """A member that lends nothing: what it puts lies in the nodes' memory."""
    made = MooncakeDistributedStore()
    assert made.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, protocol, "", master.address) == 0
    # a new master waits for nodes that may hold something, and can't tell until then
    wait_for(lambda: made.get_size("anything") == -704, "the master's readiness")
    return made


@pytest.fixture(scope="module")
def shared_master() -> Iterator[Master]:
    """For tests that leave it as it is: each new one takes seconds to be ready."""
    with start_master() as started:
        yield started


@pytest.fixture(scope="module")
def shared_node(shared_master: Master) -> Iterator[PeerProcess]:
    other = start_node(shared_master)
    yield other
    other.close()


@pytest.fixture(params=["tcp", "shm"])
def store(
    request: pytest.FixtureRequest, shared_master: Master, shared_node: PeerProcess
) -> Iterator[MooncakeDistributedStore]:
    """A member of an empty pool."""
    made = join(shared_master, request.param)
    yield made
    assert made.remove_all(True) >= 0
    assert made.close() == 0


@pytest.fixture
def master() -> Iterator[Master]:
    """One that the test may kill."""
    with start_master() as started:
        yield started


@pytest.fixture
def node(master: Master) -> Iterator[PeerProcess]:
    other = start_node(master)
    yield other
    other.close()


@pytest.fixture(params=["tcp", "shm"])
def own_store(request: pytest.FixtureRequest, master: Master, node: PeerProcess) -> Iterator[MooncakeDistributedStore]:
    """A member of a pool whose master the test may kill."""
    made = join(master, request.param)
    yield made
    assert made.close() == 0


def test_objects_come_back_as_they_were(store: MooncakeDistributedStore, shared_node: PeerProcess) -> None:
    assert store.get("missing") == b""
    assert store.get_size("missing") == codes.OBJECT_NOT_FOUND == -704
    assert store.is_exist("missing") == 0
    assert store.put("key", b"value") == 0
    assert store.is_exist("key") == 1
    assert store.get("key") == b"value"
    assert store.get_size("key") == 5
    # whoever asks
    assert shared_node.call("get", "key") == "value"
    # one that is there stays
    assert store.put("key", b"another value") == 0
    assert store.get("key") == b"value"


def test_values_of_every_kind(store: MooncakeDistributedStore) -> None:
    large = bytes(range(256)) * (5 * MIB // 256) + b"odd"
    for number, value in enumerate([b"x", bytearray(b"array"), memoryview(b"view"), large]):
        assert store.put(f"key-{number}", value) == 0
        assert store.get(f"key-{number}") == bytes(value)
    assert store.put_parts("parts", b"one", bytearray(b"two"), memoryview(b"three")) == 0
    assert store.get("parts") == b"onetwothree"
    assert store.put("schlüssel/λ 1", b"v") == 0
    assert store.get("schlüssel/λ 1") == b"v"


def test_what_cannot_be_stored(store: MooncakeDistributedStore) -> None:
    assert store.put("empty", b"") == codes.INVALID_PARAMETERS == -600
    assert store.is_exist("empty") == 0
    assert store.put("", b"value") < 0
    assert store.put("k" * 100_000, b"value") < 0
    assert store.put("huge", bytes(LENT + 1)) == codes.NO_SPACE == -200
    assert store.put_batch(["a"], [b"1", b"2"]) == codes.INVALID_PARAMETERS
    with pytest.raises(TypeError):
        store.put("number", 7)
    assert store.is_exist("a") == store.is_exist("huge") == 0


def test_batches(store: MooncakeDistributedStore) -> None:
    keys = [f"key-{index}" for index in range(20)]
    values = [f"value {index}".encode() for index in range(20)]
    assert store.put_batch(keys, values) == 0
    assert store.get_batch(["nothing", *keys]) == [b"", *values]
    assert store.batch_is_exist(["nothing", *keys]) == [0] + [1] * 20
    assert store.put_batch([], []) == 0
    assert store.get_batch([]) == []
    assert store.batch_is_exist([]) == []


def test_memory_straight_into_the_pool_and_back(store: MooncakeDistributedStore) -> None:
    memory, back = Memory(2 * MIB, 7), Memory(2 * MIB)
    for made in (memory, back):
        assert store.register_buffer(made.address, made.length) == 0
    assert store.put_from("whole", memory.address, memory.length) == 0
    assert store.get_into("whole", back.address, back.length) == 2 * MIB
    assert back.bytes == memory.bytes
    assert store.batch_put_from(["a", "b"], [memory.address, memory.address + 100], [50, 60]) == [0, 0]
    got = store.batch_get_into(["a", "none", "b"], [back.address + index * 100 for index in range(3)], [50, 50, 500])
    assert got == [50, codes.OBJECT_NOT_FOUND, 60]
    assert store.get_into("a", back.address, 49) == codes.INVALID_PARAMETERS
    assert store.get_into("none", back.address, 49) == codes.OBJECT_NOT_FOUND
    memory.write(b"".join(bytes([index]) * 1000 for index in range(10)))
    sources = [[memory.address + 1000 * index for index in range(10)]]
    assert store.batch_put_from_multi_buffers(["multi"], sources, [[1000] * 10]) == [0]
    assert store.get("multi") == memory.bytes[:10_000]
    targets = [[back.address + 5000 * index for index in range(4)], [back.address]]
    assert store.batch_get_into_multi_buffers(["multi", "none"], targets, [[2500] * 4, [5]]) == [10_000, -704]
    for index in range(4):
        assert back.bytes[5000 * index :][:2500] == memory.bytes[2500 * index :][:2500]
    assert store.batch_put_from(["a"], [memory.address], []) == [codes.INVALID_PARAMETERS]
    assert store.unregister_buffer(memory.address) == 0
    assert store.unregister_buffer(memory.address) == codes.INVALID_PARAMETERS
    assert store.register_buffer(back.address, 1) == codes.INVALID_PARAMETERS


def test_memory_that_is_not_registered_serves_too(store: MooncakeDistributedStore) -> None:
    memory, back = Memory(3 * MIB, 9), Memory(3 * MIB)
    assert store.put_from("loose", memory.address, memory.length) == 0
    assert store.get_into("loose", back.address, back.length) == 3 * MIB
    assert back.bytes == memory.bytes


def test_removing_waits_for_leases(store: MooncakeDistributedStore) -> None:
    assert store.put("key", b"value") == 0
    assert store.get("key") == b"value"
    assert store.remove("key") == codes.OBJECT_HAS_LEASE == -706
    assert store.get("key") == b"value"
    wait_for(lambda: store.remove("key") == 0, "the end of the lease")
    assert store.is_exist("key") == 0
    assert store.remove("key") == codes.OBJECT_NOT_FOUND
    assert store.put("key", b"value") == 0
    assert store.get("key") == b"value"
    assert store.remove("key", True) == 0
    assert store.get("key") == b""
    assert store.put_batch(["a", "b", "c"], [b"1"] * 3) == 0
    assert store.remove_all(True) == 3
    assert store.batch_is_exist(["a", "b", "c"]) == [0, 0, 0]
    assert store.remove_all() == 0


def test_a_full_pool_makes_room(store: MooncakeDistributedStore) -> None:
    value = bytes(4 * MIB)
    for index in range(2 * LENT // len(value)):
        deadline = time.monotonic() + 20
        # leases of what was put lately hold eviction up
        while store.put(f"key-{index}", value) != 0:
            assert time.monotonic() < deadline, "no room was made"
            time.sleep(0.05)
    present = store.batch_is_exist([f"key-{index}" for index in range(2 * LENT // len(value))])
    assert 0 < sum(present) < len(present)
    assert present[-1] == 1


def test_two_replicas_outlive_one_node(master: Master, node: PeerProcess) -> None:
    second = PeerProcess("kvstored.mooncake.store", "MooncakeDistributedStore")
    store = MooncakeDistributedStore()
    try:
        assert second.call("setup", "127.0.0.1", "P2PHANDSHAKE", LENT, 0, "tcp", "", master.address) == 0
        assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", master.address) == 0
        assert store.put("twice", b"value", ReplicateConfig(replica_num=2)) == 0
        assert store.put("once", b"value", ReplicateConfig(preferred_segment=node.call("get_hostname"))) == 0
        node.kill()
        assert store.get("twice") == b"value"
        assert store.get("once") == b""
        wait_for(lambda: store.is_exist("once") == 0, "the end of what the dead node held")
        assert store.is_exist("twice") == 1
    finally:
        second.close()
        store.close()


def test_a_master_that_restarts_loses_nothing(own_store: MooncakeDistributedStore, master: Master) -> None:
    assert own_store.put("key", b"value") == 0
    master.kill()
    master.start()
    wait_for(lambda: own_store.is_exist("key") == 1, "the object's return")
    assert own_store.get("key") == b"value"
    wait_for(lambda: own_store.put("after", b"value") == 0, "a put")


def test_health(own_store: MooncakeDistributedStore, master: Master) -> None:
    assert own_store.health_check() == 0
    assert own_store.get_hostname().startswith("127.0.0.1:")
    master.kill()
    wait_for(lambda: own_store.health_check() == 2, "word of the master's end")
    started = time.monotonic()
    assert own_store.is_exist("key") == codes.RPC_FAILED == -900
    assert own_store.put("key", b"value") == codes.RPC_FAILED
    # nobody waits long for a master that is gone
    assert time.monotonic() - started < 30
    assert own_store.close() == 0
    assert own_store.close() == 0
    assert own_store.health_check() == 1
    assert own_store.get_hostname() == ""


def test_a_store_that_is_not_set_up(master: Master) -> None:
    store = MooncakeDistributedStore()
    assert store.health_check() == 1
    assert store.put("key", b"value") < 0
    assert store.get("key") == b""
    assert store.is_exist("key") < 0
    assert store.batch_is_exist(["key"]) == [codes.INVALID_PARAMETERS]
    assert store.get_into("key", 4096, 1) < 0
    assert store.remove("key") < 0
    assert store.remove_all() < 0
    assert store.register_buffer(4096, 1) < 0
    assert store.close() == 0
    # what it can't be set up with
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", "127.0.0.1:1") == codes.RPC_FAILED
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", "much", 0, "tcp", "", master.address) == codes.INVALID_PARAMETERS
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "pigeon", "", master.address) < 0
    assert store.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", "") < 0
    # and what it can, by names
    settings = {
        "local_hostname": "127.0.0.1",
        "metadata_server": "P2PHANDSHAKE",
        "global_segment_size": "16MB",
        "local_buffer_size": "16MB",
        "protocol": "tcp",
        "rdma_devices": "",
        "master_server_addr": master.address,
    }
    assert store.setup(settings) == 0
    assert store.setup(settings) < 0
    assert store.put("key", b"value") == 0
    assert store.close() == 0
