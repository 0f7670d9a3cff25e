"""Residual quantization: a few codebooks whose centroids add up, each fitted to what is left.

The first stage clusters the rows as `actions` does; each further one clusters what the stages
before left unsaid, as it was sent, so that it also mends their rounding. S stages of K centroids
say K^S different rows.

State: none. Biased: every row becomes a sum of centroids. Support: exact, the touched rows. The
server can read: which items were touched, and each one's centroids.

Source: Chen, Guan and Wang, Approximate nearest neighbor search by residual vector quantization,
Sensors 10(12), 2010. Codebooks fitted to each client's delta, and their one-dimensional starts,
are our choice.
"""

import jax
import jax.numpy as jnp

from fedras_jax import bits, directions, kmeans, tables
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

DTYPES = ("float32", "float16")


def residual(
    k: int = 16,
    *,
    stages: int = 2,
    dtype: str = "float16",
    labels: str = "fixed",
    iterations: int = 5,
) -> Codec:
    """The touched set, K centroids for each stage, and a label for each stage of a touched row.

    Args:
      k: static maximum K of centroids a stage; a client with fewer touched rows sends one a row
        at most.
      stages: how many centroids are added up.
      dtype: 'float16' or 'float32' centroids.
      labels: 'fixed' width, or 'entropy': coded by their frequencies, stage by stage, which travel
        as well.
      iterations: Lloyd steps after each one-dimensional start.

    Raises:
      SpecError: an unknown name or a number out of range.
    """
    one_of("residual", DTYPES, dtype=dtype)
    one_of("residual", bits.CODINGS, labels=labels)
    if not 1 <= k <= 65535:
        raise SpecError(f"residual: k must be 1 to 65535, not {k}")
    if stages < 1:
        raise SpecError(f"residual: stages must be at least 1, not {stages}")
    if iterations < 0:
        raise SpecError(f"residual: iterations must not be negative, not {iterations}")

    def fields(sizes):
        return (
            bits.touched(sizes.items),
            bits.values("codebook", "action", dtype, stages, sizes.dim),
            bits.labels_as(labels, k, stages),
        )

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key, prepared
        k_used = jnp.minimum(k_granted, delta.mask.sum(dtype=jnp.int32))

        def stage(left, _):
            points = directions.along_main(left, delta.mask, k)
            label = directions.cluster(points, delta.mask, k_used, iterations).label
            centroid = bits.as_sent(kmeans.means(left, delta.mask, label, k), dtype)
            said = tables.look_up(centroid.astype(jnp.float32), label)
            return jnp.where(delta.mask[:, None], left - said, 0), (centroid, label)

        row = bits.in_range(delta.row)
        _, (centroid, label) = jax.lax.scan(stage, row, length=stages)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "k": k_used,
            "codebook": centroid.swapaxes(0, 1),
            "label": label.T,
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        book = data["codebook"].astype(jnp.float32)
        row = sum(tables.look_up(book[:, i], data["label"][:, i]) for i in range(stages))
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("residual", fields, lambda sizes: (), unprepared, encode, decode, max_actions=k)
