import math

import pytest

from zaya_jax.sweep import statistics
from zaya_jax.sweep.statistics import AGREES, DISAGREES, NOT_SETTLED


@pytest.mark.parametrize(
    ("n", "quantile"), [(2, 12.7062), (3, 4.30265), (4, 3.18245), (6, 2.57058), (31, 2.04227)]
)
def test_t_quantiles_are_those_of_the_tables(n, quantile):
    assert statistics.t_quantile(n) == pytest.approx(quantile, rel=1e-5)


def test_an_interval_by_hand():
    found = statistics.interval([1.0, 2.0, 3.0])  # sd 1; 4.30265 / sqrt(3)
    assert (found.mean, found.sd, found.n) == (2, 1, 3)
    assert found.half == pytest.approx(2.48414, rel=1e-5)
    assert found.low == pytest.approx(-0.48414, rel=1e-4)


def test_one_value_has_a_mean_and_no_interval_and_none_has_neither():
    found = statistics.interval([5.0])
    assert found.mean == 5 and found.half == math.inf and math.isnan(found.sd)
    assert statistics.interval([]) is None


def test_differences_are_paired_by_the_seeds_that_both_have():
    a = {0: 1.0, 1: 2.0, 2: None, 3: 9.0}
    b = {1: 0.5, 0: 0.5, 2: 1.0, 4: 1.0}
    found = statistics.paired(a, b)  # 0.5 and 1.5; 12.7062 * sqrt(0.5) / sqrt(2)
    assert (found.mean, found.n) == (1, 2)
    assert found.half == pytest.approx(6.35310, rel=1e-5)
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None


def test_pairs_see_what_seeds_that_differ_much_would_hide():
    worse = {0: 1.0, 1: 5.0, 2: 9.0}
    better = {seed: value - 0.1 - 0.001 * seed for seed, value in worse.items()}
    assert statistics.verdict(statistics.gain(better, worse, "minimize")).word == AGREES
    assert statistics.verdict(statistics.gain(better, worse, "maximize")).word == DISAGREES


def test_a_claim_is_not_settled_while_the_interval_holds_zero():
    # Mean 1, sd 1, three seeds: half is 2.484. n = 7 is the first with t sqrt(1/n) < 1: 2.447/2.646
    found = statistics.verdict(statistics.interval([0.0, 1.0, 2.0]))
    assert (found.word, found.seeds) == (NOT_SETTLED, 7)
    against = statistics.verdict(statistics.interval([0.0, -1.0, -2.0]))
    assert (against.word, against.seeds) == (NOT_SETTLED, 7)


def test_one_seed_or_none_settles_nothing():
    for gain in (None, statistics.interval([3.0])):
        found = statistics.verdict(gain)
        assert (found.word, found.seeds) == (NOT_SETTLED, None)


def test_the_seeds_to_settle_follow_the_square_of_the_spread():
    # t sd / sqrt(n): 2.0262 * 3 / sqrt(38) < 1 < 2.0281 * 3 / sqrt(37); 1.977 * 6 / sqrt(141) < 1
    assert statistics.seeds_to_settle(1.0, 3.0) == 38
    assert statistics.seeds_to_settle(-1.0, 6.0) == 141
    assert statistics.seeds_to_settle(0.0, 1.0) is None
    assert statistics.seeds_to_settle(1e-3, 1.0) is None  # four million
    assert statistics.seeds_to_settle(1.0, math.nan) is None
    assert statistics.seeds_to_settle(1.0, 0.0) == 2


def test_rank_correlation_by_hand():
    assert statistics.rank_correlation([1, 10, 100], [2.0, 3.0, 9.0]) == pytest.approx(1)
    assert statistics.rank_correlation([1, 2, 3], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    # Ranks 0.5 0.5 2 3 and 0 1 2 3: 4.5 / sqrt(4.5 * 5)
    assert statistics.rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.948683)
    assert statistics.rank_correlation([1, 1], [1, 2]) == 0
