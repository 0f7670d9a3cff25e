"""The examples a client draws for itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from toys import history_of, make_histories

from fedras_jax import examples
from fedras_jax.types import Histories

M = 60
# Ordinary clients, one with a single item, an empty one, one that has seen all but two, and all.
LENGTHS = [3, 1, 10, 0, 7, M - 2, M, 25]
DATA = make_histories(LENGTHS, M)


@functools.cache
def drawer(negatives: int = 4, width: int = M):
    """(seed, client, live) -> its batch."""

    @jax.jit
    def draw(seed, client, live):
        one, two = jax.random.split(jax.random.fold_in(jax.random.key(seed), client))
        return examples.draw(
            examples.orders(one, two),
            DATA,
            client,
            live,
            n_items=M,
            negatives=negatives,
            width=width,
        )

    return lambda seed, client, live=True: jax.tree.map(
        np.asarray, draw(jnp.int32(seed), jnp.int32(client), jnp.bool_(live))
    )


@pytest.mark.parametrize("negatives", [0, 1, 4])
@pytest.mark.parametrize("client", range(len(LENGTHS)))
def test_positives_are_the_history_and_negatives_are_not(client, negatives):
    history = set(history_of(DATA, client).tolist())
    wanted = negatives * len(history)
    n_negatives = min(wanted, M - len(history))
    n = len(history) + n_negatives
    for seed in range(3):
        batch = drawer(negatives)(seed, client)
        np.testing.assert_array_equal(batch.mask, np.arange(M) < n)
        np.testing.assert_array_equal(batch.item[n:], M)
        np.testing.assert_array_equal(batch.label[n:], 0)
        item, label = batch.item[:n], batch.label[:n]
        assert set(item[label == 1].tolist()) == history
        assert np.sum(label == 1) == len(history)
        drawn = item[label == 0]
        assert len(set(drawn.tolist())) == len(drawn) == n_negatives
        assert not set(drawn.tolist()) & history
        assert np.all((drawn >= 0) & (drawn < M))
        assert batch.short == wanted - n_negatives
        assert batch.client == client
    assert examples.count(np.array(LENGTHS), M, negatives)[client] == n


def test_count_is_the_same_traced():
    lengths = np.arange(M + 1)
    traced = jax.jit(lambda h: examples.count(h, M, 4))(lengths)
    np.testing.assert_array_equal(traced, examples.count(lengths, M, 4))
    np.testing.assert_array_equal(traced, lengths + np.minimum(4 * lengths, M - lengths))


@pytest.mark.parametrize("client", range(len(LENGTHS)))
def test_a_client_that_does_not_take_part_has_no_examples(client):
    batch = drawer()(0, client, live=False)
    assert not batch.mask.any()
    assert batch.short == 0
    np.testing.assert_array_equal(batch.item, M)
    np.testing.assert_array_equal(batch.label, 0)


@pytest.mark.parametrize("client", [0, 1, 3])
def test_the_draw_does_not_depend_on_the_width(client):
    """A narrow slot and a wide one hold the same examples in the same order."""
    wide = drawer()(1, client)
    n = wide.mask.sum()
    for width in (15, 16, 33):
        narrow = drawer(width=width)(1, client)
        assert narrow.mask.sum() == n
        np.testing.assert_array_equal(narrow.item[:n], wide.item[:n])
        np.testing.assert_array_equal(narrow.label[:n], wide.label[:n])


def test_rounds_differ():
    draws = [drawer()(seed, 0) for seed in range(10)]
    assert len({tuple(sorted(b.item[b.label == 0].tolist())) for b in draws}) == 10
    assert len({tuple(np.flatnonzero(b.label).tolist()) for b in draws}) > 5


# Fixed seeds: a chi-square test gives the same p-value every time.
def test_negatives_are_uniform_and_examples_well_shuffled():
    n_items, history = 12, np.array([2, 3, 8], np.int32)
    data = Histories(offset=jnp.array([0, 3]), item=jnp.asarray(history))

    @jax.jit
    @jax.vmap
    def draw(key):
        one, two = jax.random.split(key)
        return examples.draw(
            examples.orders(one, two),
            data,
            jnp.int32(0),
            jnp.bool_(True),
            n_items=n_items,
            negatives=1,
            width=8,
        )

    batch = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), 20_000)))
    unseen = np.setdiff1d(np.arange(n_items), history)

    def p_value(count, drawn_of):
        """Of counts of `drawn_of` draws a key without replacement among `len(count)`."""
        n, expected = len(count), count.mean()
        shrink = (n - 1) / (n - drawn_of)
        return stats.chi2.sf(np.sum((count - expected) ** 2) / expected * shrink, n - 1)

    real = batch.mask[0]
    negative = (batch.label == 0) & real
    count = np.bincount(batch.item[negative], minlength=n_items)
    assert count[history].sum() == 0
    assert p_value(count[unseen], 3) > 1e-3
    # Pairs of negatives too: 36 sets of two among nine items, three of them a draw.
    chosen = np.zeros((len(batch.item), n_items))
    np.put_along_axis(chosen, np.where(negative, batch.item, history[0]), 1, axis=1)
    chosen[:, history] = 0
    pairs = (chosen.T @ chosen)[np.ix_(unseen, unseen)][np.triu_indices(9, 1)]
    expected = pairs.mean()
    # Counts of pairs within one draw depend on each other; sd of each is at most sqrt(expected),
    # and 5 of them is far out in the tail of 36.
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected)
    # Each of the six slots holds a positive equally often.
    assert p_value((batch.label == 1)[:, real].sum(0), 3) > 1e-3


def test_item_delta():
    batch = drawer()(0, 2)
    rows = jnp.ones((M, 3))
    delta = examples.item_delta(batch, rows)
    np.testing.assert_array_equal(delta.item, batch.item)
    np.testing.assert_array_equal(delta.mask, batch.mask)
    np.testing.assert_array_equal(delta.row, rows)
