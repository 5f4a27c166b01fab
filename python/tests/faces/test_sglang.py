"""The HiCache backend, loaded by SGLang's own factory and moving pages of SGLang's own host pools."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch isn't installed")

import torch
from sglang_wheel import SglangAbsent, make_importable

from kvstored import InvalidInput, Store

PAGE, LAYERS, HEADS, DIM, PAGES = 16, 3, 2, 32, 24
Backend = Any
Maker = Callable[..., Backend]


@pytest.fixture(scope="module", autouse=True)
def sglang() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="kvstored-sglang-"))
    try:
        print("SGLang:", make_importable(folder))
    except SglangAbsent as absent:
        shutil.rmtree(folder)
        pytest.skip(str(absent))
    yield
    shutil.rmtree(folder)


@pytest.fixture
def make(folder: Path) -> Iterator[Maker]:
    made: list[Backend] = []

    def backend(pool: Any = None, *, rank: dict[str, Any] | None = None, **extra: Any) -> Backend:
        one = create(folder, rank or {}, extra)
        made.append(one)
        if pool is not None:
            one.register_mem_pool_host(pool)
        return one

    yield backend
    for one in made:
        one.close()


def create(folder: Path, rank: dict[str, Any], extra: dict[str, Any]) -> Backend:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.storage import StorageBackendFactory

    facts = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": True,
        "model_name": "m",
        **rank,
    }
    configuration = {
        "backend_name": "kvstored",
        "module_path": "kvstored.sglang",
        "class_name": "KvstoredHiCache",
        "interface_v1": 1,
        "weights_digest": "w",
        "pipeline": "Cache|Posix",
        "storage_backends": str(folder / "store"),
        "cache_buffer_capacity": "32MiB",
        "posix_capacity": "256MiB",
        "posix_segment_bytes": "64MiB",
        **extra,
    }
    if "socket" in extra:
        configuration = {key: value for key, value in configuration.items() if "posix" not in key}
        for key in ("pipeline", "storage_backends", "cache_buffer_capacity"):
            del configuration[key]
    config = HiCacheStorageConfig(**facts, extra_config=configuration)
    return StorageBackendFactory.create_backend("dynamic", config, None)


def mha_pool(layout: str = "page_first", seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Any:
    """SGLang's own host pool of keys and values, made without a device."""
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    pool = object.__new__(MHATokenToKVPoolHost)
    shapes = {
        "layer_first": (2, LAYERS, PAGES * PAGE, HEADS, DIM),
        "page_first": (2, PAGES * PAGE, LAYERS, HEADS, DIM),
        "page_first_direct": (2, PAGES, LAYERS, PAGE, HEADS, DIM),
    }
    vars(pool).update(layer_num=LAYERS, head_num=HEADS, head_dim=DIM, v_head_dim=DIM)
    return completed(pool, layout, shapes[layout], seed, dtype)


def mla_pool(layout: str = "page_first", seed: int = 0) -> Any:
    """SGLang's own host pool of latent attention."""
    from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

    pool = object.__new__(MLATokenToKVPoolHost)
    shapes = {"layer_first": (LAYERS, PAGES * PAGE, 1, DIM), "page_first": (PAGES * PAGE, LAYERS, 1, DIM)}
    vars(pool).update(layer_num=LAYERS, kv_cache_dim=DIM)
    return completed(pool, layout, shapes[layout], seed, torch.float16)


def completed(pool: Any, layout: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Any:
    content = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    vars(pool).update(
        layout=layout,
        page_size=PAGE,
        size=PAGES * PAGE,
        page_num=PAGES,
        start_layer=0,
        end_layer=LAYERS,
        dtype=dtype,
        device="cpu",
        pin_memory=False,
        kv_buffer=content,
    )
    return pool


def slots(*pages: int) -> torch.Tensor:
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def keys(count: int, seed: int = 0) -> list[str]:
    return [hashlib.sha256(f"{seed}/{index}".encode()).hexdigest() for index in range(count)]


def page(pool: Any, index: int) -> torch.Tensor:
    return pool.get_data_page(index * PAGE).clone()


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_pages_move_in_place(make: Maker, layout: str) -> None:
    pool = mha_pool(layout)
    backend = make(pool)
    names, before = keys(4), [page(pool, index) for index in range(4)]
    assert backend.batch_exists(names) == 0
    assert backend.batch_set_v1(names, slots(0, 1, 2, 3)) == [True] * 4
    assert backend.batch_exists(names) == 4 and backend.exists(names[2])
    untouched = page(pool, 5)
    assert backend.batch_get_v1(list(reversed(names)), slots(23, 9, 17, 4)) == [True] * 4
    for index, wanted in zip((4, 17, 9, 23), before, strict=True):
        assert torch.equal(page(pool, index), wanted)
    assert torch.equal(page(pool, 5), untouched)
    # there already
    assert backend.batch_set_v1(names[:2], slots(0, 1)) == [True] * 2


def test_another_process_of_the_same_rank_finds_the_pages(make: Maker) -> None:
    pool = mha_pool()
    first = make(pool)
    names, wanted = keys(3), page(pool, 1)
    assert all(first.batch_set_v1(names, slots(0, 1, 2)))
    first.close()
    target = mha_pool(seed=1)
    again = make(target)
    assert again.batch_exists(names) == 3
    assert again.batch_get_v1(names[1:2], slots(6)) == [True]
    assert torch.equal(page(target, 6), wanted)


def test_missing_pages_are_told_apart(make: Maker) -> None:
    pool = mha_pool()
    backend = make(pool)
    names, others = keys(2), keys(1, seed=1)
    assert all(backend.batch_set_v1(names, slots(0, 1)))
    mixed = [names[0], others[0], names[1]]
    wanted = page(pool, 1)
    assert backend.batch_get_v1(mixed, slots(5, 6, 7)) == [True, False, True]
    assert torch.equal(page(pool, 7), wanted)
    assert backend.batch_exists(mixed) == 1
    assert not backend.exists(others[0])


def test_flat_pages(make: Maker) -> None:
    pool = mha_pool("layer_first")
    backend = make(pool, interface_v1=0)
    names = keys(3)
    pages = [pool.get_data_page(index * PAGE) for index in range(3)]
    assert not backend.exists(names[0])
    assert backend.batch_set(names, pages)
    assert backend.batch_exists(names) == 3
    targets = [pool.get_dummy_flat_data_page() for _ in range(4)]
    found = backend.batch_get([*names, keys(1, seed=1)[0]], targets)
    assert found[3] is None
    for target, there, wanted in zip(targets, found, pages, strict=False):
        assert there is target and torch.equal(target, wanted)
    one = torch.arange(1000, dtype=torch.int32)
    assert backend.set("any text", one)
    assert torch.equal(backend.get("any text", torch.zeros(1000, dtype=torch.int32)), one)
    assert backend.get("other text", torch.zeros(1000, dtype=torch.int32)) is None


def test_ranks_share_latent_pages_and_nothing_else(make: Maker) -> None:
    mla = {"is_mla_model": True, "tp_size": 2}
    pool = mla_pool()
    writer = make(pool, rank={**mla, "tp_rank": 0})
    names, wanted = keys(2), page(pool, 0)
    assert all(writer.batch_set_v1(names, slots(0, 1)))
    target = mla_pool(seed=1)
    reader = make(target, rank={**mla, "tp_rank": 1})
    assert reader.batch_get_v1(names[:1], slots(3)) == [True]
    assert torch.equal(page(target, 3), wanted)
    wider = make(mla_pool(), rank={**mla, "tp_size": 4, "tp_rank": 3})
    assert wider.batch_exists(names) == 2

    ordinary = make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0})
    assert all(ordinary.batch_set_v1(names, slots(0, 1)))
    for other in (
        make(mha_pool(), rank={"tp_size": 2, "tp_rank": 1}),
        make(mha_pool(), rank={"tp_size": 4, "tp_rank": 0}),
        make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0, "pp_size": 2}),
        make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0, "attn_cp_size": 2}),
        make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0, "model_name": "other"}),
        make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0}, weights_digest="other"),
        make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0}, tenant="other"),
        make(mha_pool("page_first_direct"), rank={"tp_size": 2, "tp_rank": 0}),
        make(mha_pool(dtype=torch.float16), rank={"tp_size": 2, "tp_rank": 0}),
    ):
        assert other.batch_exists(names) == 0
    assert make(mha_pool(), rank={"tp_size": 2, "tp_rank": 0}).batch_exists(names) == 2


def test_further_pools_shorten_the_prefix(make: Maker) -> None:
    from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer

    backend = make(mha_pool())
    extra = mha_pool(seed=7)
    backend.register_mem_host_pool_v2(extra, PoolName.INDEXER)
    names = keys(6)
    assert all(backend.batch_set_v1(names, slots(*range(6))))

    def transfer(policy: PoolHitPolicy, wanted: list[str], *pages: int) -> PoolTransfer:
        return PoolTransfer(
            PoolName.INDEXER, host_indices=slots(*pages) if pages else None, keys=wanted, hit_policy=policy
        )

    every = PoolHitPolicy.ALL_PAGES
    stored = backend.batch_set_v2([transfer(every, names[:4], 0, 1, 2, 3)])
    assert stored == {PoolName.INDEXER: [True] * 4}
    found = backend.batch_exists_v2(names, [transfer(every, names)])
    assert found.kv_hit_pages == 4 and found.restorable_prefix_pages == [1, 2, 3, 4]
    assert found.extra_pool_hit_pages == {PoolName.KV: 6, PoolName.INDEXER: 4}
    assert backend.batch_exists_v2(names).kv_hit_pages == 6
    assert backend.batch_exists_v2(keys(2, seed=9), [transfer(every, names)]).kv_hit_pages == 0

    # a window of two pages: pages 4 and 5 are not there, 0 to 3 are
    trailing = backend.batch_exists_v2(names, [transfer(PoolHitPolicy.TRAILING_PAGES, names[:2])])
    assert trailing.restorable_prefix_pages == [1, 2, 3, 4]

    wanted = page(extra, 2)
    loaded = backend.batch_get_v2([transfer(every, [names[2], names[5]], 10, 11)])
    assert loaded == {PoolName.INDEXER: [True, False]}
    assert torch.equal(page(extra, 10), wanted)
    unknown = PoolTransfer(PoolName.MAMBA, host_indices=slots(0), keys=names[:1])
    wrong = transfer(every, names[:2], 0)
    assert backend.batch_get_v2([unknown, wrong]) == {PoolName.MAMBA: [False], PoolName.INDEXER: [False] * 2}


def test_clear_drops_this_ranks_pages(make: Maker) -> None:
    assert not make(interface_v1=0).clear(), "nothing is known that could be dropped"
    ranks = [make(mha_pool(), rank={"tp_size": 2, "tp_rank": rank}) for rank in range(2)]
    names = keys(3)
    for backend in ranks:
        assert all(backend.batch_set_v1(names, slots(0, 1, 2)))
    assert ranks[0].clear()
    assert ranks[0].batch_exists(names) == 0
    assert ranks[1].batch_exists(names) == 3
    assert all(ranks[0].batch_set_v1(names, slots(0, 1, 2)))
    assert ranks[0].batch_exists(names) == 3


def test_nothing_raises_once_attached(make: Maker, folder: Path) -> None:
    socket = str(folder / "s")
    store = Store.embedded({"pipeline": "Cache", "cache_buffer_capacity": "32MiB"}, listen=socket)
    backend = make(mha_pool(), socket=socket, timeout_ms=2000)
    names = keys(2)
    assert backend.batch_set_v1(names, slots(0, 1)) == [True, True]
    assert backend.batch_get_v1(names, slots(0)) == [False, False], "slots that don't make the pages"
    store.close()
    assert backend.batch_get_v1(names, slots(2, 3)) == [False, False]
    assert backend.batch_set_v1(keys(2, seed=1), slots(2, 3)) == [False, False]
    assert backend.batch_exists(names) == 0 and not backend.exists(names[0])
    assert backend.batch_get(names, [torch.zeros(8), torch.zeros(8)]) == [None, None]
    assert backend.get(names[0], torch.zeros(8)) is None
    assert not backend.set(names[0], torch.zeros(8)) and not backend.batch_set(names, [torch.zeros(8)] * 2)
    assert backend.batch_exists_v2(names).kv_hit_pages == 0
    assert backend.batch_get_v1([], slots(0)[:0]) == [] and backend.batch_exists([]) == 0


def test_metrics_are_what_sglang_collects(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(mha_pool()).get_stats() is None
    import sglang.srt.observability.metrics_collector as collector

    monkeypatch.setattr(collector, "StorageMetrics", lambda **samples: samples)
    backend = make(mha_pool(), rank={"enable_storage_metrics": True})
    backend.batch_set_v1(keys(3), slots(0, 1, 2))
    backend.batch_get_v1(keys(2), slots(4, 5))
    samples = backend.get_stats()
    assert samples["backup_pgs"] == [3] and samples["prefetch_pgs"] == [2]
    assert samples["backup_bandwidth"][0] > 0 and samples["prefetch_bandwidth"][0] > 0
    assert backend.get_stats() == {}


def test_a_wrong_configuration_fails_the_attaching(make: Maker) -> None:
    with pytest.raises(InvalidInput, match="cache_buffer_capacity"):
        make(cache_buffer_capacity="lots")

    class Nowhere:
        """A pool that can't tell where its pages lie."""

        page_size, layout, dtype = PAGE, "odd", torch.float16

        def get_page_buffer_meta(self, indices: torch.Tensor) -> None:
            return None

    with pytest.raises(InvalidInput, match="addresses"):
        make(Nowhere())
