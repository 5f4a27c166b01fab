"""Who takes part in Mooncake's API: those with the token and a certificate, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from lab.certificates import Authority, can_be_made
from mooncake_rig import EnginePeer, Master, Memory, PeerProcess
from support import binary, wait_for

from kvstored.mooncake import settings
from kvstored.mooncake.engine import TransferEngine
from kvstored.mooncake.store import MooncakeDistributedStore

MIB = 1 << 20
VARIABLES = (
    settings.TOKEN_VARIABLE,
    settings.CERTIFICATE_VARIABLE,
    settings.KEY_VARIABLE,
    settings.AUTHORITY_VARIABLE,
)
with_certificates = pytest.mark.skipif(not can_be_made(), reason="there is no openssl to make certificates with")


def token(folder: Path, name: str) -> dict[str, str]:
    """The variable that names a file with a token of that name."""
    path = folder / name
    path.write_text(f"{name}-token-of-a-test\n")
    return {settings.TOKEN_VARIABLE: str(path)}


def reads(peer: EnginePeer, remote: int, patch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> bool:
    """Whether an engine with these variables can read the peer's memory, all of it b"\\x07"."""
    for name in VARIABLES:
        patch.delenv(name, raising=False)
    for name, value in variables.items():
        patch.setenv(name, value)
    engine = TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    memory = Memory(64)
    assert engine.register_memory(memory.address, 64) == 0
    read = engine.transfer_sync_read(peer.name, memory.address, remote, 64) == 0
    assert memory.bytes == (b"\x07" if read else b"\0") * 64
    assert engine.unregister_memory(memory.address) == 0
    return read


def test_another_token_is_no_member(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = token(folder, "right"), token(folder, "wrong")
    peer = EnginePeer(environment=right)
    try:
        remote = peer.call("memory", 64, 7)
        assert not reads(peer, remote, monkeypatch, wrong)
        assert not reads(peer, remote, monkeypatch, {})
        assert reads(peer, remote, monkeypatch, right)
    finally:
        peer.close()


@with_certificates
def test_only_members_with_a_certificate_of_the_authority_transfer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = token(folder, "right")
    authority, other = Authority(folder / "authority"), Authority(folder / "other")
    peer = EnginePeer(environment={**shared, **authority.member("peer")})
    try:
        remote = peer.call("memory", 64, 7)
        assert not reads(peer, remote, monkeypatch, shared)
        assert not reads(peer, remote, monkeypatch, {**shared, **other.member("stranger")})
        assert not reads(peer, remote, monkeypatch, {**token(folder, "wrong"), **authority.member("tokenless")})
        assert reads(peer, remote, monkeypatch, {**shared, **authority.member("member")})
    finally:
        peer.close()


@with_certificates
def test_an_open_address_takes_a_token_and_certificates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Authority(folder / "authority").member("member")
    for variables, starts in [
        (token(folder, "right"), False),
        (member, False),
        ({**token(folder, "right"), **member}, True),
    ]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert (TransferEngine().initialize("0.0.0.0", "P2PHANDSHAKE", "tcp", "") == 0) is starts


@with_certificates
def test_a_pool_of_members_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = binary()
    if program is None:
        pytest.skip("there is no kvstored binary: none is built, and KVSTORED_BINARY names none")
    authority = Authority(folder / "authority")
    shared = token(folder, "right")
    lender, member = ({**shared, **authority.member(name)} for name in ("lender", "member"))
    certificate = authority.member("master")
    flags = [
        f"--token_file={shared[settings.TOKEN_VARIABLE]}",
        f"--tls_certificate={certificate[settings.CERTIFICATE_VARIABLE]}",
        f"--tls_key={certificate[settings.KEY_VARIABLE]}",
        f"--tls_authority={authority.certificate}",
        "--client_ttl=2",
    ]
    with Master(program, *flags) as master:
        arguments = ["127.0.0.1", "P2PHANDSHAKE", 16 * MIB, 16 * MIB, "tcp", "", master.address]
        assert MooncakeDistributedStore().setup(*arguments) < 0
        node = PeerProcess("kvstored.mooncake.store", "MooncakeDistributedStore", lender)
        store = MooncakeDistributedStore()
        try:
            assert node.call("setup", *arguments) == 0
            for name, value in member.items():
                monkeypatch.setenv(name, value)
            arguments[2] = 0
            assert store.setup(*arguments) == 0
            wait_for(lambda: store.put("key", b"value" * 1000) == 0, "a put")
            assert store.get("key") == b"value" * 1000
            assert node.call("get", "key") == "value" * 1000
        finally:
            store.close()
            node.close()
