"""Hand-offs of KV blocks between two ranks in one process, over numpy's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import PATIENCE, wait_for

import kvstored
from kvstored._native import Handoff

BLOCKS = 32
LAYERS = 3
TOKENS = 16
HEADS = 2
HEAD_SIZE = 8


@dataclass
class Side:
    """A rank and its memory: for each layer keys and values, `[2, blocks, heads, tokens, head_size]`."""

    handoff: Handoff
    memory: npt.NDArray[np.uint16]
    engine_id: str

    def layers(self) -> list[tuple[str, list[tuple[int, int, int, int, int, int]]]]:
        plane = self.memory[0, 0]
        block = plane[0].nbytes
        return [
            (
                f"layers.{layer}",
                [(int(self.memory[layer, half].ctypes.data), plane.nbytes, block, block, 1, HEADS) for half in (0, 1)],
            )
            for layer in range(LAYERS)
        ]

    def describe(self, fingerprint: bytes = b"same") -> None:
        self.handoff.describe(
            engine_id=self.engine_id,
            fingerprint=fingerprint,
            block_tokens=TOKENS,
            total_heads=HEADS,
            first_head=0,
            heads=HEADS,
            tp_rank=0,
            tp_size=1,
            pp_rank=0,
            pp_size=1,
            layers=self.layers(),
        )

    def pull(self, other: Side, blocks: Any, first_block: int = 0, request: str = "one") -> None:
        self.handoff.pull(
            "mine",
            remote_engine_id=other.engine_id,
            remote_request=request,
            producers=[other.handoff.address],
            blocks=blocks,
            first_block=first_block,
            timeout=PATIENCE,
        )

    def pulled(self) -> tuple[str, list[int], str]:
        return _one(self.handoff.take_pulled)

    def released(self) -> tuple[str, str]:
        return _one(self.handoff.take_released)


def _one(take: Callable[[], list[Any]]) -> Any:
    found: list[Any] = []

    def look() -> bool:
        found.extend(take())
        return bool(found)

    wait_for(look, "an end")
    assert len(found) == 1
    return found[0]


def _side(transport: str, engine_id: str) -> Side:
    handoff = Handoff.start("127.0.0.1:0", [transport], None, None, None, None)
    random = np.random.default_rng(len(engine_id))
    memory = random.integers(0, 1 << 16, (LAYERS, 2, BLOCKS, HEADS, TOKENS, HEAD_SIZE), dtype=np.uint16)
    return Side(handoff, memory, engine_id)


@pytest.fixture(params=["tcp", "shm"])
def sides(request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    pair = (_side(request.param, "prefill"), _side(request.param, "decode"))
    yield pair
    for side in pair:
        side.handoff.close(PATIENCE)
        side.handoff.close(PATIENCE)


@pytest.mark.parametrize("kind", [list, np.uint32, np.uint64, np.int64])
def test_blocks_arrive_and_are_released(sides: tuple[Side, Side], kind: Any) -> None:
    prefill, decode = sides
    prefill.describe()
    decode.describe()
    there, here = [4, 5, 6, 1, 30], [0, 9, 10, 11]
    given = [blocks if kind is list else np.array(blocks, dtype=kind) for blocks in (there, here)]
    before = decode.memory.copy()
    prefill.handoff.hold("one", given[0], 60.0)
    decode.pull(prefill, given[1], first_block=1)
    assert decode.pulled() == ("mine", [], "")
    assert prefill.released() == ("one", "taken")
    assert np.array_equal(decode.memory[:, :, here], prefill.memory[:, :, there[1:]])
    others = [block for block in range(BLOCKS) if block not in here]
    assert np.array_equal(decode.memory[:, :, others], before[:, :, others])
    assert decode.handoff.statistics()["pulls_ok"] == 1
    assert prefill.handoff.statistics()["publications"] == 0


def test_what_was_dropped_is_not_pulled(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    prefill.describe()
    decode.describe()
    prefill.handoff.hold("one", [1, 2], 60.0)
    prefill.handoff.drop("one")
    assert prefill.released() == ("one", "dropped")
    prefill.handoff.drop("one")
    decode.pull(prefill, [7, 8])
    request, failed, message = decode.pulled()
    assert (request, failed) == ("mine", [7, 8])
    assert message.startswith("fenced:")
    assert decode.handoff.statistics()["pulls_gone"] == 1


def test_another_fingerprint_is_a_mismatch(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    prefill.describe(b"bfloat16")
    decode.describe(b"float16")
    prefill.handoff.hold("one", [1], 60.0)
    decode.pull(prefill, [7])
    assert decode.pulled()[2].startswith("mismatch:")


def test_a_pull_that_waits_is_cancelled_and_given_back(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    prefill.describe()
    decode.describe()
    decode.pull(prefill, [7])
    decode.handoff.cancel("mine")
    decode.handoff.cancel("nobody's")
    assert decode.pulled()[:2] == ("mine", [7])
    prefill.handoff.hold("two", [3], 60.0)
    decode.handoff.release_remote(
        remote_engine_id="prefill", remote_request="two", producers=[prefill.handoff.address], timeout=PATIENCE
    )
    wait_for(lambda: prefill.handoff.statistics()["holds_taken"] > 0, "the word that it is done")


def test_arguments_that_make_no_sense_are_named(sides: tuple[Side, Side]) -> None:
    prefill, decode = sides
    with pytest.raises(kvstored.InvalidInput, match="described"):
        prefill.handoff.hold("one", [1], 60.0)
    prefill.describe()
    for blocks in ([BLOCKS], [], [1 << 40]):
        with pytest.raises(kvstored.InvalidInput):
            prefill.handoff.hold("one", blocks, 60.0)
    with pytest.raises(TypeError):
        prefill.handoff.hold("one", [-1], 60.0)
    with pytest.raises(kvstored.InvalidInput, match="timeout"):
        prefill.handoff.hold("one", [1], -1.0)
    with pytest.raises(kvstored.InvalidInput):
        decode.handoff.start("127.0.0.1:0", ["carrier pigeon"], None, None, None, None)


def test_closed_is_closed(sides: tuple[Side, Side]) -> None:
    prefill, _ = sides
    prefill.describe()
    prefill.handoff.hold("one", [1], 60.0)
    prefill.handoff.close(PATIENCE)
    with pytest.raises(kvstored.Cancelled):
        prefill.handoff.hold("two", [1], 60.0)
