"""The Prometheus text format."""

from __future__ import annotations

from lab import Metrics, PrefixCache

TEXT = """\
# HELP vllm:prefix_cache_queries_total Tokens looked up, "quoted" {braced}
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="a \\"b\\", c"} 1000.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 24.0
vllm:prefix_cache_hits_total{engine="0"} 512.0
vllm:external_prefix_cache_queries_total{engine="0"} 1.2e+03
vllm:external_prefix_cache_hits_total{engine="0"} 128 1700000000000
plain 1
"""


def test_samples_are_summed_over_what_is_not_asked_for() -> None:
    metrics = Metrics(TEXT)
    assert metrics.total("vllm:prefix_cache_queries_total") == 1024
    assert metrics.total("vllm:prefix_cache_queries_total", engine="1") == 24
    assert metrics.total("vllm:prefix_cache_queries_total", engine="2") == 0
    assert metrics.total("plain") == 1
    assert metrics.total("absent") == 0
    assert "plain" in metrics.names()


def test_the_prefix_caches_counts_and_what_was_added() -> None:
    now = Metrics(TEXT).prefix_cache()
    assert now == PrefixCache(local_queries=1024, local_hits=512, external_queries=1200, external_hits=128)
    assert now - PrefixCache(24, 12, 200, 0) == PrefixCache(1000, 500, 1000, 128)
