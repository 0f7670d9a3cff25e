"""Reducers against a loop over clients and rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax.reducers import cohort_mean, touched_mean
from fedras_jax.types import ItemDelta, Sizes

SIZES = Sizes(items=9, dim=3)


def some_deltas(seed: int, n_clients: int = 4, width: int = 6) -> tuple[ItemDelta, jax.Array]:
    """Clients that touch 0 to `width` of the first eight items: nobody ever touches the last."""
    rng = np.random.default_rng(seed)
    mask = np.arange(width) < np.array([[width], [3], [0], [5]])[:n_clients]
    item = np.stack([rng.permutation(8)[:width] for _ in range(n_clients)])
    row = rng.normal(size=(n_clients, width, 3)).astype(np.float32) * mask[..., None]
    delta = ItemDelta(jnp.where(mask, item, 9), jnp.asarray(row), jnp.asarray(mask))
    return delta, jnp.asarray(rng.uniform(0.5, 2, n_clients), jnp.float32).at[3].set(0)


def brute_force(kind: str, delta: ItemDelta, weight: jax.Array) -> np.ndarray:
    total, touched = np.zeros((9, 3)), np.zeros(9)
    for u, w in enumerate(np.asarray(weight, np.float64)):
        for item, row, real in zip(delta.item[u], delta.row[u], delta.mask[u], strict=True):
            if real:
                total[item] += w * np.asarray(row)
                touched[item] += w
    if kind == "cohort":
        return total / np.sum(np.asarray(weight, np.float64))
    return np.stack([t / n if n > 0 else t for t, n in zip(total, touched, strict=True)])


REDUCERS = {"touched": touched_mean(), "cohort": cohort_mean()}


@pytest.mark.parametrize("kind", REDUCERS)
def test_weighted_mean(kind):
    reducer = REDUCERS[kind]
    delta, weight = some_deltas(0)
    found = jax.jit(lambda d, w: reducer.finish(reducer.add(reducer.zero(SIZES), d, w)))(
        delta, weight
    )
    # A handful of float32 terms of order 1.
    np.testing.assert_allclose(found, brute_force(kind, delta, weight), atol=1e-6)
    np.testing.assert_array_equal(found[8], 0)


def test_a_client_without_weight_does_not_count_as_touching():
    """Whoever did not arrive does not dilute the mean."""
    delta, weight = some_deltas(0)
    reducer = REDUCERS["touched"]
    without = jax.tree.map(lambda x: x[:3], delta)
    found = reducer.finish(reducer.add(reducer.zero(SIZES), delta, weight))
    expected = reducer.finish(reducer.add(reducer.zero(SIZES), without, weight[:3]))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", REDUCERS)
def test_accumulators_merge_by_addition(kind):
    reducer = REDUCERS[kind]
    (one, w_one), (two, w_two) = some_deltas(1), some_deltas(2)
    zero = reducer.zero(SIZES)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), one, two)
    at_once = reducer.add(zero, both, jnp.concatenate([w_one, w_two]))
    rotation = reducer.add(reducer.add(zero, one, w_one), two, w_two)
    merged = jax.tree.map(jnp.add, reducer.add(zero, one, w_one), reducer.add(zero, two, w_two))
    for acc in (rotation, merged):
        # The same sums in another order.
        np.testing.assert_allclose(reducer.finish(acc), reducer.finish(at_once), atol=1e-6)


@pytest.mark.parametrize("kind", REDUCERS)
def test_nobody_changes_nothing(kind):
    reducer = REDUCERS[kind]
    delta, weight = some_deltas(0)
    np.testing.assert_array_equal(reducer.finish(reducer.zero(SIZES)), np.zeros((9, 3)))
    nobody = reducer.add(reducer.zero(SIZES), delta, 0 * weight)
    np.testing.assert_array_equal(reducer.finish(nobody), np.zeros((9, 3)))
