"""The first private state of some clients, drawn without that of the others."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as extend

from fedras_jax.types import Array


def rows_from(key: Array, first: Array | int) -> Array:
    """A key whose draws are later rows of another's.

    What it draws in a shape [n, ...] are the rows from `first` on of what `key` draws in a shape
    [U, ...], because JAX's own generator hashes the place of an entry. Splitting it, or folding
    something in, gives such keys again.

    Args:
      key: of JAX's default implementation; arrays of 2**32 entries or more are beyond it.
      first: integer [].
    """
    data = jnp.append(jax.random.key_data(key), jnp.asarray(first).astype(jnp.uint32))
    return jax.random.wrap_key_data(data, impl=_LATER)


def _draw(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    if bit_width != 32:
        raise NotImplementedError(f"rows of {bit_width} bits an entry")
    before = key[2] * jnp.uint32(math.prod(shape[1:]))
    place = before + jnp.arange(math.prod(shape), dtype=jnp.uint32)
    one, other = extend.threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(place), place)
    return (one ^ other).reshape(shape)


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return _like(key, jax.random.split(jax.random.wrap_key_data(key[:2]), shape))


def _fold_in(key: Array, data: Any) -> Array:
    return _like(key, jax.random.fold_in(jax.random.wrap_key_data(key[:2]), data))


def _like(key: Array, plain: Array) -> Array:
    words = jax.random.key_data(plain)
    first = jnp.broadcast_to(key[2], (*words.shape[:-1], 1))
    return jnp.concatenate([words, first], axis=-1)


def _seed(seed: Array) -> Array:
    raise NotImplementedError("made from another key, not from a seed")


_LATER = extend.define_prng_impl(
    key_shape=(3,),
    seed=_seed,
    split=_split,
    random_bits=_draw,
    fold_in=_fold_in,
    name="rows_from",
    tag="rows",
)
