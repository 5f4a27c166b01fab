"""How much of a hit to load, so that a hit is never slower than computing it again.

The governor knows what prefilling costs (measured steps) and what each tier costs (measured loads), and takes
the prefix of a hit for which the time saved exceeds the time spent by most. Until something is measured it
assumes that loading pays. Nothing here waits, does I/O or raises; all of it may be called from any thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstored.vllm.rates import PrefillRate, TierRate, observe_tiers, usable

#: Why a decision turned out as it did, in the order of the counters.
REASONS = ("all", "trimmed", "skipped", "probe", "off", "unknown")

_TIERS = 256
_CACHED_STEPS = 65_536


@dataclass(frozen=True, slots=True)
class GovernorSettings:
    """What the operator may choose. Raises ValueError for values that make no sense."""

    enabled: bool = True
    """False: every hit is loaded whole."""
    load_deadline_ms: int = 5_000
    """No more of a hit is loaded than is expected to arrive within so many milliseconds."""
    margin: float = 1.0
    """How many times the expected load time must be saved: above 1 favours computing, below 1 loading."""
    probe_interval_s: float = 30.0
    """How long a tier that was judged too slow stays unmeasured before a small load tries it again, in seconds."""
    probe_blocks: int = 4
    """How many blocks such a load has at most."""
    assumed_prefill_tokens_per_s: float = 20_000.0
    """Prompt tokens per second, until a step was measured."""
    assumed_load_bytes_per_s: float = 2e9
    """Bytes per second of a tier, until a load from it was measured."""
    assumed_load_latency_ms: float = 0.5
    """Milliseconds that a load from a tier takes besides its bytes, until one was measured."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("load_deadline_ms", "probe_blocks"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        for name in ("assumed_prefill_tokens_per_s", "assumed_load_bytes_per_s", "assumed_load_latency_ms"):
            if not usable(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)!r}")
        for name in ("margin", "probe_interval_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, not {getattr(self, name)!r}")


class Decision(NamedTuple):
    """How much of a hit to load, and why."""

    blocks: int
    """How many blocks from the start of the hit."""
    reason: str
    """One of REASONS. `unknown`: no prefill was measured yet, so that loading is assumed to pay."""
    expected_load_s: float
    """How long loading these blocks is expected to take, loads under way included, in seconds."""
    expected_prefill_s: float
    """How long computing these blocks is expected to take, in seconds."""


class GovernorCounts(NamedTuple):
    """What was decided since the counts were last taken."""

    decisions: dict[str, int]
    offered_blocks: int
    allowed_blocks: int


class TierEstimate(NamedTuple):
    """What a load from a tier costs, as measured."""

    latency_s: float
    bytes_per_s: float


class Estimates(NamedTuple):
    """What has been measured so far; nothing that is only assumed."""

    prefill_tokens_per_s: float | None
    """Prompt tokens per second at the start of a prompt."""
    tiers: dict[int, TierEstimate]


class Load(NamedTuple):
    """A load under way: its blocks by tier, and those of earlier loads that it has to wait for."""

    blocks: dict[int, int]
    ahead: dict[int, int]


class LoadsUnderWay:
    """Which loads have been started and not ended, by tier. For one thread."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._loads: dict[str, Load] = {}
        self.blocks: dict[int, int] = {}

    def start(self, key: str, tiers: NDArray[np.uint8] | Sequence[int]) -> None:
        """A load of blocks from these tiers begins. A load of the same key that is under way ends."""
        self.end(key)
        counts = np.bincount(np.asarray(tiers, dtype=np.uint8))
        blocks = {int(tier): int(counts[tier]) for tier in np.flatnonzero(counts)}
        self._loads[key] = Load(blocks, dict(self.blocks))
        for tier, count in blocks.items():
            self.blocks[tier] = self.blocks.get(tier, 0) + count

    def end(self, key: str) -> Load | None:
        """The load has ended, well or not. None if it isn't known."""
        load = self._loads.pop(key, None)
        if load is not None:
            for tier, count in load.blocks.items():
                left = self.blocks.get(tier, 0) - count
                if left > 0:
                    self.blocks[tier] = left
                else:
                    self.blocks.pop(tier, None)
        return load

    def __len__(self) -> int:
        return len(self._loads)


class Governor:
    """Decides how much of each hit is worth loading, and learns from what was measured."""

    def __init__(self, settings: GovernorSettings | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds and never goes backwards."""
        self.settings = settings or GovernorSettings()
        self._clock = clock
        self._lock = threading.Lock()
        self._prefill = PrefillRate(self.settings.assumed_prefill_tokens_per_s)
        self._tiers: dict[int, TierRate] = {}
        self._latency_s = np.full(_TIERS, self.settings.assumed_load_latency_ms / 1e3)
        self._seconds_per_byte = np.full(_TIERS, 1.0 / self.settings.assumed_load_bytes_per_s)
        self._steps = np.arange(1.0, 1_025.0)
        self._tokens = (0, self._steps)
        self._reset_counts()

    # What was measured

    def observe_prefill(self, tokens: int, context_tokens: float, seconds: float, *, requests: int = 1) -> None:
        """A step computed `tokens` prompt tokens in `seconds`, and hardly anything else.

        `context_tokens`: how many tokens were there already before those of this step, as the mean over the
        tokens where the step served several `requests`. Measurements that make no sense are ignored.
        """
        with self._lock:
            self._prefill.observe(tokens, context_tokens + tokens / (2 * max(requests, 1)), seconds)

    def observe_load(
        self,
        blocks_by_tier: Mapping[int, int],
        bytes_per_block: int,
        seconds: float,
        *,
        ahead: Mapping[int, int] | None = None,
        failed: bool = False,
    ) -> None:
        """A load of so many blocks from each tier took `seconds`, from its start to its end.

        `ahead`: blocks of loads that were under way when it started, by tier (see LoadsUnderWay). `failed`: it
        timed out or failed, which counts as slow. Blocks that were simply gone are no failure: leave them out.
        """
        if not math.isfinite(seconds) or bytes_per_block <= 0:
            return
        queued = ahead or {}
        with self._lock:
            parts = [
                (self._tier(tier), float(blocks + queued.get(tier, 0)) * bytes_per_block)
                for tier, blocks in blocks_by_tier.items()
                if 0 <= tier < _TIERS and blocks > 0
            ]
            now = self._clock()
            silence_s = max(self.settings.probe_interval_s, 1e-3)
            observe_tiers(parts, max(seconds, 1e-6), now, silence_s=silence_s, failed=failed)
            for tier in blocks_by_tier:
                if (rate := self._tiers.get(tier)) is not None:
                    self._latency_s[tier] = rate.latency_s
                    self._seconds_per_byte[tier] = rate.seconds_per_byte

    # What to do

    def decide(
        self,
        tiers: NDArray[np.uint8] | Sequence[int],
        block_tokens: int,
        block_bytes: int,
        first_token: int,
        under_way: Mapping[int, int] | None = None,
    ) -> Decision:
        """How much to load of a hit whose blocks lie in these tiers, the first of them at `first_token`.

        `under_way`: blocks that loads under way still have to move, by tier. Ask once per request and keep the
        answer: every call counts, and only one probe is allowed per interval.
        """
        hit = np.asarray(tiers, dtype=np.uint8)
        with self._lock:
            decision = self._decide(hit, block_tokens, max(block_bytes, 0), max(first_token, 0), under_way or {})
            if len(hit):
                self._decisions[decision.reason] += 1
                self._offered_blocks += len(hit)
                self._allowed_blocks += decision.blocks
        return decision

    def _decide(
        self,
        tiers: NDArray[np.uint8],
        block_tokens: int,
        block_bytes: int,
        first_token: int,
        under_way: Mapping[int, int],
    ) -> Decision:
        blocks = len(tiers)
        if blocks == 0 or block_tokens <= 0:
            return Decision(0, "all", 0.0, 0.0)
        order = tiers.tobytes()
        if order.count(order[:1]) == blocks:
            return self._decide_for_one_tier(tiers, block_tokens, block_bytes, first_token, under_way)
        load_s = self._load_seconds(tiers, block_bytes, under_way)
        prefill_s = self._prefill_seconds(blocks, block_tokens, first_token)
        settings = self.settings
        chosen = blocks
        if not settings.enabled:
            return Decision(blocks, "off", load_s.item(-1), prefill_s.item(-1))

        deadline_s = settings.load_deadline_ms / 1e3
        if load_s.item(-1) > deadline_s:
            chosen = int(load_s.searchsorted(deadline_s, "right"))
        if self._prefill.measurements and chosen:
            saved = prefill_s[:chosen] - settings.margin * load_s[:chosen]
            best = int(saved.argmax())
            chosen = best + 1 if saved.item(best) > 0.0 else 0
        chosen, reason = self._settled(tiers, chosen, under_way)
        if chosen == 0:
            return Decision(0, reason, 0.0, 0.0)
        return Decision(chosen, reason, load_s.item(chosen - 1), prefill_s.item(chosen - 1))

    def _decide_for_one_tier(
        self,
        tiers: NDArray[np.uint8],
        block_tokens: int,
        block_bytes: int,
        first_token: int,
        under_way: Mapping[int, int],
    ) -> Decision:
        """The same where all blocks lie in one tier, as nearly always, with a few multiplications.

        Loading k blocks takes a constant plus k times another; computing them takes a part that grows with the square
        of k. So the time saved is convex in k and below zero at none: it is largest at the end or worth nothing.
        """
        blocks, tier, settings = len(tiers), tiers.item(0), self.settings
        block_s = self._seconds_per_byte.item(tier) * block_bytes
        first_s = self._latency_s.item(tier) + block_s * under_way.get(tier, 0)
        growth = self._prefill.per_token_and_context_s
        token_s = self._prefill.per_token_s + growth * first_token

        def costs(count: int) -> tuple[float, float]:
            tokens = count * block_tokens
            return first_s + block_s * count, tokens * (token_s + tokens * (growth / 2))

        chosen = blocks
        if not settings.enabled:
            return Decision(blocks, "off", *costs(blocks))
        deadline_s = settings.load_deadline_ms / 1e3
        if costs(chosen)[0] > deadline_s:
            chosen = max(0, int((deadline_s - first_s) / block_s)) if block_s > 0.0 else 0
        if self._prefill.measurements and chosen:
            load_s, prefill_s = costs(chosen)
            if prefill_s <= settings.margin * load_s:
                chosen = 0
        chosen, reason = self._settled(tiers, chosen, under_way)
        return Decision(chosen, reason, *(costs(chosen) if chosen else (0.0, 0.0)))

    def _settled(self, tiers: NDArray[np.uint8], chosen: int, under_way: Mapping[int, int]) -> tuple[int, str]:
        """How much to load after all, perhaps a little more to measure a tier, and the word for it."""
        if chosen == len(tiers):
            return chosen, "all" if self._prefill.measurements else "unknown"
        probe = self._probe(tiers, chosen, under_way)
        return chosen + probe, "probe" if probe else "trimmed" if chosen else "skipped"

    def _load_seconds(
        self, tiers: NDArray[np.uint8], block_bytes: int, under_way: Mapping[int, int]
    ) -> NDArray[np.float64]:
        """Expected seconds for loading the first 1, 2, … blocks."""
        seconds = self._seconds_per_byte[tiers]
        seconds *= block_bytes
        order = tiers.tobytes()
        for tier in set(order):
            # A tier's latency, and its queue, are paid with the first block that comes from it.
            first = order.index(tier)
            block_s = seconds.item(first)
            seconds[first] = block_s + self._latency_s.item(tier) + block_s * under_way.get(tier, 0)
        return seconds.cumsum()

    def _prefill_seconds(self, blocks: int, block_tokens: int, first_token: int) -> NDArray[np.float64]:
        """Expected seconds for computing the first 1, 2, … blocks: the integral of the cost per token."""
        if blocks > _CACHED_STEPS:
            tokens = np.arange(1.0, blocks + 1.0) * block_tokens
        else:
            if blocks > len(self._steps):
                self._steps = np.arange(1.0, min(2 * blocks, _CACHED_STEPS) + 1.0)
                self._tokens = (0, self._steps)
            if self._tokens[0] != block_tokens:
                self._tokens = (block_tokens, self._steps * block_tokens)
            tokens = self._tokens[1][:blocks]
        growth = self._prefill.per_token_and_context_s
        seconds = tokens * (growth / 2)
        seconds += self._prefill.per_token_s + growth * first_token
        seconds *= tokens
        return seconds

    def _probe(self, tiers: NDArray[np.uint8], start: int, under_way: Mapping[int, int]) -> int:
        """How many blocks after `start` to load only to learn whether their tier is still that slow."""
        tier = int(tiers[start])
        if tier in under_way or tier in tiers[:start]:
            # It's about to be measured anyway.
            return 0
        rate = self._tier(tier)
        now = self._clock()
        if now - max(rate.measured_at, rate.probed_at) < self.settings.probe_interval_s:
            return 0
        rate.probed_at = now
        candidates = tiers[start : start + self.settings.probe_blocks]
        others = np.flatnonzero(candidates != tier)
        return int(others[0]) if len(others) else len(candidates)

    def _tier(self, tier: int) -> TierRate:
        rate = self._tiers.get(tier)
        if rate is None:
            rate = TierRate(float(self._latency_s[tier]), float(self._seconds_per_byte[tier]))
            self._tiers[tier] = rate
        return rate

    # For metrics

    def take_counts(self) -> GovernorCounts:
        """What was decided since the last call."""
        with self._lock:
            counts = GovernorCounts(self._decisions, self._offered_blocks, self._allowed_blocks)
            self._reset_counts()
        return counts

    def estimates(self) -> Estimates:
        """What has been measured so far."""
        with self._lock:
            prefill = self._prefill.tokens_per_s() if self._prefill.measurements else None
            tiers = {
                tier: TierEstimate(rate.latency_s, 1.0 / rate.seconds_per_byte)
                for tier, rate in self._tiers.items()
                if rate.measurements
            }
        return Estimates(prefill, tiers)

    def _reset_counts(self) -> None:
        self._decisions: dict[str, int] = dict.fromkeys(REASONS, 0)
        self._offered_blocks = 0
        self._allowed_blocks = 0


def blocks_by_tier(tiers: Iterable[int]) -> dict[int, int]:
    """How many blocks came from each tier, from a load's report; those not loaded (-1) left out."""
    counts: dict[int, int] = {}
    for tier in np.asarray(tiers, dtype=np.int64).tolist():
        if tier >= 0:
            counts[tier] = counts.get(tier, 0) + 1
    return counts
