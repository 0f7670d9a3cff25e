"""A random part of every touched row's entries, at positions that both sides know.

Positions grow from the round's shared key and the item's id, so only the touched set and the
values travel. The server scales values by D / d' and fills up with zeros.

State: none. Unbiased over the shared key: each entry is kept with probability d' / D. The price is
a squared error of (D / d' - 1) times the delta's, more than sending nothing has as soon as less
than half of it is kept; what is gained is that errors of many rounds cancel. Clients of a
round that touch the same item send the same entries of it, so within a round theirs don't.
Support: exact, the touched rows. The server can read: the touched set and the kept entries.

Source: Konecny et al., Federated learning: strategies for improving communication efficiency,
2016, arXiv 1610.05492: their subsampling of a finished update; their random mask is such a
pattern kept during training. There each client has a mask of its own; one mask a round, and the
same number of entries in every row, are our choice.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from fedras_jax import bits
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, Sizes, unprepared

DTYPES = ("float32", "float16")


def random_mask(keep: float = 0.25, *, dtype: str = "float32") -> Codec:
    """The touched set and d' = max(1, round(keep * D)) values for each touched item.

    Args:
      keep: part of a row's entries that is sent, above 0 and below 1.
      dtype: 'float32' or 'float16' values.

    Raises:
      SpecError: an unknown dtype, or a part out of range.
    """
    one_of("random_mask", DTYPES, dtype=dtype)
    if not 0 < keep < 1:
        raise SpecError(f"random_mask: keep must be above 0 and below 1, not {keep}")

    def kept(sizes):
        return max(1, round(keep * sizes.dim))

    def fields(sizes):
        return bits.touched(sizes.items), bits.values("value", "row", dtype, kept(sizes))

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        order, start = _walk(ctx.key, ctx.sizes, delta.item)
        at = order[(start[:, None] + jnp.arange(kept(ctx.sizes))) % ctx.sizes.dim]
        # An entry that is not sent must not hide that training has diverged.
        finite = jnp.isfinite(delta.row).all(axis=1, keepdims=True)
        row = jnp.where(finite, delta.row, jnp.nan)
        value = bits.as_sent(jnp.take_along_axis(row, at, axis=1), dtype)
        data = {"item": delta.item, "mask": delta.mask, "value": value}
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        data = payload.data
        width, dim = kept(ctx.sizes), ctx.sizes.dim
        order, start = _walk(ctx.key, ctx.sizes, data["item"])
        # Gathering by each entry's turn, instead of scattering values to their entries.
        turn = (jnp.argsort(order) - start[:, None]) % dim
        value = data["value"].astype(jnp.float32) * (dim / width)
        row = jnp.take_along_axis(value, jnp.minimum(turn, width - 1), axis=1)
        sent = data["mask"][:, None] & (turn < width)
        return ItemDelta(data["item"], jnp.where(sent, row, 0), data["mask"])

    return Codec("random_mask", fields, lambda sizes: (), unprepared, encode, decode, unbiased=True)


def _walk(
    key: Key[Array, ""], sizes: Sizes, item: Int[Array, " n"]
) -> tuple[Int[Array, " d"], Int[Array, " n"]]:
    """A random order of the D dimensions, and where in it (mod D) each item's kept ones start.

    The order alone makes every entry equally likely; the starts make items differ. They are drawn
    for all M items, because a table by item is the same for every client of a round: mapped over
    clients, it is drawn once.
    """
    order_key, start_key = jax.random.split(key)
    order = jax.random.permutation(order_key, sizes.dim)
    return order, jax.random.randint(start_key, (sizes.items,), 0, sizes.dim)[item]
