"""Estimates by hand, and the coverage of their intervals on damage as it is: log-normal, several noise seeds of a prompt."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import spearmanr

from ada import statistics
from ada.rewards.damage import VISIBLE_DISTANCE
from ada.statistics import Estimate

BETWEEN, WITHIN = 1.79, 0.77
"""Observed deviations of the log damage, between images and left over."""
MEDIAN = 5e-4
ROUNDS = 500
Array = statistics.Array


def damages(generator: np.random.Generator, prompts: int, seeds: int) -> Array:
    """`(seeds, prompts)`."""
    image = generator.normal(scale=BETWEEN, size=prompts)
    return np.asarray(MEDIAN * np.exp(image + generator.normal(scale=WITHIN, size=(seeds, prompts))))


def coverage(estimate: Callable[[Array], Estimate], truth: float, prompts: int, seeds: int) -> float:
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(ROUNDS):
        found = estimate(damages(generator, prompts, seeds))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    return held / ROUNDS


def bounded(distances: Array) -> Array:
    return np.asarray((distances / (distances + VISIBLE_DISTANCE)).mean(0))


def visible(distances: Array) -> Array:
    return np.asarray((distances > VISIBLE_DISTANCE).mean(0))


POPULATION = damages(np.random.default_rng(1), 1_000_000, 1)
TOTAL = float(np.hypot(BETWEEN, WITHIN))


def percentile_bootstrap(distances: Array) -> Estimate:
    values = distances.mean(0)
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    means = values[drawn].mean(1)
    return Estimate(float(values.mean()), *(float(end) for end in np.quantile(means, [0.025, 0.975])))


def test_the_percentile_bootstrap_of_raw_means_does_not_hold_and_the_studentised_one_hardly_better() -> None:
    """The reason why raw means are published without an interval."""
    truth = MEDIAN * np.exp(TOTAL**2 / 2)
    assert coverage(percentile_bootstrap, truth, 128, 3) < 0.87
    assert coverage(lambda values: statistics.mean(values.mean(0).tolist()), truth, 128, 3) < 0.92
    assert statistics.raw_mean([1.0, 2.0]) == Estimate(1.5, None, None)


@pytest.mark.parametrize("prompts", [32, 128])
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_the_headlines_hold(prompts: int, seeds: int) -> None:
    damage = coverage(
        lambda values: statistics.mean(bounded(values).tolist()), float(bounded(POPULATION).mean()), prompts, seeds
    )
    changed = coverage(
        lambda values: statistics.share(visible(values).tolist()), float(visible(POPULATION).mean()), prompts, seeds
    )
    assert 0.925 <= damage <= 0.985
    assert 0.925 <= changed <= 0.985


@pytest.mark.parametrize(("probability", "sigmas"), [(0.5, 0.0), (0.9, 1.281552)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_quantiles_hold(probability: float, sigmas: float, seeds: int) -> None:
    truth = MEDIAN * np.exp(sigmas * TOTAL)
    found = coverage(lambda values: statistics.quantile(values.ravel().tolist(), probability, seeds), truth, 128, seeds)
    assert 0.925 <= found <= 0.99


def test_intervals_of_a_mean_that_ignores_the_clusters_would_be_too_narrow() -> None:
    """Three seeds of a prompt are not three prompts."""
    truth = float(bounded(POPULATION).mean())
    as_if = coverage(
        lambda values: statistics.mean((values / (values + VISIBLE_DISTANCE)).ravel().tolist()), truth, 64, 3
    )  # fmt: skip
    assert as_if < 0.85


BATCHWISE = 1.2
"""Deviation of the log damage between batches of a method that decides for each as a whole; 0 to 0.5 were observed."""


def batchwise(generator: np.random.Generator, seeds: int) -> Array:
    """`(seeds, 128)`, batches of eight."""
    return damages(generator, 128, seeds) * np.exp(generator.normal(scale=BATCHWISE, size=(seeds, 16)).repeat(8, 1))


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("what", ["damage", "visible", "difference", "visible difference", "median"])
def test_intervals_of_what_decides_for_batches_hold_where_a_batch_counts_as_one(what: str, seeds: int) -> None:
    """And by far do not where its prompts count as so many. The differences are to a method that does alike in every batch."""
    sides = [POPULATION * np.exp(np.random.default_rng(2).normal(scale=BATCHWISE, size=POPULATION.shape)), POPULATION]
    populations = sides if "difference" in what else sides[:1]
    known: dict[str, tuple[Callable[[Array], Array], Callable[..., Estimate]]] = {
        "damage": (bounded, statistics.mean), "visible": (visible, statistics.share),
        "difference": (bounded, statistics.difference), "visible difference": (visible, statistics.share_difference),
    }  # fmt: skip

    def estimate(size: int, *sides: Array) -> Estimate:
        if what == "median":
            return statistics.quantile(sides[0].ravel().tolist(), 0.5, seeds, size)
        prompts, kind = known[what]
        return statistics.by_groups(kind, size, *(prompts(side).tolist() for side in sides))

    first, *others = [MEDIAN] if what == "median" else [float(known[what][0](side).mean()) for side in populations]
    truth, generator, held = first - sum(others), np.random.default_rng(9), {1: 0, 8: 0}
    for _ in range(ROUNDS):
        sides = [batchwise(generator, seeds), damages(generator, 128, seeds)][: len(populations)]
        for size in held:
            found = estimate(size, *sides)
            assert found.low is not None
            assert found.high is not None
            held[size] += found.low <= truth <= found.high
    assert 0.92 <= held[8] / ROUNDS <= 0.99
    assert held[1] < 0.915 * ROUNDS


def test_a_group_counts_as_one_value() -> None:
    """The last one is smaller, and weighs less in the mean that is told."""
    values, others = [1.0, 3.0, 2.0, 4.0, 8.0], [0.0, 2.0, 1.0, 1.0, 5.0]
    expected = statistics.difference([2.0, 3.0, 8.0], [1.0, 1.0, 5.0])
    found = statistics.by_groups(statistics.difference, 2, values, others)
    assert found.value == pytest.approx(np.mean(values) - np.mean(others))
    assert found.half_width == pytest.approx(expected.half_width)
    assert statistics.by_groups(statistics.raw_mean, 2, values) == Estimate(pytest.approx(3.6), None, None)
    assert statistics.by_groups(statistics.mean, 1, values) == statistics.mean(values)
    seldom = statistics.by_groups(statistics.share, 8, [0.0] * 16 + [1.0])
    assert (seldom.value, seldom.low) == (pytest.approx(1 / 17), 0.0), "no share is negative"
    assert statistics.quantile([*range(40)], 0.9, 1, 8) == Estimate(pytest.approx(35.1), None, None), (
        "five groups tell too little"
    )


def test_intervals_of_paired_log_differences_hold() -> None:
    """The second method does 20 % less damage, up to a scatter of its own."""
    generator, held, ratio = np.random.default_rng(3), 0, np.log(0.8)
    for _ in range(ROUNDS):
        first = damages(generator, 64, 2)
        second = first * np.exp(ratio + generator.normal(scale=0.9, size=first.shape))
        logs = [statistics.log_distances(np.maximum(each, 2e-5).ravel()) for each in (second, first)]
        found = statistics.mean(statistics.per_prompt(logs[0] - logs[1], 2))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= ratio <= found.high
    assert 0.92 <= held / ROUNDS <= 0.98


def pairs(generator: np.random.Generator, medians: list[float], prompts: int, seeds: int) -> Array:
    """Damages of several methods on the same images: `(methods, seeds, prompts)`."""
    image = generator.normal(scale=BETWEEN, size=prompts)
    own = generator.normal(scale=WITHIN, size=(len(medians), seeds, prompts))
    return np.asarray(np.array(medians)[:, None, None] * np.exp(image + own))


def shares_held(difference: Callable[[Array, Array], Estimate], medians: list[float], seeds: int) -> float:
    """How often the interval of 128 prompts holds the difference between a method and a mixture, 70 % of it one row's and the rest
    another's where there are three."""
    parts = [0.7, 0.3][: len(medians) - 1] if len(medians) > 2 else [1.0]
    truths = [float(visible(POPULATION * median / MEDIAN).mean()) for median in medians]
    truth, generator, held = truths[0] - float(np.dot(parts, truths[1:])), np.random.default_rng(5), 0
    for _ in range(ROUNDS):
        own, *others = map(visible, pairs(generator, medians, 128, seeds))
        found = difference(own, np.dot(parts, others))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    return held / ROUNDS


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    "medians", [[2e-5, 6e-5], [2e-5, 2e-5], [1e-4, 4e-4], [4e-4, 1e-3], [2e-5, 6e-5, 1.2e-4], [1e-4, 4e-4, 8e-4]]
)
def test_intervals_of_differences_of_shares_hold(medians: list[float], seeds: int) -> None:
    """Of rows of which 0.5 to 30 % are visible, and of mixtures."""
    assert shares_held(statistics.share_difference, medians, seeds) > 0.925


def test_bootstrapped_differences_of_small_shares_do_not_hold() -> None:
    """The reason why they have Newcombe's interval: of 0.5 and 2 %, most samples have no image to learn the spread from."""
    assert shares_held(lambda own, other: statistics.difference(own.tolist(), other.tolist()), [2e-5, 6e-5], 1) < 0.92


def test_a_difference_of_shares_by_hand() -> None:
    """Newcombe's arms from Wilson's intervals: of 10 and none of 100, whose φ is 0; and of 10 that are among the other's 20, where φ is
    ⅔: (0.1 − 0.1 · 0.2) / (0.3 · 0.4)."""
    ten, none, twenty = ([1.0] * count + [0.0] * (100 - count) for count in (10, 0, 20))
    apart = statistics.share_difference(ten, none)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.1, 0.1 - 0.0581, 0.1 + 0.0744), abs=2e-3)
    down, up = 0.1 - 0.0552, 0.2888 - 0.2
    within = statistics.share_difference(ten, twenty)
    assert within.low == pytest.approx(-0.1 - (down**2 - 4 / 3 * down * up + up**2) ** 0.5, abs=2e-3)
    back = statistics.share_difference(twenty, ten)
    assert (back.low, back.high) == pytest.approx((-within.high, -within.low))


def test_rows_that_agree_on_every_image_may_still_differ_on_others() -> None:
    same = statistics.share_difference([0.0] * 128, [0.0] * 128)
    assert (same.low, same.high) == pytest.approx((-0.0291, 0.0291), abs=1e-4)


def test_equal_values_leave_no_doubt() -> None:
    assert statistics.mean([2.5] * 9) == Estimate(2.5, 2.5, 2.5)
    assert statistics.quantile([2.5] * 9, 0.5) == Estimate(2.5, 2.5, 2.5)


def test_few_values_by_students_table() -> None:
    """Of 0 and 1 the mean is ½ ± 12.706 · ½: nothing is known."""
    found = statistics.mean([0.0, 1.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - 6.353, 0.5 + 6.353))


@pytest.mark.parametrize("differing", [1.5, 3, 6, 12, 24])
def test_differences_that_are_nearly_all_zero_seldom_claim_anything(differing: float) -> None:
    """Of 128 prompts so many differ on average, by as much to either side; what is claimed is clear of zero in 5 of 100 at most."""
    generator, claimed = np.random.default_rng(3), 0
    for _ in range(ROUNDS):
        sides = generator.choice([-1.0, 0.0, 1.0], size=128, p=[differing / 256, 1 - differing / 128, differing / 256])
        found = statistics.mean((sides * generator.uniform(0.2, 0.4, size=128)).tolist())
        assert found.low is not None
        assert found.high is not None
        claimed += not found.low <= 0 <= found.high
    assert claimed / ROUNDS <= 0.065


def test_of_normal_values_the_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(2).normal(size=400)
    assert statistics.mean(values.tolist()).half_width == pytest.approx(1.96 * values.std() / 20, rel=0.06)


def test_wilsons_interval_by_hand() -> None:
    """None of 100: 0 to z² / (n + z²). Ten of 100: Wilson's textbook 0.055 to 0.174."""
    none = statistics.share([0.0] * 100)
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.03699), abs=1e-4)
    ten = statistics.share([1.0] * 10 + [0.0] * 90)
    assert (ten.low, ten.high) == pytest.approx((0.0552, 0.1744), abs=2e-3)


def test_the_median_of_ten_reaches_from_the_second_to_the_ninth() -> None:
    """The sign test's interval: 97.9 % of ten values' intervals hold the median."""
    assert statistics.quantile([float(place) for place in range(1, 11)], 0.5) == Estimate(5.5, 2.0, 9.0)


def test_paired_differences_cancel_the_spread_of_the_prompts() -> None:
    prompts = np.random.default_rng(0).normal(scale=100.0, size=50)
    better = statistics.difference((prompts + 0.25).tolist(), prompts.tolist())
    assert (better.value, better.low, better.high) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="shorter"):
        statistics.difference([1.0, 2.0], [1.0])


def test_rounding_is_no_win() -> None:
    assert statistics.wins([1e-7, 0.1, 0.2, 0.3], [0.0, 0.2, 0.1, 0.3]).tolist() == [0.5, 1.0, 0.0, 0.5]


def test_seeds_of_a_prompt_are_averaged() -> None:
    assert statistics.per_prompt([1.0, 2.0, 3.0, 6.0], 2) == [2.0, 4.0]


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    assert statistics.mean([3.0]) == Estimate(3.0, None, None)
    assert statistics.mean([3.0]).half_width is None
    with pytest.raises(ValueError, match="at least one value"):
        statistics.mean([])


def test_rank_correlation_against_scipy_with_ties() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 5, size=40).astype(float)
    second = first + generator.integers(0, 6, size=40)
    found = statistics.rank_correlation(first, second)
    assert found is not None
    assert found.value == pytest.approx(spearmanr(first, second).statistic)
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low < found.value < found.high <= 1
    assert statistics.rank_correlation(first, second, num_resamples=0) == Estimate(found.value, None, None)
    assert statistics.rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == Estimate(pytest.approx(1.0), None, None), (
        "too few to claim"
    )
    assert statistics.rank_correlation(first, -first, num_resamples=0) == Estimate(pytest.approx(-1.0), None, None)


def test_equal_compute_has_no_correlation() -> None:
    """Rounding noise is no spread."""
    assert statistics.rank_correlation([0.75, 0.75 + 1e-13, 0.75], [1.0, 2.0, 3.0]) is None
