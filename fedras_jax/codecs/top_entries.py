"""The entries of largest magnitude among all touched rows, and where they are.

On the wire an entry is what a row is to other codecs: the set that travels is one of M * D flat
positions item * D + d. The server puts the entries of an item together again.

State: none, so what is left out is lost (Deep Gradient Compression keeps it for later rounds).
Biased: entries that are not sent decode to zero. Of all choices of as many entries, these leave
the least squared error. Support: a subset of the touched rows, those with an entry that is sent.
The server can read: the items and dimensions that moved most, and how.

Source: Aji and Heafield, Sparse communication for distributed gradient descent, EMNLP 2017; Lin
et al., Deep gradient compression, ICLR 2018. How positions are written is our choice.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedras_jax import bits, native, reductions
from fedras_jax.errors import SpecError, one_of
from fedras_jax.native import forms
from fedras_jax.types import Codec, ItemDelta, Sizes, unprepared

DTYPES = ("float32", "float16")


def top_entries(entries: int = 2048, *, dtype: str = "float32") -> Codec:
    """The set of sent entries and a value each.

    Args:
      entries: static maximum of entries a client sends; one with fewer that are not zero sends
        all of those. A decoded delta has as many slots, because each entry may be of another item.
      dtype: 'float32' or 'float16' values.

    Raises:
      SpecError: an unknown dtype, less than one entry, or a table of 2**31 entries or more.
    """
    one_of("top_entries", DTYPES, dtype=dtype)
    if entries < 1:
        raise SpecError(f"top_entries: entries must be at least 1, not {entries}")

    def fields(sizes):
        universe = sizes.items * sizes.dim
        if universe >= 2**31:
            raise SpecError(
                f"top_entries: items times embedding width must be below 2**31, not {universe}"
            )
        return bits.touched(universe), bits.values("value", "row", dtype)

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        m, d = ctx.sizes
        flat = delta.row.reshape(-1)
        # NaN first, so that it is not left out unseen.
        size = jnp.where(jnp.isnan(flat), jnp.inf, jnp.abs(flat))
        at = reductions.largest(size, min(entries, flat.size))
        value = bits.as_sent(flat[at], dtype)
        mask = delta.mask[at // d] & (value != 0)
        data = {
            "item": jnp.where(mask, delta.item[at // d] * d + at % d, m * d),
            "mask": mask,
            "value": jnp.where(mask, value, 0),
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        data = payload.data
        value = jnp.where(data["mask"], data["value"].astype(jnp.float32), 0)
        return ItemDelta(*by_item(data["item"], data["mask"], value, ctx.sizes))

    return Codec(
        "top_entries", fields, lambda sizes: (), unprepared, encode, decode, support="subset"
    )


def by_item(
    position: Int[Array, " n"], mask: Bool[Array, " n"], value: Float[Array, " n"], sizes: Sizes
) -> tuple[Int[Array, " n"], Float[Array, "n d"], Bool[Array, " n"]]:
    """Rows of single entries: items, rows and mask.

    An item's slot is where its first entry stands among all in order, so that no item has two.

    Args:
      position: i32[N], flat and distinct where unmasked. value: zero where masked.
      sizes: M and D.
    """
    m, d = sizes
    if native.on():
        return forms.by_item(position, mask, value, m, d)
    owner = jnp.where(mask, position // d, m)
    order = jnp.sort(owner)
    first = (jnp.diff(order, prepend=-1) != 0) & (order < m)
    slot = jnp.searchsorted(order, owner)
    row = jnp.zeros((owner.size, d)).at[slot, position % d].add(value)
    return jnp.where(first, order, m), row, first
