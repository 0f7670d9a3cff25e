"""A scan of rounds."""

import jax

from fedras_jax.types import Algorithm, FedState, Histories, RoundInfo


def simulate(
    algorithm: Algorithm, state: FedState, data: Histories, rounds: int
) -> tuple[FedState, RoundInfo]:
    """`rounds` rounds, one after another, as one function to compile.

    Pure and unjitted, so it can be jitted (donate the state), mapped over seeds or learning
    rates, or scanned again.

    Args:
      algorithm: from `rounds.federated`.
      state: `algorithm.init()`, or what an earlier call returned.
      data: the clients' histories.
      rounds: static number of rounds R.

    Returns:
      The state after them, and their diagnostics with a leading axis R.
    """

    def one(state, _):
        return algorithm.step(state, data)

    return jax.lax.scan(one, state, length=rounds)
