"""Settings of the hand-off, where workers listen, and how their KV is laid out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from handoff_rig import PREFILL, settings

from kvstored import InvalidInput
from kvstored.mooncake.plugged import PluggedTransport
from kvstored.vllm.handoff.configuration import Sizes, read_settings
from kvstored.vllm.handoff.placement import own_place
from kvstored.vllm.handoff.shape import head_rows, own_heads

SEED = {"prefill": {"dp_size": 4, "tp_size": 4}, "decode": {"dp_size": 4, "tp_size": 4}}
LOOPBACK = "127.0.0.1"
PLUGIN = {
    "pool_ascend": "Plugin(hixl)",
    "plugin_directory": "/opt/plugins",
    "plugin_setting": {"hixl.address": "10.0.0.1", "hixl.listen": "10.0.0.1:26000-26015"},
}
VARIABLES = (
    "MOONCAKE_CONFIG_PATH",
    "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT",
    "KVSTORED_TRANSFER_TOKEN_FILE",
    "KVSTORED_TRANSFER_TLS_CERTIFICATE",
    "KVSTORED_TRANSFER_TLS_KEY",
    "KVSTORED_TRANSFER_TLS_AUTHORITY",
    "KVSTORED_POOL_ASCEND",
    "KVSTORED_PLUGIN_DIRECTORY",
    "KVSTORED_PLUGIN_SETTING",
    "KVSTORED_PLUGIN_TIMEOUT_MS",
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_deployments_own_settings_are_enough() -> None:
    read, warnings = read_settings(SEED, LOOPBACK)
    assert (read.prefill, read.decode) == (Sizes(dp_size=4, tp_size=4), Sizes(dp_size=4, tp_size=4))
    assert (read.lease_seconds, read.load_timeout_seconds, read.transports) == (120.0, 30.0, ())
    assert (read.listen_host, read.verify, warnings) == (LOOPBACK, True, [])


def test_what_is_given_stands_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", "480")
    assert read_settings(SEED, LOOPBACK)[0].lease_seconds == 480.0
    assert read_settings(SEED | {"lease_seconds": 7}, LOOPBACK)[0].lease_seconds == 7.0
    given = {"listen_host": "::1", "transports": "shm, tcp", "load_timeout_seconds": 2.5, "verify": False}
    read, _ = read_settings(given, "10.0.0.1")
    assert (read.listen_host, read.transports, read.load_timeout_seconds) == ("::1", ("shm", "tcp"), 2.5)
    assert not read.verify


def test_unknown_keys_are_warnings() -> None:
    assert read_settings({"prefil": {}}, LOOPBACK)[1] == ["kv_connector_extra_config: nobody knows prefil"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"prefill": 4}, "prefill = 4"),
        ({"prefill": {"tp_size": 0}}, "prefill.tp_size = 0"),
        ({"decode": {"dp_size": "4"}}, 'decode.dp_size = "4"'),
        ({"lease_seconds": 0}, "lease_seconds = 0"),
        ({"lease_seconds": True}, "lease_seconds = true"),
        ({"load_timeout_seconds": "soon"}, 'load_timeout_seconds = "soon"'),
        ({"transports": ["pigeon"]}, "pigeon is none of shm, tcp"),
        ({"transports": 3}, "transports = 3"),
        ({"transports": "ascend,tcp"}, "KVSTORED_POOL_ASCEND"),
        ({**PLUGIN, "plugin_timeout_ms": "soon"}, "plugin_timeout_ms"),
        ({"verify": "no"}, 'verify = "no"'),
        ({"overlap": 1}, "overlap = 1"),
        ({"pull_threads": 0}, "pull_threads = 0"),
        ({"listen_host": 5}, "listen_host = 5"),
    ],
)
def test_wrong_values_are_named(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        read_settings(extra, LOOPBACK)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("protocol", "transports", "warned"),
    [("ascend", (), True), ("tcp", ("tcp",), False), ("shm", ("shm", "tcp"), False), ("auto", (), False)],
)
def test_mooncake_json(
    protocol: str, transports: tuple[str, ...], warned: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "mooncake.json"
    path.write_text(json.dumps({"metadata_server": "P2PHANDSHAKE", "protocol": protocol, "device_name": ""}))
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(path))
    read, warnings = read_settings(SEED, LOOPBACK)
    assert (read.transports, bool(warnings)) == (transports, warned)
    assert read_settings(SEED | {"transports": ["tcp"]}, LOOPBACK)[0].transports == ("tcp",)
    path.write_text("{")
    with pytest.raises(InvalidInput, match=r"MOONCAKE_CONFIG_PATH .*mooncake\.json"):
        read_settings(SEED, LOOPBACK)


def test_a_plugin_is_what_ascend_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "mooncake.json"
    path.write_text(json.dumps({"metadata_server": "P2PHANDSHAKE", "protocol": "ascend", "device_name": ""}))
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(path))
    read, warnings = read_settings(SEED | PLUGIN, LOOPBACK)
    assert (read.transports, warnings) == (("ascend", "tcp"), [])
    assert read.plugged == PluggedTransport("Plugin(hixl)", "/opt/plugins", PLUGIN["plugin_setting"])
    monkeypatch.setenv("KVSTORED_POOL_ASCEND", "Plugin(hixl)")
    read, warnings = read_settings(SEED | {"transports": ["ascend"]}, LOOPBACK)
    assert (read.transports, warnings) == (("ascend",), [])
    assert read.plugged == PluggedTransport("Plugin(hixl)")


def test_other_machines_need_a_token_and_certificates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput) as error:
        read_settings(SEED, "192.168.10.1")
    for name in VARIABLES[2:6]:
        assert name in str(error.value)
    (folder / "token").write_text("a token\n")
    monkeypatch.setenv("KVSTORED_TRANSFER_TOKEN_FILE", str(folder / "token"))
    with pytest.raises(InvalidInput) as error:
        read_settings(SEED, "0.0.0.0")
    assert "set KVSTORED_TRANSFER_TLS_CERTIFICATE, " in str(error.value)
    for name in ("CERTIFICATE", "KEY", "AUTHORITY"):
        monkeypatch.setenv(f"KVSTORED_TRANSFER_TLS_{name}", str(folder / name))
    read, _ = read_settings(SEED, "192.168.10.1")
    assert read.security.token == b"a token"


def configuration(
    role: str = "kv_producer", *, tp: int = 4, pp: int = 1, dp_index: int = 0, port: int = 20_001, **parallel: Any
) -> SimpleNamespace:
    """As much of vLLM's configuration as the place needs."""
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    transfer = {"is_kv_producer": role != "kv_consumer", "is_kv_consumer": role != "kv_producer"}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**sizes, data_parallel_rank=0, data_parallel_index=dp_index, **parallel),
        kv_transfer_config=SimpleNamespace(kv_port=port, engine_id="engine", **transfer),
    )


def test_ports_follow_one_another() -> None:
    place = own_place(configuration(tp=4, pp=2, dp_index=3), settings(), LOOPBACK)
    assert (place.base_port, place.rank_port(0, 0), place.rank_port(1, 3)) == (20_025, 20_025, 20_032)
    assert place.engine_id == "engine_dp3"
    assert PREFILL.addresses() == ["10.0.0.1:20001", "10.0.0.1:20002"]


def test_a_wildcard_is_not_what_peers_are_told() -> None:
    assert own_place(configuration(), settings(listen_host="0.0.0.0"), "192.168.10.1").host == "192.168.10.1"
    assert own_place(configuration(), settings(listen_host="::1"), LOOPBACK).addresses()[0] == "[::1]:20001"


@pytest.mark.parametrize(
    ("change", "sizes", "words"),
    [
        ({"tp": 2}, {"prefill": Sizes(tp_size=4)}, "prefill.tp_size = 4, but this prefill instance has 2"),
        ({"pp": 2}, {"prefill": Sizes(pp_size=1)}, "prefill.pp_size = 1, but this prefill instance has 2"),
        (
            {"role": "kv_consumer", "tp": 2},
            {"decode": Sizes(tp_size=1)},
            "decode.tp_size = 1, but this decode instance has 2",
        ),
        ({"port": 65_533}, {}, "kv_port = 65533"),
        ({"nnodes_within_dp": 2}, {}, "several nodes"),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], sizes: dict[str, Sizes], words: str) -> None:
    with pytest.raises(InvalidInput) as error:
        own_place(configuration(**change), settings(**sizes), LOOPBACK)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("total", "tp", "ranks"),
    [
        (8, 1, [(0, 8)]),
        (8, 2, [(0, 4), (4, 4)]),
        (2, 4, [(0, 1), (0, 1), (1, 1), (1, 1)]),
        (1, 2, [(0, 1), (0, 1)]),
    ],
)
def test_ranks_share_the_heads(total: int, tp: int, ranks: list[tuple[int, int]]) -> None:
    model = SimpleNamespace(use_mla=False, get_total_num_kv_heads=lambda: total)
    config = SimpleNamespace(model_config=model, parallel_config=SimpleNamespace(tensor_parallel_size=tp))
    heads = [own_heads(config, None, rank) for rank in range(tp)]
    assert [(one.first, one.count) for one in heads] == ranks
    assert {one.total for one in heads} == {total}


def test_where_heads_are_in_a_block() -> None:
    blocks, heads, tokens, content = 3, 2, 4, 6
    outermost = torch.zeros(blocks, heads, tokens, content)
    assert head_rows(outermost, blocks, heads) == 1
    tokens_first = torch.zeros(blocks, tokens, heads, content).permute(0, 2, 1, 3)
    assert head_rows(tokens_first, blocks, heads) == tokens
    # the engine's blocks of two of the kernel's
    assert head_rows(torch.zeros(2 * blocks, heads, tokens, content), blocks, heads) == 2
    assert head_rows(torch.zeros(blocks, tokens, heads, content), blocks, heads) is None
    assert head_rows(torch.zeros(blocks, heads, content, tokens).transpose(2, 3), blocks, heads) == 1
    # content outside of heads
    assert head_rows(torch.zeros(blocks, content, heads, tokens).permute(0, 2, 3, 1), blocks, heads) == content
    assert head_rows(torch.zeros(blocks, tokens, 9), blocks, 1) == 1
    assert head_rows(torch.zeros(blocks, tokens, 9), blocks, 2) is None


@pytest.mark.parametrize(("dtype", "isa"), [(torch.float32, "vec"), (torch.bfloat16, "vec"), (torch.bfloat16, "vec16")])
def test_kernels_keep_heads_apart(dtype: torch.dtype, isa: str) -> None:
    """What a kernel writes of a head is the same whatever other heads there are: heads can move between ranks."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    heads, tokens, size = 4, 32, 64
    source = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(tokens + 5, heads, size, generator=source).to(dtype) for _ in range(2))

    def written(first: int, count: int) -> torch.Tensor:
        cache = torch.zeros(3, count, tokens, 2 * size, dtype=dtype)
        halves = cache.view(3, count, 2 * tokens, size).chunk(2, dim=2)
        mine = [part[:, first : first + count].contiguous() for part in (keys, values)]
        ops.cpu_attn_reshape_and_cache(*mine, *halves, torch.arange(tokens + 5) + tokens, isa)
        return cache

    whole = written(0, heads)
    assert whole.any()
    for head in range(heads):
        assert torch.equal(whole[:, head : head + 1], written(head, 1))
