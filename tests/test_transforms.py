"""Transforms of a whole update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax.errors import SpecError
from fedras_jax.transforms import clip_norm, pseudo_items
from fedras_jax.types import Context, ItemDelta, Sizes, Update


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


@pytest.mark.parametrize("scale", [1e20, 1e37, np.inf, np.nan])
def test_clip_norm_of_large_updates_is_no_silent_zero(scale):
    """Squares overflow; a norm of infinity would scale all rows to zeros."""
    rows = jnp.asarray([[scale, 0.0], [1.0, 1.0]])
    delta = ItemDelta(jnp.arange(2, dtype=jnp.int32), rows, jnp.ones(2, bool))
    found = clip_norm(1.0).apply(None, None, None, Update(delta, ())).items.row
    if np.isfinite(scale):
        np.testing.assert_allclose(found[0], [1, 0], rtol=1e-6)
    else:
        assert not np.isfinite(found).all()


M = 12
CTX = Context(Sizes(M, 2), jax.random.key(0))


@functools.cache
def pseudo(share: float, rows: str = "zero"):
    """(key, update) -> update, compiled for many keys at once."""
    apply = pseudo_items(share, rows=rows).apply
    return jax.jit(jax.vmap(lambda key, u: apply(CTX, key, jnp.int32(0), u), (0, None)))


def touching(items, slots: int = 8) -> Update:
    """An update of these items, in an order of their own, with padded slots in between."""
    item = np.full(slots, M, np.int32)
    item[np.random.default_rng(len(items)).permutation(slots)[: len(items)]] = items
    mask = item < M
    row = np.where(mask[:, None], np.arange(1, 2 * slots + 1).reshape(slots, 2), 0)
    delta = ItemDelta(jnp.asarray(item), jnp.asarray(row, jnp.float32), jnp.asarray(mask))
    return Update(delta, {"h": jnp.ones(3)})


@pytest.mark.parametrize(
    ("share", "items", "count"),
    [
        (0.5, [3, 0, 11], 2),  # 1.5
        (0.4, [5, 1, 7], 1),  # 1.2
        (0.1, [5, 1, 7], 0),  # 0.3
        (1.0, [2, 4, 6, 8], 4),
        (1.0, [7, 2, 9, 0, 1, 11, 10, 5], 4),  # no more items are left
        (50.0, [2, 4], 10),  # all that are left
        (3.0, [], 0),
    ],
)
def test_pseudo_items(share, items, count):
    before = touching(items)
    after = pseudo(share)(jax.random.split(jax.random.key(1), 50), before)
    n = before.items.mask.size
    extra = min(int(np.ceil(share * n)), M)
    assert after.items.row.shape == (50, n + extra, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[:, :n], np.broadcast_to(b, a[:, :n].shape)),
        after.items,
        before.items,
    )
    np.testing.assert_array_equal(after.shared["h"], 1)
    np.testing.assert_array_equal(after.items.row[:, n:], 0)
    for item, mask in zip(after.items.item[:, n:], after.items.mask[:, n:], strict=True):
        drawn = set(np.asarray(item)[np.asarray(mask)].tolist())
        assert len(drawn) == int(mask.sum()) == count
        assert not drawn & set(items)
        assert drawn <= set(range(M))
        np.testing.assert_array_equal(np.asarray(item)[~np.asarray(mask)], M)
    assert after.items.item.dtype == jnp.int32


def test_pseudo_rows_lie_between_two_of_the_clients_own():
    items = [3, 0, 11, 5]
    before = touching(items)
    after = pseudo(1.0, "mixed")(jax.random.split(jax.random.key(1), 50), before)
    own = np.asarray(before.items.row)[np.asarray(before.items.mask)]
    np.testing.assert_array_equal(after.items.row[:, 8:][~np.asarray(after.items.mask[:, 8:])], 0)
    zeros = pseudo(1.0)(jax.random.split(jax.random.key(1), 50), before)
    np.testing.assert_array_equal(after.items.item, zeros.items.item)  # the same items
    for row, mask in zip(after.items.row[:, 8:], after.items.mask[:, 8:], strict=True):
        found = np.asarray(row)[np.asarray(mask)]
        # Rows here lie on a line, a unit of (1, 1) apart or more.
        np.testing.assert_allclose(found[:, 1] - found[:, 0], 1, atol=1e-5)
        assert np.all((found[:, 0] >= own[:, 0].min()) & (found[:, 0] <= own[:, 0].max()))
    moved = np.asarray(after.items.row)[:, 8:12, 0].ravel()
    assert len(np.unique(moved)) > 100  # few are copies


def test_a_single_touched_row_is_repeated():
    after = pseudo(2.0, "mixed")(jax.random.split(jax.random.key(1), 3), touching([4]))
    row, mask = np.asarray(after.items.row), np.asarray(after.items.mask)
    own = row[:, :8][mask[:, :8]]
    np.testing.assert_allclose(row[:, 8:][mask[:, 8:]], np.repeat(own, 2, axis=0), rtol=1e-6)


def test_pseudo_items_refuses_other_rows():
    with pytest.raises(SpecError) as error:
        pseudo_items(1.0, rows="copied")
    assert str(error.value) == ("pseudo_items: rows must be one of ['mixed', 'zero'], not 'copied'")


def test_pseudo_items_are_uniform_over_the_untouched():
    draws = 4000
    items = [0, 3, 4, 11]
    after = pseudo(0.5)(jax.random.split(jax.random.key(2), draws), touching(items))
    drawn = np.asarray(after.items.item)[:, 8:][np.asarray(after.items.mask)[:, 8:]]
    often = np.bincount(drawn, minlength=M)
    assert often[items].sum() == 0
    # 2 of 8 items: each is binomial with p = 1/4. Five standard deviations, over eight items.
    expected, spread = draws / 4, np.sqrt(draws * 3 / 16)
    assert np.abs(np.delete(often, items) - expected).max() < 5 * spread


@pytest.mark.parametrize("share", [0, -0.5, float("inf"), float("nan")])
def test_pseudo_items_refuses(share):
    with pytest.raises(SpecError) as error:
        pseudo_items(share)
    assert str(error.value) == f"pseudo_items: share must be above 0 and finite, not {share}"
