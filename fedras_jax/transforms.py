"""Changes of a client's update before the codec; a chain of them is a list.

A transform sees the round's context, a key of its own, the client's role and the whole update
(item rows and shared parameters), and returns an update of the same shapes.
"""

import jax
import jax.numpy as jnp

from fedras_jax.types import Array, Transform


def clip_norm(max_norm: float | Array) -> Transform:
    """Scale an update down to an L2 norm of at most `max_norm`, rows and shared parameters as one.

    The bound on one client's influence that differentially private training starts from
    (McMahan et al., Learning differentially private recurrent language models, ICLR 2018).
    """

    def apply(ctx, key, role, update):
        del ctx, key, role
        parts = [update.items.row, *jax.tree.leaves(update.shared)]
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in parts))
        factor = jnp.minimum(1.0, max_norm / jnp.where(norm > 0, norm, 1.0))
        return update.replace(
            items=update.items.replace(row=update.items.row * factor),
            shared=jax.tree.map(lambda x: x * factor, update.shared),
        )

    return Transform(apply)
