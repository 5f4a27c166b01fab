"""Files and `--kv-transfer-config` of a deployment with prefill apart from decode.

They are those that users of Mooncake and UCM have, but for addresses and sizes, and for the module that both connectors
come from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULE = "kvstored.vllm"
MASTER_FLAGS = [
    *("--eviction_high_watermark_ratio", "0.9"),
    *("--eviction_ratio", "0.1"),
    *("--default_kv_lease_ttl", "11000"),
]

_UCM = """\
ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "{storage}"
      cache_buffer_capacity_gb: 64
enable_event_sync: true
use_layerwise: true
"""


@dataclass(frozen=True)
class Group:
    """The instances of one role. With data parallelism the ranks of an instance are servers of their own."""

    instances: int = 1
    tensor_parallel: int = 1
    data_parallel: int = 1

    @property
    def servers(self) -> int:
        """How many servers that makes."""
        return self.instances * self.data_parallel

    def sizes(self) -> dict[str, int]:
        """As the connector is told about the role."""
        return {"dp_size": self.data_parallel, "tp_size": self.tensor_parallel}


def write_mooncake(folder: Path, master_port: int, protocol: str) -> Path:
    """mooncake.json."""
    path = folder / "mooncake.json"
    settings = {
        "metadata_server": "P2PHANDSHAKE",
        "protocol": protocol,
        "device_name": "",
        "master_server_address": f"127.0.0.1:{master_port}",
        "global_segment_size": "1GB",
    }
    path.write_text(json.dumps(settings, indent=4) + "\n")
    return path


def write_ucm(folder: Path, storage: Path) -> Path:
    """ucm_config_example.yaml."""
    path = folder / "ucm_config_example.yaml"
    path.write_text(_UCM.format(storage=storage))
    return path


def handoff(role: str, port: int, prefill: Group, decode: Group, more: dict[str, Any]) -> dict[str, Any]:
    """The connector between the roles. more: settings beside the sizes."""
    return {
        "kv_connector": "MooncakeConnectorV1",
        "kv_connector_module_path": MODULE,
        "kv_role": role,
        "kv_port": port,
        "kv_connector_extra_config": {"prefill": prefill.sizes(), "decode": decode.sizes(), **more},
    }


def prefill_transfer(
    port: int, prefill: Group, decode: Group, ucm: Path, more: dict[str, Any], cache_more: dict[str, Any]
) -> dict[str, Any]:
    """What a prefill instance takes: it hands over, and has a prefix cache. cache_more: settings beside UCM's file."""
    cache = {
        "kv_connector": "UCMConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": MODULE,
        "kv_connector_extra_config": {"UCM_CONFIG_FILE": str(ucm), **cache_more},
    }
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"connectors": [handoff("kv_producer", port, prefill, decode, more), cache]},
    }


def decode_transfer(port: int, prefill: Group, decode: Group, more: dict[str, Any]) -> dict[str, Any]:
    """What a decode instance takes."""
    return handoff("kv_consumer", port, prefill, decode, more)
