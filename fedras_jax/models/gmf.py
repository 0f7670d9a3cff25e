"""Generalised matrix factorisation: MF whose factors carry shared weights.

score = h . (p * q) + b, with the dense parameters h f32[D] and b f32[] shared by all clients:
they travel beside the item delta. The smallest model that has any.

Source: He et al., Neural Collaborative Filtering, WWW 2017, section 3.2; the federated form is
FedNCF's (Perifanis and Efraimidis, Knowledge-Based Systems 242, 2022).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedras_jax.types import RecModel


def gmf(dim: int = 64, *, init_scale: float = 0.1) -> RecModel:
    """GMF with `dim` factors; starts as MF (h = 1, b = 0)."""

    def init(key, n_clients, sizes):
        client_key, item_key = jax.random.split(key)
        private = init_scale * jax.random.normal(client_key, (n_clients, dim))
        shared = {"weight": jnp.ones(dim), "bias": jnp.zeros(())}
        return private, init_scale * jax.random.normal(item_key, (sizes.items, dim)), shared

    def score(
        private: Float[Array, " d"], shared: dict, rows: Float[Array, "l d"]
    ) -> Float[Array, " l"]:
        weighted = private * shared["weight"]
        return jnp.dot(rows, weighted, precision=jax.lax.Precision.HIGHEST) + shared["bias"]

    return RecModel(init, score, optax.sigmoid_binary_cross_entropy, dim)
