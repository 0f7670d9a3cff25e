"""The touched rows in float32, and which they are: lossless, and the fair dense baseline.

The server can read: the touched set and every row.
"""

import jax.numpy as jnp

from fedras_jax import bits
from fedras_jax.types import Codec, Field, ItemDelta, Payload, Prepared


def rows() -> Codec:
    """Lossless; the touched set and n x D float32 values."""

    def fields(sizes):
        return (*bits.set_fields(sizes), Field("value", 32))

    def prepare(ctx, key, delta):
        del ctx, key, delta
        return Prepared(error=None, work=())

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        n = delta.mask.sum(dtype=jnp.int32)
        counts = jnp.array([*bits.set_counts(n, ctx.sizes), n * ctx.sizes.dim])
        return Payload(delta, counts), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        return payload.data

    return Codec("rows", fields, lambda sizes: (), prepare, encode, decode, lossless=True)
