"""A delta's few main directions, and clusters of its rows in their coordinates.

Rows of a client's delta lie nearly in the span of a few vectors, so they are clustered by a few
coordinates instead of at full width. Clustering starts from the near-exact one-dimensional
solution along the first of them, and then needs few Lloyd steps.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from fedras_jax import kmeans, kmeans1d, native, reductions
from fedras_jax.native import forms


@struct.dataclass
class Points:
    """What is clustered.

    Attributes:
      coords: f32[N, r].
      along: f32[N], coordinates along the main direction, from which clustering starts.
      table: the one-dimensional programme's over `along`.
    """

    coords: Array
    along: Array
    table: kmeans1d.Table


def coordinates(
    rows: Float[Array, "n d"], basis: Float[Array, "r d"]
) -> tuple[Float[Array, "n r"], Float[Array, " r"]]:
    """The rows' coordinates along nearly orthogonal directions, and those' squared lengths.

    Lengths count, because a direction that has travelled in half precision is no unit vector;
    directions of length zero have coordinates of zero.
    """
    length = jnp.sum(basis * basis, axis=1)
    divisor = jnp.where(length > 0, length, 1)
    if native.on():
        return forms.coordinates(rows, basis, divisor), length
    return jnp.dot(rows, basis.T, precision=kmeans.PRECISION) / divisor, length


def cluster(
    points: Points, mask: Bool[Array, " n"], k: Int[Array, ""], iterations: int
) -> kmeans.Clusters:
    """k clusters of the coordinates: the one-dimensional start, then `iterations` Lloyd steps."""
    n_clusters = points.table.best.shape[0] - 1
    label = kmeans1d.levels(points.table, points.along, mask, k, polish=0).label
    start = kmeans.means(points.coords, mask, label, n_clusters)
    return kmeans.lloyd(points.coords, mask, start, k=k, iterations=iterations)


def errors(
    rows: Float[Array, "n d"], mask: Bool[Array, " n"], points: Points
) -> Float[Array, " e"]:
    """Relative squared error of full-width means for every number of clusters, nearly.

    Of the one-dimensional start, for k = 1, 2, 4, ..., K. Between two of these the logarithm of the
    error goes straight with that of k, but falls no faster than with k^-4: `benchmarks.distortion`
    holds it to errors of real deltas. Lloyd steps in the coordinates make errors smaller. Entry 0:
    nothing sent.

    Args:
      rows: f32[N, D], zero where masked. mask: bool[N].
      points: what is clustered.
    """
    n_clusters = points.table.best.shape[0] - 1
    grid = np.array(sorted({*(2**i for i in range(n_clusters.bit_length())), n_clusters}))
    total = reductions.squares(rows)
    # The clusters of all these k below one another, so that rows are read once.
    labels = kmeans1d.labels(points.table, points.along, mask, jnp.asarray(grid, jnp.int32))
    kept = (forms.kept if native.on() else _kept)(rows, mask, labels, grid)
    at = jnp.maximum(total - kept, 0) / jnp.maximum(total, 1e-30)
    every = np.arange(1, n_clusters + 1)
    low = np.searchsorted(grid, every, side="right") - 1
    high = np.minimum(low + 1, len(grid) - 1)
    ratio = grid[low] / grid[high]  # 1 at the end
    share = np.log(grid[low] / every) / np.log(np.where(ratio < 1, ratio, 0.5))
    fall = jnp.where(at[low] > 0, at[high] / jnp.where(at[low] > 0, at[low], 1), 1)
    error = at[low] * jnp.maximum(fall, ratio**4) ** share
    nothing = jnp.where(total == 0, 0, jnp.ones_like(total))  # 1 of what is not finite, too
    return jnp.concatenate([nothing[None], error])


def _kept(
    rows: Float[Array, "n d"], mask: Bool[Array, " n"], labels: Int[Array, "e n"], sizes: np.ndarray
) -> Float[Array, " e"]:
    """Of the rows' squares, what clusters' means keep, for several labellings."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    cluster_of = np.concatenate([np.arange(k) for k in sizes])
    member = (labels[of] == cluster_of[:, None]) * mask.astype(rows.dtype)
    totals = jnp.dot(member, rows, precision=kmeans.PRECISION)
    kept = jnp.sum(totals * totals, axis=1) / jnp.maximum(member.sum(1), 1)
    return jnp.stack([part.sum() for part in jnp.split(kept, np.cumsum(sizes)[:-1])])


def along_main(rows: Float[Array, "n d"], mask: Bool[Array, " n"], n_clusters: int) -> Points:
    """Rows to be clustered at full width, from a start along their main direction."""
    along = coordinates(rows, kmeans.main_direction(rows, mask)[None])[0][:, 0]
    table = kmeans1d.table(along, mask, n_clusters, bins=max(48, 3 * n_clusters))
    return Points(rows, along, table)
