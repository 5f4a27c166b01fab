"""Options, files, and everything that can be wrong with them."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import kvstored
from kvstored import InvalidInput, Store, check_configuration

SMALL = {"pipeline": "Cache", "cache_buffer_capacity": "16MiB", "huge_pages": False}

UCM_FILE = """
ucm_connectors:
  - ucm_connector_name: "UcmPipelineStore"
    ucm_connector_config:
      store_pipeline: "Cache|Posix"
      storage_backends: "/somewhere"
      cache_buffer_capacity_gb: 1
      cache_stream_number: 4
      timeout_ms: 5000
enable_event_sync: true
use_layerwise: false
"""


def test_every_problem_is_named_with_its_value():
    wrong = {"pipeline": "Cash", "cache_buffer_capacity": "many", "posix_high_watermark": 7, "shadow_sample_one_in": -1}
    with pytest.raises(InvalidInput) as caught:
        Store.embedded(wrong)
    for key, value in (("pipeline", "Cash"), ("cache_buffer_capacity", "many"), ("shadow_sample_one_in", "-1")):
        assert key in str(caught.value)
        assert value in str(caught.value)
    assert "watermark (7)" in str(caught.value)
    assert "line 1" not in str(caught.value)


def test_what_cannot_be_written_down_is_refused():
    with pytest.raises(InvalidInput, match="options can't be used"):
        Store.embedded({"pipeline": object()})
    with pytest.raises(InvalidInput, match="options can't be used"):
        Store.embedded({"posix_high_watermark": float("nan")})


@pytest.mark.parametrize(("name", "value"), [("streams", 0), ("streams", 257), ("timeout_ms", 0)])
def test_settings_of_the_client_are_checked(name, value):
    with pytest.raises(InvalidInput, match=f"{name} {value}"):
        Store.embedded(SMALL, **{name: value})


def test_unknown_keys_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "kvstored"), Store.embedded({**SMALL, "pipelin": "x", "no_such_key": 1}):
        pass
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert any("pipelin" in message and "pipeline?" in message for message in messages)
    assert any("no_such_key" in message for message in messages)


def test_numbers_and_paths_of_other_libraries_will_do(folder):
    options = {**SMALL, "shadow_sample_one_in": np.int64(8), "pipeline": "Posix", "storage_backends": folder / "s"}
    with Store.embedded({**options, "posix_capacity": "64MiB"}) as store:
        assert "Posix" in store.tier_names
    assert (folder / "s").is_dir()


def test_options_come_before_the_file(folder):
    file = folder / "settings.yaml"
    file.write_text("pipeline: Cache|Posix\nstorage_backends: /proc/never\ncache_buffer_capacity: 16MiB\n")
    with Store.embedded({"pipeline": "Cache"}, config_file=file) as store:
        assert store.tier_names == ["Cache"]
    with pytest.raises(InvalidInput, match=r"line 2: pipeline = \"Cash\""):
        file.write_text("\npipeline: Cash\n")
        Store.embedded(SMALL | {"pipeline": None}, config_file=file)
    with pytest.raises(kvstored.NotFound, match=r"settings\.json"):
        Store.embedded(SMALL, config_file=str(folder / "settings.json"))


def test_keys_of_ucm_are_taken_as_they_are(folder):
    plain = {
        "store_pipeline": "Cache|Posix",
        "storage_backends": str(folder / "s"),
        "cache_buffer_capacity": "16MiB",
        "posix_capacity": "64MiB",
        "timeout_ms": 30000,
    }
    with Store.embedded(plain) as store:
        assert store.tier_names == ["Cache", "Posix"]
    file = folder / "ucm.yaml"
    file.write_text(UCM_FILE.replace("/somewhere", str(folder / "t")))
    with Store.embedded({"cache_buffer_capacity": "16MiB", "posix_capacity": "64MiB"}, config_file=file) as store:
        assert store.tier_names == ["Cache", "Posix"]
    assert (folder / "t").is_dir()


def test_a_good_file_is_told():
    told = check_configuration(UCM_FILE)
    assert told["problems"] == []
    assert told["options"]["storage_backends"] == ["/somewhere"]
    assert told["options"]["pipeline"] == "Cache|Posix"
    assert told["settings"]["cache_buffer_capacity"].startswith("1")
    connector = told["connector"]
    assert connector["enable_event_sync"] is True
    assert connector["use_layerwise"] is False
    assert connector["load_only_first_rank"] is None
    assert (connector["timeout_ms"], connector["cache_stream_number"]) == (5000, 4)
    assert any("cache_stream_number" in remark["key"] for remark in told["remarks"])


def test_the_options_told_can_be_given():
    told = check_configuration("pipeline: Cache\ncache_buffer_capacity_gb: 0.03125\ntenant_quota: {a: 1GiB}\n")
    assert told["problems"] == []
    with Store.embedded(told["options"]) as store:
        assert store.tier_names == ["Cache"]


def test_a_bad_file_is_told_key_by_key():
    told = check_configuration("pipeline: Cash\nno_such_key: 1\nposix_tail_interval_ms: 0\n")
    problems = {problem["key"]: problem for problem in told["problems"]}
    assert problems["pipeline"]["line"] == 1
    assert problems["pipeline"]["unknown"] is False
    assert "Cash" in problems["pipeline"]["value"]
    assert problems["no_such_key"]["unknown"] is True
    assert problems["posix_tail_interval_ms"]["unknown"] is False
    assert told["settings"] is None
    with pytest.raises(InvalidInput):
        check_configuration("a: [")
    assert check_configuration("")["problems"] == []


def test_the_default_socket_follows_the_session(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert kvstored.default_socket() == "/run/user/7/kvstored.sock"


def test_storage_that_cannot_be_used_is_named(folder):
    (folder / "file").write_text("")
    with pytest.raises(kvstored.KvstoredError, match="storage_backends"):
        Store.embedded({**SMALL, "pipeline": "Posix", "storage_backends": str(folder / "file")})
