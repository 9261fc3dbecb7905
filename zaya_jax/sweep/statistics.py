"""What can be said of few seeds: intervals of means, paired differences, verdicts on claims.

Intervals are Student's: mean +- t * sd / sqrt(n), t the 97.5% quantile with n - 1 degrees of
freedom. Two arms are compared seed by seed, since a seed gives both the same batches and, where
shapes agree, the same initial weights: what they share cancels in the difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from scipy.special import stdtrit  # scipy comes with jax, which requires it

CONFIDENCE = 0.95
MOST_SEEDS = 1000
"""More than these are no number of seeds that anybody runs."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and what is known of it.

    Attributes:
      mean: of the values.
      sd: their standard deviation (n - 1); NaN of a single value.
      half: half the width of the interval around the mean; infinite for a single value.
      n: how many there are.
    """

    mean: float
    sd: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def flipped(self) -> Interval:
        """That of the values with the other sign."""
        return dataclasses.replace(self, mean=-self.mean)


def t_quantile(n: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors the two-sided interval of `n` values reaches from their mean."""
    return float(stdtrit(n - 1, (1 + confidence) / 2)) if n > 1 else math.inf


def interval(values: Iterable[float]) -> Interval | None:
    """The 95% interval of the mean; None without values."""
    x = list(values)
    n = len(x)
    if not n:
        return None
    mean = math.fsum(x) / n
    if n == 1:
        return Interval(mean, math.nan, math.inf, 1)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in x) / (n - 1))
    return Interval(mean, sd, t_quantile(n) * sd / math.sqrt(n), n)


def paired(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> Interval | None:
    """The interval of a - b over the seeds that have both; None where there are none."""
    pairs = ((a[seed], b[seed]) for seed in a if seed in b)
    return interval(x - y for x, y in pairs if x is not None and y is not None)


def seeds_to_settle(mean: float, sd: float) -> int | None:
    """The least n whose interval, at this mean and spread, would not reach zero.

    That is n > (t * sd / mean)^2 with the t of n itself: half of all repetitions with so many
    seeds would settle it, if the true difference is the one seen.

    Returns:
      At least 2; None if there is no difference or spread to go by, or more than `MOST_SEEDS`.
    """
    if not mean or not math.isfinite(sd):
        return None
    enough = (n for n in range(2, MOST_SEEDS + 1) if t_quantile(n) * sd / math.sqrt(n) < abs(mean))
    return next(enough, None)


AGREES, DISAGREES, NOT_SETTLED = "agrees", "disagrees", "not settled"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim that one arm is better than another.

    Attributes:
      word: `agrees` or `disagrees` if the whole interval is on one side of zero, else
        `not settled`.
      gain: how much better the arm is that is said to be; positive is on the claimed side. None
        if no seed has both.
      seeds: of an open one, see `seeds_to_settle`.
      bound: how the true gain lies to `gain` where an arm did not come to what is counted:
        `at least` that, `at most` that, or `about` that, which is either; else empty.
    """

    word: str
    gain: Interval | None
    seeds: int | None = None
    bound: str = ""

    def bounded(self, bound: str) -> Verdict:
        """The verdict where the gain is a bound: it has to hold on the other side as well."""
        if not bound:
            return self
        holds = bound == {AGREES: "at least", DISAGREES: "at most"}.get(self.word)
        return Verdict(self.word if holds else NOT_SETTLED, self.gain, bound=bound)


def verdict(gain: Interval | None) -> Verdict:
    """The verdict on "the gain is positive"."""
    if gain is None or gain.n < 2:
        return Verdict(NOT_SETTLED, gain)
    if gain.low > 0:
        return Verdict(AGREES, gain)
    if gain.high < 0:
        return Verdict(DISAGREES, gain)
    return Verdict(NOT_SETTLED, gain, seeds_to_settle(gain.mean, gain.sd))


def gain(
    better: Mapping[int, float | None], worse: Mapping[int, float | None], goal: str
) -> Interval | None:
    """How much better the first is, by the goal of their measure: `minimize` or `maximize`."""
    return paired(better, worse) if goal == "maximize" else paired(worse, better)


def rank_correlation(x: Iterable[float], y: Iterable[float]) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing their mean rank; 0 if either is constant."""
    a, b = _ranks(list(x)), _ranks(list(y))
    mean = (len(a) - 1) / 2
    spread = math.sqrt(sum((v - mean) ** 2 for v in a) * sum((v - mean) ** 2 for v in b))
    if not spread:
        return 0.0
    return sum((v - mean) * (w - mean) for v, w in zip(a, b, strict=True)) / spread


def _ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]
