"""Prompts that are pulled while they are computed, in real engines that the tests step by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from connector_rig import BLOCK_TOKENS, Engine, Reference, combined, embedded, transfer
from handoff_rigs import TOKENS, Pair, handoff, measure
from lab import prompt

CHUNK = 4 * BLOCK_TOKENS
PATIENCE_S = 60.0
LASTING = ("remote_engine_id", "remote_host", "remote_port", "remote_ptp_size", "remote_pp_size", "remote_block_size")


@pytest.fixture(scope="module")
def first(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """A prefill engine that can be followed, with a prefix cache that loads inside steps, as the deployment has it."""
    cache = transfer(embedded(module_folder / "blocks", use_layerwise=True))
    both = combined(handoff("kv_producer", overlap=True), cache) | {"kv_role": "kv_producer"}
    log = module_folder / "first.log"
    with Engine(tiny_model, log=log, kv_transfer=both, max_num_batched_tokens=CHUNK, async_scheduling=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def second(tiny_model: Path, module_folder: Path) -> Iterator[Engine]:
    """A decode engine."""
    alone = handoff("kv_consumer", load_timeout_seconds=60)
    with Engine(tiny_model, log=module_folder / "second.log", kv_transfer=alone, prefix_caching=False) as engine:
        yield engine


@pytest.fixture
def pair(first: Engine, second: Engine) -> Pair:
    return Pair(first, second)


class Followed:
    """A prompt on its way; the test is the proxy."""

    def __init__(self, pair: Pair, asked: list[int], place: dict[str, Any], name: str) -> None:
        self.pair, self.asked = pair, asked
        self._name = {"kvstored_transfer": name}
        self._place = {field: place[field] for field in LASTING} | self._name | {"do_remote_prefill": True}

    def begin(self, steps: int = 3) -> int:
        """Both legs at once, and a part of the prompt: how many blocks are computed."""
        self.pair.decode.run("handoff_probe:follow", prompt=self.asked, params=self._place, max_tokens=TOKENS)
        computed = self.pair.prefill.run(
            "handoff_probe:begin_prefill", prompt=self.asked, params=self._name, steps=steps
        )
        return computed // BLOCK_TOKENS

    def moved(self, wanted: int = 1) -> list[int]:
        """Bytes that have come when these have, and those of them that came before the prefill's end."""
        return self.pair.decode.run("handoff_probe:moved", wanted=wanted)

    def end(self) -> dict[str, Any] | None:
        """The prefill's end."""
        return self.pair.prefill.run("handoff_probe:end_prefill")

    def answer(self) -> list[int]:
        return self.pair.decode.run("handoff_probe:answer")


@pytest.fixture(scope="module")
def place(first: Engine, second: Engine) -> dict[str, Any]:
    """What the prefill engine's first answer says."""
    pair = Pair(first, second)
    asked = [prompt(300, seed=1)]
    computed = pair.compute(asked)
    pair.fetch(asked, computed)
    pair.settle()
    assert computed[0]["params"]["kvstored_overlap"] is True
    return computed[0]["params"]


def test_it_comes_while_it_is_computed(pair: Pair, place: dict[str, Any], reference: Reference) -> None:
    for seed, cached in ((10, 0), (10, 8)):
        asked = prompt(2500, seed=seed) if not cached else [*prompt(2500, seed=seed)[:1100], *prompt(1400, seed=11)]
        expected = reference.tokens([asked], TOKENS)[0]
        (before, overlapped_before) = pair.decode.run("handoff_probe:moved", wanted=0)
        followed = Followed(pair, asked, place, f"t-{seed}-{cached}")
        blocks = followed.begin(2 if cached else 3)
        if cached:
            # the prefix was found in the store, and loaded inside a step
            assert pair.prefill.external_hits() > 0
        else:
            assert blocks == 3 * CHUNK // BLOCK_TOKENS
        # nobody steps the prefill engine: whatever comes now comes before the prompt is computed
        (moved, _) = followed.moved(before + 1)
        assert moved > before
        params = followed.end()
        assert params is not None
        assert params["remote_request_id"].startswith(f"t-{seed}-{cached}:")
        assert followed.answer() == expected
        pair.settle()
        (_, overlapped) = pair.decode.run("handoff_probe:moved", wanted=0)
        assert overlapped > overlapped_before
    assert measure(pair.decode, "overlapped_bytes") > 0
    assert measure(pair.decode, "failed_pulls") == 0
    assert measure(pair.prefill, "released", reason="taken") == 3


def test_a_prompt_that_is_preempted_is_computed_by_the_other(
    pair: Pair, place: dict[str, Any], reference: Reference
) -> None:
    asked = prompt(2500, seed=20)
    expected = reference.tokens([asked], TOKENS)[0]
    (before, _) = pair.decode.run("handoff_probe:moved", wanted=0)
    failed = measure(pair.decode, "failed_pulls")
    followed = Followed(pair, asked, place, "preempted")
    followed.begin()
    followed.moved(before + 1)
    pair.prefill.run("handoff_probe:preempt")
    assert followed.end() is None
    assert followed.answer() == expected
    pair.settle()
    assert measure(pair.decode, "failed_pulls") == failed + 1


def test_either_leg_is_aborted(pair: Pair, place: dict[str, Any], reference: Reference) -> None:
    asked = prompt(2500, seed=30)
    (before, _) = pair.decode.run("handoff_probe:moved", wanted=0)
    followed = Followed(pair, asked, place, "prefill aborted")
    followed.begin()
    followed.moved(before + 1)
    pair.prefill.run("handoff_probe:abort", name="computed")
    assert followed.answer() == reference.tokens([asked], TOKENS)[0]
    pair.settle()

    (before, _) = pair.decode.run("handoff_probe:moved", wanted=0)
    followed = Followed(pair, prompt(2500, seed=31), place, "decode aborted")
    followed.begin()
    followed.moved(before + 1)
    pair.decode.run("handoff_probe:abort", name="followed")
    assert followed.end() is not None
    pair.settle()


def test_another_prompt_is_not_followed(pair: Pair, place: dict[str, Any], reference: Reference) -> None:
    asked = prompt(700, seed=40)
    pair.prefill.run(
        "handoff_probe:begin_prefill", prompt=prompt(2500, seed=41), params={"kvstored_transfer": "one"}, steps=2
    )
    params = {field: place[field] for field in LASTING} | {"kvstored_transfer": "one", "do_remote_prefill": True}
    pair.decode.run("handoff_probe:follow", prompt=asked, params=params, max_tokens=TOKENS)
    pair.decode.run("handoff_probe:abort", name="followed")
    # what it says it's done with is another prompt's
    assert pair.prefill.run("handoff_probe:end_prefill") is not None
    assert pair.prefill.run("handoff_probe:held") == 1
    pair.prefill.run("handoff_probe:drop_holds")
    pair.settle()


def test_a_prefill_engine_that_is_killed_in_the_midst(
    first: Engine, second: Engine, place: dict[str, Any], reference: Reference
) -> None:
    pair = Pair(first, second)
    asked = prompt(2500, seed=50)
    expected = reference.tokens([asked], TOKENS)[0]
    (before, _) = second.run("handoff_probe:moved", wanted=0)
    failed = measure(second, "failed_pulls")
    followed = Followed(pair, asked, place, "killed")
    followed.begin()
    followed.moved(before + 1)
    first.kill()
    assert followed.answer() == expected, "computed, though the policy was `fail`"
    second.probe("settle")
    assert measure(second, "failed_pulls") == failed + 1
