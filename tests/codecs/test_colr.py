"""Coordinates in the round's shared basis: the projection, its size, and training within it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import CTX_KEY, SIZES, deltas, outcome, program, set_bits

from fedras_jax import bits
from fedras_jax.codecs.colr import colr
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.types import Context, ItemDelta, Sizes

CTX = Context(SIZES, CTX_KEY)


@pytest.mark.parametrize(
    ("name", "codec", "row_bits"),
    [
        ("colr-float32-rank4", colr(), 4 * 32),
        ("colr-float16-rank2", colr(2, dtype="float16"), 2 * 16),
    ],
)
def test_sizes(name, codec, row_bits):
    counts = outcome(name)[1]
    for u in range(8):
        items = np.asarray(deltas().item)[u][np.asarray(deltas().mask)[u]]
        expected = 160 + set_bits(items, SIZES.items) + len(items) * row_bits
        assert bits.payload_bits(codec.fields(SIZES), counts[u]) == expected


@pytest.mark.parametrize(
    ("rank", "stretch", "longer"), [(1, None, 8**0.5), (4, None, 2**0.5), (8, None, 1), (2, 3, 3)]
)
def test_basis_is_orthogonal_and_the_round_s(rank, stretch, longer):
    codec = colr(rank, stretch=stretch)
    basis = np.asarray(codec.basis(CTX), np.float64)
    assert basis.shape == (rank, SIZES.dim)
    np.testing.assert_allclose(basis @ basis.T, longer * np.eye(rank), atol=3e-6)  # float32's QR
    np.testing.assert_array_equal(jax.jit(lambda: codec.basis(CTX))(), codec.basis(CTX))
    other = codec.basis(Context(SIZES, jax.random.key(5)))
    assert np.abs(np.asarray(other) - basis).max() > 0.1


def test_basis_has_signs_of_its_own():
    """Against Gram and Schmidt's, which makes every vector agree with the one it came from."""
    normal = np.asarray(jax.random.normal(CTX_KEY, (SIZES.dim, 3)), np.float64)
    expected = []
    for v in normal.T:
        for b in expected:
            v = v - (v @ b) * b
        expected.append(v / np.linalg.norm(v))
    np.testing.assert_allclose(colr(3, stretch=1).basis(CTX), expected, atol=1e-5)  # float32's QR


@pytest.mark.parametrize(
    ("name", "rank", "rtol"), [("colr-float32-rank4", 4, 1e-6), ("colr-float16-rank2", 2, 1e-3)]
)
def test_decoded_is_the_projection(name, rank, rtol):
    basis = np.asarray(colr(rank, stretch=1).basis(CTX), np.float64)
    row = np.asarray(deltas().row, np.float64)
    # A few ulps of coordinates in their format.
    np.testing.assert_allclose(
        outcome(name)[2].row, row @ basis.T @ basis, atol=2 * rtol * np.abs(row).max()
    )


def test_full_rank_loses_nothing():
    codec = colr(SIZES.dim)
    delta = jax.tree.map(lambda x: x[3], deltas())
    payload, _ = codec.encode(CTX, CTX_KEY, delta, None, jnp.int32(0), ())
    found = codec.decode(CTX, payload).row
    np.testing.assert_allclose(found, delta.row, atol=1e-6 * np.abs(delta.row).max())


def test_what_was_trained_in_the_basis_travels_whole():
    """Unlike the deltas above, of which a span of 4 out of 8 dimensions loses a good part."""
    codec = colr()
    random = np.random.default_rng(0)
    rows = jnp.asarray(random.normal(size=(20, SIZES.dim)), jnp.float32)
    private = jnp.asarray(random.normal(size=SIZES.dim), jnp.float32)
    label, mask = jnp.asarray(np.arange(20) % 2, jnp.float32), jnp.arange(20) < 17

    def train(basis):
        return factored(mf(SIZES.dim), 0.5, 0.1, epochs=3)(
            private, (), rows, label, mask, basis=basis
        ).rows

    def lost(row):
        delta = ItemDelta(jnp.where(mask, jnp.arange(20), SIZES.items), row, mask)
        payload, _ = codec.encode(CTX, CTX_KEY, delta, None, jnp.int32(0), ())
        return np.sum((codec.decode(CTX, payload).row - row) ** 2) / np.sum(row**2)

    assert lost(train(codec.basis(CTX))) < 1e-10  # float32's rounding, squared
    assert lost(train(None)) > 0.1


def test_mapped_clients_share_one_basis():
    _, _, mapped, keys = program("colr-float32-rank4")
    _, payload, decoded = mapped(keys, deltas(), np.zeros(8, np.int32))
    # Coordinates of several clients may be added up before they are decoded.
    sums = np.asarray(payload.data["coefficient"], np.float64).sum(0) @ colr(stretch=1).basis(CTX)
    np.testing.assert_allclose(sums, np.asarray(decoded.row).sum(0), atol=1e-5 * np.abs(sums).max())


def test_refuses():
    for make, message in [
        (
            lambda: colr(dtype="int8"),
            "colr: dtype must be one of ['float32', 'float16'], not 'int8'",
        ),
        (lambda: colr(stretch=0.0), "colr: stretch must be positive, not 0.0"),
        (lambda: colr(0), "colr: rank must be at least 1, not 0"),
        (
            lambda: colr(9).fields(Sizes(300, 8)),
            "colr: rank must be at most the embedding width 8, not 9",
        ),
    ]:
        with pytest.raises(SpecError) as error:
            make()
        assert str(error.value) == message
