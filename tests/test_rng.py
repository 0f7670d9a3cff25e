"""Keys by address, and permutations without a table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedras_jax import rng

# Seeds are fixed, so a chi-square test always gives the same p-value; below this one the
# generator would be to blame rather than the draw (25 such tests run here).
LEAST_P = 1e-3


@pytest.fixture(scope="module")
def permutation():
    """(key, size) -> the images of 0, ..., 4095; compiled once, the size is traced."""
    return jax.jit(lambda key, size: rng.permute(key, jnp.arange(4096), size))


@pytest.fixture(scope="module")
def many():
    """size -> i32[20000, size], one permutation a key."""
    keys = jax.random.split(jax.random.key(5), 20_000)
    of_keys = jax.jit(jax.vmap(rng.permute, (0, None, None)))
    return lambda size: np.asarray(of_keys(keys, jnp.arange(size), jnp.int32(size)))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4096])
def test_permute_is_a_bijection(permutation, size):
    for seed in range(5):
        image = np.asarray(permutation(jax.random.key(seed), jnp.int32(size)))[:size]
        np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_permute_differs_between_keys(permutation):
    images = {
        tuple(np.asarray(permutation(jax.random.key(seed), jnp.int32(100)))[:100].tolist())
        for seed in range(20)
    }
    assert len(images) == 20


def test_permute_needs_no_neighbours(permutation):
    """An index's image does not depend on which others are asked for."""
    key = jax.random.key(3)
    some = rng.permute(key, jnp.array([17, 4, 99]), jnp.int32(100))
    whole = np.asarray(permutation(key, jnp.int32(100)))
    np.testing.assert_array_equal(some, whole[[17, 4, 99]])


@pytest.mark.parametrize("size", [*range(5, 13), 100])
def test_permute_sends_every_index_everywhere_equally_often(many, size):
    images = many(size)
    count = np.stack([np.bincount(images[:, i], minlength=size) for i in range(size)])
    expected = len(images) / size
    # Each row and column of the table of counts adds up to the number of keys, which takes a
    # degree of freedom each and a factor (n - 1) / n off the variance.
    statistic = (size - 1) / size * np.sum((count - expected) ** 2) / expected
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > LEAST_P


@pytest.mark.parametrize("size", [*range(5, 13), 100])
def test_permute_makes_every_pair_of_neighbours_equally_often(many, size):
    images = many(size)
    key = np.arange(len(images))
    first = images[key, key % (size - 1)]
    second = images[key, key % (size - 1) + 1]
    count = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert np.trace(count) == 0
    count = count[~np.eye(size, dtype=bool)]
    expected = len(images) / count.size
    statistic = np.sum((count - expected) ** 2) / expected
    assert stats.chi2.sf(statistic, count.size - 1) > LEAST_P


def test_permute_moves_indices_independently_of_their_distance(many):
    """Differences of neighbours' images are those of a random pair (an affine map has one)."""
    images = many(11)
    gap = (images[:, 1] - images[:, 0]) % 11
    count = np.bincount(gap, minlength=11)[1:]
    assert stats.chisquare(count).pvalue > LEAST_P


def _words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_addresses_are_distinct():
    keys = {
        (seed, stream, *where): _words(rng.address(seed, stream, *where))
        for seed in (0, 1)
        for stream in rng.Stream
        for where in ((), (0,), (1,), (2,), *itertools.product(range(3), repeat=2))
    }
    assert len(set(keys.values())) == len(keys)


def test_address_is_the_same_however_it_is_computed():
    expected = [_words(rng.address(7, rng.Stream.CODEC, 3, u)) for u in range(4)]

    def words(seed, round_, client):
        return jax.random.key_data(rng.address(seed, rng.Stream.CODEC, round_, client))

    jitted = [words(7, 3, u) for u in range(4)]
    traced = jax.jit(jax.vmap(words, (None, None, 0)))(jnp.int32(7), jnp.int32(3), jnp.arange(4))
    assert [tuple(w.tolist()) for w in np.asarray(jitted)] == expected
    assert [tuple(w.tolist()) for w in np.asarray(traced)] == expected


def test_addresses_are_those_of_each_stream():
    streams = (rng.Stream.FAILURE, rng.Stream.INIT, rng.Stream.CODEC)
    together = jax.random.key_data(rng.addresses(7, streams, 3, 9))
    each = [_words(rng.address(7, stream, 3, 9)) for stream in streams]
    assert [tuple(words) for words in np.asarray(together).tolist()] == each


def test_stream_numbers_never_change():
    """They are part of a run's identity: results of earlier runs would not come again."""
    names = ["INIT", "COHORT", "NEGATIVES", "SHUFFLE", "CODEC", "SHARED", "TRANSFORM", "ARRIVAL"]
    assert [rng.Stream[name].value for name in names] == list(range(8))
