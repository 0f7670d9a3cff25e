"""Loops that numba compiles against the JAX form beside each call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import make_histories

from fedras_jax import (
    bits,
    directions,
    examples,
    kmeans,
    kmeans1d,
    native,
    reducers,
    reductions,
    rng,
    samplers,
    sets,
    tables,
)
from fedras_jax.codecs import top_entries as entries_of
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.feedback import error_feedback
from fedras_jax.codecs.product import product
from fedras_jax.codecs.residual import residual
from fedras_jax.codecs.top_entries import top_entries
from fedras_jax.codecs.top_rows import top_rows
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.native import forms, near
from fedras_jax.native import rows as native_rows
from fedras_jax.rounds import federated
from fedras_jax.simulate import simulate
from fedras_jax.types import Histories, ItemDelta, LabelledDelta, Sizes

pytestmark = pytest.mark.skipif(not native.on(), reason="the loops are for CPU, and need numba")

# Both forms add up the same float32 numbers in other orders: sums of n terms differ by some
# roundings, sqrt(n) 6e-8 of their size, here of at most 320 terms.
RTOL, ATOL = 2e-5, 2e-6
N, D, K, M = 80, 12, 8, 60


def both(function, *inputs):
    """What the loops give for every entry of the leading axis, and what the JAX form does."""
    found = []
    for wanted in (True, False):
        with native.use(wanted):
            # A function of its own, as `jit` would not trace the same one again.
            mapped = jax.jit(jax.vmap(lambda *x: function(*x)))
            assert ("ffi_call" in str(jax.make_jaxpr(mapped)(*inputs))) == wanted
            found.append(jax.tree.map(np.asarray, mapped(*inputs)))
    return found


def agree(function, *inputs, rtol=RTOL, atol=ATOL):
    """Both forms give the same, integers exactly and floats to rounding."""
    loops, plain = both(function, *inputs)
    for a, b in zip(jax.tree.leaves(loops), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(a, b)


def clients(seed=0, n=N, dim=D, rank=3):
    """Rows near the span of a few vectors, and masks: none, one, some, scattered, all."""
    r = np.random.default_rng(seed)
    vectors = r.normal(size=(5, rank, dim)) * 0.3 ** np.arange(rank)[:, None]
    row = r.normal(size=(5, n, rank)) @ vectors
    row += 1e-3 * r.normal(size=row.shape)
    mask = np.arange(n) < np.array([0, 1, n // 2, n, n])[:, None]
    mask[3] &= r.random(n) < 0.7
    row = np.where(mask[..., None], row, 0).astype(np.float32)
    return jnp.asarray(row), jnp.asarray(mask)


@pytest.mark.parametrize("n_items", [40, 97, 5000])
@pytest.mark.parametrize("negatives", [0, 1, 4])
def test_examples(n_items, negatives):
    r = np.random.default_rng(n_items + negatives)
    sizes = [0, 1, 7, 30, 39, 40, 40]
    seen = [np.sort(r.choice(n_items, s, replace=False)) for s in sizes[:5]]
    seen += [np.arange(40), np.arange(n_items - 40, n_items)]  # at either end; or all there are
    data = Histories(
        jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32),
        jnp.asarray(np.concatenate(seen), jnp.int32),
    )

    def draw(who, live):
        keys = [rng.address(3, s, 0, who) for s in (rng.Stream.NEGATIVES, rng.Stream.SHUFFLE)]
        drawn = examples.orders(*keys)
        return examples.draw(
            drawn, data, who, live, n_items=n_items, negatives=negatives, width=256
        )

    agree(draw, jnp.arange(7), jnp.ones(7, bool))
    agree(draw, jnp.arange(7), jnp.zeros(7, bool))


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [16, 50, 1000])
def test_training(epochs, batch_size):
    rows, mask = clients()
    r = np.random.default_rng(1)
    label = jnp.asarray(r.random((5, N)) < 0.3, jnp.float32)
    private = jnp.asarray(r.normal(size=(5, D)), jnp.float32)

    def train(private, rows, label, mask, lr):
        done = factored(mf(D), lr, 0.01, epochs=epochs, batch_size=batch_size)(
            private, (), rows, label, mask
        )
        return done.private, done.rows, done.loss

    lr = jnp.array([0.5, 0.1, 0.5, 1.0, 0.0])
    agree(train, private, rows, label, mask, lr)


def test_training_far_from_zero():
    # Scores of some hundred: exp and log1p at their ends, and no subnormal numbers on the way.
    rows, mask = clients()
    private = 100 * jnp.ones((5, D))
    label = jnp.zeros((5, N))

    def train(private, rows, label, mask):
        done = factored(mf(D), 0.01, epochs=2)(private, (), rows, label, mask)
        return done.private, done.rows, done.loss

    agree(train, private, rows, label, mask)


def test_training_on_what_is_not_finite_is_not_finite():
    rows, mask = clients()
    rows = rows.at[4, 3].set(jnp.nan)
    train = factored(mf(D), 0.1)
    label = jnp.zeros((5, N))
    loops, plain = both(
        lambda p, r, y, m: train(p, (), r, y, m).private, jnp.ones((5, D)), rows, label, mask
    )
    assert np.isnan(loops[4]).all()
    assert np.isnan(plain[4]).all()
    np.testing.assert_allclose(loops[:4], plain[:4], rtol=RTOL, atol=ATOL)


def test_rows_of_tables():
    r = np.random.default_rng(0)
    table = jnp.asarray(r.normal(size=(5, 30, D)), jnp.float32)
    index = jnp.asarray(r.integers(-3, 35, size=(5, N)), jnp.int32)
    agree(tables.look_up, table, index)

    rows = jnp.asarray(r.normal(size=(5, 4, N, D)), jnp.float32).at[:, 2].set(jnp.inf)
    index = jnp.asarray(r.integers(0, 35, size=(5, 4, N)), jnp.int32)
    weight = jnp.asarray([1, 0.5, 0, 2], jnp.float32)
    agree(lambda t, i, x: tables.add_rows(t, i, x, weight), table, index, rows)
    # The operand may be needed afterwards.
    agree(lambda t, i, x: (tables.add_rows(t, i, x, weight), t + 1), table, index, rows)
    agree(lambda t, i, x: tables.add_rows(t, i, x[..., :1], weight), table[..., :1], index, rows)


@pytest.mark.parametrize("dim", [1, 24, 64])
def test_rows_of_large_tables(dim):
    """Whose rows are asked for beforehand, in blocks of fewer than a client has."""
    r = np.random.default_rng(0)
    m, n = near.FAR // dim + 1, near.BLOCK // max(dim, near.LINE) + 9
    assert 0 < near.at_once(np.zeros((m, dim), np.float32)) < n
    assert near.at_once(np.zeros((m - 1, dim), np.float32)) == 0
    table = jnp.asarray(r.normal(size=(m, dim)), jnp.float32)
    index = jnp.asarray(r.integers(-m // 4, m + m // 4, size=(3, n)), jnp.int32)
    index = index.at[:, :4].set(jnp.asarray([0, m - 1, m, -1]))
    agree(tables.look_up, table[None], index[None, 0])
    rows = jnp.asarray(r.normal(size=(3, n, dim)), jnp.float32)
    weight = jnp.asarray([1, 0, 0.5], jnp.float32)
    agree(lambda t: tables.add_rows(t, index, rows, weight), table[None])


def test_rows_are_asked_for_before_they_are_read():
    """No result shows it; the program that LLVM gets does."""
    table, item, rows = np.ones((3, 16), np.float32), np.zeros(2, np.int32), np.ones((1, 2, 16))
    native_rows.look_up(table, item, np.zeros((2, 16), np.float32))
    one, index = np.ones(1, np.float32), item[None]
    native_rows.add_rows(index, rows.astype(np.float32), index, one, table)
    for loop in (native_rows.look_up, native_rows.add_rows):
        assert "llvm.prefetch" in "".join(loop.inspect_llvm().values())


def test_rows_by_label():
    r = np.random.default_rng(0)
    rows, _ = clients()
    book = jnp.asarray(r.normal(size=(5, K, D)), jnp.float32)
    label = jnp.asarray(r.integers(-2, K + 2, size=(5, N)), jnp.int32)
    agree(reductions.apart, rows, book, label)

    table = jnp.asarray(r.normal(size=(5, 30, D)), jnp.float32)
    index = jnp.asarray(r.integers(-3, 35, size=(5, 4, N)), jnp.int32)
    books = jnp.asarray(r.normal(size=(5, 4, K, D)), jnp.float32).at[:, 2].set(jnp.inf)
    labels = jnp.asarray(r.integers(-2, K + 2, size=(5, 4, N)), jnp.int32)
    weight = jnp.asarray([1, 0.5, 0, 2], jnp.float32)
    agree(lambda t, i, b, y: tables.add_rows(t, i, b, weight, y), table, index, books, labels)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\): without labels"):
        reductions.apart(jnp.ones((4, 3)), jnp.ones((5, 3)))
    index, rows = jnp.zeros((2, 5), jnp.int32), jnp.ones((2, 4, 3))
    with pytest.raises(ValueError, match="do not fit together"):
        tables.add_rows(jnp.ones((9, 3)), index, rows, jnp.ones(2))


@pytest.mark.parametrize("wanted", [True, False])
def test_a_delta_by_labels_is_that_of_its_rows(wanted):
    r = np.random.default_rng(1)
    book = r.normal(size=(3, K, D)).astype(np.float32)
    label = r.integers(0, K + 1, size=(3, N)).astype(np.int32)
    item = np.stack([r.permutation(2 * N)[:N] for _ in range(3)]).astype(np.int32)
    mask = label < K
    expected = np.where(mask[..., None], book[np.arange(3)[:, None], label % K], 0)
    with native.use(wanted):
        few = LabelledDelta(item, book, label, mask)  # of several clients, and on the host
        np.testing.assert_array_equal(few.row, expected)
        np.testing.assert_array_equal(jax.tree.map(lambda x: x[1], few).row, expected[1])
        weight = jnp.asarray([1.0, 0.0, 0.5])
        whole = ItemDelta(item, expected, mask)
        for reducer in (reducers.touched_mean(), reducers.cohort_mean()):
            found = [
                reducer.finish(reducer.add(reducer.zero(Sizes(2 * N, D)), delta, weight))
                for delta in jax.tree.map(jnp.asarray, (few, whole))
            ]
            np.testing.assert_allclose(*found, rtol=RTOL, atol=ATOL)


def test_keys_and_words_are_those_of_jax():
    who = jnp.arange(5, dtype=jnp.int32) * 1_000_003

    def keys(who):
        key = rng.address(7, rng.Stream.CODEC, 3, who)
        several = rng.addresses(jnp.int32(2**31 - 1), list(rng.Stream), who)
        return jax.random.key_data(key), jax.random.key_data(several), rng.rounds_of(key)

    agree(keys, who)
    agree(lambda who: rng.hashed(rng.address(7, rng.Stream.AVAILABILITY), who, -who), who)

    def of_several(who):
        key = rng.address(7, rng.Stream.COHORT, who)
        return rng.permute(key, jnp.arange(12, dtype=jnp.int32).reshape(3, 4), jnp.int32(40))

    agree(of_several, who)


def test_keys_of_other_generators_are_left_to_jax():
    before = jax.config.jax_default_prng_impl
    try:
        jax.config.update("jax_default_prng_impl", "rbg")
        key = rng.address(7, rng.Stream.CODEC, 3)
        expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), rng.Stream.CODEC), 3)
        np.testing.assert_array_equal(*(jax.random.key_data(k) for k in (key, expected)))
    finally:
        jax.config.update("jax_default_prng_impl", before)


def test_a_shared_table_is_not_changed_in_place():
    r = np.random.default_rng(0)
    table = jnp.asarray(r.normal(size=(30, D)), jnp.float32)
    index = jnp.asarray(r.integers(-3, 35, size=(5, 2, N)), jnp.int32)
    rows = jnp.asarray(r.normal(size=(5, 2, N, D)), jnp.float32)
    agree(lambda i, x: tables.add_rows(table, i, x, jnp.ones(2)), index, rows)


def test_operands_are_read_as_what_they_are():
    rows, _ = clients()
    halves = rows[4].astype(jnp.float16)
    with native.use(True):
        found = reductions.squares(halves)
    np.testing.assert_allclose(found, np.sum(np.asarray(halves, np.float64) ** 2), rtol=RTOL)
    agree(lambda x: reductions.apart(x, x.astype(jnp.float16).astype(jnp.float32)), rows)
    table = jnp.ones((4, D))
    agree(lambda i: tables.look_up(table, i), jnp.zeros((5, N), jnp.int32))
    # By itself, as the suite's type checks would refuse the call of a form.
    with pytest.raises(ValueError, match=r"an operand of shape \(3, 2\) where \(3, 4\) is needed"):
        forms._as(jnp.float32, jnp.ones((3, 2)), 3, 4)
    with pytest.raises(ValueError, match="at least 1, not 0 and 256"):
        factored(mf(D), 0.1, epochs=0)


def test_reductions():
    rows, _ = clients()
    agree(reductions.squares, rows)
    agree(reductions.apart, rows, rows[::-1])
    agree(reductions.some, rows.at[:, 5].set(0))


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_main_directions(rank):
    rows, mask = clients(rank=6)
    # What is left of a vector beside those before it may be a hundredth, with the others' rounding.
    agree(lambda x, m: kmeans.main_directions(x, m, rank, 2), rows, mask, rtol=1e-3, atol=1e-4)
    basis = jnp.asarray(np.random.default_rng(0).normal(size=(5, rank, D)), jnp.float32)
    agree(directions.coordinates, rows, basis)


@pytest.mark.parametrize("rank", [1, 2])
def test_main_directions_of_what_is_too_large_are_nan(rank):
    rows, mask = clients()
    rows = rows.at[4, 1, 1].set(1e20).at[3].set(jnp.nan)
    mask = mask.at[3].set(True)
    loops, plain = both(
        lambda x, m: kmeans.main_directions(x, m, rank, largest=bits.LARGEST), rows, mask
    )
    for found in (loops, plain):
        assert np.isnan(found[3:]).all()
    # As in the test above of those that are sound.
    np.testing.assert_allclose(loops[:3], plain[:3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("iterations", [0, 1, 5])
@pytest.mark.parametrize("dim", [1, 3, 4, kmeans.NARROW, 2 * kmeans.NARROW + 1])
def test_lloyd(iterations, dim):
    rows, mask = clients(dim=dim)
    start = rows[:, ::10]
    r = np.random.default_rng(2)
    weights = jnp.asarray(r.random((5, N)), jnp.float32)

    def run(rows, mask, start, k, weights):
        found = kmeans.lloyd(rows, mask, start, k=k, weights=weights, iterations=iterations)
        used = (jnp.arange(len(start)) < k)[:, None]
        return jnp.where(k > 0, found.inertia, 0), found.label, jnp.where(used, found.centroid, 0)

    agree(run, rows, mask, start, jnp.array([0, 1, 4, 8, 3]), weights)


def test_errors_of_several_numbers_of_actions():
    rows, mask = clients(seed=3)

    def told(rows, mask):
        return directions.errors(rows, mask, directions.along_main(rows, mask, K))

    # Labels lie where rounding puts a row that is between two levels.
    agree(told, rows, mask, rtol=1e-3, atol=1e-5)


def test_means():
    rows, mask = clients()
    label = jnp.asarray(np.random.default_rng(0).integers(0, K, (5, N)), jnp.int32)
    agree(lambda x, m, y: kmeans.means(x, m, y, K), rows, mask, label)
    rows = rows.at[4, 0, 0].set(2.0**51)
    loops, plain = both(
        lambda x, m, y: kmeans.means(x, m, y, K, largest=bits.LARGEST), rows, mask, label
    )
    # Of its cluster alone; the JAX form multiplies with zeros, and has no mean of that column.
    assert np.argwhere(np.isnan(loops)).tolist() == [[4, int(label[4, 0]), 0]]
    assert np.isnan(plain[4, :, 0]).all()
    assert np.isnan(plain).sum() == K


# Costs of 16 ends are lowered at a time, which may be more than there are.
@pytest.mark.parametrize("bins", [8, 15, 16, 17, 128])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spread", ["normal", "cauchy", "ties"])
def test_table_and_levels(spread, weighted, bins):
    r = np.random.default_rng(5)
    values = {
        "normal": r.normal(size=(5, N)),
        "cauchy": r.standard_cauchy((5, N)),
        "ties": r.integers(5, size=(5, N)),
    }[spread].astype(np.float32)
    _, mask = clients()
    weights = jnp.asarray(r.random((5, N)) if weighted else np.ones((5, N)), jnp.float32)
    values = jnp.where(mask, values, 0)

    def errors(values, mask, weights):
        table = kmeans1d.table(values, mask, K, weights=weights, bins=bins)
        told = [table.error]
        for k in (1, 3, K):
            found = kmeans1d.levels(table, values, mask, jnp.int32(k), weights=weights)
            gap = values - found.level[found.label]
            told.append(jnp.sum(weights * mask * gap * gap)[None])
        return jnp.concatenate(told) / jnp.maximum(jnp.sum(values**2), 1)

    # Where two cuts are equally good, rounding decides which is found: errors say how good it is.
    agree(errors, values, mask, weights, rtol=1e-3, atol=1e-6)


def test_cube_roots():
    maths = pytest.importorskip("fedras_jax.native.maths")
    low, high = np.array([1e-36, 1e37], np.float32).view(np.int32)
    x = np.random.default_rng(0).integers(low, high, 100_000, np.int32).view(np.float32)
    found = np.array([maths.cbrt(one) for one in np.append(x, np.float32(0))])
    # Two steps leave rounding alone, of four operations; an ulp is 1.2e-7 of a number at most.
    np.testing.assert_allclose(found[:-1], np.cbrt(x.astype(np.float64)), rtol=2.5e-7)
    assert found[-1] == 0


def test_levels_where_values_are_few_or_equal():
    # Fewer values than levels, so that some levels are equal and empty; signed zeros, far outliers.
    values = np.zeros((5, N), np.float32)
    values[1] = np.arange(N) % 3 - 1
    values[2] = np.where(np.arange(N) % 2, -0.0, 0.0)
    values[3, 0], values[3, 1] = 1e12, -1e12
    values[4] = 1e-30 * (np.arange(N) % 2)
    mask = jnp.ones((5, N), bool)

    def run(values, mask):
        table = kmeans1d.table(values, mask, K)
        found = kmeans1d.levels(table, values, mask, jnp.int32(K))
        return found.level[found.label]

    # Every value has a level of its own, whichever of equal levels that is.
    agree(run, jnp.asarray(values), mask, rtol=1e-6, atol=0)
    np.testing.assert_allclose(both(run, jnp.asarray(values), mask)[0], values, rtol=1e-6)


@pytest.mark.parametrize("spread", [1e-4, 1e-5, 3e-6, 1e-6])
def test_labels_are_of_the_nearest_level_far_from_zero(spread):
    # Means of neighbouring bins are then an ulp or two apart, and sums of them may change places.
    r = np.random.default_rng(0)
    values = 1.7 * (1 + spread * r.random((50, 800)))
    values[:, :5] = [-1, -1, 0, 3, 3]
    values = values.astype(np.float32)

    def run(values):
        mask = jnp.ones(values.shape, bool)
        table = kmeans1d.table(values, mask, 64, bins=256)
        found = kmeans1d.levels(table, values, mask, jnp.int32(64), polish=0)
        return found.level, found.label

    level, label = jax.jit(jax.vmap(run))(values)
    gap = np.abs(values[..., None] - np.asarray(level)[:, None])
    np.testing.assert_array_equal(
        np.take_along_axis(gap, np.asarray(label)[..., None], 2)[..., 0], gap.min(2)
    )


def test_levels_of_what_is_not_finite_are_nan():
    values = jnp.ones((2, N)).at[0, 3].set(jnp.nan).at[1, 4].set(jnp.inf)

    def run(values):
        mask = jnp.ones(N, bool)
        table = kmeans1d.table(values, mask, K)
        return table.error[1:], kmeans1d.levels(table, values, mask, 4).level[:4]

    for error, level in both(run, values):
        assert np.isnan(error).all()
        assert np.isnan(level).any(axis=1).all()


# As a bitmap up to 131,072 items, beyond by sorting in three digits and in four.
@pytest.mark.parametrize("universe", [80, 100, 3000, 2**17, 2**17 + 1, 5_000_000, 2**31 - 1])
def test_sets(universe):
    r = np.random.default_rng(universe)
    item = np.stack([r.choice(max(universe - 2, N - 1), N - 1, replace=False) for _ in range(5)])
    item = jnp.asarray(np.insert(item + 1, 0, universe - 1 if universe > N else 0, 1), jnp.int32)
    _, mask = clients()
    agree(lambda i, m: bits.set_bits(i, m, universe), item, mask)
    label = jnp.asarray(r.integers(0, K, (5, N)), jnp.int32)
    n = mask.sum(1)
    for k in (jnp.minimum(n, K), n):
        agree(lambda i, m, y, k: bits.own_actions(i, m, y, k, N, universe), item, mask, label, k)


@pytest.mark.parametrize("universe", [80, 1000, 5_000_000])
def test_one_set_in_another(universe):
    r = np.random.default_rng(universe)
    item = jnp.asarray([r.choice(universe, N, replace=False) for _ in range(5)], jnp.int32)
    among = jnp.asarray([r.choice(universe, 40, replace=False) for _ in range(5)], jnp.int32)
    among = among.at[:, 20:30].set(item[:, :10]).at[:, 35:].set(universe)  # and empty slots
    _, mask = clients()
    agree(sets.find, among, item, mask)
    found, at = sets.find(among[4], item[4], mask[4])
    held = np.isin(item[4], among[4])
    np.testing.assert_array_equal(found, held)
    np.testing.assert_array_equal(among[4][at][held], item[4][held])


def test_how_often_symbols_occur():
    r = np.random.default_rng(0)
    _, mask = clients()
    for columns in (1, 3):
        level = np.round(4 * r.standard_cauchy((5, N, columns))).clip(-bits.REACH, bits.REACH)
        level = jnp.asarray(level, jnp.int8)
        agree(bits.level_bits, level, mask)
        label = jnp.asarray(r.integers(0, K, (5, N, columns)), jnp.uint8)
        agree(lambda s, m: bits._often(s, m, -2, 4), level, mask)  # and symbols beyond
        agree(lambda y, m: bits.entropy_bits(y, m, jnp.int32(K), K), label, mask)


@pytest.mark.parametrize("count", [1, 7, N - 1, N])
def test_largest(count):
    r = np.random.default_rng(count)
    x = r.standard_cauchy((5, N)).astype(np.float32)
    x[1] = r.integers(-2, 3, N)  # ties
    x[2, ::3] = np.inf
    x[3] = 0
    x[4] *= np.float32(1e-41)  # subnormal
    agree(lambda x: reductions.largest(x, count), jnp.asarray(x))
    order = np.argsort(-x, axis=1, kind="stable")[:, :count]
    found = jax.vmap(lambda x: reductions.largest(x, count))(jnp.asarray(x))
    np.testing.assert_array_equal(found, np.sort(order))


def test_the_largest_of_fewer_numbers_are_refused():
    with pytest.raises(ValueError, match="4 of 3 numbers"):
        reductions.largest(jnp.ones(3), 4)


@pytest.mark.parametrize("n_items", [9, M, 50_000, 5_000_000])
def test_rows_of_single_entries(n_items):
    r = np.random.default_rng(n_items)
    position = [r.choice(n_items * D, N, replace=False) for _ in range(5)]
    _, mask = clients()
    value = jnp.where(mask, jnp.asarray(r.normal(size=(5, N)), jnp.float32), 0)
    agree(
        lambda p, m, v: entries_of.by_item(p, m, v, Sizes(n_items, D)),
        jnp.where(mask, jnp.asarray(position, jnp.int32), n_items * D),
        mask,
        value,
    )


def test_nested_maps_share_what_is_the_same():
    r = np.random.default_rng(0)
    table = jnp.asarray(r.normal(size=(3, 20, D)), jnp.float32)
    index = jnp.asarray(r.integers(0, 20, size=(2, N)), jnp.int32)

    def of_all(index):
        return jax.vmap(lambda t: tables.look_up(t, index))(table)

    agree(of_all, index)
    assert "f32[2,3,20" not in str(jax.make_jaxpr(jax.vmap(of_all))(index))


@pytest.mark.parametrize(
    "codec",
    [
        dense(),
        directional(4),
        actions(4),
        residual(4),
        product(4, parts=2),
        top_rows(8),
        error_feedback(top_entries(64), rows=16),
    ],
    ids=lambda c: c.name,
)
def test_whole_rounds_agree(codec):
    lengths = np.array([3, 8, 12, 0, 20, 25, 33, 1, 5, 18])
    data = make_histories(lengths, M)

    def rounds():
        algorithm = federated(
            model=mf(D),
            n_clients=len(lengths),
            n_items=M,
            history_lengths=lengths,
            training=factored(mf(D), 0.3, 0.01, batch_size=32),
            codec=codec,
            sampler=samplers.fixed_size(len(lengths), 6),
            negatives=2,
            chunk=2,
        )
        run = jax.jit(lambda data: simulate(algorithm, algorithm.init(), data, 3))
        return jax.device_get(run(data))

    (state, info), (plain_state, plain_info) = (_within(wanted, rounds) for wanted in (True, False))
    np.testing.assert_array_equal(info.client, plain_info.client)
    np.testing.assert_array_equal(info.counts_up, plain_info.counts_up)
    np.testing.assert_array_equal(info.n_examples, plain_info.n_examples)
    np.testing.assert_allclose(info.loss, plain_info.loss, rtol=1e-4)
    # Clustering multiplies rounding: a row that lies between two actions may go to either.
    atol = 1e-6 if codec.lossless else 2e-3
    np.testing.assert_allclose(state.items, plain_state.items, atol=atol)
    np.testing.assert_allclose(state.clients, plain_state.clients, atol=atol)


def _within(wanted, function):
    with native.use(wanted):
        return function()


def test_the_variable_turns_loops_off(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "0")
    assert not native.on()
    with native.use(True):
        assert native.on()
    monkeypatch.setenv(native.VARIABLE, "maybe")
    with pytest.raises(ValueError, match="FEDRAS_JAX_NATIVE=maybe: expected 0 or 1"):
        native.on()


def test_without_a_compiler_the_jax_form_is_used(monkeypatch):
    monkeypatch.setattr(native, "installed", lambda: False)
    assert not native.on()
    rows, _ = clients()
    assert "ffi_call" not in str(jax.make_jaxpr(reductions.squares)(rows[0]))
