"""From decoded item deltas to one change of the item table.

Accumulators of disjoint sets of clients merge by addition, leaf by leaf, so chunks scan and
devices `psum`. Deltas come with a leading axis of clients and are added in one scatter: the table
is never copied per client.
"""

import jax.numpy as jnp

from fedras_jax import tables
from fedras_jax.types import Array, Decoded, Reducer


def touched_mean() -> Reducer:
    """Per item, the weighted mean over the clients that sent it; the change of others is zero.

    With codecs that send a part of the touched rows alone, an item that one of ten sent changes as
    if the other nine agreed: such codecs want `cohort_mean` and a longer step of the server.
    """

    def zero(sizes):
        # The weights have a column, as rows do: a reshape would copy all of them at each addition.
        return jnp.zeros((sizes.items, sizes.dim)), jnp.zeros((sizes.items, 1))

    def add(acc, delta, weight):
        total, touched = acc
        once = delta.mask.astype(touched.dtype)[..., None]
        return _plus(total, delta, weight), tables.add_rows(touched, delta.item, once, weight)

    def finish(acc):
        total, touched = acc
        return total / jnp.where(touched > 0, touched, 1)

    return Reducer(zero, add, finish)


def cohort_mean() -> Reducer:
    """The weighted sum over clients divided by the weight of all that arrived (FedAvg)."""

    def zero(sizes):
        return jnp.zeros((sizes.items, sizes.dim)), jnp.zeros(())

    def add(acc, delta, weight):
        return _plus(acc[0], delta, weight), acc[1] + weight.sum()

    def finish(acc):
        total, weight = acc
        return total / jnp.where(weight > 0, weight, 1)

    return Reducer(zero, add, finish)


def _plus(total: Array, delta: Decoded, weight: Array) -> Array:
    """The sum, and some clients' weighted rows."""
    rows, label = delta.source
    return tables.add_rows(total, delta.item, rows, weight, label)
