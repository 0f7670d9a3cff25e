"""Touched rows on a uniform grid, stochastically rounded: the QSGD family.

2^b levels lie evenly in [-s, s], where s is the largest magnitude in the row, or in the payload.
Every entry goes to one of its two neighbours on the grid, with the probabilities that make its
mean the entry itself. The scale travels in bfloat16, which has float32's range (float16 would lose
rows that hardly moved), and is rounded outwards, so that nothing lies beyond the grid.

State: none. Unbiased, by the client's private key. Support: exact, the touched rows; with a scale a
payload a subset of them, those that are not zero. The server can read: which items were touched,
and every row to within a step of its grid.

Source: Alistarh, Grubic, Li, Tomioka and Vojnovic, QSGD: Communication-efficient SGD via gradient
quantization and encoding, NeurIPS 2017. The largest magnitude as the scale, a grid without zero
(which spends all of the 2^b levels), and plain codes or range coding instead of Elias's, are our
choice.
"""

import jax
import jax.numpy as jnp

from fedras_jax import bits as sizes_in_bits
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

SCALES = ("row", "payload")
# Rounding to bfloat16 takes at most 2^-8 of a number; what was stretched by more stays above.
OUTWARDS = 1.004


def quantized(bits: int = 4, *, scale: str = "row", codes: str = "fixed") -> Codec:
    """The touched set, a scale, and `bits` for each entry of a touched row.

    Args:
      bits: 1 to 8.
      scale: 'row', one for each row; or 'payload', a single one. A payload's grid misses zero
        everywhere, so rows that did not move at all are not sent then.
      codes: of 'fixed' width, or 'entropy': all of them coded by their frequencies, which travel as
        well. Worth it with one scale: then most entries lie near the middle of the grid.

    Raises:
      SpecError: an unknown scale or coding, or bits out of range.
    """
    if not 1 <= bits <= 8:
        raise SpecError(f"quantized: bits must be 1 to 8, not {bits}")
    one_of("quantized", SCALES, scale=scale)
    one_of("quantized", sizes_in_bits.CODINGS, codes=codes)
    by_row = scale == "row"
    per = ("row", "bfloat16") if by_row else ("once", "bfloat16", 1)
    top = 2**bits - 1

    def fields(sizes):
        return (
            sizes_in_bits.touched(sizes.items),
            sizes_in_bits.values("scale", *per),
            sizes_in_bits.codes("code", "row", bits, sizes.dim)
            if codes == "fixed"
            else sizes_in_bits.coded_codes("code", bits, sizes.dim),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del prepared, k
        row = delta.row
        largest = sizes_in_bits.largest(row, axis=1) if by_row else sizes_in_bits.largest(row)[None]
        reach = sizes_in_bits.as_sent(OUTWARDS * largest, "bfloat16")
        grid = jnp.where(reach > 0, reach, 1).astype(jnp.float32)
        along = (row / grid[:, None] + 1) * (top / 2)
        low = jnp.floor(along)
        # Not floor(along + u): that sum rounds up to the next level for the largest u.
        up = jax.random.uniform(key, row.shape) < along - low
        data = {
            "item": delta.item,
            "mask": delta.mask if by_row else delta.mask & jnp.any(row != 0, axis=1),
            "scale": reach,
            "code": jnp.clip(low + up, 0, top).astype(jnp.uint8),
        }
        return sizes_in_bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        half_step = data["scale"].astype(jnp.float32) / top
        level = 2 * data["code"].astype(jnp.float32) - top
        row = level * half_step[:, None]
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec(
        "quantized",
        fields,
        lambda sizes: (),
        unprepared,
        encode,
        decode,
        unbiased=True,
        support="exact" if by_row else "subset",
    )
