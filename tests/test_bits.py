"""Sizes in bits, against sizes counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import bits
from fedras_jax.types import Field, Sizes

TOP = 2**16 + 1
AROUND_POWERS = sorted({p + d for p in 2 ** np.arange(17) for d in (-1, 0, 1)} - {0})


def width(n: int) -> int:
    """The smallest w with 2**w >= n, by counting."""
    w = 0
    while 2**w < n:
        w += 1
    return w


@pytest.mark.parametrize("n", AROUND_POWERS)
def test_index_width_around_powers_of_two(n):
    assert bits.index_width(int(n)) == max(1, width(n))


def test_label_width_of_every_count():
    counts = np.arange(TOP + 1)
    expected = [0, 0] + [width(k) for k in counts[2:]]
    found = bits.label_width(jnp.asarray(counts))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_items", [1, 2, 7, 64, 65, 1682])
def test_set_counts_send_the_smaller_form(n_items):
    sizes = Sizes(n_items, 8)
    widths = np.array([field.bits for field in bits.set_fields(sizes)])
    assert widths[0] == 1
    for n in range(0, n_items + 1, max(1, n_items // 60)):
        counts = np.array(bits.set_counts(jnp.int32(n), sizes))
        assert counts.dtype == np.int32
        assert counts.min() == 0  # only one of the two forms is sent
        assert counts @ widths == min(n_items, n * max(1, width(n_items)))


def test_payload_bits_add_up_beyond_int32():
    fields = (Field("value", 32), Field("bit", 1))
    found = bits.payload_bits(fields, np.array([[10_000_000 * 64, 3], [0, 0]], np.int32))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [128 + 20_480_000_003, 128])


def test_payload_bits_sum_over_a_cohort_in_int64():
    counts = np.full((1000, 1), 1_000_000, np.int32)
    assert bits.payload_bits((Field("value", 32),), counts).sum() == 1000 * (128 + 32_000_000)


@pytest.mark.parametrize("n_counts", [1, 3])
def test_payload_bits_want_a_count_for_every_field(n_counts):
    with pytest.raises(ValueError, match=f"{n_counts} counts for 2 fields"):
        bits.payload_bits((Field("a", 1), Field("b", 2)), np.zeros(n_counts, np.int32))


def test_dense_bits():
    assert bits.dense_bits(Sizes(10_000_000, 64), 65) == 128 + 32 * (640_000_000 + 65)


def test_row_bytes():
    found = bits.row_bytes(Sizes(100, 4), np.array([0, 3, 50]), shared=2)
    np.testing.assert_array_equal(
        found, [(128 + 64) / 8, (128 + 3 * 7 + 96 * 4 + 64) / 8, (128 + 100 + 1600 * 4 + 64) / 8]
    )
