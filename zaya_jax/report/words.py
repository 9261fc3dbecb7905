"""Numbers as sentences: which arm wins, how sure that is, and what would settle it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from zaya_jax.report.arms import Arm, compare, ranked
from zaya_jax.report.content import listed, mean_and_half, plural, text
from zaya_jax.sweep.measures import LESS, MEASURES
from zaya_jax.sweep.statistics import (
    AGREES,
    DISAGREES,
    MOST_SEEDS,
    NOT_SETTLED,
    Interval,
    Verdict,
)

LONGER = "a longer run, not more seeds, would tell more"
_FLIPPED = {"at least": "at most", "at most": "at least"}


def measure(name: str) -> str:
    """Title, unit and which values are better: `held-out bits per byte (less is better)`."""
    about = MEASURES[name]
    unit = f"{about.unit}, " if about.unit and about.unit not in about.title else ""
    return f"{about.title} ({unit}{better(name)} is better)"


def better(name: str) -> str:
    return "less" if MEASURES[name].goal == LESS else "more"


def measured(arm: Arm, name: str) -> str:
    """Mean and interval of an arm, or why there is none."""
    values = arm.values(name)
    never = len(arm.unreached(name))
    found = arm.interval(name)
    if found is None:
        return "no number"
    if never == len(values):
        return f"never, > {text(found.mean)}"
    if never:
        return f"> {text(found.mean)}; never in {never} of {plural(len(values), 'seed')}"
    said = seeded(found)
    missing = sum(value.number is None for value in values.values())
    return f"{said}; no number in {missing} of {len(values)}" if missing else said


def seeded(found: Interval) -> str:
    """A mean with its interval, or with the remark that one seed has none."""
    said = mean_and_half(found)
    return said if math.isfinite(found.half) else f"{said} (one seed)"


def claim(name: str, first: str, second: str) -> str:
    """A claim in words."""
    return f"{first} has {better(name)} {MEASURES[name].title} than {second}"


def evidence(found: Verdict, name: str) -> str:
    """What stands behind a verdict: the difference, the seeds, and how many would settle it."""
    gain = found.gain
    if gain is None:
        return "no seed has numbers of both arms"
    unit = f" {MEASURES[name].unit}" if MEASURES[name].unit else ""
    way = better(name) if gain.mean >= 0 else {"less": "more", "more": "less"}[better(name)]
    said = f"{size(found)}{unit} {way}, {plural(gain.n, 'seed')}"
    if not gain.mean and found.bound:
        said = f"no difference as far as the runs went, {plural(gain.n, 'seed')}"
    elif not gain.mean:
        said = f"no difference{f' ± {text(gain.half)}{unit}' if gain.n > 1 else ''}, " + plural(
            gain.n, "seed"
        )
    return f"{said}; {settling(found)}" if found.word == NOT_SETTLED else said


def settling(found: Verdict) -> str:
    """How many seeds, or what else, an open question wants."""
    gain = found.gain
    if found.bound:
        return LONGER
    if gain is None or gain.n < 2:
        return "at least two seeds of both are needed to say more"
    if not gain.mean:
        return "there is no difference that more seeds could settle"
    if found.seeds is None:
        return f"at this spread more than {MOST_SEEDS:,} seeds would be needed"
    return f"at this spread about {found.seeds} seeds would settle a difference of this size"


def outcome(arms: Sequence[Arm], name: str) -> Iterator[str]:
    """Which arm is best in a measure, and from which others it can be told."""
    order = ranked(arms, name)
    title = MEASURES[name].title
    if not order:
        yield f"No arm has {title} yet."
        return
    best, *others = order
    found = best.interval(name)
    assert found is not None
    if all(arm.unreached(name) == list(arm.values(name)) for arm in order):
        most = max(int(x) for arm in order for x in arm.numbers(name).values() if x is not None)
        yield f"{title[:1].upper()}{title[1:]}: no arm reached it within {most:,} steps; {LONGER}."
        return
    seeds = plural(found.n, "seed")
    line = f"{best.name} has the best {title}: {mean_and_half(found)} ({seeds}"
    line += ", mean and 95% interval)." if found.n > 1 else ": nothing is known of the noise)."
    if best.unreached(name):
        line = f"{best.name} has the best {title}: {measured(best, name)}."
    told, open_ = [], []
    for other in others:
        verdict = compare(best, other, name)
        said = f"{other.name} (by {size(verdict)})"
        if verdict.word == AGREES:
            told.append(said)
        elif verdict.word == NOT_SETTLED:
            ask = f"; {settling(verdict)}" if verdict.gain and verdict.gain.n > 1 else ""
            open_.append(f"{other.name} ({size(verdict)} apart{ask})")
        else:
            assert verdict.word == DISAGREES  # seeds that not all arms have can do that
            open_.append(f"{other.name} (which is better seed by seed)")
    if told:
        line += f" It is better than {listed(told)}: more than seeds explain."
    if open_:
        line += f" It cannot be told from {listed(open_)}."
    yield line


def size(found: Verdict) -> str:
    """How large a difference is, without its sign; a bound has no interval."""
    gain, bound = found.gain, found.bound
    if gain is None:
        return "an unknown amount"
    if gain.mean < 0:
        gain, bound = gain.flipped(), _FLIPPED.get(bound, bound)
    return f"{bound} {text(gain.mean)}" if bound else mean_and_half(gain)
