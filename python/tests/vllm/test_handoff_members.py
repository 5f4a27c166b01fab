"""MooncakeConnectorV1 in real engines: prefill in pipeline stages, and engines that trust certificates only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from connector_rig import Engine, Reference
from lab import prompt
from lab.certificates import Authority, can_be_made
from test_handoff import TOKENS, Pair, handoff, measure

from kvstored.mooncake import settings


def staged(transfer: dict[str, Any]) -> dict[str, Any]:
    """A configuration for prefill in two stages of one rank each."""
    transfer["kv_connector_extra_config"]["prefill"].update(tp_size=1, pp_size=2)
    return transfer


def start(connected: Any, model: Path, transfer: dict[str, Any], **options: Any) -> Engine:
    """One engine."""
    return connected(model, kv_transfer=transfer, **options)


def test_prefill_in_pipeline_stages(connected: Any, tiny_model: Path, reference: Reference, folder: Path) -> None:
    asked = [prompt(200 + 300 * index, seed=300 + index) for index in range(4)]
    expected = reference.tokens(asked, TOKENS)
    prefill = start(
        connected,
        tiny_model,
        staged(handoff("kv_producer", prefill=2)),
        pipeline_parallel_size=2,
        distributed_executor_backend="mp",
        worker_extension_cls="engine_probe.PipelineRoom",
    )
    prefill.probe("make_pipeline_room")
    decode = start(connected, tiny_model, staged(handoff("kv_consumer", load_timeout_seconds=60)))
    pair = Pair(prefill, decode)
    assert pair.complete(asked) == expected
    pair.settle()
    assert measure(decode, "pulled_requests") == len(asked)
    assert measure(decode, "failed_pulls") == 0


@pytest.mark.skipif(not can_be_made(), reason="there is no openssl to make certificates with")
def test_engines_with_certificates_and_a_token(
    connected: Any, tiny_model: Path, reference: Reference, folder: Path
) -> None:
    token = folder / "token"
    token.write_text("a-token-of-a-test\n")
    authority = Authority(folder / "authority")
    prefill, decode, stranger = (
        start(
            connected,
            tiny_model,
            handoff(role, transports=["tcp"], load_timeout_seconds=20),
            environment={settings.TOKEN_VARIABLE: str(token), **variables},
        )
        for role, variables in (
            ("kv_producer", authority.member("prefill")),
            ("kv_consumer", authority.member("decode")),
            ("kv_consumer", Authority(folder / "other").member("stranger")),
        )
    )
    asked = [prompt(500, seed=320), prompt(900, seed=321)]
    expected = reference.tokens(asked, TOKENS)
    members = Pair(prefill, decode)
    assert members.complete(asked) == expected
    members.settle()
    assert measure(decode, "pulled_requests") == len(asked)
    assert measure(decode, "pulled_bytes", transport="tcp") > 0
    # whom the producer doesn't trust gets no byte, and computes
    assert Pair(prefill, stranger).complete(asked) == expected
    assert measure(stranger, "pulled_bytes") == 0
    assert measure(stranger, "failed_pulls") == len(asked)
