"""vLLM's own MooncakeConnector, unmodified, over our transfer engine: a prefill and a decode instance on this CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from connector_rig import HERE, Reference, whole_blocks
from lab import MooncakePair, prompt

from kvstored.mooncake import shim_folder

TOKENS = 12


def connector(protocol: str) -> dict[str, Any]:
    """vLLM's configuration of its connector."""
    return {
        "kv_connector": "MooncakeConnector",
        "kv_connector_module_path": "mooncake_on_cpu",
        "kv_connector_extra_config": {"mooncake_protocol": protocol, "num_workers": 2},
    }


def environment() -> dict[str, str]:
    """Variables with which `mooncake` is ours, and the connector is found."""
    return {"PYTHONPATH": os.pathsep.join([str(shim_folder()), str(HERE)])}


@pytest.fixture(scope="module", params=["tcp", "shm"])
def pair(request: pytest.FixtureRequest, tiny_model: Path, module_folder: Path) -> Iterator[MooncakePair]:
    folder = module_folder / request.param
    folder.mkdir()
    # blocks that come from elsewhere must not have been there before
    arguments = ["--no-enable-prefix-caching"]
    options = {"connector": connector(request.param), "environment": environment(), "arguments": arguments}
    with MooncakePair(tiny_model, folder=folder, **options) as started:
        yield started


def test_both_instances_use_our_engine(pair: MooncakePair) -> None:
    assert importlib.util.find_spec("mooncake") is None, "Mooncake itself is installed here"
    for server in (pair.prefill, pair.decode):
        assert any("kvstored/_native" in loaded_files(process) for process in server.processes)


def test_tokens_are_those_of_one_instance(pair: MooncakePair, reference: Reference) -> None:
    asked = [prompt(length, seed=length) for length in (300, 1000, 4000)]
    expected = reference.tokens(asked, TOKENS)
    before = pair.decode.metrics().prefix_cache().external_hits
    assert [pair.complete(one, TOKENS).token_ids for one in asked] == expected
    moved = pair.decode.metrics().prefix_cache().external_hits - before
    assert moved >= sum(whole_blocks(one) for one in asked), "the decode instance computed prompts itself"


def test_many_at_once(pair: MooncakePair, reference: Reference) -> None:
    asked = [prompt(400 + 60 * index, seed=100 + index) for index in range(8)]
    expected = reference.tokens(asked, TOKENS)
    with ThreadPoolExecutor(len(asked)) as clients:
        answers = list(clients.map(lambda one: pair.complete(one, TOKENS), asked))
    assert [one.token_ids for one in answers] == expected
    assert all("failed" not in line for line in transfer_lines(pair))


def test_a_prefill_instance_that_dies_fails_only_what_it_held(
    pair: MooncakePair, tiny_model: Path, reference: Reference
) -> None:
    held = prompt(700, seed=900)
    transfer = f"transfer-{uuid.uuid4().hex}"
    pair.compute(held, transfer)
    pair.prefill.kill()
    pair.prefill.start()
    # the decode instance finds the new engine, and opens it anew
    asked = prompt(900, seed=901)
    assert pair.complete(asked, TOKENS).token_ids == reference.tokens([asked], TOKENS)[0]


def loaded_files(process: int) -> str:
    """Names of the files that a process has mapped."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/maps").read_text(errors="replace")
    return ""


def transfer_lines(pair: MooncakePair) -> list[str]:
    """What the sending side wrote about transfers."""
    return [line for line in pair.prefill.log_text().splitlines() if "Sending to" in line]
