"""One-dimensional clustering against the exact optimum."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import kmeans1d

K = 16
COUNTS = (1, 2, 4, 8, 16)
SIZES = (50, 830, 5000)


def _two_bumps(rng, n):
    return np.where(rng.random(n) < 0.3, rng.normal(-3, 0.1, n), rng.normal(2, 1, n))


def _one_outlier(rng, n):
    return np.append(rng.normal(size=n - 1), 1e4)


DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.uniform(size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "student_t2": lambda rng, n: rng.standard_t(2, n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "pareto": lambda rng, n: 1 + rng.pareto(1, n),
    "lognormal": lambda rng, n: rng.lognormal(sigma=2, size=n),
    "one_outlier": _one_outlier,
    "two_bumps": _two_bumps,
    "offset": lambda rng, n: 100 + rng.uniform(-0.01, 0.01, n),
    "heavy_ties": lambda rng, n: rng.integers(20, size=n).astype(float),
    "tight_clusters": lambda rng, n: rng.integers(16, size=n) + 1e-3 * rng.normal(size=n),
}


def draw(name: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(sorted(DISTRIBUTIONS).index(name) + 100 * n)
    return DISTRIBUTIONS[name](rng, n).astype(np.float32)


def optimum(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Least squared error with 1, ..., K clusters: the O(K n^2) programme in float64."""
    order = np.argsort(values)
    x = values[order].astype(np.float64)
    w = np.ones(len(x)) if weights is None else weights[order].astype(np.float64)
    best = np.full((K + 1, len(x) + 1), np.inf)
    best[:, 0] = 0
    cost = np.zeros(0)  # of the values begin, ..., end - 1 in one cluster, for every begin
    mass, mean = np.zeros(0), np.zeros(0)
    for end in range(1, len(x) + 1):
        mass, mean, cost = (np.append(a, 0.0) for a in (mass, mean, cost))
        gap = x[end - 1] - mean
        share = np.divide(w[end - 1], mass + w[end - 1], out=np.zeros(end), where=w[end - 1] > 0)
        cost += mass * share * gap * gap
        mean += share * gap
        mass += w[end - 1]
        best[1:, end] = np.min(best[:-1, :end] + cost, axis=1) if end > 1 else 0
        best[1, end] = cost[0]
    return best[1:, -1]


def error_of(values, found, weights=None) -> float:
    level = np.asarray(found.level, np.float64)[np.asarray(found.label)]
    w = np.ones(len(values)) if weights is None else weights
    return float(np.sum(w * (values.astype(np.float64) - level) ** 2))


@functools.cache
def solver(polish: int = kmeans1d.POLISH):
    """(values, mask, weights, ks) -> the table, and levels for each k; compiled once a size."""

    @jax.jit
    def solve(values, mask, weights, ks):
        tab = kmeans1d.table(values, mask, K, weights=weights)
        return tab.error, jax.lax.map(
            lambda k: kmeans1d.levels(tab, values, mask, k, weights=weights, polish=polish), ks
        )

    def call(values, mask=None, weights=None, ks=COUNTS):
        n = len(values)
        mask = np.ones(n, bool) if mask is None else mask
        weights = np.ones(n, np.float32) if weights is None else np.float32(weights)
        error, found = solve(values, mask, weights, jnp.array(ks))
        return np.asarray(error), [kmeans1d.Levels(*(x[i] for x in found)) for i in range(len(ks))]

    return call


def rounding(values: np.ndarray) -> float:
    """The error that float32 levels make anyway: each may be off by an ulp of the largest value,
    twice over for the sums that it is made of."""
    return len(values) * (2 * np.finfo(np.float32).eps * np.abs(values).max()) ** 2


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_near_the_exact_optimum(name, n):
    values = draw(name, n)
    exact = optimum(values)
    table, found = solver()(values)
    for k, one in zip(COUNTS, found, strict=True):
        # The module's promise: half a percent.
        assert error_of(values, one) <= 1.005 * exact[k - 1] + rounding(values), k
    # The table speaks of bins, before the levels settle on the values: a few percent.
    slack = 0.05 * exact + rounding(values)
    np.testing.assert_array_less(np.abs(table[1:] - exact), slack + 1e-30)
    np.testing.assert_allclose(table[0], np.sum(values.astype(np.float64) ** 2), rtol=1e-5)
    assert np.all(np.diff(table) <= 1e-6 * table[1:] + rounding(values))  # rounding of float32


def test_the_optimum_above_is_the_optimum():
    """The reference itself, against every way to cut eight values."""
    values = np.array([3.0, 1.0, 1.5, 9.0, 9.5, -4.0, 2.0, 11.0], np.float32)
    x = np.sort(values).astype(np.float64)
    for k in range(1, 5):
        best = np.inf
        for cuts in np.ndindex(*(9,) * (k - 1)):
            edges = [0, *sorted(cuts), 8]
            parts = [x[a:b] for a, b in itertools.pairwise(edges) if b > a]
            best = min(best, sum(np.sum((p - p.mean()) ** 2) for p in parts))
        np.testing.assert_allclose(optimum(values)[k - 1], best, rtol=1e-12)


@pytest.mark.parametrize("name", ["normal", "heavy_ties", "cauchy"])
def test_labels_are_of_the_nearest_level(name):
    values = draw(name, 830)
    _, found = solver()(values)
    for k, one in zip(COUNTS, found, strict=True):
        level, label = np.asarray(one.level), np.asarray(one.label)
        assert label.max() < k
        assert np.all(np.diff(level) >= 0)
        np.testing.assert_array_equal(level[k:], level[k - 1])
        # In the solver's own float32, so that ties are ties; the lowest label of equals.
        gap = np.abs(values[:, None] - level[None, :k])
        np.testing.assert_array_equal(label, gap.argmin(1))


def test_masked_values_change_nothing():
    values = draw("laplace", 50)
    place = np.random.default_rng(0).permutation(830)
    padded = np.concatenate([values, np.full(780, 1e6, np.float32)])[place]
    mask = (np.arange(830) < 50)[place]
    error, found = solver()(padded, mask)
    expected, plain = solver()(values)
    np.testing.assert_allclose(error, expected, rtol=1e-4)  # sums over bins in another order
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(np.asarray(one.label)[mask], other.label[place[mask]])
        np.testing.assert_array_equal(np.asarray(one.label)[~mask], 0)
        np.testing.assert_allclose(one.level, other.level, atol=1e-5)  # values of order 1


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    values, times = rng.normal(size=50).astype(np.float32), rng.integers(0, 5, 50)
    repeated = np.repeat(values, times)
    exact = optimum(repeated)
    np.testing.assert_allclose(optimum(values, times), exact, rtol=1e-9)
    error, found = solver()(values, weights=times)
    expected, plain = solver()(
        np.append(repeated, np.zeros(830 - len(repeated), np.float32)),
        np.arange(830) < len(repeated),
    )
    np.testing.assert_allclose(error, expected, rtol=1e-3, atol=1e-5)  # bins may round apart
    for k, one, other in zip(COUNTS, found, plain, strict=True):
        assert error_of(values, one, times) <= 1.005 * exact[k - 1] + rounding(values)
        np.testing.assert_allclose(one.level, other.level, atol=1e-5)


def test_values_that_need_fewer_levels_than_k():
    mask = np.ones(50, bool)
    for values in (np.full(50, 3.25), np.arange(50) % 3 - 0.5, np.zeros(50)):
        values = values.astype(np.float32)
        error, found = solver()(values, mask)
        distinct = len(set(values.tolist()))
        np.testing.assert_allclose(error[distinct:], 0, atol=rounding(values))
        for k, one in zip(COUNTS, found, strict=True):
            assert np.isfinite(one.level).all()
            if k >= distinct:
                np.testing.assert_allclose(error_of(values, one), 0, atol=rounding(values))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_values(n):
    values = np.zeros(50, np.float32)
    values[7:9] = [-2.5, 4.0]
    mask = (np.arange(50) >= 7) & (np.arange(50) < 7 + n)
    error, found = solver()(values, mask)
    assert np.isfinite(error).all()
    np.testing.assert_allclose(error[max(n, 1) :], 0, atol=1e-6)
    for k, one in zip(COUNTS, found, strict=True):
        assert np.isfinite(one.level).all()
        np.testing.assert_array_equal(np.asarray(one.label)[~mask], 0)
        if k >= n:
            decoded = np.asarray(one.level)[np.asarray(one.label)]
            np.testing.assert_allclose(decoded[mask], values[mask], atol=1e-6)


def test_traced_k_is_a_smaller_static_k():
    values, mask = jnp.asarray(draw("normal", 50)), jnp.ones(50, bool)
    _, found = solver()(values)
    tab = kmeans1d.table(values, mask, 4, bins=128)  # as many bins as K = 16 has
    small = kmeans1d.levels(tab, values, mask, 4)
    np.testing.assert_array_equal(found[COUNTS.index(4)].label, small.label)
    np.testing.assert_allclose(found[COUNTS.index(4)].level[:4], small.level, atol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1e-20, 0.0), (1e15, 0.0), (-3.0, 0.0), (4.0, 8.0)])
def test_scale_and_shift(scale, shift):
    values = draw("laplace", 830)
    exact = optimum(values)
    moved = (values * np.float32(scale) + np.float32(shift)).astype(np.float32)
    error, found = solver()(moved)
    if abs(scale) > 1e-18:  # below, squares leave float32
        np.testing.assert_allclose(error[1:] / scale**2, exact, rtol=0.05)  # a few percent
    for k, one in zip(COUNTS, found, strict=True):
        # Half a percent, and what shifting cost the values themselves.
        assert error_of(moved, one) / scale**2 <= 1.005 * exact[k - 1] + rounding(values + shift)


def test_mapped_is_looped():
    values = np.stack([draw("normal", 50), draw("cauchy", 50), draw("heavy_ties", 50)])
    mask = np.arange(50) < np.array([[50], [30], [5]])

    @jax.jit
    @jax.vmap
    def mapped(values, mask, k):
        tab = kmeans1d.table(values, mask, K)
        return tab.error, kmeans1d.levels(tab, values, mask, k)

    error, found = mapped(values, mask, jnp.array([4, 8, 16]))
    for i, k in enumerate((4, 8, 16)):
        expected, (one,) = solver()(values[i], mask[i], ks=(k,))
        np.testing.assert_allclose(error[i], expected, rtol=1e-5)  # order of sums
        np.testing.assert_array_equal(found.label[i], one.label)
        np.testing.assert_allclose(found.level[i], one.level, rtol=1e-6)


def test_labels_of_several_k_are_those_of_each():
    values = jnp.asarray(draw("normal", 200))
    mask = jnp.arange(200) < 180
    tab = kmeans1d.table(values, mask, K)
    several = kmeans1d.labels(tab, values, mask, jnp.asarray(COUNTS))
    for k, found in zip(COUNTS, several, strict=True):
        alone = kmeans1d.levels(tab, values, mask, k, polish=0).label
        np.testing.assert_array_equal(found, alone)
