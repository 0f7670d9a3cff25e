"""Transforms of a whole update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax.transforms import clip_norm
from fedras_jax.types import ItemDelta, Update


def update(scale: float) -> Update:
    """Of norm 5 x scale: 3 in the rows and 4 in the shared parameters."""
    row = jnp.array([[1.0, 2.0], [2.0, 0.0], [0.0, 0.0]]) * scale
    items = ItemDelta(jnp.array([4, 2, 9]), row, jnp.array([True, True, False]))
    return Update(items, {"h": jnp.array([0.0, 4.0]) * scale, "b": jnp.zeros(())})


@pytest.mark.parametrize(
    ("scale", "factor"), [(0.0, 1.0), (0.1, 1.0), (0.2, 1.0), (1.0, 0.2), (100.0, 0.002)]
)
def test_clip_norm(scale, factor):
    """Rows and shared parameters as one vector; shorter ones, and zero, are left alone."""
    clip = jax.jit(lambda u, bound: clip_norm(bound).apply(None, None, None, u))
    before, after = update(scale), clip(update(scale), jnp.float32(1.0))
    expected = jax.tree.map(lambda x: x * factor, (before.items.row, before.shared))
    found = (after.items.row, after.shared)
    # One root, one division and one product in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    np.testing.assert_array_equal(after.items.item, before.items.item)
    np.testing.assert_array_equal(after.items.mask, before.items.mask)
