"""Clients that may send as many actions as they have rows send the rows, without labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import bits, wire
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.rows import rows
from fedras_jax.errors import WireError
from fedras_jax.types import Context, ItemDelta, Payload, Sizes

SIZES = Sizes(items=90, dim=8)
CTX = Context(SIZES, jax.random.key(0))


def delta(n: int) -> ItemDelta:
    """n touched rows in no order, two of them alike."""
    random = np.random.default_rng(n)
    item = np.full(32, SIZES.items, np.int32)
    item[:n] = random.permutation(SIZES.items)[:n]
    row = np.where(np.arange(32)[:, None] < n, random.normal(size=(32, 8)), 0)
    row[1] = row[0]
    return ItemDelta(jnp.asarray(item), jnp.asarray(row, jnp.float32), jnp.arange(32) < n)


def encoded(codec, found: ItemDelta, k: int = 16):
    def encode(found):
        prepared = codec.prepare(CTX, CTX.key, found)
        payload, _ = codec.encode(CTX, CTX.key, found, prepared, jnp.int32(k), codec.init(SIZES))
        return payload, codec.decode(CTX, payload), prepared.error

    return jax.jit(encode)(found)


@pytest.mark.parametrize("form", [{}, {"labels": "entropy"}, {"index": "items"}], ids=str)
def test_they_are_lossless_and_as_small_as_rows(form):
    codec = actions(16, **form)
    for n in (2, 9, 16):
        found = delta(n)
        payload, decoded, _ = encoded(codec, found)
        np.testing.assert_array_equal(decoded.row, found.row)
        size = bits.payload_bits(codec.fields(SIZES), payload.counts)
        plain, _, _ = encoded(rows(), found)
        assert size == bits.payload_bits(rows().fields(SIZES), plain.counts)
        raw = wire.pack(codec, SIZES, payload)
        assert len(raw) == -(-int(size) // 8)
        data, _ = wire.unpack(codec, SIZES, raw)
        again = codec.decode(CTX, Payload(jax.tree.map(jnp.asarray, data), payload.counts))
        order = np.argsort(np.asarray(found.item)[:n])
        np.testing.assert_array_equal(again.row, np.asarray(found.row)[:n][order])


def test_with_one_row_more_than_actions_the_rows_are_larger():
    found = delta(17)
    sizes = []
    for codec in (actions(16), rows()):
        payload, _, _ = encoded(codec, found)
        sizes.append(int(bits.payload_bits(codec.fields(SIZES), payload.counts)))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("rank", [1, 2])
def test_directional_levels_are_the_rows_own(rank):
    codec = directional(16, rank=rank, dtype="float32")
    found = delta(12)
    payload, decoded, _ = encoded(codec, found)
    basis = np.asarray(payload.data["direction"])
    spanned = np.asarray(found.row) @ np.linalg.pinv(basis) @ basis
    # float32 coordinates of numbers of order 1.
    np.testing.assert_allclose(decoded.row[:12], spanned[:12], atol=1e-5)
    raw = wire.pack(codec, SIZES, payload)
    assert len(raw) == -(-int(bits.payload_bits(codec.fields(SIZES), payload.counts)) // 8)


def test_errors_are_those_of_the_start_and_fall():
    found = delta(30)
    _, decoded, error = encoded(actions(16), found)
    left = float(jnp.sum((decoded.row - found.row) ** 2) / jnp.sum(found.row**2))
    assert error.shape == (17,)
    assert error[0] == 1
    assert (np.diff(error) < 0).all()
    # Straight between 8 and 16, the logarithm with that of k.
    power = np.log2(error[8] / error[16])
    np.testing.assert_allclose(error[8:], error[8] * (8 / np.arange(8, 17)) ** power, rtol=1e-4)
    # Lloyd gains some from the same start.
    assert 0.5 * error[16] < left <= error[16] * (1 + 1e-5)


def test_actions_out_of_order_are_refused_when_written():
    payload, _, _ = encoded(actions(16), delta(9))
    label = jnp.roll(payload.data["label"], 1)
    wrong = Payload(payload.data | {"label": label}, payload.counts)
    with pytest.raises(WireError, match="not in the order of items"):
        wire.pack(actions(16), SIZES, wrong)
