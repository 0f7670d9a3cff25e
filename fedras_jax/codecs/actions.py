"""FedRAS: the delta's rows, clustered; K centroids travel and one action index an item.

Clustering starts from the near-exact one-dimensional solution along the delta's main direction.
A client's rows are nearly multiples of one vector, so this start is nearly the answer, and four
Lloyd steps at full width end below ten from k-means++ (`benchmarks/distortion.py` measures it).

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
    iterations: int = 4,
) -> Codec:
    """K full-width actions and an index.

    Args:
      k: static maximum K of actions a client may send; a client with fewer touched rows sends
        one action a row at most.
      index: 'items' sends one index for each of the M items, with a further zero action for the
        untouched (the paper's form as we read it); 'touched' sends the touched set and one index
        for each touched item, which is smaller where clients touch a small part of the items.
      dtype: 'float32' or 'float16' centroids.
      iterations: Lloyd steps at full width after the one-dimensional start.

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

    def fields(sizes):
        return (
            Field("centroid", bits.FLOAT_BITS[dtype]),
            *bits.set_fields(sizes),
            Field("label_bit", 1),  # label width follows the client's own number of actions
        )

    def prepare(ctx, key, delta):
        del ctx, key
        direction = kmeans.main_direction(delta.row, delta.mask)
        along = jnp.dot(delta.row, direction, precision=kmeans.PRECISION)
        table = kmeans1d.table(along, delta.mask, k, bins=max(64, 4 * k))
        return Prepared(error=None, work=(table, along))

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key
        table, along = prepared.work
        n = delta.mask.sum(dtype=jnp.int32)
        k_used = jnp.minimum(k_granted, n)
        label = kmeans1d.levels(table, along, delta.mask, k_used, polish=0).label
        member = (jnp.arange(k)[:, None] == label) * delta.mask.astype(jnp.float32)
        size = jnp.maximum(member.sum(1, keepdims=True), 1)
        start = jnp.dot(member, delta.row, precision=kmeans.PRECISION) / size
        found = kmeans.lloyd(delta.row, delta.mask, start, k=k_used, iterations=iterations)
        used = jnp.arange(k)[:, None] < k_used
        centroid = bits.as_sent(jnp.where(used, found.centroid, 0), dtype)
        data = {"item": delta.item, "label": found.label, "mask": delta.mask, "centroid": centroid}
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
