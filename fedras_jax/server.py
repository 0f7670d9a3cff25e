"""The server's step: from the sum of what it took to its next table, and to the public one."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedras_jax import bits
from fedras_jax.publish import Publisher
from fedras_jax.shards import Placement
from fedras_jax.types import Array, FedState, PyTree, Reducer


class Published(NamedTuple):
    """What a round's step sends to everyone.

    Attributes:
      counts: i32[G], entries of the publisher's fields. bits: f32[], their size with the header.
        Both 0 where nothing has arrived.
    """

    counts: Array
    bits: Array


def server(
    reducer: Reducer,
    optimizer: optax.GradientTransformation,
    publisher: Publisher,
    tables: Placement,
    *,
    feedback: bool = True,
) -> Callable[[FedState, tuple[PyTree, PyTree, Array]], tuple[FedState, Published]]:
    """A server's step.

    Args:
      reducer, optimizer: as in `rounds.federated`.
      publisher: of its tables. tables: where they lie.
      feedback: whether it keeps a table of its own, for what the publisher loses.

    Returns:
      (state, what `passes` has summed up) -> (the state with new tables, Published). A round in
      which nothing arrives changes nothing, not even a momentum, and publishes nothing.
    """

    def step(state, summed):
        acc, shared, total = summed
        arrived = total > 0
        change = (
            reducer.finish(acc),
            jax.tree.map(lambda x: x / jnp.where(arrived, total, 1), shared),
        )
        params = (state.items, state.shared)
        updates, moments = optimizer.update(
            jax.tree.map(jnp.negative, change), state.server, params
        )
        (items, shared), moments = jax.tree.map(
            lambda new, old: jnp.where(arrived, new, old),
            (optax.apply_updates(params, updates), moments),
            (params, state.server),
        )
        public, velocity, counts = publisher.step(
            state.round, state.public, state.velocity, items, arrived
        )
        if not feedback:
            items = public
        size = jnp.where(arrived, bits.float_bits(publisher.fields, counts), 0)
        items, public, velocity, moments = tables.pin((items, public, velocity, moments))
        state = dataclasses.replace(
            state, items=items, public=public, velocity=velocity, shared=shared, server=moments
        )
        return state, Published(counts, size)

    return step
