"""Whose payload counts; `tests/rounds` has one that loses payloads."""

import jax
import jax.numpy as jnp

from fedras_jax import arrivals


def test_synchronous_keeps_weights():
    assert arrivals.synchronous().weigh(jax.random.key(0), jnp.float32(2.5)) == 2.5
