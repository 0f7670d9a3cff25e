"""Lloyd's k-means on masked, weighted points: fixed iterations, deterministic, made for `vmap`.

Written for one set of points. Everything is shaped by a static maximum K of clusters while the
number in use, k <= K, may be traced: clusters k, k + 1, ... exist but take no points. Scores are
K-major, so that XLA reduces over the slow axis, and sums per cluster are one-hot matmuls, which
have no scatter. The iteration count is static because a vmapped `while_loop` pays for its slowest
lane. Ties go to the lowest cluster; a cluster that loses all its points keeps its centroid.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fedras_jax import native, reductions, rng
from fedras_jax.native import forms

# Up to so many coordinates a compiled loop does all of `lloyd`; products with wider centroids are
# faster as matrices, and only what comes between them is left to a loop.
NARROW = 16

PRECISION = jax.lax.Precision.HIGHEST  # TF32 and bf16 passes mislabel points near a boundary


class Clusters(NamedTuple):
    """k-means' answer.

    Attributes:
      centroid: f32[K, D]; rows k and above are unspecified.
      label: i32[N], the nearest centroid; 0 for masked points.
      inertia: f32[], weighted sum of squared distances of the unmasked points.
    """

    centroid: Array
    label: Array
    inertia: Array


def lloyd(
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    start: Float[Array, "k d"],
    *,
    k: Int[Array, ""] | int | None = None,
    weights: Float[Array, " n"] | None = None,
    iterations: int = 10,
) -> Clusters:
    """Lloyd's algorithm from given centroids.

    Args:
      points: f32[N, D], finite: of others a centroid at least becomes NaN, in the JAX form all.
      mask: bool[N]; masked points belong to no cluster.
      start: f32[K, D] first centroids.
      k: clusters in use, 1 <= k <= K; all K when None.
      weights: f32[N] non-negative weights; ones when None.
      iterations: static number of assign-and-average steps; the labels returned are those of
        the final centroids, as in scikit-learn.

    Source: Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28(2), 1982.
    """
    weight = mask.astype(points.dtype) if weights is None else weights * mask
    n_used = start.shape[0] if k is None else k
    if native.on() and points.shape[1] <= NARROW:
        return Clusters(*forms.lloyd(points, mask, weight, start, n_used, iterations))
    active = jnp.arange(start.shape[0]) < n_used
    # Turned once: XLA would do it in every step.
    across = jax.lax.optimization_barrier(points.T)

    def assigned(centroid):
        """Means of the nearest points, and which they are."""
        if native.on():
            return forms.averages(points, weight, _score(across, centroid), centroid, n_used)
        label = nearest(across, centroid, active)
        member = _member(label, centroid) * weight
        total = member.sum(1, keepdims=True)
        sums = jnp.dot(member, points, precision=PRECISION)
        return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), centroid), label

    centroid = jax.lax.fori_loop(0, iterations, lambda _, c: assigned(c)[0], start)
    _, label = assigned(centroid)
    gap = points - centroid[label]
    inertia = jnp.sum(weight * jnp.sum(gap * gap, axis=1))
    return Clusters(centroid, jnp.where(mask, label, 0), inertia)


def nearest(
    across: Float[Array, "d n"], centroid: Float[Array, "k d"], active: Bool[Array, " k"]
) -> Int[Array, " n"]:
    """The nearest active centroid of points in columns, the lowest where several are equally near.

    Nearest in squared distance is highest in c.x - |c|^2 / 2.
    """
    score = jnp.where(active[:, None], _score(across, centroid), -jnp.inf)
    return reductions.highest(score)


def _score(across: Float[Array, "d n"], centroid: Float[Array, "k d"]) -> Float[Array, "k n"]:
    """c.x - |c|^2 / 2, K-major, of points in columns."""
    score = jnp.dot(centroid, across, precision=PRECISION)
    return score - 0.5 * jnp.sum(centroid * centroid, axis=1, keepdims=True)


def _member(label: Int[Array, " n"], centroid: Float[Array, "k d"]) -> Float[Array, "k n"]:
    """Labels as one-hot columns, K-major."""
    return (jnp.arange(centroid.shape[0])[:, None] == label).astype(centroid.dtype)


def means(
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    label: Int[Array, " n"],
    n_clusters: int,
    largest: float = jnp.inf,
) -> Float[Array, "k d"]:
    """Mean of each cluster's unmasked points; zero for clusters without any.

    Entries beyond `largest` count as NaN.
    """
    if native.on():
        return forms.means(points, mask, label, n_clusters, largest)
    points = _within(points, largest)
    member = (jnp.arange(n_clusters)[:, None] == label) * mask.astype(points.dtype)
    total = member.sum(1, keepdims=True)
    sums = jnp.dot(member, points, precision=PRECISION)
    return sums / jnp.where(total > 0, total, 1)


def random_rows(
    key: Key[Array, ""], points: Float[Array, "n d"], mask: Bool[Array, " n"], n_clusters: int
) -> Float[Array, "k d"]:
    """K distinct unmasked points, uniformly; they repeat once there are fewer than K."""
    n = jnp.maximum(mask.sum(dtype=jnp.int32), 1)
    rank = rng.permute(key, jnp.arange(n_clusters, dtype=jnp.int32) % n, n)
    place = jnp.cumsum(mask, dtype=jnp.int32)
    return points[jnp.searchsorted(place, rank + 1)]


def plusplus(
    key: Key[Array, ""],
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    n_clusters: int,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, "k d"]:
    """k-means++: each next centroid is a point drawn by its squared distance to those before.

    When every point coincides with a centroid, further centroids repeat a point.

    Source: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    weight = mask.astype(points.dtype) if weights is None else weights * mask
    draws = jax.random.uniform(key, (n_clusters,))

    def pick(mass, draw):
        total = jnp.cumsum(mass)
        # `side="right"` skips points without mass; the clip guards against rounding at the end.
        at = jnp.searchsorted(total, draw * total[-1], side="right")
        return points[jnp.minimum(at, points.shape[0] - 1)]

    def add(i, carry):
        start, nearest = carry
        c = pick(weight * nearest, draws[i])
        gap = points - c
        return start.at[i].set(c), jnp.minimum(nearest, jnp.sum(gap * gap, axis=1))

    start = jnp.zeros((n_clusters, points.shape[1]), points.dtype)
    first = pick(weight, draws[0])
    gap = points - first
    return jax.lax.fori_loop(
        1, n_clusters, add, (start.at[0].set(first), jnp.sum(gap * gap, axis=1))
    )[0]


INITS = {"random": random_rows, "plusplus": plusplus}


def kmeans(
    key: Key[Array, ""],
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    n_clusters: int,
    *,
    k: Int[Array, ""] | int | None = None,
    weights: Float[Array, " n"] | None = None,
    init: str = "plusplus",
    n_init: int = 1,
    iterations: int = 10,
) -> Clusters:
    """k-means from seeded starts, the best of `n_init` by inertia.

    Args:
      key: one key; the same key gives the same clusters.
      points, mask, k, weights, iterations: as in `lloyd`.
      n_clusters: static maximum K.
      init: 'plusplus' or 'random'.
      n_init: static number of starts.

    Raises:
      ValueError: `init` is not one of the two, or a count is below 1.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {sorted(INITS)}, not {init!r}")
    if min(n_clusters, n_init, iterations) < 1:
        raise ValueError("n_clusters, n_init and iterations must be at least 1")
    scattered = {"weights": weights} if init == "plusplus" else {}

    def attempt(one_key):
        start = INITS[init](one_key, points, mask, n_clusters, **scattered)
        return lloyd(points, mask, start, k=k, weights=weights, iterations=iterations)

    found = jax.lax.map(attempt, jax.random.split(key, n_init))
    best = jnp.argmin(found.inertia)
    return jax.tree.map(lambda x: x[best], found)


def main_directions(
    points: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    rank: int,
    iterations: int = 2,
    largest: float = jnp.inf,
) -> Float[Array, "r d"]:
    """Orthonormal vectors that span most of the points, the strongest first.

    Orthogonal iteration (the power method for several vectors at once) from the longest point
    (by its largest entry) of every rank-th slot of the list, so it needs no key. What is
    off the span shrinks with every step by the ratio of squared singular values, which is small
    for a client's delta: its rows are combinations of few vectors. Directions that don't exist
    are zero vectors; so is one whose start is parallel to those before it, or zero.

    Args:
      points: f32[N, D], finite also where they are masked.
      mask: bool[N].
      rank: static number of directions r.
      iterations: static number of steps; each costs two passes over the points.
      largest: entries beyond it count as NaN, and then all directions are NaN.
    """
    if native.on():
        return forms.main_directions(points, mask, rank, iterations, largest)
    points = _within(points, largest)
    # Dealt like cards: clients' padding comes last, and stretches of the list could be empty.
    n, order = points.shape[0], jnp.arange(rank)
    size = jnp.where(mask[:, None], jnp.abs(points), 0)
    size = jnp.pad(size, [(0, -n % rank), (0, 0)]).reshape(-1, rank, points.shape[1])
    # The column of the largest entry, then its row: XLA:CPU is fast along columns only.
    column = jnp.argmax(jax.lax.optimization_barrier(size.max(axis=0)), axis=1)
    at = size[:, order, column]
    longest, length = jnp.argmax(at, axis=0) * rank + order, at.max(axis=0)
    # The longest of all comes first: it alone decides how fast the first direction is found.
    strongest = jnp.argsort(-length)
    start = points[jnp.minimum(longest[strongest], n - 1)]
    start = jnp.where((length[strongest] > 0)[:, None], start, 0)

    def step(_, basis):
        along = jnp.dot(points, _orthonormal(basis).T, precision=PRECISION)
        along = jnp.where(mask[:, None], along, 0)
        top = jnp.max(jnp.abs(along), axis=0)  # products of tiny entries would underflow
        return jnp.dot((along / jnp.where(top > 0, top, 1)).T, points, precision=PRECISION)

    return _orthonormal(jax.lax.fori_loop(0, iterations, step, start))


def main_direction(
    points: Float[Array, "n d"], mask: Bool[Array, " n"], iterations: int = 2
) -> Float[Array, " d"]:
    """Unit vector v that nearly minimises sum |x - (x.v) v|^2; zero for zero points."""
    return main_directions(points, mask, 1, iterations)[0]


def _within(points: Float[Array, "n d"], largest: float) -> Float[Array, "n d"]:
    """NaN for what is beyond."""
    return points if largest == jnp.inf else jnp.where(jnp.abs(points) <= largest, points, jnp.nan)


def _orthonormal(basis: Float[Array, "r d"]) -> Float[Array, "r d"]:
    """Gram and Schmidt's, in order; a vector that adds nothing becomes zero."""
    if basis.shape[0] == 1:  # the usual case, and a tenth of all kernels of a round if it looped
        return _unit(basis[0])[None]
    order = jnp.arange(basis.shape[0])

    def add(i, done):
        """`done` with its row i made of basis[i]; rows above i are still zero."""

        def remove(_, v):
            v = v - jnp.dot(jnp.dot(done, v, precision=PRECISION), done, precision=PRECISION)
            # Of a unit vector, less than this is rounding and no direction. NaN is not less.
            return _unit(jnp.where(jnp.sum(v * v) <= 1e-13, 0, v))

        # Once more, because the first remainder may be mostly rounding.
        v = jax.lax.fori_loop(0, 2, remove, _unit(basis[i]))
        return jnp.where((order == i)[:, None], v, done)

    return jax.lax.fori_loop(0, basis.shape[0], add, jnp.zeros_like(basis))


def _unit(v: Float[Array, " d"]) -> Float[Array, " d"]:
    """v / |v|, and zero for zero. Scaled first: squares of tiny entries would underflow."""
    top = jnp.max(jnp.abs(v))
    v = v / jnp.where(top > 0, top, 1)
    norm = jnp.sqrt(jnp.sum(v * v))
    return v / jnp.where(norm > 0, norm, 1)
