"""Product quantization: each part of the rows has K centroids of its own and a label an item.

With P parts, the K x D values of one codebook say K^P different rows, for P labels an item instead
of one: finer than `actions` where labels are cheap beside the codebook, or parts unrelated.

State: none. Biased: every part of a row becomes the mean of its cluster, so a client's sum over
its rows is kept. Support: exact, the touched rows. The server can read: which items were touched,
and each one's centroids.

Source: Jégou, Douze and Schmid, Product quantization for nearest neighbor search, IEEE TPAMI
33(1), 2011. Codebooks fitted to each client's delta, and their one-dimensional starts along each
part's main direction, are our choice.
"""

import jax
import jax.numpy as jnp

from fedras_jax import bits, directions, kmeans, tables
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, Prepared

DTYPES = ("float32", "float16")


def product(
    k: int = 16,
    *,
    parts: int = 4,
    dtype: str = "float16",
    labels: str = "fixed",
    iterations: int = 5,
) -> Codec:
    """The touched set, K centroids for each part, and a label for each part of a touched row.

    Args:
      k: static maximum K of centroids a part; a client with fewer touched rows sends one a row at
        most.
      parts: how many equal parts the D entries of a row are cut into.
      dtype: 'float16' or 'float32' centroids.
      labels: 'fixed' width, or 'entropy': coded by their frequencies, part by part, which travel
        as well.
      iterations: Lloyd steps after the one-dimensional start.

    Raises:
      SpecError: an unknown name, a number out of range, or parts that do not divide D.
    """
    one_of("product", DTYPES, dtype=dtype)
    one_of("product", bits.CODINGS, labels=labels)
    if not 1 <= k <= 65535:
        raise SpecError(f"product: k must be 1 to 65535, not {k}")
    if parts < 1:
        raise SpecError(f"product: parts must be at least 1, not {parts}")
    if iterations < 0:
        raise SpecError(f"product: iterations must not be negative, not {iterations}")

    def fields(sizes):
        if sizes.dim % parts:
            raise SpecError(
                f"product: parts must divide the embedding width {sizes.dim}, not {parts}"
            )
        return (
            bits.touched(sizes.items),
            bits.values("codebook", "action", dtype, parts, sizes.dim // parts),
            bits.labels_as(labels, k, parts),
        )

    def prepare(ctx, key, delta):
        del key
        part = bits.in_range(delta.row).reshape(-1, parts, ctx.sizes.dim // parts).swapaxes(0, 1)
        points = jax.lax.map(lambda rows: directions.along_main(rows, delta.mask, k), part)
        return Prepared(error=None, work=points)

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key
        k_used = jnp.minimum(k_granted, delta.mask.sum(dtype=jnp.int32))

        def fit(points):
            label = directions.cluster(points, delta.mask, k_used, iterations).label
            return kmeans.means(points.coords, delta.mask, label, k), label

        centroid, label = jax.lax.map(fit, prepared.work)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "k": k_used,
            "codebook": bits.as_sent(centroid.swapaxes(0, 1), dtype),
            "label": label.T,
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        book = data["codebook"].astype(jnp.float32)
        part = [tables.look_up(book[:, i], data["label"][:, i]) for i in range(parts)]
        row = jnp.concatenate(part, axis=1)
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("product", fields, lambda sizes: (), prepare, encode, decode, max_actions=k)
