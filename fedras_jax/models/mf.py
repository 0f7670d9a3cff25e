"""Matrix factorisation: a private client vector, a shared item table, their dot product.

Source: FedMF as in Chai et al., Secure Federated Matrix Factorization, IEEE Intelligent Systems
36(5), 2021, with the logistic loss of implicit feedback (He et al., Neural Collaborative
Filtering, WWW 2017).
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedras_jax.types import RecModel


def mf(dim: int = 64, *, init_scale: float = 0.1) -> RecModel:
    """MF with `dim` factors, entries drawn from N(0, init_scale^2)."""

    def init(key, n_clients, sizes):
        client_key, item_key = jax.random.split(key)
        private = init_scale * jax.random.normal(client_key, (n_clients, dim))
        return private, init_scale * jax.random.normal(item_key, (sizes.items, dim)), ()

    def score(
        private: Float[Array, " d"], shared: tuple, rows: Float[Array, "l d"]
    ) -> Float[Array, " l"]:
        del shared
        return jnp.dot(rows, private, precision=jax.lax.Precision.HIGHEST)

    return RecModel(init, score, optax.sigmoid_binary_cross_entropy, dim, is_dot_product=True)
