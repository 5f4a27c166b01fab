"""Learning what loading and prefilling cost, from the totals that were measured.

A cost is a sum of non-negative contributions, each a factor times a known quantity: a load takes a latency and
so many seconds per byte for each tier that it touched, a step takes a fixed time and so many seconds per token.
Only the sum is ever measured. Every factor is corrected in proportion to its share of the expected sum, and in
logarithms: no factor ever becomes negative, zero or infinite, a single odd measurement moves it by a bounded
factor, and loads that mix tiers still teach something about each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: How much of a deviation is believed once enough has been measured, and after a long silence.
STEADY_GAIN = 0.2
SILENCE_GAIN = 0.7
#: From how many measurements on single deviations are bounded, and by which factor.
FAMILIAR_MEASUREMENTS = 4
DEVIATION_BOUND = 4.0
#: A failed load counts as at least this many times slower than expected, and is believed at least this much.
FAILURE_SLOWDOWN = 4.0
FAILURE_BOUND = 16.0
FAILURE_GAIN = 0.5

_SMALLEST_FACTOR = 1e-15
_LARGEST_FACTOR = 1e3


def usable(seconds: float) -> bool:
    """Whether a measured time (seconds) can be learnt from: finite and above zero."""
    return math.isfinite(seconds) and seconds > 0.0


def gain_after(measurements: int, silent: bool) -> float:
    """The part of a deviation to believe after so many measurements: all of the first, less of each further one.

    `silent`: nothing was measured for long, so what is known may be out of date.
    """
    gain = max(STEADY_GAIN, 1.0 / (measurements + 1))
    return max(gain, SILENCE_GAIN) if silent else gain


def deviation(expected: float, measured: float, bound: float | None) -> float:
    """The logarithm of how many times longer than expected (both in seconds) something took, within the bound."""
    value = math.log(measured / expected)
    if bound is None:
        return value
    limit = math.log(bound)
    return max(-limit, min(limit, value))


def weights(contributions: Sequence[float]) -> list[float]:
    """How strongly each contribution answers for a deviation of their sum.

    Chosen so that correcting every factor by its weight times the deviation corrects the sum by the deviation.
    """
    total = sum(contributions)
    if total <= 0.0:
        return [0.0] * len(contributions)
    shares = [contribution / total for contribution in contributions]
    norm = sum(share * share for share in shares)
    return [share / norm for share in shares]


def corrected(factor: float, exponent: float) -> float:
    """The factor times e to the exponent, within what can be computed with."""
    return max(_SMALLEST_FACTOR, min(_LARGEST_FACTOR, factor * math.exp(max(-50.0, min(50.0, exponent)))))


@dataclass(slots=True)
class TierRate:
    """What loading from one tier costs: seconds per load, and seconds per byte."""

    latency_s: float
    seconds_per_byte: float
    measurements: int = 0
    measured_at: float = -math.inf
    """When it was last measured, by the governor's clock (seconds)."""
    probed_at: float = -math.inf
    """When a load was last let through only to measure it (seconds)."""


class PrefillRate:
    """What prefilling costs: seconds per step, per token, and per token and token of its context."""

    __slots__ = ("measurements", "per_step_s", "per_token_and_context_s", "per_token_s")

    def __init__(self, tokens_per_s: float) -> None:
        """Assumes `tokens_per_s` tokens per second without context until something is measured."""
        self.per_token_s = 1.0 / tokens_per_s
        # Attention makes a token twice as dear after about so many tokens of context.
        self.per_token_and_context_s = self.per_token_s / 20_000.0
        self.per_step_s = 0.002
        self.measurements = 0

    def observe(self, tokens: int, position: float, seconds: float) -> None:
        """A step computed so many prompt tokens, at this mean position in their prompts, in so many seconds."""
        if tokens <= 0 or not usable(seconds) or not math.isfinite(position):
            return
        contributions = (
            self.per_step_s,
            self.per_token_s * tokens,
            self.per_token_and_context_s * tokens * max(position, 0.0),
        )
        bound = DEVIATION_BOUND if self.measurements >= FAMILIAR_MEASUREMENTS else None
        found = deviation(sum(contributions), seconds, bound)
        if self.measurements == 0:
            # The proportions are assumed ones, so all of it is off by the same factor.
            step, token, context = found, found, found
        else:
            gain = gain_after(self.measurements, False)
            step, token, context = (weight * gain * found for weight in weights(contributions))
        self.per_step_s = corrected(self.per_step_s, step)
        self.per_token_s = corrected(self.per_token_s, token)
        self.per_token_and_context_s = corrected(self.per_token_and_context_s, context)
        self.measurements += 1

    def tokens_per_s(self, position: int = 0) -> float:
        """Prompt tokens per second at a position in the prompt, what a step costs in any case left out."""
        return 1.0 / (self.per_token_s + self.per_token_and_context_s * position)


def observe_tiers(
    parts: Sequence[tuple[TierRate, float]],
    seconds: float,
    now: float,
    *,
    silence_s: float,
    failed: bool,
) -> None:
    """A load took `seconds`; each of its tiers had to move so many bytes.

    What nobody measured for `silence_s` seconds is corrected at once. `failed`: it came to nothing.
    """
    contributions: list[float] = []
    for rate, size in parts:
        contributions += (rate.latency_s, rate.seconds_per_byte * size)
    expected = sum(contributions)
    if expected <= 0.0:
        return
    if failed:
        seconds = max(seconds, FAILURE_SLOWDOWN * expected)
    shares = weights(contributions)
    for index, (rate, _) in enumerate(parts):
        silent = now - rate.measured_at >= silence_s
        bound = DEVIATION_BOUND if rate.measurements >= FAMILIAR_MEASUREMENTS and not silent else None
        gain = gain_after(rate.measurements, silent)
        latency, per_byte = shares[2 * index], shares[2 * index + 1]
        if failed:
            bound, gain = FAILURE_BOUND, max(FAILURE_GAIN, min(gain, SILENCE_GAIN))
        elif rate.measurements == 0 and len(parts) == 1:
            latency, per_byte = 1.0, 1.0
        found = gain * deviation(expected, seconds, bound)
        rate.latency_s = corrected(rate.latency_s, latency * found)
        rate.seconds_per_byte = corrected(rate.seconds_per_byte, per_byte * found)
        rate.measurements += 1
        rate.measured_at = now
