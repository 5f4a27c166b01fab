"""What is wrong is refused before anything moves, and named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from support import addresses, blocks, hashes, tensors

import kvstored
from kvstored import Identity, InvalidInput, Layout
from kvstored.errors import BY_KIND


@pytest.mark.parametrize("width", [0, 1, 15, 33, 64])
def test_a_hash_of_the_wrong_width_is_named(embedded, width):
    namespace = embedded.open_namespace(Identity(), Layout.uniform(1, 1, 4096))
    for given in ([bytes(32), bytes(width)], np.zeros((2, width), np.uint8)):
        with pytest.raises(InvalidInput, match=f"{width} bytes; 16 to 32 are accepted"):
            namespace.lookup(given)
    with pytest.raises(InvalidInput, match=r"block=1"):
        namespace.lookup_on_prefix([bytes(32), bytes(width)])
    with pytest.raises(InvalidInput, match=f"{width} bytes"):
        namespace.dump([bytes(32)], np.ones(1, np.uint64), parent=bytes(width))


@pytest.mark.parametrize(
    "given",
    [
        bytes(32),
        "text",
        [1, 2],
        [bytearray(32)],
        7,
        None,
        np.zeros((2, 32), np.int8),
        np.zeros(32, np.uint8),
        np.zeros((1, 2, 32), np.uint8),
    ],
)
def test_what_are_no_hashes_is_a_type_error(embedded, given):
    namespace = embedded.open_namespace(Identity(), Layout.uniform(1, 1, 4096))
    with pytest.raises(TypeError):
        namespace.lookup(given)


def test_an_array_of_hashes_must_be_contiguous(embedded):
    namespace = embedded.open_namespace(Identity(), Layout.uniform(1, 1, 4096))
    with pytest.raises(InvalidInput, match="C-contiguous"):
        namespace.lookup(np.zeros((4, 64), np.uint8)[:, ::2])


def test_addresses_that_do_not_fit_are_refused(namespace):
    names, memory = hashes(3), blocks(3)
    good = addresses(memory)
    for start in (namespace.load, namespace.dump):
        with pytest.raises(InvalidInput, match="5 addresses were given; 3 blocks of 2 tensors in 2 shards take 6"):
            start(names, good[:5])
        bad = good.copy()
        bad[3] = 0
        with pytest.raises(InvalidInput, match="tensor 1 of block 1 has 4096 bytes at address 0x0"):
            start(names, bad)
        bad[3] = 2**64 - 5
        with pytest.raises(InvalidInput, match="tensor 1 of block 1"):
            start(names, bad)
        with pytest.raises(InvalidInput, match="C-contiguous"):
            start(names, np.repeat(good, 2)[::2])
        for wrong in (good.astype(np.int64), good.tolist(), None, good.astype(np.float64)):
            with pytest.raises(TypeError, match="uint64"):
                start(names, wrong)
    assert not namespace.lookup(names).any()


def test_any_shape_of_addresses_will_do(namespace):
    memory = blocks(3)
    assert namespace.dump(hashes(3), addresses(memory).reshape(3, 2, 1)).wait().all_done


@pytest.mark.parametrize("shards", [(0, 0), (1, 1), (0, 3), (2, 3), (2, 1)])
def test_shards_outside_the_layout_are_refused(namespace, shards):
    with pytest.raises(InvalidInput, match=f"shards {shards[0]} to {shards[1]}"):
        namespace.load(hashes(1), np.ones(2, np.uint64), shards=shards)
    with pytest.raises(InvalidInput, match=f"shards {shards[0]} to {shards[1]}"):
        namespace.load_tensors(hashes(1), tensors(blocks(1)), shards=shards)


def test_tensors_that_do_not_fit_are_named(namespace):
    memory = blocks(2)
    read_only = memory[1, 1].copy()
    read_only.flags.writeable = False
    cases = [
        ([[memory[0, 0], memory[0, 1]], [memory[1, 0]]], "block 1 has 1 tensors; the layout says 2"),
        ([[memory[0, 0], memory[0, 1]], [memory[1, 0], memory[1, 1][:9]]], "tensor 1 of block 1 has 9 bytes"),
        ([[memory[0, 0], memory[0, 1]], [memory[1, 0], np.zeros(8192, np.uint8)[::2]]], "is not contiguous"),
        ([[memory[0, 0], memory[0, 1]], [memory[1, 0], read_only]], "tensor 1 of block 1 is read-only"),
        ([[memory[0, 0], memory[0, 1]], [memory[1, 0], bytes(4096)]], "tensor 1 of block 1 is read-only"),
        ([[memory[0, 0], memory[0, 1]], [memory[1, 0], 7]], "tensor 1 of block 1 is no tensor"),
        ([[memory[0, 0], memory[0, 1]]], "2 addresses were given; 2 blocks"),
    ]
    for given, message in cases:
        with pytest.raises(InvalidInput, match=message):
            namespace.load_tensors(hashes(2), given)


class Tensor:
    """As much of a torch tensor as is looked at."""

    def __init__(self, memory: np.ndarray, device: str = "cpu", contiguous: bool = True) -> None:
        self.memory = memory
        self.nbytes = memory.nbytes
        self.device = type("Device", (), {"type": device})()
        self.contiguous = contiguous

    def data_ptr(self) -> int:
        return self.memory.ctypes.data

    def is_contiguous(self) -> bool:
        return self.contiguous


def test_tensors_are_known_by_what_they_can_do(namespace):
    memory = blocks(1)
    good = Tensor(memory[0, 0])
    assert namespace.dump_tensors(hashes(1), [[good, Tensor(memory[0, 1])]]).wait().all_done
    loaded = np.zeros_like(memory)
    assert namespace.load_tensors(hashes(1), [[Tensor(loaded[0, 0]), Tensor(loaded[0, 1])]]).wait().all_done
    assert np.array_equal(loaded, memory)
    with pytest.raises(InvalidInput, match="tensor 1 of block 0 is on device npu"):
        namespace.dump_tensors(hashes(1), [[good, Tensor(memory[0, 1], device="npu")]])
    with pytest.raises(InvalidInput, match="tensor 1 of block 0 is not contiguous"):
        namespace.dump_tensors(hashes(1), [[good, Tensor(memory[0, 1], contiguous=False)]])


def test_words_and_timeouts_are_checked(namespace):
    names, memory = hashes(1), blocks(1)
    good = addresses(memory)
    with pytest.raises(InvalidInput, match='durability "forever"; memory, tier or durable'):
        namespace.dump(names, good, durability="forever")
    with pytest.raises(InvalidInput, match="forever"):
        namespace.begin_dump(names, durability="forever")
    task = namespace.dump(names, good)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(InvalidInput, match="seconds"):
            task.wait(wrong)
    assert task.wait(float("inf")).all_done
    with pytest.raises(InvalidInput, match="shard 7 is not among"):
        task.wait_shard(7, 1.0)


def test_identities_and_layouts_are_checked(embedded):
    layout = Layout.uniform(1, 1, 4096)
    for changed in ({"layout_version": -1}, {"block_tokens": 2**32}, {"tenant": 7}, {"block_tokens": "many"}):
        with pytest.raises(InvalidInput, match=next(iter(changed))):
            Identity(**changed)
    with pytest.raises(InvalidInput, match="tensor_parallel_rank 4"):
        embedded.open_namespace(Identity(tensor_parallel_size=4, tensor_parallel_rank=4), layout)
    with pytest.raises(InvalidInput, match="model has 2000 bytes"):
        embedded.open_namespace(Identity(model="x" * 2000), layout)
    for shards in (((0,),), ((2**32,),), ((-1,),)):
        with pytest.raises(InvalidInput, match="tensor 0 of shard 0"):
            Layout(shards)
    for layout in (Layout(()), Layout(((),)), Layout.uniform(481, 1, 1)):
        with pytest.raises(InvalidInput, match="accepted"):
            embedded.open_namespace(Identity(), layout)
    with pytest.raises(kvstored.TooLarge):
        embedded.open_namespace(Identity(), Layout.uniform(1, 1, 128 << 20))


def test_errors_tell_their_kind_and_survive_pickling():
    assert len(BY_KIND) == 17
    for kind, error in BY_KIND.items():
        assert error.kind == kind
        assert issubclass(error, kvstored.KvstoredError)
        copy = pickle.loads(pickle.dumps(error("what happened")))
        assert (type(copy), str(copy)) == (error, "what happened")
    retryable = {kind for kind, error in BY_KIND.items() if error.retryable}
    assert retryable == {"busy", "no_space", "timed_out", "unavailable", "io"}
    assert issubclass(kvstored.InvalidInput, ValueError)
    assert issubclass(kvstored.TimedOut, TimeoutError)
