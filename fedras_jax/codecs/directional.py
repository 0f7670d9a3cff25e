"""Directional actions: r directions, K actions of r coordinates, and an index.

For a dot-product model and one local step, a client's item rows are exact multiples of one
vector; after a few steps they nearly are. So actions need not be vectors of D entries: K points in
the span of one direction, or of a few, say almost the same in a fraction of the bits. With one
direction actions are levels, from the near-exact one-dimensional solver, whose table also gives
the error for every K at once.

State: none. Biased: every row becomes the mean of its cluster, within the span. Support: exact, the
touched rows. The server can read: which items were touched, the directions, and each item's action.

Source: ours; the paper clusters full rows.
"""

import jax.numpy as jnp

from fedras_jax import bits, directions, kmeans, kmeans1d, reductions
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, LabelledDelta, Prepared

DTYPES = ("float32", "float16")


def directional(
    k: int = 16,
    *,
    rank: int = 1,
    dtype: str = "float16",
    labels: str = "fixed",
    iterations: int = 5,
) -> Codec:
    """The touched set, r directions, K actions and one action index for each touched item.

    Args:
      k: static maximum K of actions; a client with fewer touched rows sends one a row at most.
      rank: directions r.
      dtype: 'float16' or 'float32', of directions and actions. Actions are fitted to the
        directions as sent, so only their own rounding is lost.
      labels: 'fixed' width, or 'entropy': coded by their frequencies, which travel as well.
      iterations: Lloyd steps; used where rank is above 1.

    Raises:
      SpecError: an unknown name, a number out of range, or more directions than D.
    """
    one_of("directional", DTYPES, dtype=dtype)
    one_of("directional", bits.CODINGS, labels=labels)
    if not 1 <= k <= 65535:
        raise SpecError(f"directional: k must be 1 to 65535, not {k}")
    if rank < 1:
        raise SpecError(f"directional: rank must be at least 1, not {rank}")
    if iterations < 0:
        raise SpecError(f"directional: iterations must not be negative, not {iterations}")

    def fields(sizes):
        if rank > sizes.dim:
            raise SpecError(
                f"directional: rank must be at most the embedding width {sizes.dim}, not {rank}"
            )
        return (
            bits.touched(sizes.items),
            bits.values("direction", "once", dtype, rank, sizes.dim),
            bits.values("level", "action", dtype, rank),
            bits.labels_as(labels, k),
        )

    def prepare(ctx, key, delta):
        del ctx, key
        basis = kmeans.main_directions(delta.row, delta.mask, rank, largest=bits.LARGEST)
        basis = bits.as_sent(basis, dtype)
        coords, length = directions.coordinates(delta.row, basis.astype(jnp.float32))
        # The solution itself with one direction, and where Lloyd's steps start with several.
        table = kmeans1d.table(
            coords[:, 0], delta.mask, k, bins=max(64, 4 * k if rank == 1 else 5 * k // 4)
        )
        error = None
        if rank == 1:
            total = reductions.squares(delta.row)
            off = total - length[0] * jnp.dot(
                coords[:, 0], coords[:, 0], precision=kmeans.PRECISION
            )
            error = (off + length[0] * table.error) / jnp.maximum(total, 1e-30)
            error = jnp.maximum(error, 0)
        return Prepared(error, (basis, directions.Points(coords, coords[:, 0], table)))

    def encode(ctx, key, delta, prepared, k_granted, state):
        del key
        basis, points = prepared.work
        k_used = jnp.minimum(jnp.minimum(k_granted, k), delta.mask.sum(dtype=jnp.int32))
        if rank == 1:
            found = kmeans1d.levels(points.table, points.along, delta.mask, k_used)
            level, label = found.level[:, None], found.label
        else:
            label = directions.cluster(points, delta.mask, k_used, iterations).label
            level = kmeans.means(points.coords, delta.mask, label, k)
        own = bits.own_actions(delta.item, delta.mask, label, k_used, k, ctx.sizes.items)
        all_own = k_used == delta.mask.sum(dtype=jnp.int32)
        level = jnp.where(all_own, kmeans.means(points.coords, delta.mask, own, k), level)
        label = own
        level = jnp.where(jnp.arange(k)[:, None] < k_used, level, 0)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "k": k_used,
            "direction": basis,
            "level": bits.as_sent(level, dtype),
            "label": label,
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> LabelledDelta:
        del ctx
        data = payload.data
        level, basis = (data[name].astype(jnp.float32) for name in ("level", "direction"))
        action = level * basis if rank == 1 else jnp.dot(level, basis, precision=kmeans.PRECISION)
        label = jnp.where(data["mask"], data["label"], k)
        return LabelledDelta(data["item"], action, label, data["mask"])

    return Codec("directional", fields, lambda sizes: (), prepare, encode, decode, max_actions=k)
