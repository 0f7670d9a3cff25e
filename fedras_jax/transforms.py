"""Changes of a client's update before the codec; a chain of them is a list.

A transform sees the round's context, a key of its own, the client's role and the whole update
(item rows and shared parameters), and returns an update: the same shared parameters' shapes, and
as many item rows or, statically, more.
"""

import math

import jax
import jax.numpy as jnp

from fedras_jax import rng
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Array, ItemDelta, Transform

PSEUDO_ROWS = ("mixed", "zero")


def clip_norm(max_norm: float | Array) -> Transform:
    """Scale an update down to an L2 norm of at most `max_norm`, rows and shared parameters as one.

    The bound on one client's influence that differentially private training starts from
    (McMahan et al., Learning differentially private recurrent language models, ICLR 2018). It
    bounds what the codec is given: what the server decodes may be longer, with codecs that are
    unbiased or hashed, and with error feedback. What is not finite stays so.
    """

    def apply(ctx, key, role, update):
        del ctx, key, role
        parts = [update.items.row, *jax.tree.leaves(update.shared)]
        # Squares of large entries would overflow, and a norm of infinity scale all of it to zeros.
        most = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in parts]))
        unit = jnp.where(most > 0, most, 1.0)
        norm = unit * jnp.sqrt(sum(jnp.sum((x / unit) ** 2) for x in parts))
        factor = jnp.minimum(1.0, max_norm / jnp.where(norm > 0, norm, 1.0))
        return update.replace(
            items=update.items.replace(row=update.items.row * factor),
            shared=jax.tree.map(lambda x: x * factor, update.shared),
        )

    return Transform(apply)


def pseudo_items(share: float, *, rows: str = "mixed") -> Transform:
    """Add untouched items as if they were touched: the touched set hides what was trained on.

    A client with n touched rows adds round(share * n) distinct items, uniform over those it has
    not touched, as far as there are any. They count as touched from here on: they take space in
    the payload, and a mean over those that touched an item counts them too.

    A row of zeros gives itself away, and codecs that leave zeros out never send it. So a
    pseudo-item has a row like the others: of the client's own rows one, drawn without repetition as
    far as they go, moved by up to a half of the way towards another one. It moves an item that the
    client knows nothing of, so it disturbs training by design, while zeros only shorten the steps.

    Args:
      share: pseudo-items per touched item, static: a client's rows grow by ceil(share * N) slots,
        or to M in all if that is less.
      rows: 'mixed', as above; or 'zero'.

    Raises:
      SpecError: a share that is not positive and finite, or other rows.

    Source: FedRec (Lin, Liang, Pan and Ming, FedRec: federated recommendation with explicit
    feedback, IEEE Intelligent Systems 36(5), 2021) samples unrated items likewise, and fills in
    ratings for them; the rows are ours.
    """
    if not (share > 0 and math.isfinite(share)):
        raise SpecError(f"pseudo_items: share must be above 0 and finite, not {share}")
    one_of("pseudo_items", PSEUDO_ROWS, rows=rows)

    def apply(ctx, key, role, update):
        del role
        n_items, real = ctx.sizes.items, update.items
        slots = real.mask.shape[0]
        slot = jnp.arange(min(math.ceil(share * slots), n_items), dtype=jnp.int32)
        n = real.mask.sum(dtype=jnp.int32)
        untouched = n_items - n
        count = jnp.minimum(jnp.floor(share * n + 0.5).astype(jnp.int32), untouched)
        touched = jnp.sort(jnp.where(real.mask, real.item, n_items))
        rank = rng.permute(key, slot, jnp.maximum(untouched, 1))
        drawn = rng.outside(touched, 0, n, rank, steps=slots.bit_length())
        mask = slot < count
        row = jnp.zeros((slot.size, real.row.shape[1]))
        if rows == "mixed":
            row = jnp.where(mask[:, None], _mixed(jax.random.fold_in(key, 1), real, slot), 0)
        return update.replace(
            items=ItemDelta(
                item=jnp.append(real.item, jnp.where(mask, drawn, n_items)),
                row=jnp.concatenate([real.row, row]),
                mask=jnp.append(real.mask, mask),
            )
        )

    return Transform(apply)


def _mixed(key, real: ItemDelta, slot: Array) -> Array:
    """For each slot i32[S] a row of the client's own and a part of another one, f32[S, D]."""
    n = jnp.maximum(real.mask.sum(dtype=jnp.int32), 1)
    place = jnp.cumsum(real.mask, dtype=jnp.int32)
    one, other, part = jax.random.split(key, 3)

    def own(key):
        rank = rng.permute(key, slot % n, n)
        return real.row[jnp.searchsorted(place, rank + 1)]

    u = jax.random.uniform(part, (slot.size, 1), maxval=0.5)
    return (1 - u) * own(one) + u * own(other)
