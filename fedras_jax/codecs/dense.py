"""The whole table's change in float32: what FedMF sends, and what reductions are measured against.

On the wire all M rows travel. On the device the payload holds only the rows that are not zero by
construction, because no `[C, M, D]` array can exist; `counts` still says M.

The server can read: the whole delta, hence which items were touched.
"""

import jax.numpy as jnp

from fedras_jax.types import Codec, Field, ItemDelta, Payload, Prepared


def dense() -> Codec:
    """Lossless; M rows of D float32 values."""

    def fields(sizes):
        return (Field("row", 32 * sizes.dim),)  # whole rows: M x D may not fit a 32-bit count

    def prepare(ctx, key, delta):
        del ctx, key, delta
        return Prepared(error=None, work=())

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        counts = jnp.full(1, ctx.sizes.items, jnp.int32)
        return Payload(delta, counts), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        return payload.data

    return Codec("dense", fields, lambda sizes: (), prepare, encode, decode, lossless=True)
