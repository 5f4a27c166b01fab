"""MooncakeConnectorV1 in real engines over the transport `ascend`: the plugin `hixl` on an emulator of its library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from connector_rig import Reference
from handoff_rigs import TOKENS, Pair, handoff, measure
from lab import plugged_hixl, prompt
from lab.ports import free_ports


def test_prompts_are_pulled_over_the_plugin(
    connected: Any, tiny_model: Path, reference: Reference, folder: Path
) -> None:
    variables = plugged_hixl.environment(plugged_hixl.plugin_directory(folder), free_ports(plugged_hixl.PORTS))
    mooncake = folder / "mooncake.json"
    mooncake.write_text(json.dumps({"metadata_server": "P2PHANDSHAKE", "protocol": "ascend", "device_name": ""}))
    variables["MOONCAKE_CONFIG_PATH"] = str(mooncake)
    prefill = connected(tiny_model, kv_transfer=handoff("kv_producer", decode=2), environment=variables)
    # each worker of the other one has its own port, as it would have its own card
    first = free_ports(2)
    listen = [f"127.0.0.1:{first + number}" for number in range(2)]
    told = plugged_hixl.settings(first) | {"hixl.listen": listen}
    consumer = handoff("kv_consumer", decode=2, load_timeout_seconds=60, plugin_setting=told)
    decode = connected(tiny_model, kv_transfer=consumer, tensor_parallel=2, environment=variables)
    asked = [prompt(200 + 300 * index, seed=340 + index) for index in range(4)]
    expected = reference.tokens(asked, TOKENS)
    pair = Pair(prefill, decode)
    assert pair.complete(asked) == expected
    pair.settle()
    assert measure(decode, "pulled_requests") == 2 * len(asked)
    assert measure(decode, "pulled_bytes", transport="ascend") > 0
    assert measure(decode, "pulled_bytes") == measure(decode, "pulled_bytes", transport="ascend")
    assert measure(decode, "failed_pulls") == 0
