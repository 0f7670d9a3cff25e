"""Lloyd's k-means against scikit-learn and against what its docstring promises."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy import stats
from sklearn.cluster import KMeans

from fedras_jax import kmeans, reductions

N, D, K = 200, 6, 8
ITERATIONS = 7


EVERY = jnp.ones(N, bool)


def blobs(seed: int, n: int = N, d: int = D) -> np.ndarray:
    """Overlapping clusters, so that Lloyd still moves after several steps."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(5, d))
    points = centre[rng.integers(5, size=n)] + rng.normal(size=(n, d))
    return points.astype(np.float32)


@pytest.fixture(scope="module")
def lloyd():
    """`kmeans.lloyd` with everything traced that may be, compiled once a shape."""

    @jax.jit
    def run(points, mask, start, k, weights):
        return kmeans.lloyd(points, mask, start, k=k, weights=weights, iterations=ITERATIONS)

    def call(points, start, mask=None, k=None, weights=None):
        mask = np.ones(len(points), bool) if mask is None else mask
        weights = np.ones(len(points), np.float32) if weights is None else weights
        return run(points, mask, start, jnp.int32(len(start) if k is None else k), weights)

    return call


@pytest.mark.parametrize("seed", range(4))
def test_same_as_scikit_learn(lloyd, seed):
    points = blobs(seed)
    found = lloyd(points, points[:K])
    theirs = KMeans(
        K, init=points[:K], n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd"
    ).fit(points.astype(np.float64))
    assert np.bincount(theirs.labels_, minlength=K).min() > 0  # nobody's centroid was replaced
    np.testing.assert_array_equal(found.label, theirs.labels_)
    # Coordinates of order 1 in float32, averages of some 25 of them.
    np.testing.assert_allclose(found.centroid, theirs.cluster_centers_, atol=1e-5)
    np.testing.assert_allclose(found.inertia, theirs.inertia_, rtol=1e-5)


def test_masked_points_change_nothing(lloyd):
    points = blobs(0)
    rubbish = np.full((50, D), 1e4, np.float32)
    place = np.random.default_rng(1).permutation(N + 50)
    mask = (np.arange(N + 50) < N)[place]
    found = lloyd(np.concatenate([points, rubbish])[place], points[:K], mask=mask)
    plain = lloyd(points, points[:K])
    np.testing.assert_array_equal(np.asarray(found.label)[mask], plain.label[place[mask]])
    np.testing.assert_array_equal(np.asarray(found.label)[~mask], 0)
    # The same sums in another order.
    np.testing.assert_allclose(found.centroid, plain.centroid, atol=2e-6)
    np.testing.assert_allclose(found.inertia, plain.inertia, rtol=1e-5)


def test_weights_are_repetitions(lloyd):
    points = blobs(1, n=60)
    times = np.random.default_rng(2).integers(0, 4, 60)
    times[:K] = 2  # no cluster empties
    weighted = lloyd(points, points[:K], weights=times.astype(np.float32))
    repeated = lloyd(np.repeat(points, times, axis=0), points[:K])
    np.testing.assert_array_equal(np.repeat(weighted.label, times), repeated.label)
    # The same sums, multiplied instead of repeated.
    np.testing.assert_allclose(weighted.centroid, repeated.centroid, atol=2e-6)
    np.testing.assert_allclose(weighted.inertia, repeated.inertia, rtol=1e-5)


def test_traced_k_is_a_smaller_static_k(lloyd):
    points = blobs(2)
    for k in (1, 3, K):
        found, small = lloyd(points, points[:K], k=k), lloyd(points, points[:k])
        np.testing.assert_array_equal(found.label, small.label)
        np.testing.assert_allclose(found.centroid[:k], small.centroid, atol=1e-6)  # order of sums
        np.testing.assert_allclose(found.inertia, small.inertia, rtol=1e-6)


def test_ties_go_to_the_lowest_cluster():
    points = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    start = jnp.array([[2.0, 0.0], [-2.0, 0.0], [2.0, 0.0]])
    every = jnp.ones(3, bool)
    np.testing.assert_array_equal(kmeans.nearest(points.T, start, every), [0, 0, 0])
    np.testing.assert_array_equal(kmeans.nearest(points.T, start[::-1], every), [0, 0, 0])
    np.testing.assert_array_equal(kmeans.nearest(points.T, start, ~every | (start[:, 0] < 0)), 1)


def test_an_empty_cluster_keeps_its_centroid(lloyd):
    points = blobs(3)
    start = np.concatenate([points[: K - 1], np.full((1, D), 50, np.float32)])
    found = lloyd(points, start)
    np.testing.assert_array_equal(found.centroid[K - 1], start[K - 1])
    assert not np.any(np.asarray(found.label) == K - 1)
    assert np.isfinite(found.inertia)


def test_nothing_unmasked_keeps_the_start(lloyd):
    points = blobs(3)
    found = lloyd(points, points[:K], mask=np.zeros(N, bool))
    np.testing.assert_array_equal(found.centroid, points[:K])
    assert found.inertia == 0


def test_no_iterations_only_assigns():
    points = blobs(4)
    found = kmeans.lloyd(jnp.asarray(points), EVERY, jnp.asarray(points[:K]), iterations=0)
    gap = np.sum((points[:, None].astype(np.float64) - points[:K]) ** 2, axis=2)
    np.testing.assert_array_equal(found.label, gap.argmin(1))
    np.testing.assert_allclose(found.inertia, gap.min(1).sum(), rtol=1e-5)  # float32 sum


def test_eager_is_jitted_and_mapped_is_looped(lloyd):
    points = np.stack([blobs(s) for s in range(3)])
    mask = np.arange(N) < np.array([[N], [150], [90]])
    ks = jnp.array([K, 5, 2])

    def one(points, mask, k):
        return kmeans.lloyd(points, mask, points[:K], k=k, iterations=ITERATIONS)

    mapped = jax.jit(jax.vmap(one))(points, mask, ks)
    for i in range(3):
        looped = lloyd(points[i], points[i, :K], mask=mask[i], k=ks[i])
        np.testing.assert_array_equal(mapped.label[i], looped.label)
        np.testing.assert_allclose(mapped.centroid[i], looped.centroid, atol=2e-6)  # order of sums
        again = lloyd(points[i], points[i, :K], mask=mask[i], k=ks[i])
        np.testing.assert_array_equal(again.centroid, looped.centroid)
    with jax.disable_jit():
        eager = one(jnp.asarray(points[1]), jnp.asarray(mask[1]), ks[1])
    np.testing.assert_array_equal(eager.label, mapped.label[1])


def test_random_rows_are_distinct_and_unmasked():
    points = jnp.arange(40.0)[:, None]
    mask = np.random.default_rng(0).random(40) < 0.5
    draw = jax.jit(jax.vmap(lambda key: kmeans.random_rows(key, points, jnp.asarray(mask), 10)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 500))[..., 0], int)
    assert mask[drawn].all()
    assert all(len(set(row)) == 10 for row in drawn.tolist())
    count = np.bincount(drawn.reshape(-1), minlength=40)[mask]
    # Draws without replacement: the chi-square statistic shrinks by (N - K) / (N - 1).
    n, expected = mask.sum(), drawn.size / mask.sum()
    statistic = np.sum((count - expected) ** 2) / expected * (n - 1) / (n - 10)
    assert stats.chi2.sf(statistic, n - 1) > 1e-3  # fixed seed


def test_random_rows_repeat_when_there_are_too_few():
    points = jnp.arange(6.0)[:, None]
    mask = jnp.array([0, 1, 0, 1, 1, 0], bool)
    drawn = np.asarray(kmeans.random_rows(jax.random.key(0), points, mask, 7))[:, 0]
    assert set(drawn.tolist()) == {1, 3, 4}


def test_plusplus_takes_no_masked_or_weightless_point():
    points = jnp.arange(30.0)[:, None]
    mask = np.arange(30) % 3 > 0
    weights = (np.arange(30) % 2).astype(np.float32)
    allowed, weight = jnp.asarray(mask), jnp.asarray(weights)
    draw = jax.jit(jax.vmap(lambda key: kmeans.plusplus(key, points, allowed, 6, weight)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), 500))[..., 0], int)
    assert set(drawn.reshape(-1).tolist()) == set(np.flatnonzero(mask & (weights > 0)).tolist())
    assert all(len(set(row)) == 6 for row in drawn.tolist())


def test_plusplus_draws_by_weighted_squared_distance():
    points = np.array([0.0, 1.0, 2.0, 4.0, 7.0], np.float32)[:, None]
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0], np.float32)
    mask = np.array([1, 1, 1, 1, 0], bool)
    where, allowed, weight = (jnp.asarray(x) for x in (points, mask, weights))
    draw = jax.jit(jax.vmap(lambda key: kmeans.plusplus(key, where, allowed, 2, weight)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(2), 20_000)))[..., 0]
    weights64 = (weights * mask).astype(np.float64)
    share = weights64 / weights64.sum()
    count, expected = np.zeros((5, 5)), np.zeros((5, 5))
    for i, first in enumerate(points[:, 0]):
        mass = weights64 * (points[:, 0] - first) ** 2
        expected[i] = share[i] * (mass / mass.sum())
        for j, second in enumerate(points[:, 0]):
            count[i, j] = np.sum((drawn[:, 0] == first) & (drawn[:, 1] == second))
    possible = expected > 0
    assert count[~possible].sum() == 0
    assert stats.chisquare(count[possible], 20_000 * expected[possible]).pvalue > 1e-3  # fixed seed


def test_plusplus_repeats_when_all_points_coincide():
    points = jnp.full((5, 2), 3.0)
    drawn = kmeans.plusplus(jax.random.key(0), points, jnp.arange(5) < 3, 4)
    np.testing.assert_array_equal(drawn, np.full((4, 2), 3))


@pytest.mark.parametrize("init", ["random", "plusplus"])
def test_kmeans_keeps_the_best_start(init):
    points, mask, key = jnp.asarray(blobs(5)), EVERY, jax.random.key(3)

    @jax.jit
    def best(key):
        return kmeans.kmeans(key, points, mask, K, init=init, n_init=6, iterations=3)

    @jax.jit
    def every(key):
        def attempt(one):
            start = kmeans.INITS[init](one, points, mask, K)
            return kmeans.lloyd(points, mask, start, iterations=3)

        return jax.lax.map(attempt, jax.random.split(key, 6))

    found, attempts = best(key), every(key)
    assert len(set(np.asarray(attempts.inertia).tolist())) > 1
    # The same computation in another program.
    np.testing.assert_allclose(found.inertia, attempts.inertia.min(), rtol=1e-6)
    np.testing.assert_array_equal(found.label, attempts.label[attempts.inertia.argmin()])
    np.testing.assert_array_equal(best(key).centroid, found.centroid)


def test_kmeans_errors():
    points, mask, key = jnp.asarray(blobs(0)), EVERY, jax.random.key(0)
    with pytest.raises(ValueError, match=r"init must be one of \['plusplus', 'random'\], not 'k'"):
        kmeans.kmeans(key, points, mask, 2, init="k")
    for wrong in ({"n_clusters": 0}, {"n_init": 0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            kmeans.kmeans(key, points, mask, **{"n_clusters": 2, **wrong})


def test_shapes_are_checked():
    """The import hook of `conftest` is at work: a mask of the wrong length does not pass."""
    with pytest.raises(jaxtyping.TypeCheckError):
        kmeans.main_direction(jnp.asarray(blobs(0)), EVERY[1:])


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e15])
def test_main_direction_is_the_first_singular_vector(scale):
    rng = np.random.default_rng(0)
    axis = rng.normal(size=D)
    axis /= np.linalg.norm(axis)
    points = rng.normal(size=(N, 1)) * axis + 0.05 * rng.normal(size=(N, D))
    points = (points * scale).astype(np.float32)
    mask = rng.random(N) < 0.7
    expected = np.linalg.svd(points[mask].astype(np.float64) / scale)[2][0]
    found = np.asarray(kmeans.main_direction(jnp.asarray(points), jnp.asarray(mask)))
    # Float32, and squared singular values at a ratio of 1 / 300 over two power steps.
    np.testing.assert_allclose(abs(found @ expected), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-6)


def test_main_direction_of_nothing_is_zero():
    np.testing.assert_array_equal(kmeans.main_direction(jnp.asarray(blobs(0)), ~EVERY), 0)
    np.testing.assert_array_equal(kmeans.main_direction(jnp.zeros((N, D)), EVERY), 0)


def test_main_direction_of_one_row_is_its_own():
    found = kmeans.main_direction(jnp.array([[3e-25, -4e-25]]), jnp.ones(1, bool))
    np.testing.assert_allclose(found, [0.6, -0.8], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_main_directions_span_the_leading_singular_vectors(scale):
    rng = np.random.default_rng(1)
    strength = np.array([3, 1.5, 0.7, 0.02, 0.02, 0.02])
    points = rng.normal(size=(N, D)) * strength @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    points = (points * scale).astype(np.float32)
    mask = rng.random(N) < 0.7
    expected = np.linalg.svd(points[mask].astype(np.float64) / scale)[2][:3]
    found = np.asarray(kmeans.main_directions(jnp.asarray(points), jnp.asarray(mask), 3))
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-6)  # float32
    # What the span leaves out of the three vectors shrinks by (0.02 / 0.7)^2 with each step, so
    # two leave a millionth; within the span the directions may still be turned.
    np.testing.assert_allclose(np.linalg.norm(expected @ found.T, axis=1), 1, atol=1e-5)
    assert abs(found[0] @ expected[0]) > 0.9
    # Whatever else lies in masked slots.
    points[~mask] = 1e6 * np.random.default_rng(4).normal(size=points[~mask].shape)
    again = np.asarray(kmeans.main_directions(jnp.asarray(points), jnp.asarray(mask), 3))
    np.testing.assert_array_equal(again, found)


def test_main_directions_that_do_not_exist_are_zero():
    rng = np.random.default_rng(2)
    points = rng.normal(size=(N, 2)) @ rng.normal(size=(2, D))  # rank two
    found = np.asarray(kmeans.main_directions(jnp.asarray(points, jnp.float32), EVERY, 4))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 0, 0], atol=1e-6)
    found = kmeans.main_directions(jnp.eye(3, D), jnp.array([False, True, False]), 5)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), [1, 0, 0, 0, 0], atol=1e-6)


def test_means():
    points, label = blobs(0), np.random.default_rng(0).integers(0, 5, N)
    mask = np.random.default_rng(1).random(N) < 0.8
    label[label == 3] = 1
    found = kmeans.means(jnp.asarray(points), jnp.asarray(mask), jnp.asarray(label), 5)
    for k in (0, 1, 2, 4):
        expected = points[mask & (label == k)].mean(0)
        np.testing.assert_allclose(found[k], expected, atol=1e-6)  # order 1 in float32
    np.testing.assert_array_equal(found[3], 0)


@pytest.mark.parametrize("k", [1, 16, 17, 64, 300])
def test_highest_is_the_first_of_the_largest(k):
    score = np.random.default_rng(k).integers(0, 5, (k, 200)).astype(np.float32)  # many ties
    score[:, :3] = -np.inf
    score[k // 2 :, 3] = -np.inf
    found = jax.jit(reductions.highest)(score)
    np.testing.assert_array_equal(found, score.argmax(0))
    assert found.dtype == jnp.int32
