"""Touched rows in {-s, 0, s}: TernGrad.

s is the largest magnitude in the row, or in the payload. An entry x becomes s times its sign with
probability |x| / s, and zero otherwise. Five trits travel in a byte (3^5 = 243), row by row. The
scale travels in bfloat16, which has float32's range, and is rounded outwards, so that no
probability is above 1.

State: none. Unbiased, by the client's private key. Support: exact, the touched rows. The server can
read: which items were touched, each row's largest magnitude or the payload's, and a draw of the
signs that favours large entries.

Source: Wen, Xu, Yan, Wu, Wang, Chen and Li, TernGrad: Ternary gradients to reduce communication in
distributed deep learning, NeurIPS 2017. A scale for each row and the packing are our choice; the
paper's clipping is left out, as it would add bias.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fedras_jax import bits
from fedras_jax.errors import one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

SCALES = ("row", "payload")
# Rounding to bfloat16 takes at most 2^-8 of a number; what was stretched by more stays above.
OUTWARDS = 1.004
PLACES = np.array([1, 3, 9, 27, 81], np.int32)


def ternary(*, scale: str = "row") -> Codec:
    """The touched set, a scale, and ceil(D / 5) bytes for each touched row.

    Args:
      scale: 'row', one for each row; or 'payload', a single one.

    Raises:
      SpecError: an unknown scale.
    """
    one_of("ternary", SCALES, scale=scale)
    by_row = scale == "row"
    per = ("row", "bfloat16") if by_row else ("once", "bfloat16", 1)

    def fields(sizes):
        return (
            bits.touched(sizes.items),
            bits.values("scale", *per),
            bits.codes("trits", "row", 8, -(-sizes.dim // 5)),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del prepared, k
        row = delta.row
        largest = bits.largest(row, axis=1) if by_row else bits.largest(row)[None]
        reach = bits.as_sent(OUTWARDS * largest, "bfloat16")
        grid = jnp.where(reach > 0, reach, 1).astype(jnp.float32)
        chance = jnp.abs(row) / grid[:, None]
        drawn = jax.random.uniform(key, row.shape) < chance
        trit = jnp.where(drawn, jnp.sign(row), 0).astype(jnp.int32)
        data = {"item": delta.item, "mask": delta.mask, "scale": reach, "trits": pack(trit)}
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        data = payload.data
        reach = data["scale"].astype(jnp.float32)
        row = unpack(data["trits"], ctx.sizes.dim) * reach[:, None]
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("ternary", fields, lambda sizes: (), unprepared, encode, decode, unbiased=True)


def pack(trit: Int[Array, "n d"]) -> UInt8[Array, "n b"]:
    """Five numbers of -1, 0 and 1 in each byte, the first in the lowest place; filled with 0s."""
    n, dim = trit.shape
    full = jnp.pad(trit, ((0, 0), (0, -dim % 5))) + 1
    return jnp.sum(full.reshape(n, -(-dim // 5), 5) * PLACES, axis=2).astype(jnp.uint8)


def unpack(packed: UInt8[Array, "n b"], dim: int) -> Float[Array, "n d"]:
    """The first `dim` numbers of each row of `pack`, as floats. Any byte is read as some trits."""
    digit = packed[:, :, None].astype(jnp.int32) // PLACES % 3
    trit = digit.reshape(packed.shape[0], 5 * packed.shape[1])[:, :dim] - 1
    return trit.astype(jnp.float32)
