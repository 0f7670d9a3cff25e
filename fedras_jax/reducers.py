"""From decoded item deltas to one change of the item table.

Accumulators of disjoint sets of clients merge by addition, leaf by leaf, so chunks scan and
devices `psum`. Deltas come with a leading axis of clients and are added in one scatter: the table
is never copied per client.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedras_jax.types import ItemDelta, Reducer


def _add_rows(
    table: Float[Array, "m d"], delta: ItemDelta, weight: Float[Array, " c"]
) -> Float[Array, "m d"]:
    rows = delta.row * weight[:, None, None]
    # Padded rows carry item M, which lies outside of the table and is dropped.
    return table.at[delta.item.reshape(-1)].add(rows.reshape(-1, rows.shape[-1]), mode="drop")


def touched_mean() -> Reducer:
    """Per item, the weighted mean over the clients that touched it; others keep their value."""

    def zero(sizes):
        return jnp.zeros((sizes.items, sizes.dim)), jnp.zeros(sizes.items)

    def add(acc, delta, weight):
        total, touched = acc
        spread = (delta.mask * weight[:, None]).reshape(-1)
        touched = touched.at[delta.item.reshape(-1)].add(spread, mode="drop")
        return _add_rows(total, delta, weight), touched

    def finish(acc):
        total, touched = acc
        return total / jnp.where(touched > 0, touched, 1)[:, None]

    return Reducer(zero, add, finish)


def cohort_mean() -> Reducer:
    """The weighted sum over clients divided by the weight of all that arrived (FedAvg)."""

    def zero(sizes):
        return jnp.zeros((sizes.items, sizes.dim)), jnp.zeros(())

    def add(acc, delta, weight):
        return _add_rows(acc[0], delta, weight), acc[1] + weight.sum()

    def finish(acc):
        total, weight = acc
        return total / jnp.where(weight > 0, weight, 1)

    return Reducer(zero, add, finish)
