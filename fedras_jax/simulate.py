"""A scan of rounds."""

import jax
import jax.numpy as jnp

from fedras_jax.types import Algorithm, Array, Cohort, FedState, Histories, RoundInfo


def simulate(
    algorithm: Algorithm,
    state: FedState,
    data: Histories,
    rounds: int,
    *,
    limit: int | Array | None = None,
    cohorts: Cohort | None = None,
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
      cohorts: who takes part, leading axis R; None: whom the sampler draws.

    Returns:
      The state after them, and their diagnostics with a leading axis R, zeros from the limit on.
    """

    def step(state, members):
        return algorithm.step(state, data, *([] if members is None else [members]))

    if limit is None:
        return jax.lax.scan(step, state, cohorts, length=rounds)

    def of_round(i):
        return jax.tree.map(lambda x: x[i], cohorts)

    def write(i, carry):
        state, infos = carry
        state, info = step(state, of_round(i))
        return state, jax.tree.map(lambda all_, x: all_.at[i].set(x), infos, info)

    shapes = jax.eval_shape(step, state, of_round(0))[1]
    infos = jax.tree.map(lambda s: jnp.zeros((rounds, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, limit, write, (state, infos))
