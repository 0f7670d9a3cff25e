"""Randomness by address: a key is a function of where it is used, never of what came before.

    key = fold(seed, stream, round, global client id)

No key is carried in any state, so a client's draws do not depend on the chunk, the device or the
order in which it is simulated, nor on whether a run was resumed.
"""

import enum
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt32

from fedras_jax import native
from fedras_jax.native import forms

# Rounds of the permutation's shuffle. Swap-or-not mixes a deck of n cards in O(log n) rounds;
# 24 leaves position and pair frequencies of decks of 2 to 4,000 within sampling noise (tested).
PERMUTATION_ROUNDS = 24


_LOOPS_FOR = "threefry2x32"


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
    DOWNLINK = 8
    AVAILABILITY = 9
    JITTER = 10
    FAILURE = 11


def address(seed: int | Array, stream: Stream | Array, *where: int | Array) -> Key[Array, ""]:
    """The key that belongs to `stream` at `where` (a round, a global client id, ...).

    Args:
      seed: the run's seed, a Python int or an integer scalar (it may be a tracer).
      stream: what the key is for; the number of one, if it is a tracer.
      *where: integers that complete the address.
    """
    key = jax.random.key(seed)
    for part in (stream, *where):
        key = _fold(key, part)
    return key


def addresses(
    seed: int | Array, streams: Sequence[Stream], *where: int | Array
) -> Key[Array, " s"]:
    """`address` of several streams at one place, in their order.

    At once, as deriving a key is many small operations, which several keys share.
    """
    return jax.vmap(lambda stream: address(seed, stream, *where))(jnp.array(streams, jnp.uint32))


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
    return shuffled(rounds_of(key)[0], index, size)


def rounds_of(*keys: Key[Array, ""]) -> UInt32[Array, "n r 2"]:
    """The words of a permutation's rounds, for `shuffled`: `permute` in two steps.

    For several permutations at once, as deriving words is many small operations.
    """
    words = jax.vmap(lambda key: _bits(key, 2 * PERMUTATION_ROUNDS))(jnp.stack(keys))
    return words.reshape(len(keys), PERMUTATION_ROUNDS, 2)


def shuffled(
    words: UInt32[Array, "r 2"], index: Int[Array, "*n"], size: Int[Array, ""]
) -> Int[Array, "*n"]:
    """`permute` by the words of its key."""
    if native.on():
        return forms.shuffled(words, index.reshape(-1), size).reshape(index.shape)
    n = size.astype(jnp.uint32)

    def shuffle(x, word):
        pivot, salt = word
        partner = jnp.where(x <= pivot, pivot - x, pivot + n - x)
        swap = _bit(jnp.maximum(x, partner) + salt)
        return jnp.where(swap, partner, x), None

    # A loop, not 24 copies: XLA:CPU would fuse the copies into every consumer and hash again.
    x, _ = jax.lax.scan(shuffle, index.astype(jnp.uint32), (words[:, 0] % n, words[:, 1]))
    return x.astype(jnp.int32)


def hashed(key: Key[Array, ""], *index: Int[Array, "*n"]) -> UInt32[Array, "*n"]:
    """A random word for every combination of indices: the same wherever it is computed.

    For draws of all U clients at once, of which most are never looked at: a few instructions each,
    where a key of its own would be dozens.

    Args:
      key: one key; other keys give other words.
      index: i32 arrays of one shape.

    Words are `mixed` once for each index.
    """
    seeds = _bits(key, len(index) + 1)
    x = jnp.broadcast_to(seeds[0], index[0].shape)
    for seed, part in zip(seeds[1:], index, strict=True):
        x = mixed(x ^ (part.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + seed))
    return x


def mixed(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Words whose every bit depends on all bits of x.

    Source: the finaliser of MurmurHash3 (Appleby, public domain).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def outside(
    item: Int[Array, " l"],
    first: Int[Array, ""] | int,
    size: Int[Array, ""],
    rank: Int[Array, " n"],
    steps: int,
) -> Int[Array, " n"]:
    """The number of each rank among those that are not in a list, by binary search.

    With `permute` for the ranks, these are distinct draws from outside the list: of items that a
    client has not seen. Entry i of the list has `item[i] - i` missing numbers below it, which
    ascends with i; the rank-th missing number is the rank plus the number of entries with at most
    that many below them.

    Args:
      item: i32, ascending and distinct in `item[first:first + size]`, which is the list.
      rank: i32[N], from 0; beyond the missing numbers, unspecified ones follow.
      steps: static halvings, at least `size.bit_length()`.
    """

    def halve(_, bounds):
        low, high = bounds
        open_ = low < high
        middle = (low + high) // 2
        below = item[first + jnp.where(open_, middle, 0)] - middle <= rank
        low = jnp.where(open_ & below, middle + 1, low)
        return low, jnp.where(open_ & ~below, middle, high)

    bounds = (jnp.zeros_like(rank), jnp.broadcast_to(size, rank.shape))
    return rank + jax.lax.fori_loop(0, steps, halve, bounds)[0]


def _fold(key: Key[Array, ""], part: int | Array) -> Key[Array, ""]:
    """`jax.random.fold_in`."""
    if not _by_loops(key):
        return jax.random.fold_in(key, part)
    return jax.random.wrap_key_data(forms.fold(jax.random.key_data(key), part), impl=_LOOPS_FOR)


def _bits(key: Key[Array, ""], count: int) -> UInt32[Array, " n"]:
    """`jax.random.bits`, so many words."""
    if not _by_loops(key):
        return jax.random.bits(key, (count,), jnp.uint32)
    return forms.words(jax.random.key_data(key), count)


def _by_loops(key: Key[Array, ""]) -> bool:
    """Whether loops derive from a key what JAX would: of its generator, and as it is set."""
    usual = getattr(jax.config, "jax_threefry_partitionable", True)
    return native.on() and usual and str(jax.random.key_impl(key)) == _LOOPS_FOR


def _bit(x: UInt32[Array, "*n"]) -> Array:
    """One well-mixed bit of x (two rounds of multiply and xor-shift)."""
    x = x * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA77)
    return ((x ^ (x >> 13)) * jnp.uint32(0xC2B2AE3D) >> 31) == 1
