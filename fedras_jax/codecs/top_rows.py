"""The touched rows of largest norm, at full width, and which they are.

State: none, so what is left out is lost (error feedback would need one). Biased: rows that are
not sent decode to nothing. Of all choices of as many rows, these leave the least squared error.
Support: a subset of the touched rows, those that are sent.
The server can read: which items were touched most, and those rows.

Source: top-k sparsification (Aji and Heafield, Sparse communication for distributed gradient
descent, EMNLP 2017), by rows instead of entries; that is our choice.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedras_jax import bits, reductions
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

DTYPES = ("float32", "float16")


def top_rows(rows: int = 32, *, dtype: str = "float32") -> Codec:
    """The set of sent rows and D values each.

    Args:
      rows: static maximum of rows a client sends; one with fewer touched rows sends all of them.
        Rows that are zero as sent are not sent.
      dtype: 'float32' or 'float16' values.

    Raises:
      SpecError: an unknown dtype, or less than one row.
    """
    one_of("top_rows", DTYPES, dtype=dtype)
    if rows < 1:
        raise SpecError(f"top_rows: rows must be at least 1, not {rows}")

    def fields(sizes):
        return bits.touched(sizes.items), bits.values("row", "row", dtype, sizes.dim)

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        row = bits.in_range(delta.row)
        at = reductions.largest(_norm(row, delta.mask), min(rows, delta.mask.shape[0]))
        row = bits.as_sent(row[at], dtype)
        mask = delta.mask[at] & jnp.any(row != 0, axis=1)
        item = jnp.where(mask, delta.item[at], ctx.sizes.items)
        data = {"item": item, "mask": mask, "row": jnp.where(mask[:, None], row, 0)}
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        row = jnp.where(data["mask"][:, None], data["row"].astype(jnp.float32), 0)
        return ItemDelta(data["item"], row, data["mask"])

    return Codec("top_rows", fields, lambda sizes: (), unprepared, encode, decode, support="subset")


def _norm(row: Float[Array, "n d"], mask: Bool[Array, " n"]) -> Float[Array, " n"]:
    """Squared norms in units of the largest entry's square; -1 where masked.

    Infinite for NaN: a row that is not finite comes first, so that it is not left out unseen.
    """
    top = jnp.nanmax(jnp.abs(row))  # squares of tiny entries would underflow
    row = row / jnp.where(top > 0, top, 1)
    norm = jnp.sum(row * row, axis=1)
    return jnp.where(mask, jnp.where(jnp.isnan(norm), jnp.inf, norm), -1)
