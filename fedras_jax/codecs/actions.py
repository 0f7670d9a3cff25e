"""FedRAS: the delta's rows, clustered; K centroids travel and one action index an item.

Rows are clustered by their coordinates in the delta's few main directions, where nearly all of
them lies, and centroids are averaged at full width at the end. Clustering starts from the
near-exact one-dimensional solution along the first direction. Both are cheap, and end within 2 %
of ten full-width Lloyd iterations from the same start, and below ten from k-means++
(`benchmarks/distortion.py` measures it on real deltas).

The server can read: which items were touched, and each one's centroid.

Source: FedRAS, KDD 2025, arXiv 2507.08842, for the method. Only its abstract is public to us: the
layout of the payload, the start and the number of iterations are our choice.
"""

import jax.numpy as jnp

from fedras_jax import bits, kmeans, kmeans1d
from fedras_jax.errors import SpecError
from fedras_jax.types import Codec, Field, ItemDelta, Payload, Prepared

INDICES = ("touched", "items")
DTYPES = ("float32", "float16")


def actions(
    k: int = 16,
    *,
    index: str = "touched",
    dtype: str = "float32",
    iterations: int = 5,
    rank: int | None = 4,
) -> Codec:
    """K full-width actions and an index.

    Args:
      k: static maximum K of actions a client may send; a client with fewer touched rows sends
        one action a row at most.
      index: 'items' sends one index for each of the M items, with a further zero action for the
        untouched (the paper's form as we read it); 'touched' sends the touched set and one index
        for each touched item, which is smaller where clients touch a small part of the items.
      dtype: 'float32' or 'float16' centroids.
      iterations: Lloyd steps after the one-dimensional start.
      rank: main directions in whose coordinates rows are clustered; None clusters full rows.

    Raises:
      SpecError: a name that does not exist, or a number out of range.
    """
    if index not in INDICES:
        raise SpecError(f"actions: index must be one of {list(INDICES)}, not {index!r}")
    if dtype not in DTYPES:
        raise SpecError(f"actions: dtype must be one of {list(DTYPES)}, not {dtype!r}")
    if not 1 <= k <= 65535:
        raise SpecError(f"actions: k must be 1 to 65535, not {k}")
    if iterations < 0:
        raise SpecError(f"actions: iterations must not be negative, not {iterations}")
    if rank is not None and rank < 1:
        raise SpecError(f"actions: rank must be at least 1 or None, not {rank}")

    def fields(sizes):
        return (
            Field("centroid", bits.FLOAT_BITS[dtype]),
            *bits.set_fields(sizes),
            Field("label_bit", 1),  # label width follows the client's own number of actions
        )

    def prepare(ctx, key, delta):
        del key
        if rank is not None and rank < ctx.sizes.dim:
            basis = kmeans.main_directions(delta.row, delta.mask, rank, iterations=1)
            points = jnp.dot(delta.row, basis.T, precision=kmeans.PRECISION)
            along = points[:, 0]
        else:
            points = delta.row
            direction = kmeans.main_direction(points, delta.mask)
            along = jnp.dot(points, direction, precision=kmeans.PRECISION)
        table = kmeans1d.table(along, delta.mask, k, bins=max(48, 3 * k))
        return Prepared(error=None, work=(points, along, table))

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key
        points, along, table = prepared.work
        n = delta.mask.sum(dtype=jnp.int32)
        k_used = jnp.minimum(k_granted, n)
        label = kmeans1d.levels(table, along, delta.mask, k_used, polish=0).label
        start = kmeans.means(points, delta.mask, label, k)
        found = kmeans.lloyd(points, delta.mask, start, k=k_used, iterations=iterations)
        centroid = kmeans.means(delta.row, delta.mask, found.label, k)
        data = {
            "item": delta.item,
            "label": found.label,
            "mask": delta.mask,
            "centroid": bits.as_sent(centroid, dtype),
        }
        return Payload(data, counts(n, k_used, ctx.sizes)), state

    def counts(n, k_used, sizes):
        if index == "items":
            labels = sizes.items * bits.label_width(k_used + 1)
            touched = (jnp.int32(0), jnp.int32(0))
        else:
            labels = n * bits.label_width(k_used)
            touched = bits.set_counts(n, sizes)
        return jnp.array([k_used * sizes.dim, *touched, labels])

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        row = data["centroid"].astype(jnp.float32)[data["label"]]
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("actions", fields, lambda sizes: (), prepare, encode, decode, max_actions=k)
