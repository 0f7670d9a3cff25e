"""How many actions a client may send in a round. Policies are local: each sees one client."""

import jax.numpy as jnp
import numpy as np

from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Budget


def fixed(k: int) -> Budget:
    """The same k for everyone, always."""

    def allocate(round_, client, prepared):
        del round_, client, prepared
        return jnp.int32(k)

    return Budget(allocate, max_actions=k)


def by_client(k: np.ndarray) -> Budget:
    """A k of its own for each client: `k` i32[U], at least 1 (devices differ)."""
    k = np.asarray(k)
    if k.ndim != 1 or k.size == 0 or not np.issubdtype(k.dtype, np.integer) or k.min() < 1:
        raise SpecError("by_client: expected a 1-D integer array of action counts, all >= 1")
    table: Array = jnp.asarray(k, jnp.int32)

    def allocate(round_, client, prepared):
        del round_, prepared
        return table[client]

    return Budget(allocate, max_actions=int(k.max()))
