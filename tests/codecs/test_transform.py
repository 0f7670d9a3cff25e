"""What is particular to transform coding, and to its coded levels."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import FULL, SIZES, deltas, distortion
from test_low_rank import best_error, coded

from fedras_jax import bits, coding, wire
from fedras_jax.codecs.transform import finest_step, quantise, transform
from fedras_jax.errors import SpecError, WireError
from fedras_jax.types import Payload, Sizes


def entropy(level: np.ndarray) -> float:
    """Bits of entropy of each column's symbols, added up."""
    total = 0.0
    for column in level.T:
        often = np.unique(column, return_counts=True)[1]
        total -= float(np.sum(often * np.log2(often / often.sum())))
    return total


@pytest.mark.parametrize("granted", [1.0, 3.0, 6.0])
def test_levels_take_nearly_all_the_bits_that_are_granted(granted):
    _, payload, _ = coded(transform(2, bits=granted), deltas())
    for u in FULL:
        level = payload.data["level"][u][payload.data["mask"][u]]
        taken = entropy(level) / len(level)
        # The number of rows allows only certain entropies, and levels end at 31. (Under a bit a
        # row, few of 30 rows are not zero: steps of a tenth of a bit.)
        assert taken <= granted * (1 + 1e-5)
        assert taken >= 0.9 * granted - 0.1 or np.abs(level).max() == bits.REACH


def test_many_bits_leave_what_the_directions_leave():
    found = distortion(coded(transform(2, bits=20), deltas())[2].row)
    for u in FULL:
        best = best_error(np.asarray(deltas().row)[u], 2)
        # The finest step is 1/31.7 of the greatest coordinate, of which a third is lost at most.
        row = np.asarray(deltas().row, np.float64)[u]
        top = np.linalg.norm(row, axis=1).max() / (bits.REACH + 2 / 3)
        n = int(np.asarray(deltas().mask)[u].sum())
        assert best * (1 - 1e-4) <= found[u]
        assert found[u] <= 1.1 * best + n * 2 * (2 / 3 * top) ** 2 / np.sum(row**2)


def test_more_bits_lose_less():
    found = [distortion(coded(transform(3, bits=b), deltas())[2].row)[:6] for b in (0.5, 1, 2, 3)]
    assert np.all(np.diff(found, axis=0) < 0)


def test_no_step_is_better_by_much():
    """Against a search over a thousand steps: the finest that fits, to a thousandth."""
    random = np.random.default_rng(0)
    coords = random.laplace(size=(500, 4)) * [8, 4, 2, 1]
    mask = np.arange(500) < 450
    step = float(finest_step(jnp.asarray(coords, jnp.float32), jnp.asarray(mask), jnp.float32(900)))
    assert entropy(np.asarray(quantise(jnp.asarray(coords), jnp.float32(step)))[mask]) <= 900
    finer = [step * f for f in np.linspace(0.7, 0.998, 100)]
    taken = [
        entropy(np.asarray(quantise(jnp.asarray(coords), jnp.float32(s)))[mask]) for s in finer
    ]
    assert min(taken) > 900 * 0.999


def test_quantise_spells_out_the_border():
    found = quantise(jnp.array([[0.0, 0.66, 0.67, 1.66, -1.67, 99.0]]), jnp.float32(1))
    np.testing.assert_array_equal(found, [[0, 0, 1, 1, -2, 31]])


def test_scale_does_not_matter():
    tiny = deltas().replace(row=deltas().row * 1e-30)
    size, _, decoded = coded(transform(2), deltas())
    small, _, shrunk = coded(transform(2), tiny)
    np.testing.assert_allclose(small, size, atol=8)
    scale = np.abs(decoded.row).max()
    np.testing.assert_allclose(np.asarray(shrunk.row) * 1e30, decoded.row, atol=0.02 * scale)


@pytest.mark.parametrize("n", [1, 2, 500])
def test_levels_come_back_and_are_counted(n):
    random = np.random.default_rng(n)
    level = np.clip(random.laplace(scale=[0.05, 1, 6], size=(n, 3)).round(), -31, 31)
    level = level.astype(np.int8)
    written = coding.write_levels(level, bits.REACH)
    read = coding.read_levels(coding.Reader(np.packbits(written)), n, 3, bits.REACH, 0)
    np.testing.assert_array_equal(read, level)
    tables, surprise = bits.level_bits(jnp.asarray(level), jnp.ones(n, bool))
    told = int(tables + bits.coded_bits(surprise))
    np.testing.assert_allclose(surprise, entropy(level), rtol=1e-5)
    assert written.size <= told <= 1.02 * written.size + 128


def test_levels_that_are_not_what_a_writer_writes_are_refused():
    level = np.array([[-1], [0], [2], [2]], np.int8)
    flat = coding.write_levels(level, bits.REACH)  # ends 30 and 33, counts 1 1 0 2
    assert flat[:12].tolist() == [0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1]

    def read(flat):
        coding.read_levels(coding.Reader(np.packbits(flat)), 4, 1, bits.REACH, 0)

    for at, value, message in [
        (slice(0, 12), [1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0], "levels from 2 to -1"),
        (slice(6, 12), [1, 1, 1, 1, 1, 1], "levels from -1 to 32"),
        (slice(12, 15), [0, 1, 1], "frequencies of 6 symbols for 4 rows"),
        (slice(12, 18), [0, 0, 0, 0, 1, 0], "the least or the greatest level does not occur"),
    ]:
        wrong = flat.copy()
        wrong[at] = value
        with pytest.raises(WireError, match=message):
            read(wrong)
    with pytest.raises(WireError, match="truncated"):
        read(flat[:16])
    level = np.random.default_rng(0).integers(-1, 2, (20, 2)).astype(np.int8)
    flat = coding.write_levels(level, bits.REACH)
    tables = 2 * (2 * 6 + 3 * 5)
    flat[tables:] = 1
    with pytest.raises(WireError, match="the coded words hold no such symbols"):
        coding.read_levels(coding.Reader(np.packbits(flat)), 20, 2, bits.REACH, 0)


def test_what_cannot_be_written_is_refused():
    codec = transform(2)
    _, payload, _ = coded(codec, deltas())
    data = {name: leaf[0] for name, leaf in payload.data.items()}
    for level in (32, -128):
        broken = Payload(data | {"level": np.full_like(data["level"], level)}, payload.counts[0])
        with pytest.raises(WireError, match=f"a level of {abs(level)}, but they reach 31 at most"):
            wire.pack(codec, SIZES, broken)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "transform: rank must be at least 1, not 0"),
        ({"bits": 0}, "transform: bits must be positive, not 0"),
        ({"bits": float("nan")}, "transform: bits must be positive, not nan"),
    ],
)
def test_settings_are_refused(wrong, message):
    with pytest.raises(SpecError) as error:
        transform(**wrong)
    assert str(error.value) == message
    assert transform(8).fields(Sizes(10, 8))
    with pytest.raises(SpecError, match="rank must be at most the embedding width 8, not 9"):
        transform(9).fields(Sizes(10, 8))
