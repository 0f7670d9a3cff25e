"""FedRAS: the delta's rows, clustered; K centroids travel and one action index an item.

Rows are clustered by their coordinates in the delta's few main directions, where nearly all of
them lies, and centroids are averaged at full width at the end. Clustering starts from the
near-exact one-dimensional solution along the first direction. Both are cheap, and end within 2 %
of ten full-width Lloyd iterations from the same start, and below ten from k-means++
(`benchmarks/distortion.py` measures it on real deltas).

A client that may send as many actions as it has touched rows sends the rows, without labels: the
touched set and an action for each, in either form.

State: none. Biased: every row becomes the mean of its cluster, so a client's sum over its rows is
kept. Support: exact, the touched rows. The server can read: which items were touched, and each
one's centroid.

Source: FedRAS, KDD 2025, arXiv 2507.08842, for the method. Only its abstract is public to us: the
layout of the payload, the start and the number of iterations are our choice.
"""

import jax.numpy as jnp

from fedras_jax import bits, directions, kmeans, kmeans1d
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, LabelledDelta, Prepared

INDICES = ("touched", "items")
DTYPES = ("float32", "float16")
AUTO_RANK = 4


def actions(
    k: int = 16,
    *,
    index: str = "touched",
    dtype: str = "float32",
    labels: str = "fixed",
    iterations: int = 5,
    rank: int | str | None = "auto",
) -> Codec:
    """K full-width actions and an index.

    Args:
      k: static maximum K of actions a client may send; a client with fewer touched rows sends
        one action a row at most.
      index: 'items' sends one index for each of the M items, with a further zero action for the
        untouched (the paper's form as we read it); 'touched' sends the touched set and one index
        for each touched item, which is smaller where clients touch a small part of the items.
      dtype: 'float32' or 'float16' centroids.
      labels: 'fixed' width, or 'entropy': coded by their frequencies, which travel as well.
      iterations: Lloyd steps after the one-dimensional start.
      rank: main directions in whose coordinates rows are clustered, at most D; None clusters full
        rows, and 'auto' takes 4 directions, or full rows where D is no more.

    Raises:
      SpecError: a name that does not exist, a number out of range, or a rank above D.
    """
    one_of("actions", INDICES, index=index)
    one_of("actions", DTYPES, dtype=dtype)
    one_of("actions", bits.CODINGS, labels=labels)
    if labels == "entropy" and index == "items":
        raise SpecError("actions: labels='entropy' needs index='touched'")
    if not 1 <= k <= 65535:
        raise SpecError(f"actions: k must be 1 to 65535, not {k}")
    if iterations < 0:
        raise SpecError(f"actions: iterations must not be negative, not {iterations}")
    least_dim = 0 if rank in ("auto", None) else rank
    rank = AUTO_RANK if rank == "auto" else rank
    if rank is not None and (type(rank) is not int or rank < 1):
        raise SpecError(f"actions: rank must be at least 1, None or 'auto', not {rank!r}")

    def fields(sizes):
        if sizes.dim < least_dim:
            raise SpecError(
                f"actions: rank must be at most the embedding width {sizes.dim}, not {rank}"
            )
        centroid = bits.values("centroid", "action", dtype, sizes.dim)
        if index == "items":
            return centroid, bits.labels("item")
        return bits.touched(sizes.items), centroid, bits.labels_as(labels, k)

    def prepare(ctx, key, delta):
        del key
        narrow = rank is not None and rank < ctx.sizes.dim
        many, steps = (rank or 1, 1) if narrow else (1, 2)
        basis = kmeans.main_directions(delta.row, delta.mask, many, steps)
        coords = directions.coordinates(delta.row, basis)[0]
        table = kmeans1d.table(coords[:, 0], delta.mask, k, bins=max(48, 3 * k))
        points = directions.Points(coords if narrow else delta.row, coords[:, 0], table)
        error = directions.errors(delta.row, delta.mask, points)
        if dtype == "float32":
            # Rows of their own.
            error = jnp.where(jnp.arange(k + 1) < delta.mask.sum(), error, 0)
        return Prepared(error, points)

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key
        k_used = jnp.minimum(jnp.minimum(k_granted, k), delta.mask.sum(dtype=jnp.int32))
        found = directions.cluster(prepared.work, delta.mask, k_used, iterations)
        label = bits.own_actions(delta.item, delta.mask, found.label, k_used, k, ctx.sizes.items)
        centroid = kmeans.means(delta.row, delta.mask, label, k, largest=bits.LARGEST)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "k": k_used,
            "centroid": bits.as_sent(centroid, dtype),
            "label": label,
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> LabelledDelta:
        del ctx
        data = payload.data
        label = jnp.where(data["mask"], data["label"], k)
        centroid = data["centroid"].astype(jnp.float32)
        return LabelledDelta(data["item"], centroid, label, data["mask"])

    return Codec("actions", fields, lambda sizes: (), prepare, encode, decode, max_actions=k)
