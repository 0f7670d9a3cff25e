"""Who takes part in a round.

Samplers are pure functions of the round's key and of who is available; inclusion probabilities are
those of the available. Roles, where given, say what each client is (an
attacker, say); they come with the cohort because transforms act on them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import rng
from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Cohort, Sampler


def fixed_size(n_clients: int, size: int = 0, *, roles: np.ndarray | None = None) -> Sampler:
    """`size` distinct clients, every set of them equally likely; 0 is everyone.

    Raises:
      SpecError: more clients asked for than there are, or a negative number.
    """
    if not 0 <= size <= n_clients:
        raise SpecError(
            f"cohort of {size} clients, but there are {n_clients}: "
            f"choose 1 to {n_clients}, or 0 for all"
        )
    size = size or n_clients
    role = _roles(n_clients, roles)

    def sample(key, available=None):
        ones = jnp.ones(size)
        if available is not None:
            # The first of a random order who are there.
            order = rng.permute(key, jnp.arange(n_clients, dtype=jnp.int32), jnp.int32(n_clients))
            there = available[order]
            client = order[jnp.nonzero(there, size=size, fill_value=0)[0]]
            n_there = there.sum()
            mask = jnp.arange(size) < n_there
            share = jnp.minimum(size / jnp.maximum(n_there, 1), 1)
            return Cohort(client, mask, ones * mask, ones * share, role[client])
        slot = jnp.arange(size, dtype=jnp.int32)
        client = slot if size == n_clients else rng.permute(key, slot, jnp.int32(n_clients))
        return Cohort(client, ones > 0, ones, ones * (size / n_clients), role[client])

    return Sampler(sample, size)


def poisson(n_clients: int, rate: float, *, roles: np.ndarray | None = None) -> Sampler:
    """Every client takes part with probability `rate`, independently of all others.

    The sampling that differential privacy's accountants assume. A round may be empty; there is a
    slot for everyone, so nobody who was drawn is left out.

    Raises:
      SpecError: `rate` is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise SpecError(f"Poisson sampling rate {rate}: choose a probability in (0, 1]")
    role = _roles(n_clients, roles)

    def sample(key, available=None):
        drawn = jax.random.uniform(key, (n_clients,)) < rate
        if available is not None:
            drawn &= available
        client = jnp.nonzero(drawn, size=n_clients, fill_value=0)[0].astype(jnp.int32)
        mask = jnp.arange(n_clients) < drawn.sum()
        ones = jnp.ones(n_clients)
        return Cohort(client, mask, ones * mask, ones * rate, role[client])

    return Sampler(sample, n_clients)


def rotation(n_clients: int, size: int, *, roles: np.ndarray | None = None) -> Sampler:
    """Everyone once in `n_clients / size` rounds, rounded up: a pass; then another order.

    Every pass has an order of its own, of which a round takes the next `size` clients; the last
    round of a pass those that are left. Who is not available misses the pass.

    Raises:
      SpecError: more clients asked for than there are, or none.
    """
    if not 1 <= size <= n_clients:
        raise SpecError(
            f"rotation: a cohort of {size} clients, but there are {n_clients}: choose 1 to "
            f"{n_clients}"
        )
    role = _roles(n_clients, roles)

    def sample(key, available=None, place=0):
        turn = place * size + jnp.arange(size, dtype=jnp.int32)
        mask = turn < n_clients
        client = rng.permute(key, jnp.where(mask, turn, 0), jnp.int32(n_clients))
        if available is not None:
            mask &= available[client]
        ones = jnp.ones(size)
        return Cohort(client, mask, ones * mask, ones * (size / n_clients), role[client])

    return Sampler(sample, size, period=-(-n_clients // size))


def _roles(n_clients: int, roles: np.ndarray | None) -> Array:
    if roles is None:
        return jnp.zeros(n_clients, jnp.int32)
    if np.shape(roles) != (n_clients,):
        raise SpecError(f"roles: expected {n_clients} of them, one a client, got {np.shape(roles)}")
    return jnp.asarray(roles, jnp.int32)
