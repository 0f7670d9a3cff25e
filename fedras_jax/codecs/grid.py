"""Rows rounded to a grid of their own, whose step is a power of two.

Deterministic uniform quantization. Every point of the grid is a float32, and a rounded row rounds
to itself: so it can be a *form* of a table that several sides hold, each rounding for itself, as
the snapshots of the public table are (`rounds.federated(snapshot=...)`).

A row that is not finite, or beyond the coarsest grid, has a step of its own, which decodes to NaN
and which `wire` refuses.

State: none. Biased: rounds to nearest. Support: exact, the touched rows. The server can read: the
touched set and every row, to the grid's step.

Source: ours; uniform quantization is textbook.
"""

import jax
import jax.numpy as jnp

from fedras_jax import bits as sizes_in_bits
from fedras_jax.errors import one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

CHOICES = (4, 5, 6, 7, 8)
LOWEST, HIGHEST = -120, 120  # exponents of the step: far beyond what embeddings reach


def grid(bits: int = 8) -> Codec:
    """The touched set, a step of one byte for each row, and `bits` for each of its entries.

    Args:
      bits: 4 to 8: 7 to 127 steps to either side of zero.

    Raises:
      SpecError: another number of bits.
    """
    one_of("grid", CHOICES, bits=bits)
    top = 2 ** (bits - 1) - 1

    def fields(sizes):
        return (
            sizes_in_bits.touched(sizes.items),
            sizes_in_bits.exponents("step", "row"),
            sizes_in_bits.codes("code", "row", bits, sizes.dim),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        # NaN is not below anything; a maximum may pass over it.
        held = delta.mask & jnp.all(jnp.abs(delta.row) <= top * 2.0**HIGHEST, axis=1)
        exponent = _exponent(jnp.max(jnp.abs(delta.row), axis=1) / top)
        code = jnp.where(held[:, None], jnp.round(delta.row / _power(exponent)[:, None]), 0)
        lost = jnp.where(delta.mask, sizes_in_bits.NOT_FINITE, 0)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "step": jnp.where(held, exponent - LOWEST, lost).astype(jnp.uint8),
            "code": (jnp.clip(code, -top, top) + top).astype(jnp.uint8),
        }
        return sizes_in_bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        finite = data["step"] != sizes_in_bits.NOT_FINITE
        step = _power(jnp.where(finite, data["step"].astype(jnp.int32), 0) + LOWEST)
        step = jnp.where(finite, step, jnp.nan)
        row = (data["code"].astype(jnp.float32) - top) * step[:, None]
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("grid", fields, lambda sizes: (), unprepared, encode, decode)


def _exponent(x):
    """The smallest e with x <= 2^e, within LOWEST and HIGHEST; from the float's own bits."""
    word = jax.lax.bitcast_convert_type(x, jnp.int32)
    e = (word >> 23) - 127 + ((word & 0x7FFFFF) != 0)
    return jnp.clip(e, LOWEST, HIGHEST)


def _power(e):
    """2^e, exactly."""
    return jax.lax.bitcast_convert_type((e + 127) << 23, jnp.float32)
