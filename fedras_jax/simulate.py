"""A scan of rounds."""

import jax
import jax.numpy as jnp

from fedras_jax.types import Algorithm, Array, FedState, Histories, RoundInfo


def simulate(
    algorithm: Algorithm,
    state: FedState,
    data: Histories,
    rounds: int,
    *,
    limit: int | Array | None = None,
) -> tuple[FedState, RoundInfo]:
    """`rounds` rounds, one after another, as one function to compile.

    Pure and unjitted, so it can be jitted (donate the state), mapped over seeds or learning
    rates, or scanned again.

    Args:
      algorithm: from `rounds.federated`.
      state: `algorithm.init()`, or what an earlier call returned.
      data: the clients' histories.
      rounds: static number of rounds R.
      limit: stop after so many of them, at most R; it may be a tracer, so that one program serves
        any number of rounds.

    Returns:
      The state after them, and their diagnostics with a leading axis R, zeros from the limit on.
    """
    if limit is None:

        def one(state, _):
            return algorithm.step(state, data)

        return jax.lax.scan(one, state, length=rounds)

    def write(i, carry):
        state, infos = carry
        state, info = algorithm.step(state, data)
        return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), infos, info)

    shapes = jax.eval_shape(algorithm.step, state, data)[1]
    infos = jax.tree.map(lambda s: jnp.zeros((rounds, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, limit, write, (state, infos))
