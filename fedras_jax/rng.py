"""Randomness by address: a key is a function of where it is used, never of what came before.

    key = fold(seed, stream, round, global client id)

No key is carried in any state, so a client's draws do not depend on the chunk, the device or the
order in which it is simulated, nor on whether a run was resumed.
"""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt32

# Rounds of the permutation's shuffle. Swap-or-not mixes a deck of n cards in O(log n) rounds;
# 24 leaves position and pair frequencies of decks of 2 to 4,000 within sampling noise (tested).
PERMUTATION_ROUNDS = 24


class Stream(enum.IntEnum):
    """What a key is for. Values are part of a run's identity: append, never renumber."""

    INIT = 0
    COHORT = 1
    NEGATIVES = 2
    SHUFFLE = 3
    CODEC = 4
    SHARED = 5
    TRANSFORM = 6
    ARRIVAL = 7


def address(seed: int | Array, stream: Stream, *where: int | Array) -> Key[Array, ""]:
    """The key that belongs to `stream` at `where` (a round, a global client id, ...).

    Args:
      seed: the run's seed, a Python int or an integer scalar (it may be a tracer).
      stream: what the key is for.
      *where: integers that complete the address.
    """
    key = jax.random.fold_in(jax.random.key(seed), stream)
    for part in where:
        key = jax.random.fold_in(key, part)
    return key


def permute(key: Key[Array, ""], index: Int[Array, "*n"], size: Int[Array, ""]) -> Int[Array, "*n"]:
    """The images of `index` under a keyed random permutation of {0, ..., size - 1}.

    Swap-or-not (Hoang, Morris and Rogaway, CRYPTO 2012): in each round x and K - x (mod size) are
    partners, and a hash of the two says whether they change places. It needs no table, no sort
    and no rejection, so distinct draws cost a few dozen vector instructions each, and any size
    works, also a traced one. (An affine map would do for distinctness, but draws arithmetic
    progressions.)

    Args:
      key: one key, one permutation.
      index: i32, values below `size`; others map to unspecified values.
      size: i32 scalar, at least 1.
    """
    words = jax.random.bits(key, (PERMUTATION_ROUNDS, 2), jnp.uint32)
    n = size.astype(jnp.uint32)

    def shuffle(r, x):
        pivot = words[r, 0] % n
        partner = jnp.where(x <= pivot, pivot - x, pivot + n - x)
        swap = _bit(jnp.maximum(x, partner) + words[r, 1])
        return jnp.where(swap, partner, x)

    # A loop, not 24 copies: XLA:CPU would fuse the copies into every consumer and hash again.
    x = jax.lax.fori_loop(0, PERMUTATION_ROUNDS, shuffle, index.astype(jnp.uint32))
    return x.astype(jnp.int32)


def _bit(x: UInt32[Array, "*n"]) -> Array:
    """One well-mixed bit of x (two rounds of multiply and xor-shift)."""
    x = x * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA77)
    return ((x ^ (x >> 13)) * jnp.uint32(0xC2B2AE3D) >> 31) == 1
