"""Directional actions: one direction, K scalar levels, and an index.

For a dot-product model and one local step, a client's item rows are exact multiples of one
vector; after a few steps they nearly are. So actions need not be vectors: one direction and K
levels along it say almost the same in a fraction of the bits. Levels come from the near-exact
one-dimensional solver, whose table also gives the error for every K at once.

The server can read: which items were touched, the direction, and each item's level.

Source: ours; the paper clusters full rows.
"""

import jax.numpy as jnp

from fedras_jax import bits, kmeans, kmeans1d
from fedras_jax.errors import SpecError
from fedras_jax.types import Codec, Field, ItemDelta, Payload, Prepared

DTYPES = ("float32", "float16")


def directional(k: int = 16, *, dtype: str = "float16") -> Codec:
    """The touched set, one direction, K levels and one level index for each touched item.

    Args:
      k: static maximum K of levels; a client with fewer touched rows sends one a row at most.
      dtype: 'float16' or 'float32', of direction and levels. Levels are fitted to the direction
        as sent, so only the levels' own rounding is lost.

    Raises:
      SpecError: an unknown dtype, or k out of range.
    """
    if dtype not in DTYPES:
        raise SpecError(f"directional: dtype must be one of {list(DTYPES)}, not {dtype!r}")
    if not 1 <= k <= 65535:
        raise SpecError(f"directional: k must be 1 to 65535, not {k}")

    def fields(sizes):
        width = bits.FLOAT_BITS[dtype]
        return (
            Field("direction", width),
            Field("level", width),
            *bits.set_fields(sizes),
            Field("label_bit", 1),  # label width follows the client's own number of levels
        )

    def prepare(ctx, key, delta):
        del ctx, key
        direction = bits.as_sent(kmeans.main_direction(delta.row, delta.mask), dtype)
        sent = direction.astype(jnp.float32)
        length = jnp.maximum(jnp.sum(sent * sent), 1e-30)
        along = jnp.dot(delta.row, sent, precision=kmeans.PRECISION) / length
        table = kmeans1d.table(along, delta.mask, k, bins=max(64, 4 * k))
        total = jnp.sum(delta.row * delta.row)
        off = total - length * jnp.sum(along * along)
        error = (off + length * table.error) / jnp.maximum(total, 1e-30)
        return Prepared(jnp.maximum(error, 0), (direction, along, table))

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key
        direction, along, table = prepared.work
        n = delta.mask.sum(dtype=jnp.int32)
        k_used = jnp.minimum(k_granted, n)
        found = kmeans1d.levels(table, along, delta.mask, k_used)
        level = bits.as_sent(jnp.where(jnp.arange(k) < k_used, found.level, 0), dtype)
        data = {
            "item": delta.item,
            "label": found.label,
            "mask": delta.mask,
            "direction": direction,
            "level": level,
        }
        sizes = ctx.sizes
        labels = n * bits.label_width(k_used)
        counts = [sizes.dim * (n > 0), k_used, *bits.set_counts(n, sizes), labels]
        return Payload(data, jnp.array(counts, jnp.int32)), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        level = data["level"].astype(jnp.float32)[data["label"]]
        row = level[:, None] * data["direction"].astype(jnp.float32)
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("directional", fields, lambda sizes: (), prepare, encode, decode, max_actions=k)
