"""The governor's decisions, against costs that the test makes up."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from kvstored.vllm.governor import (
    REASONS,
    Decision,
    Governor,
    GovernorSettings,
    LoadsUnderWay,
    blocks_by_tier,
)

BLOCK_TOKENS = 128
BLOCK_BYTES = 1 << 20
FAST, SLOW = 0, 1


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def learned(
    tiers: Mapping[int, tuple[float, float]],
    *,
    token_s: float = 1e-4,
    context_s: float = 1e-9,
    settings: GovernorSettings | None = None,
    clock: Clock | None = None,
) -> Governor:
    """A governor that has measured a model, and tiers of (latency in s, s per byte)."""
    governor = Governor(settings, clock or Clock())
    chance = random.Random(7)
    for _ in range(200):
        tokens, context = chance.choice([128, 512, 2048]), chance.choice([0, 2048, 8192])
        governor.observe_prefill(tokens, context, 0.002 + tokens * (token_s + context_s * (context + tokens / 2)))
    for tier, (latency, byte) in tiers.items():
        for _ in range(50):
            blocks = chance.choice([1, 8, 64])
            governor.observe_load({tier: blocks}, BLOCK_BYTES, latency + byte * blocks * BLOCK_BYTES)
    return governor


def decide(governor: Governor, tiers: Sequence[int], first_token: int = 0, **more: object) -> Decision:
    return governor.decide(np.array(tiers, dtype=np.uint8), BLOCK_TOKENS, BLOCK_BYTES, first_token, **more)  # type: ignore[arg-type]


def test_everything_is_loaded_before_anything_was_measured() -> None:
    governor = Governor(clock=Clock())
    assert decide(governor, [FAST] * 8 + [SLOW] * 8)[:2] == (16, "unknown")


def test_a_fast_tier_is_loaded_whole() -> None:
    governor = learned({FAST: (0.0002, 1e-10)})
    decision = decide(governor, [FAST] * 64)
    assert decision[:2] == (64, "all")
    assert decision.expected_load_s == pytest.approx(0.0002 + 1e-10 * 64 * BLOCK_BYTES, rel=0.1)
    tokens = 64 * BLOCK_TOKENS
    assert decision.expected_prefill_s == pytest.approx(1e-4 * tokens + 1e-9 * tokens**2 / 2, rel=0.1)


def test_one_tier_is_judged_as_several_are() -> None:
    chance = random.Random(11)
    reasons = set()
    for _ in range(500):
        latency, byte = 10 ** chance.uniform(-5, 0), 10 ** chance.uniform(-11, -5)
        costs = {"token_s": 10 ** chance.uniform(-6, -2), "context_s": 10 ** chance.uniform(-12, -6)}
        deadline = chance.choice([20, 1000, 60_000])
        settings = GovernorSettings(load_deadline_ms=deadline, margin=chance.choice([0.5, 1.0, 2.0]))
        # two tiers of the same cost: their borders don't matter, but decisions about them are made the general way
        one, two = (learned({FAST: (latency, byte)}, settings=settings, **costs) for _ in range(2))
        two._latency_s[:] = one._latency_s[FAST]
        two._latency_s[SLOW] = 0.0
        two._seconds_per_byte[:] = one._seconds_per_byte[FAST]
        blocks, first = chance.randrange(2, 90), chance.randrange(0, 20_000)
        quick = decide(one, [FAST] * blocks, first)
        general = decide(two, [FAST] * (blocks - 1) + [SLOW], first, under_way={SLOW: 0})
        reasons.add(quick.reason)
        assert quick.reason == general.reason
        assert abs(quick.blocks - general.blocks) <= 1, "rounding at the deadline at most"
        if quick.blocks == general.blocks:
            assert quick[2:] == pytest.approx(general[2:], rel=1e-9)
    assert reasons == {"all", "trimmed", "skipped"}


def test_a_slow_tier_is_skipped_and_trimmed_at_its_border() -> None:
    governor = learned({FAST: (0.0002, 1e-10), SLOW: (0.05, 1e-7)})
    assert decide(governor, [SLOW] * 16)[:2] == (0, "skipped")
    assert decide(governor, [FAST] * 10 + [SLOW] * 6)[:2] == (10, "trimmed")
    assert decide(governor, [SLOW] + [FAST] * 30)[:2] == (31, "all"), "little of it is slow"


def test_what_lies_behind_a_slow_stretch_is_worth_reaching() -> None:
    governor = learned({FAST: (0.0002, 1e-10), SLOW: (0.01, 1.5e-8)})
    assert decide(governor, [SLOW] * 8)[:2] == (0, "skipped")
    assert decide(governor, [SLOW] * 8 + [FAST] * 64)[:2] == (72, "all")
    assert decide(governor, [SLOW] * 64 + [FAST] * 2)[:2] == (0, "skipped")


def test_a_long_context_makes_loading_more_attractive() -> None:
    governor = learned({SLOW: (0.002, 1.8e-8)}, context_s=1e-8)
    assert decide(governor, [SLOW] * 8)[:2] == (0, "skipped")
    assert decide(governor, [SLOW] * 8, first_token=60_000)[:2] == (8, "all")
    assert governor.estimates().prefill_tokens_per_s == pytest.approx(10_000, rel=0.15)


def test_a_long_hit_pays_where_a_short_one_does_not() -> None:
    governor = learned({SLOW: (0.2, 1e-10)})
    assert decide(governor, [SLOW] * 4)[:2] == (0, "skipped")
    assert decide(governor, [SLOW] * 64)[:2] == (64, "all")


def test_the_margin_favours_computing() -> None:
    tiers = {SLOW: (0.0002, 7e-9)}
    assert decide(learned(tiers), [SLOW] * 16)[:2] == (16, "all")
    assert decide(learned(tiers, settings=GovernorSettings(margin=3.0)), [SLOW] * 16)[:2] == (0, "skipped")


def test_the_deadline_trims() -> None:
    governor = learned({FAST: (0.0002, 1e-9)}, settings=GovernorSettings(load_deadline_ms=20))
    decision = decide(governor, [FAST] * 64)
    assert decision.reason == "trimmed"
    assert 14 <= decision.blocks <= 22, "about 1 ms per block"
    assert decision.expected_load_s <= 0.02
    fresh = Governor(GovernorSettings(load_deadline_ms=5, assumed_load_bytes_per_s=1e9), Clock())
    assert decide(fresh, [FAST] * 64).reason == "trimmed", "the deadline holds for assumed rates, too"


def test_loads_under_way_count() -> None:
    governor = learned({FAST: (0.0002, 1e-9)})
    assert decide(governor, [FAST] * 2)[:2] == (2, "all")
    assert decide(governor, [FAST] * 2, under_way={FAST: 400})[:2] == (0, "skipped")
    assert decide(governor, [FAST] * 2, under_way={SLOW: 400})[:2] == (2, "all"), "another tier's queue"


def test_a_measured_queue_does_not_make_a_tier_slow() -> None:
    governor = Governor(clock=Clock())
    for _ in range(40):
        governor.observe_load({FAST: 10}, BLOCK_BYTES, 0.0005 + 1e-9 * 40 * BLOCK_BYTES, ahead={FAST: 30})
    assert governor.estimates().tiers[FAST].bytes_per_s == pytest.approx(1e9, rel=0.2)


def test_loads_that_mix_tiers_tell_them_apart() -> None:
    governor = Governor(clock=Clock())
    truth = {0: (0.0002, 1.25e-10), 1: (0.002, 6e-10), 2: (0.04, 3e-9)}
    chance = random.Random(1)
    for _ in range(400):
        load = {tier: blocks for tier in truth if (blocks := chance.choice([0, 1, 4, 16, 64]))}
        seconds = sum(truth[tier][0] + truth[tier][1] * blocks * BLOCK_BYTES for tier, blocks in load.items())
        governor.observe_load(load, BLOCK_BYTES, seconds)
    for tier, (latency, byte) in truth.items():
        estimate = governor.estimates().tiers[tier]
        expected = latency + byte * 64 * BLOCK_BYTES
        assert expected / 2 < estimate.latency_s + 64 * BLOCK_BYTES / estimate.bytes_per_s < expected * 2


def test_failed_loads_make_a_tier_slow() -> None:
    governor = learned({FAST: (0.0002, 1e-10)})
    for _ in range(8):
        governor.observe_load({FAST: 16}, BLOCK_BYTES, 5.0, failed=True)
    assert decide(governor, [FAST] * 16)[:2] == (0, "skipped")
    quick = learned({FAST: (0.0002, 1e-10)})
    for _ in range(12):
        quick.observe_load({FAST: 16}, BLOCK_BYTES, 0.0001, failed=True)
    assert decide(quick, [FAST] * 16)[:2] == (0, "skipped"), "failing fast is no speed"


def test_a_single_odd_measurement_changes_little() -> None:
    governor = learned({FAST: (0.0002, 1e-10)})
    governor.observe_load({FAST: 16}, BLOCK_BYTES, 60.0)
    governor.observe_prefill(2048, 0, 500.0)
    governor.observe_prefill(2048, 0, 1e-7)
    assert decide(governor, [FAST] * 16)[:2] == (16, "all")
    assert governor.estimates().prefill_tokens_per_s == pytest.approx(10_000, rel=0.5)


def test_a_probe_notices_that_a_tier_recovered() -> None:
    clock = Clock()
    governor = learned({FAST: (0.0002, 1e-10), SLOW: (0.05, 1e-7)}, clock=clock)
    hit = [FAST] * 2 + [SLOW] * 30
    assert decide(governor, hit)[:2] == (2, "trimmed"), "measured just now"
    clock.now += 31
    assert decide(governor, hit, under_way={SLOW: 1})[:2] == (2, "trimmed"), "being measured"
    assert decide(governor, hit)[:2] == (6, "probe")
    assert decide(governor, hit)[:2] == (2, "trimmed"), "one probe per interval"
    governor.observe_load({SLOW: 4}, BLOCK_BYTES, 0.0005 + 1e-10 * 4 * BLOCK_BYTES)
    assert decide(governor, hit)[:2] == (32, "all")


def test_a_probe_of_a_tier_that_is_still_slow_is_not_repeated_at_once() -> None:
    clock = Clock()
    governor = learned({SLOW: (0.05, 1e-7)}, clock=clock)
    clock.now += 31
    assert decide(governor, [SLOW] * 30)[:2] == (4, "probe")
    governor.observe_load({SLOW: 4}, BLOCK_BYTES, 0.05 + 1e-7 * 4 * BLOCK_BYTES)
    clock.now += 29
    assert decide(governor, [SLOW] * 30)[:2] == (0, "skipped")
    clock.now += 2
    assert decide(governor, [SLOW] * 30)[:2] == (4, "probe")


def test_a_probe_stays_within_its_tier() -> None:
    clock = Clock()
    governor = learned({FAST: (0.0002, 1e-10), SLOW: (0.05, 1e-7)}, clock=clock)
    clock.now += 31
    assert decide(governor, [SLOW] * 2 + [FAST] + [SLOW] * 20)[:2] == (2, "probe")


def test_a_tier_that_was_never_measured_is_tried() -> None:
    governor = learned({}, token_s=1e-6, context_s=1e-12)
    assert decide(governor, [SLOW] * 16)[:2] == (4, "probe"), "the model is faster than what is assumed of a tier"


def test_off_loads_everything() -> None:
    governor = learned({SLOW: (0.05, 1e-7)}, settings=GovernorSettings(enabled=False, load_deadline_ms=1))
    assert decide(governor, [SLOW] * 16)[:2] == (16, "off")


def test_counts_are_taken_once() -> None:
    governor = learned({FAST: (0.0002, 1e-10), SLOW: (0.05, 1e-7)})
    decide(governor, [FAST] * 10)
    decide(governor, [FAST] * 10 + [SLOW] * 6)
    decide(governor, [SLOW] * 5)
    decide(governor, [])
    counts = governor.take_counts()
    assert counts.decisions == dict.fromkeys(REASONS, 0) | {"all": 1, "trimmed": 1, "skipped": 1}
    assert (counts.offered_blocks, counts.allowed_blocks) == (31, 20)
    assert governor.take_counts() == (dict.fromkeys(REASONS, 0), 0, 0)


def test_degenerate_inputs_change_nothing_and_never_yield_nan() -> None:
    governor = Governor(clock=Clock())
    for bad in (0.0, -1.0, math.nan, math.inf):
        governor.observe_prefill(128, 0, bad)
        governor.observe_prefill(128, bad if not math.isfinite(bad) else 0, bad)
    governor.observe_prefill(0, 0, 1.0)
    governor.observe_prefill(-5, 0, 1.0)
    assert governor.estimates() == (None, {})
    for bad in (math.nan, math.inf):
        governor.observe_load({FAST: 1}, BLOCK_BYTES, bad)
    governor.observe_load({}, BLOCK_BYTES, 1.0)
    governor.observe_load({FAST: 1}, 0, 1.0)
    governor.observe_load({FAST: 0, 300: 4, -1: 4}, BLOCK_BYTES, 1.0)
    assert governor.estimates() == (None, {})
    for _ in range(300):
        governor.observe_load({FAST: 1}, BLOCK_BYTES, 0.0)
        governor.observe_load({SLOW: 1}, BLOCK_BYTES, 1e12)
        governor.observe_prefill(1, 0, 1e12)
        governor.observe_prefill(1 << 30, 1 << 30, 1e-9)
    assert governor.decide([], BLOCK_TOKENS, BLOCK_BYTES, 0) == (0, "all", 0.0, 0.0)
    for tokens, size, first in (
        (0, BLOCK_BYTES, 0),
        (BLOCK_TOKENS, 0, 0),
        (BLOCK_TOKENS, -1, -9),
        (1, 1 << 50, 1 << 40),
    ):
        decision = governor.decide([FAST, SLOW, 255], tokens, size, first)
        assert 0 <= decision.blocks <= 3
        assert math.isfinite(decision.expected_load_s) and math.isfinite(decision.expected_prefill_s)
    estimates = governor.estimates()
    assert estimates.prefill_tokens_per_s is not None and math.isfinite(estimates.prefill_tokens_per_s)
    assert all(math.isfinite(value) for estimate in estimates.tiers.values() for value in estimate)


def test_a_hit_of_any_length_is_decided() -> None:
    governor = learned({FAST: (0.0002, 1e-10)}, settings=GovernorSettings(load_deadline_ms=600_000))
    for blocks in (1, 2, 1_024, 1_025, 70_000, 3):
        assert governor.decide([FAST] * blocks, BLOCK_TOKENS, BLOCK_BYTES, 0)[:2] == (blocks, "all")
    one = governor.decide([FAST], BLOCK_TOKENS, BLOCK_BYTES, 0).expected_prefill_s
    assert governor.decide([FAST], 2 * BLOCK_TOKENS, BLOCK_BYTES, 0).expected_prefill_s > 1.9 * one


def test_settings_are_checked() -> None:
    for wrong in (
        {"load_deadline_ms": 0},
        {"margin": -1.0},
        {"margin": math.nan},
        {"probe_interval_s": math.inf},
        {"probe_blocks": 0},
        {"assumed_load_bytes_per_s": 0.0},
        {"assumed_prefill_tokens_per_s": math.nan},
        {"assumed_load_latency_ms": -1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GovernorSettings(**wrong)  # type: ignore[arg-type]


def test_loads_under_way_are_kept_by_tier() -> None:
    loads = LoadsUnderWay()
    loads.start("a", [FAST] * 3 + [SLOW])
    loads.start("b", np.array([SLOW, SLOW], dtype=np.uint8))
    assert loads.blocks == {FAST: 3, SLOW: 3}
    assert loads.end("a") == ({FAST: 3, SLOW: 1}, {})
    assert loads.end("b") == ({SLOW: 2}, {FAST: 3, SLOW: 1})
    assert loads.end("b") is None
    assert loads.blocks == {} and len(loads) == 0
    loads.start("c", [FAST])
    loads.start("c", [SLOW])
    assert loads.blocks == {SLOW: 1}
    loads.start("d", [])
    assert loads.end("d") == ({}, {SLOW: 1})


def test_a_report_is_counted_by_tier() -> None:
    assert blocks_by_tier(np.array([0, 1, -1, 1], dtype=np.int8)) == {0: 1, 1: 2}
    assert blocks_by_tier([]) == {}
