"""The laws that all codecs obey, on deltas as training makes them.

A new codec is one line in CODECS here. What is particular to it (its size by hand, its error, its
settings' limits) has a file of its own.
"""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import make_histories

from fedras_jax import bits, examples, kmeans, rng
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.colr import colr
from fedras_jax.codecs.count_sketch import count_sketch
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.grid import grid
from fedras_jax.codecs.product import product
from fedras_jax.codecs.quantized import quantized
from fedras_jax.codecs.random_mask import random_mask
from fedras_jax.codecs.residual import residual
from fedras_jax.codecs.rotated import rotated
from fedras_jax.codecs.rows import rows
from fedras_jax.codecs.sign import sign
from fedras_jax.codecs.svd import svd
from fedras_jax.codecs.ternary import ternary
from fedras_jax.codecs.top_entries import top_entries
from fedras_jax.codecs.top_rows import top_rows
from fedras_jax.codecs.transform import transform
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.transforms import pseudo_items
from fedras_jax.types import Context, ItemDelta, Sizes, Update

SIZES = Sizes(items=300, dim=8)
WIDTH = 128
# Training items; the last two clients touch a single row (no negatives) and none.
HISTORY = [6, 9, 13, 18, 22, 25, 1, 0]
FULL = range(6)
ONE_ROW, NO_ROW = 6, 7

CODECS = {
    "dense": dense,
    "dense-float16": functools.partial(dense, dtype="float16"),
    "dense-bfloat16": functools.partial(dense, dtype="bfloat16"),
    "rows": rows,
    "grid-4": functools.partial(grid, 4),
    "grid-8": functools.partial(grid, 8),
    "quantized-4-row": quantized,
    "quantized-1-row": functools.partial(quantized, 1),
    "quantized-8-payload": functools.partial(quantized, 8, scale="payload"),
    "ternary-row": ternary,
    "ternary-payload": functools.partial(ternary, scale="payload"),
    "sign-row": sign,
    "sign-payload": functools.partial(sign, scale="payload"),
    "quantized-entropy-payload-4": functools.partial(
        quantized, 4, scale="payload", codes="entropy"
    ),
    "quantized-entropy-row-1": functools.partial(quantized, 1, codes="entropy"),
    "rotated-1": rotated,
    "rotated-4": functools.partial(rotated, 4),
    **{
        f"actions-{index}-{dtype}-{k}": functools.partial(actions, k, index=index, dtype=dtype)
        for index, dtype, k in [
            ("touched", "float32", 1),
            ("touched", "float32", 4),
            ("touched", "float32", 16),
            ("touched", "float16", 4),
            ("items", "float32", 16),
            ("items", "float16", 1),
        ]
    },
    "actions-touched-float32-fullwidth-16": functools.partial(actions, 16, rank=None),
    "actions-touched-float32-entropy-16": functools.partial(actions, 16, labels="entropy"),
    **{
        f"directional-{dtype}-{k}": functools.partial(directional, k, dtype=dtype)
        for dtype, k in [("float16", 1), ("float16", 16), ("float32", 4), ("float32", 16)]
    },
    "directional-float16-entropy-16": functools.partial(directional, 16, labels="entropy"),
    "directional-float32-rank3-16": functools.partial(directional, 16, rank=3, dtype="float32"),
    "product-float16-parts4-16": product,
    "product-float32-parts2-5": functools.partial(product, 5, parts=2, dtype="float32"),
    "product-float32-parts1-16": functools.partial(product, 16, parts=1, dtype="float32"),
    "product-float16-entropy-parts2-16": functools.partial(product, 16, parts=2, labels="entropy"),
    "residual-float32-entropy-stages2-4": functools.partial(
        residual, 4, dtype="float32", labels="entropy"
    ),
    "residual-float16-stages2-16": residual,
    "residual-float32-stages3-4": functools.partial(residual, 4, stages=3, dtype="float32"),
    "residual-float32-stages1-16": functools.partial(residual, 16, stages=1, dtype="float32"),
    "colr-float32-rank4": colr,
    "colr-float16-rank2": functools.partial(colr, 2, dtype="float16"),
    "top_rows-float32-8": functools.partial(top_rows, 8),
    "top_rows-float16-200": functools.partial(top_rows, 200, dtype="float16"),
    "top_entries-float32-100": functools.partial(top_entries, 100),
    "top_entries-float16-5000": functools.partial(top_entries, 5000, dtype="float16"),
    "random_mask-float32-quarter": random_mask,
    "random_mask-float16-half": functools.partial(random_mask, 0.5, dtype="float16"),
    "svd-float16-rank2": svd,
    "svd-float32-rank3": functools.partial(svd, 3, dtype="float32"),
    "transform-entropy-rank2": transform,
    "transform-entropy-rank4": functools.partial(transform, 4, bits=8),
    "count_sketch-float32-depth3": count_sketch,
    "count_sketch-float32-depth1": functools.partial(count_sketch, 128, depth=1),
    "count_sketch-float16-depth4": functools.partial(count_sketch, depth=4, dtype="float16"),
}
FAMILY = [name for name in CODECS if name.split("-")[0] in ("actions", "directional")]
BUDGETED = [name for name in FAMILY if name.endswith("-16")]
ONE_OF_EACH = list({name.split("-")[0]: name for name in CODECS}.values())
COUNTED = [*FAMILY, *(name for name in CODECS if name.split("-")[0] in ("dense", "rows"))]


@functools.cache
def deltas() -> ItemDelta:
    """One round of every client, on a table that a few rounds of training have shaped."""
    data = make_histories(HISTORY, SIZES.items)
    random = np.random.default_rng(0)
    table = jnp.asarray(random.normal(size=(SIZES.items, SIZES.dim)), jnp.float32) * 0.1
    private = jnp.asarray(random.normal(size=(8, SIZES.dim)), jnp.float32) * 0.1
    training = factored(mf(SIZES.dim), 0.5, 1e-3, epochs=3, batch_size=32)

    @jax.jit
    def one_round(table, private, round_):
        def one(client, private):
            keys = (rng.address(0, s, round_, client) for s in rng.Stream)
            negatives, shuffle = list(keys)[2:4]
            batch = examples.draw(
                examples.orders(negatives, shuffle),
                data,
                client,
                jnp.bool_(True),
                n_items=SIZES.items,
                negatives=4,
                width=WIDTH,
            )
            # The client with one item keeps it alone.
            mask = batch.mask & ((client != ONE_ROW) | (batch.label == 1))
            item = jnp.where(mask, batch.item, SIZES.items)
            result = training(private, (), table[item], batch.label, mask)
            return ItemDelta(item, result.rows, mask), result.private

        delta, private = jax.vmap(one)(jnp.arange(8), private)
        table = table.at[delta.item.reshape(-1)].add(
            delta.row.reshape(-1, SIZES.dim) / 2, mode="drop"
        )
        return delta, table, private

    for r in range(6):
        delta, table, private = one_round(table, private, r)
    return delta


CTX_KEY = jax.random.key(4)


@functools.cache
def program(name: str):
    """The whole codec for all clients at once, as a jitted function of their budgets."""
    codec = CODECS[name]()

    def one(key, delta, k):
        ctx = Context(SIZES, CTX_KEY)
        prepared = codec.prepare(ctx, key, delta)
        payload, _ = codec.encode(ctx, key, delta, prepared, k, codec.init(SIZES))
        return prepared.error, payload, codec.decode(ctx, payload)

    keys = jax.random.split(jax.random.key(1), 8)
    mapped = jax.jit(jax.vmap(one))
    return codec, jax.jit(one), mapped, keys


@functools.cache
def outcome(name: str, k: int = 16):
    """(error, counts, decoded rows) of every client, as host arrays."""
    _, _, mapped, keys = program(name)
    error, payload, decoded = mapped(keys, deltas(), np.full(8, k, np.int32))
    return jax.tree.map(np.asarray, (error, payload.counts, decoded))


def distortion(decoded: np.ndarray) -> np.ndarray:
    """Squared error of each client with rows, relative to its delta's."""
    row = np.asarray(deltas().row, np.float64)[:7]
    return np.sum((row - decoded[:7]) ** 2, axis=(1, 2)) / np.sum(row**2, axis=(1, 2))


def ceil_log2(n: int) -> int:
    w = 0
    while 2**w < n:
        w += 1
    return w


def set_bits(items: np.ndarray, universe: int) -> int:
    """The smallest of bitmap, ids and Rice codes, written out one number at a time."""
    if len(items) in (0, universe):
        return 0
    width = max(1, ceil_log2(universe))
    gaps = np.diff(np.sort(items), prepend=-1) - 1
    rice = [sum(len("1" * (g >> r) + "0") + r for g in gaps.tolist()) for r in range(width)]
    return min(universe, len(items) * width, *rice)


def expected_bits(name: str, items: np.ndarray, granted: int) -> int:
    """A payload's size for these touched items, from the codec's description alone."""
    kind, *how = name.split("-")
    m, d = SIZES
    n = len(items)
    k = min(granted, n)
    which = set_bits(items, m)
    width = 16 if {"float16", "bfloat16"} & set(how) else 32
    if kind == "dense":
        return 160 + width * m * d
    if kind == "rows":
        return 160 + which + 32 * n * d
    if kind == "directional":
        r = 3 if "rank3" in how else 1
        direction = r * d if n else 0
        return 160 + width * (direction + k * r) + which + n * ceil_log2(max(k, 1))
    assert kind == "actions"
    if k == n:  # an action each: no labels
        index = which
    elif how[0] == "items":
        index = m * ceil_log2(k + 1)
    else:
        index = which + n * ceil_log2(max(k, 1))
    return 160 + width * k * d + index


def test_the_deltas_are_what_the_tests_assume():
    delta = jax.tree.map(np.asarray, deltas())
    n = delta.mask.sum(1)
    np.testing.assert_array_equal(n, [5 * h for h in HISTORY[:6]] + [1, 0])
    assert np.all(delta.row[~delta.mask] == 0)
    assert np.abs(delta.row[delta.mask]).max(-1).min() > 1e-6


def as_tables(delta: ItemDelta) -> tuple[np.ndarray, np.ndarray]:
    """Every client's rows and which items it speaks of, [8, M, D] and [8, M]."""
    table = np.zeros((8, SIZES.items + 1, SIZES.dim), np.float32)
    spoken = np.zeros((8, SIZES.items + 1), np.int64)
    client = np.arange(8)[:, None]
    item = np.where(delta.mask, delta.item, SIZES.items)
    np.add.at(table, (client, item), np.where(np.asarray(delta.mask)[..., None], delta.row, 0))
    np.add.at(spoken, (client, item), 1)
    assert spoken[:, :-1].max() <= 1  # no item twice
    return table[:, :-1], spoken[:, :-1] > 0


@pytest.mark.parametrize("name", CODECS)
def test_support_is_as_declared_and_padded_rows_are_zero(name):
    codec = CODECS[name]()
    _, _, decoded = outcome(name)
    assert decoded.row.dtype == np.float32
    assert np.all(decoded.row[~decoded.mask] == 0)
    assert np.isfinite(decoded.row).all()
    _, touched = as_tables(deltas())
    _, spoken = as_tables(decoded)
    if codec.support in ("exact", "subset"):
        assert not np.any(spoken & ~touched)
    if codec.support in ("exact", "superset"):
        assert not np.any(touched & ~spoken)
    if codec.support == "all":
        assert spoken.all()
    assert codec.support in ("exact", "subset", "superset", "all")


@pytest.mark.parametrize("name", CODECS)
def test_lossless_says_so(name):
    codec = CODECS[name]()
    same = np.array_equal(as_tables(outcome(name)[2])[0], as_tables(deltas())[0])
    assert codec.lossless == same
    assert codec.name == name.split("-")[0]


@pytest.mark.parametrize("name", [n for n in CODECS if CODECS[n]().unbiased])
def test_unbiased_codecs_average_out(name):
    """The mean of 300 draws is as near as 300 independent unbiased draws must be."""
    codec = CODECS[name]()
    one_client = jax.tree.map(lambda x: x[3], deltas())
    dense = as_tables(deltas())[0][3]

    @jax.jit
    @jax.vmap
    def draw(key):
        shared, own = jax.random.split(key)
        ctx = Context(SIZES, shared)
        prepared = codec.prepare(ctx, own, one_client)
        k = jnp.int32(codec.max_actions)
        payload, _ = codec.encode(ctx, own, one_client, prepared, k, codec.init(SIZES))
        decoded = codec.decode(ctx, payload)
        item = jnp.where(decoded.mask, decoded.item, SIZES.items)
        return jnp.zeros(SIZES).at[item].add(decoded.row, mode="drop")

    n = 300
    found = np.asarray(draw(jax.random.split(jax.random.key(7), n)), np.float64)
    single = np.mean(np.sum((found - dense) ** 2, axis=(1, 2)))
    of_mean = np.sum((found.mean(0) - dense) ** 2)
    # single / n in expectation; half as much again is far outside of what hundreds of entries
    # allow, and half-precision scales are biased by an ulp.
    assert of_mean <= 1.5 * single / n + 1e-6 * np.sum(dense**2)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("granted", [1, 3, 16])
def test_sizes(name, granted):
    codec = CODECS[name]()
    granted = min(granted, codec.max_actions or 1)
    _, counts, _ = outcome(name, granted)
    fields = codec.fields(SIZES)
    assert counts.dtype == np.int32
    assert counts.shape == (8, len(fields))
    assert counts.min() >= 0
    touched = [np.asarray(deltas().item)[u][np.asarray(deltas().mask)[u]] for u in range(8)]
    expected = [expected_bits(name, items, granted) for items in touched]
    found = bits.payload_bits(fields, counts)
    if "entropy" in name:  # frequencies cost something too, and may not pay for few rows
        assert np.all(found <= np.array(expected) + 16 * 8 + 64)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", sorted({*ONE_OF_EACH, *BUDGETED, "dense-float16"}))
def test_mapped_is_looped(name):
    """Sizes exactly; rows to rounding, in another program and at other places in memory."""
    _, one, _, keys = program(name)
    error, counts, decoded = outcome(name)
    for u in (1, ONE_ROW, NO_ROW):
        delta = jax.tree.map(lambda x, u=u: x[u], deltas())
        error_u, payload, decoded_u = one(keys[u], delta, jnp.int32(16))
        np.testing.assert_array_equal(payload.counts, counts[u])
        # Half-precision values may round to neighbours: one part in a thousand.
        rtol = 1e-3 if "float16" in name else 1e-5
        scale = np.abs(delta.row).max()
        np.testing.assert_allclose(decoded_u.row, decoded.row[u], atol=rtol * scale)
        if error is not None:
            np.testing.assert_allclose(error_u, error[u], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rows", "quantized-4-row", "directional-float16-1"])
def test_eager_is_jitted(name):
    codec, one, _, keys = program(name)
    delta = jax.tree.map(lambda x: x[2], deltas())
    ctx = Context(SIZES, CTX_KEY)
    prepared = codec.prepare(ctx, keys[2], delta)
    payload, state = codec.encode(ctx, keys[2], delta, prepared, jnp.int32(1), ())
    decoded = codec.decode(ctx, payload)
    _, payload_j, decoded_j = one(keys[2], delta, jnp.int32(1))
    assert state == ()
    np.testing.assert_array_equal(payload.counts, payload_j.counts)
    rtol = 1e-3 if "float16" in name else 1e-5  # as above
    np.testing.assert_allclose(
        decoded.row, decoded_j.row, atol=rtol * float(jnp.abs(delta.row).max())
    )


@pytest.mark.parametrize("name", BUDGETED)
def test_each_client_has_a_budget_of_its_own_in_one_program(name):
    _, _, mapped, keys = program(name)
    ks = np.array([1, 2, 3, 5, 8, 16, 16, 16], np.int32)
    _, payload, decoded = mapped(keys, deltas(), ks)
    for u, k in enumerate(ks):
        _, counts, alone = outcome(name, int(k))
        np.testing.assert_array_equal(payload.counts[u], counts[u])
        np.testing.assert_array_equal(decoded.row[u], alone.row[u])
        # No more distinct rows than actions.
        touched = alone.row[u][np.asarray(deltas().mask)[u]]
        assert len(np.unique(touched, axis=0)) <= k
    assert mapped._cache_size() == 1


@pytest.mark.parametrize("name", FAMILY)
def test_a_budget_beyond_the_rows_is_clamped(name):
    """One touched row: one action is sent, and it is that row."""
    _, counts, decoded = outcome(name)
    codec = CODECS[name]()
    of = {field.name: i for i, field in enumerate(codec.fields(SIZES))}
    sent = counts[ONE_ROW]
    if codec.name == "actions":
        assert sent[of["centroid"]] == 1
    else:
        assert (sent[of["direction"]], sent[of["level"]]) == (1, 1)
    # A row of its own is sent exactly, but for the number format's ulp (of two factors).
    rtol = 2e-3 if "float16" in name else 1e-6
    scale = np.abs(np.asarray(deltas().row)[ONE_ROW]).max()
    np.testing.assert_allclose(
        decoded.row[ONE_ROW], np.asarray(deltas().row)[ONE_ROW], atol=rtol * scale
    )


@pytest.mark.parametrize("name", CODECS)
def test_an_empty_delta_is_finite_and_small(name):
    codec, _, mapped, keys = program(name)
    error, counts, decoded = outcome(name)
    np.testing.assert_array_equal(decoded.row[NO_ROW], 0)
    if error is not None:
        assert np.isfinite(error[NO_ROW]).all()
    if codec.name != "dense":
        assert bits.payload_bits(codec.fields(SIZES), counts)[NO_ROW] == bits.HEADER_BITS
    # Touched rows that did not move are as harmless.
    still = deltas().replace(row=jnp.zeros_like(deltas().row))
    error, _, decoded = mapped(keys, still, np.full(8, 16, np.int32))
    np.testing.assert_array_equal(decoded.row, 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(error))


@pytest.mark.parametrize("name", BUDGETED)
def test_more_actions_never_hurt(name):
    found = np.stack([distortion(outcome(name, k)[2].row) for k in range(1, 17)])
    # Lloyd ends in local minima, and half precision rounds: two percent, and an ulp's square.
    assert np.all(found[1:] <= 1.02 * found[:-1] + 1e-6)
    assert np.all(found[-1, :6] < 0.5 * found[0, :6])


@pytest.mark.parametrize("name", [name for name in BUDGETED if "rank" not in name])
def test_errors_are_told_beforehand(name):
    """For every k, also between those that `directions.errors` looks at."""
    told = outcome(name)[0][:6, 1:].astype(np.float64)
    real = np.stack([distortion(outcome(name, k)[2].row)[:6] for k in range(1, 17)], axis=1)
    # Lloyd's steps come after what is told, and between its k there is a straight line: within a
    # fifth for the mean of clients, which is less than an action more or less makes.
    ratio = told.mean(0) / real.mean(0)
    assert np.all((ratio > 0.8) & (ratio < 1.25))
    assert np.all(np.diff(told) <= 0)


def test_clustering_in_few_coordinates_is_as_good_as_at_full_width():
    """On rows near the span of three vectors, whose main direction alone does not do."""
    random = np.random.default_rng(0)
    row = (random.normal(size=(100, 3)) * [1, 0.6, 0.4]) @ random.normal(size=(3, 8))
    row = jnp.asarray(row + 0.02 * random.normal(size=row.shape), jnp.float32)
    found = ItemDelta(jnp.arange(100), row, jnp.ones(100, bool))
    ctx, key = Context(SIZES, CTX_KEY), jax.random.key(1)

    def error(rank):
        codec = actions(16, rank=rank)
        payload, _ = codec.encode(
            ctx, key, found, codec.prepare(ctx, key, found), jnp.int32(16), codec.init(SIZES)
        )
        return np.square(codec.decode(ctx, payload).row - row).sum()

    assert error(4) <= 1.02 * error(None)
    assert error(1) > 1.2 * error(None)


@pytest.mark.parametrize("k", [4, 16])
def test_actions_are_as_good_as_ten_full_lloyd_steps(k):
    """From k-means++: the docstring's claim, on what all clients' errors add up to."""

    @jax.jit
    @jax.vmap
    def usual(key, row, mask):
        return kmeans.kmeans(key, row, mask, k, iterations=10).inertia

    delta = deltas()
    total = np.sum(np.asarray(delta.row, np.float64) ** 2, axis=(1, 2))
    # Three seeds, so that the yardstick is what k-means++ gives and not one lucky draw.
    theirs = np.mean(
        [usual(jax.random.split(jax.random.key(s), 8), delta.row, delta.mask) for s in range(3)], 0
    )
    ours = distortion(outcome("actions-touched-float32-16", k)[2].row)[:6]
    theirs = (theirs[:6] / total[:6]).astype(np.float64)
    assert ours.mean() <= 1.02 * theirs.mean()
    assert np.all(ours <= 1.1 * theirs)  # a single client may meet a worse local minimum


def exact_levels(values: np.ndarray, k: int) -> float:
    """Least squared error of k levels on the line, by dynamic programming over sorted values."""
    x = np.sort(values)
    n = len(x)
    one, two = np.append(0, np.cumsum(x)), np.append(0, np.cumsum(x * x))
    begin, end = np.arange(n)[:, None], np.arange(1, n + 1)[None, :]
    size = np.maximum(end - begin, 1)
    cost = two[end] - two[begin] - (one[end] - one[begin]) ** 2 / size
    cost = np.where(end > begin, cost, np.inf)
    best = cost[0]
    for _ in range(k - 1):
        best = np.minimum(best, np.min(np.append(0, best[:-1])[:, None] + cost, axis=0))
    return float(best[-1])


@pytest.mark.parametrize("k", [1, 4, 16])
def test_directional_is_near_the_best_levels_along_the_main_direction(k):
    found = distortion(outcome("directional-float32-16", k)[2].row)
    for u in FULL:
        row = np.asarray(deltas().row, np.float64)[u][np.asarray(deltas().mask)[u]]
        along = row @ np.linalg.svd(row)[2][0]
        total = np.sum(row**2)
        best = (total - along @ along + exact_levels(along, k)) / total
        assert math.isfinite(best)
        assert found[u] <= 1.02 * best + 1e-6  # float32's rounding of the rows


@pytest.mark.parametrize("name", ["directional-float32-16", "directional-float16-16"])
def test_directional_predicts_its_error(name):
    error = outcome(name)[0]
    assert error.shape == (8, 17)
    np.testing.assert_allclose(error[:7, 0], 1, atol=1e-5)
    for k in (1, 2, 4, 8, 16):
        # Within five percent: the prediction is of bins, before the levels settle. Half
        # precision adds its own squared rounding, a few 1e-7 of the whole.
        np.testing.assert_allclose(
            distortion(outcome(name, k)[2].row)[:6], error[:6, k], rtol=0.05, atol=1e-6
        )


@pytest.mark.parametrize(
    ("factory", "wrong", "message"),
    [
        (
            actions,
            {"index": "all"},
            "index must be one of ['touched', 'items'], not 'all'",
        ),
        (actions, {"dtype": "int8"}, "actions: dtype must be one of ['float32', 'float16'], not "),
        (actions, {"k": 0}, "actions: k must be 1 to 65535, not 0"),
        (actions, {"k": 65536}, "actions: k must be 1 to 65535, not 65536"),
        (actions, {"iterations": -1}, "actions: iterations must not be negative, not -1"),
        (actions, {"rank": 0}, "actions: rank must be at least 1, None or 'auto', not 0"),
        (
            inspect.unwrap(actions),
            {"rank": "four"},
            "actions: rank must be at least 1, None or 'auto', not 'four'",
        ),
        (
            directional,
            {"dtype": "int8"},
            "dtype must be one of ['float32', 'float16'], not ",
        ),
        (directional, {"k": 0}, "directional: k must be 1 to 65535, not 0"),
        (directional, {"k": 65536}, "directional: k must be 1 to 65535, not 65536"),
    ],
)
def test_factories_refuse(factory, wrong, message):
    with pytest.raises(SpecError) as error:
        factory(**wrong)
    assert message in str(error.value)


# Whose payloads tell which rows they speak of.
SET_SENDING = [
    name for name in ONE_OF_EACH if any(f.dtype == "set" for f in CODECS[name]().fields(SIZES))
] + ["quantized-8-payload", "sign-payload", "ternary-payload"]


@pytest.mark.parametrize("name", SET_SENDING)
def test_pseudo_items_are_sent_and_counted(name):
    """A pseudo-item each: the sent set and the bytes grow, unless the codec sends so many alone."""
    codec = CODECS[name]()
    one = jax.tree.map(lambda x: x[1], deltas())
    touched = set(np.asarray(one.item)[np.asarray(one.mask)].tolist())

    @jax.jit
    def sent(update):
        ctx = Context(SIZES, CTX_KEY)
        prepared = codec.prepare(ctx, CTX_KEY, update)
        k = jnp.int32(codec.max_actions)
        return codec.encode(ctx, CTX_KEY, update, prepared, k, codec.init(SIZES))[0]

    chain = pseudo_items(1.0).apply
    update = Update(one, ())
    more = chain(Context(SIZES, CTX_KEY), CTX_KEY, jnp.int32(0), update)
    plain, padded = sent(one), sent(more.items)
    size = [int(bits.payload_bits(codec.fields(SIZES), p.counts)) for p in (plain, padded)]

    def told(payload):
        item = np.asarray(payload.data["item"])[np.asarray(payload.data["mask"])]
        return set((item // SIZES.dim if codec.name == "top_entries" else item).tolist())

    assert told(plain) <= touched
    pseudo = told(padded) - touched
    if codec.name in ("top_rows", "top_entries"):
        # As many rows or entries as ever, and pseudo-items take their part of them.
        assert len(pseudo) > 0.2 * len(told(padded))
        assert size[1] > 0.95 * size[0]
    else:
        assert told(padded) > touched
        assert len(pseudo) == len(touched)
        assert size[1] > size[0]


@pytest.mark.parametrize("factory", [actions, colr, directional, svd, transform])
def test_ranks_above_the_width_are_refused(factory):
    """Exactly the width is a rank still."""
    name = factory.__name__
    assert factory(rank=8).fields(SIZES)
    with pytest.raises(SpecError) as error:
        factory(rank=9).fields(SIZES)
    assert str(error.value) == f"{name}: rank must be at most the embedding width 8, not 9"


def test_actions_choose_a_rank_that_fits():
    for rank in ("auto", None):
        assert actions(rank=rank).fields(Sizes(10, 2))
    with pytest.raises(SpecError, match="at most the embedding width 2, not 3"):
        actions(rank=3).fields(Sizes(10, 2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_sent_is_rounded_for_good(dtype):
    """XLA must not see through the cast and back."""
    tiny = np.array([6e-8, 1e-7, 3e-5, 6.1e-5, 6.2e-5, 0, -2e-5])  # half precision's subnormals
    x = jnp.concatenate([jnp.linspace(0.1, 3, 50), jnp.asarray(tiny, jnp.float32)])
    found = jax.jit(lambda x: bits.as_sent(x, dtype).astype(jnp.float32))(x)
    np.testing.assert_array_equal(found, np.asarray(x).astype(dtype).astype(np.float32))
    assert bits.as_sent(x, dtype).dtype == dtype
    assert bits.as_sent(x, "float32").dtype == jnp.float32
