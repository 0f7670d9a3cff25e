"""Sums of many numbers to one, so that they are fast and exact enough."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def squares(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Sum of all squared entries, f32[].

    Columns first: XLA:CPU adds up to one number entry by entry, but columns side by side. Fewer
    terms to a sum also lose less. (The barrier keeps XLA from making one sum of the two.)
    """
    return jax.lax.optimization_barrier(jnp.sum(x * x, axis=0)).sum()
