"""Stores opened from options: one for all users of the same options."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstored import Identity, InvalidInput, KvstoredError, Layout, PermissionDenied, Store
from kvstored.complaints import Complaints
from kvstored.opening import StoreLease, durability_of, open_store, private_directory

PROGRAM = """
import json, sys
from kvstored.opening import open_store
lease = open_store(json.loads(sys.argv[1]))
print(lease.store.is_embedded, flush=True)
sys.stdin.read()
lease.release()
"""


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "pipeline": "Cache|Posix",
        "storage_backends": str(folder / "store"),
        "cache_buffer_capacity": "32MiB",
        "posix_capacity": "256MiB",
        "posix_segment_bytes": "64MiB",
        **options,
    }


@pytest.fixture
def leases() -> Iterator[list[StoreLease]]:
    opened: list[StoreLease] = []
    yield opened
    for lease in opened:
        lease.release()


def works(store: Store) -> bool:
    namespace = store.open_namespace(Identity(model="m"), Layout.uniform(1, 1, 4096))
    return namespace.dump_tensors([bytes(32)], [[bytearray(4096)]]).wait().all_done


def test_equal_options_share_a_store(folder: Path, leases: list[StoreLease]) -> None:
    leases += [open_store(settings(folder)) for _ in range(2)]
    other = open_store(settings(folder / "other"))
    leases.append(other)
    assert leases[0].store is leases[1].store is not other.store
    leases[0].release()
    leases[0].release()
    assert works(leases[1].store), "released twice by one user, it is still the other's"
    leases[1].release()
    with pytest.raises(KvstoredError):
        works(leases[1].store)
    leases.append(open_store(settings(folder)))
    assert works(leases[-1].store)


def test_whoever_comes_first_is_the_store_of_the_others(folder: Path, leases: list[StoreLease]) -> None:
    options = settings(folder, listen=str(folder / "run" / "s"))
    leases.append(open_store(options))
    assert leases[0].store.is_embedded
    commands = [[sys.executable, "-c", PROGRAM, json.dumps(options)] for _ in range(2)]
    others = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    assert [other.stdout.readline().strip() for other in others] == ["False", "False"]
    for other in others:
        other.communicate("", timeout=60)
        assert other.returncode == 0
    assert works(leases[0].store)


def test_processes_that_come_at_once_agree_on_one(folder: Path) -> None:
    options = settings(folder, listen=str(folder / "s"))
    command = [sys.executable, "-c", PROGRAM, json.dumps(options)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.stdout.readline().strip() for process in running]
    # the others first, so that none of them loses its store
    for process, answer in sorted(zip(running, answers, strict=True), key=lambda pair: pair[1]):
        process.communicate("", timeout=60)
        assert process.returncode == 0, answer
    assert sorted(answers) == ["False", "False", "True"]


def test_a_path_is_made_where_none_is_named(
    folder: Path, leases: list[StoreLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    leases.append(open_store(settings(folder, listen="auto")))
    (socket,) = folder.glob("shared-*.sock")
    with Store.connect(str(socket)) as joined:
        assert works(joined)


def test_ucms_file_configures_the_store(folder: Path, leases: list[StoreLease]) -> None:
    file = folder / "ucm.yaml"
    file.write_text(
        "ucm_connectors:\n"
        "  - ucm_connector_name: UcmPipelineStore\n"
        "    ucm_connector_config:\n"
        '      store_pipeline: "Cache|Posix"\n'
        f"      storage_backends: {folder / 'store'}\n"
        "      posix_capacity_gb: 1\n"
    )
    small = {"cache_buffer_capacity": "32MiB", "posix_segment_bytes": "64MiB"}
    leases.append(open_store({"UCM_CONFIG_FILE": str(file), **small}))
    assert leases[0].store.tier_names == ["Cache", "Posix"]
    assert works(leases[0].store)


def test_wrong_options_are_named(folder: Path) -> None:
    for wrong, words in (
        ({"socket": "a", "listen": "b"}, "exclude each other"),
        ({"socket": 7}, "socket is 7"),
        ({"streams": 0}, "streams is 0"),
        ({"timeout_ms": "soon"}, "timeout_ms is 'soon'"),
        ({"pipeline": object()}, "JSON"),
        ({"cache_buffer_capacity": "lots"}, "cache_buffer_capacity"),
    ):
        with pytest.raises(InvalidInput, match=words):
            open_store(settings(folder, **wrong))
    with pytest.raises(KvstoredError):
        open_store({"socket": str(folder / "nobody")})
    with pytest.raises(InvalidInput, match="durability is 'maybe'"):
        durability_of({"durability": "maybe"})
    assert [durability_of({"durability": word}) for word in ("memory", "tier", "durable")][2] == "durable"
    assert durability_of({}) == "memory"


def test_settings_beside_a_daemon_are_warned_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kvstored"), pytest.raises(KvstoredError):
        open_store({"socket": str(folder / "nobody"), "pipeline": "Cache", "config_file": "x"})
    assert "config_file" in caplog.text and "pipeline" in caplog.text


def test_a_place_that_others_may_write_to_is_no_meeting_place(folder: Path) -> None:
    private_directory(str(folder / "mine"))
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    (folder / "link").symlink_to("/")
    for path in ("open", "link"):
        with pytest.raises(PermissionDenied):
            private_directory(str(folder / path))


def test_complaints_come_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("kvstored.test")
    rare, frequent = Complaints(logger), Complaints(logger, interval_s=0.0)
    with caplog.at_level(logging.WARNING, logger="kvstored.test"):
        for index in range(3):
            rare.report("a", f"rare {index}", ValueError("why"))
            rare.report("b", f"other {index}")
            frequent.report("a", f"frequent {index}")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["rare 0: why", "other 0", "frequent 0", "frequent 1", "frequent 2"]
