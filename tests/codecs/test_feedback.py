"""A memory around codecs: what is decoded and what is remembered are all that there was."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import CTX_KEY, SIZES, deltas
from toys import make_histories

from fedras_jax import samplers
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.feedback import error_feedback
from fedras_jax.codecs.rows import rows
from fedras_jax.codecs.top_rows import top_rows
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.rounds import federated
from fedras_jax.types import Codec, Context, ItemDelta

CTX = Context(SIZES, CTX_KEY)
CLIENT = 3


@functools.cache
def stepper(codec: Codec):
    @jax.jit
    def step(delta, state):
        prepared = codec.prepare(CTX, CTX_KEY, delta)
        # What a client will lose depends on what it remembers.
        assert prepared.error is None or not jax.tree.leaves(codec.init(SIZES))
        payload, state = codec.encode(CTX, CTX_KEY, delta, prepared, jnp.int32(2), state)
        return payload, codec.decode(CTX, payload), state

    return step


def one_delta(u: int = CLIENT) -> ItemDelta:
    return jax.tree.map(lambda x: x[u], deltas())


def table(item, row) -> np.ndarray:
    out = np.zeros((SIZES.items + 1, SIZES.dim))
    np.add.at(out, np.asarray(item), np.asarray(row, np.float64))
    return out[:-1]


@pytest.mark.parametrize("inner", [top_rows(8), actions(2), dense(dtype="bfloat16")])
def test_errors_do_not_pile_up(inner):
    """The same delta every round, and a memory that holds all its rows."""
    codec = error_feedback(inner, rows=128)
    delta, state = one_delta(), codec.init(SIZES)
    whole = table(delta.item, delta.row)
    alone = table(
        *[getattr(stepper(inner)(delta, inner.init(SIZES))[1], x) for x in ("item", "row")]
    )
    said, gaps = np.zeros_like(whole), []
    for t in range(1, 41):
        _, decoded, state = stepper(codec)(delta, state)
        said += table(decoded.item, decoded.row)
        # All that there was, up to rounding of sums of t rows.
        both = said + table(state.item, state.row)
        np.testing.assert_allclose(both, t * whole, atol=1e-5 * t * np.abs(whole).max())
        gaps.append(np.linalg.norm(said - t * whole))
    without = 40 * np.linalg.norm(alone - whole)
    assert gaps[-1] < 0.5 * without
    if inner.name == "dense":  # a contraction by 2^-8 of each entry: bounded by a rounding
        assert max(gaps) < 0.01 * np.linalg.norm(whole)


def test_nothing_is_remembered_of_a_lossless_codec():
    codec = error_feedback(rows(), rows=4)
    _, decoded, state = stepper(codec)(one_delta(), codec.init(SIZES))
    np.testing.assert_array_equal(state.item, SIZES.items)
    np.testing.assert_array_equal(state.row, 0)
    np.testing.assert_array_equal(decoded.row, one_delta().row)
    assert codec.lossless


def small(items, values) -> ItemDelta:
    """Rows with a single entry each, padded."""
    row = np.zeros((6, SIZES.dim), np.float32)
    row[: len(values), 0] = values
    item = np.full(6, SIZES.items, np.int32)
    item[: len(items)] = items
    return ItemDelta(jnp.asarray(item), jnp.asarray(row), jnp.asarray(item < SIZES.items))


def memory(state) -> dict:
    return {
        int(i): float(r[0]) for i, r in zip(state.item, state.row, strict=True) if i < SIZES.items
    }


def test_memory_by_hand():
    """One action says the mean of the rows: what is left is each row less the mean."""
    codec = error_feedback(actions(1), rows=2)
    step, state = stepper(codec), codec.init(SIZES)
    _, decoded, state = step(small([7, 2, 9], [1.0, 2.0, 6.0]), state)
    np.testing.assert_array_equal(decoded.row[:3, 0], 3.0)
    assert memory(state) == {7: -2.0, 9: 3.0}  # of -2, -1 and 3 the two largest
    # 7 is touched and waits for no longer, 9 is not; 4 is new.
    _, decoded, state = step(small([4, 7], [8.0, 4.0]), state)
    np.testing.assert_array_equal(decoded.row[:2, 0], 5.0)  # of 8 and 4 - 2
    assert memory(state) in ({9: 3.0, 4: 3.0}, {9: 3.0, 7: -3.0}, {4: 3.0, 7: -3.0})
    assert memory(state) == {9: 3.0, 4: 3.0}  # of equal norms the longest remembered come first
    # What nothing is owed to, and nothing said of, stays.
    _, _, after = step(small([], []), state)
    assert memory(after) == memory(state)
    # Even when there is no more to say of it than what is owed.
    _, decoded, after = step(small([9], [0.0]), after)
    assert decoded.row[0, 0] == 3.0
    assert memory(after) == {4: 3.0}


def test_largest_rows_are_kept_also_tiny_ones():
    """Squares of 1e-30 would underflow."""
    codec = error_feedback(actions(1), rows=3)
    values = np.float32(1e-30) * np.array([1, -2, 3, -4, 5, -3], np.float32)
    _, _, state = stepper(codec)(small([1, 2, 3, 4, 5, 6], values), codec.init(SIZES))
    assert set(memory(state)) == {3, 4, 5}  # 3 and 6 are equal


def moved(codec: Codec, support: str) -> Codec:
    """A codec that decodes in another order, and speaks of half of the rows or of another one."""

    def decode(ctx, payload):
        found = codec.decode(ctx, payload)
        mask = found.mask[::-1]
        if support == "subset":
            mask = mask & (jnp.arange(mask.size) % 2 == 0)
        item = jnp.where(mask, found.item[::-1], ctx.sizes.items)
        row = jnp.where(mask[:, None], 0.5 * found.row[::-1], 0)
        if support == "superset":
            other = jnp.array([SIZES.items - 1], jnp.int32)
            item, row = jnp.append(item, other), jnp.concatenate([row, jnp.ones((1, SIZES.dim))])
            mask = jnp.append(mask, True)
        return ItemDelta(item, row, mask)

    return codec._replace(decode=decode, support=support, lossless=False)


@pytest.mark.parametrize("support", ["subset", "superset"])
def test_decoded_rows_are_found_by_item(support):
    codec = error_feedback(moved(rows(), support), rows=128)
    delta = one_delta()
    _, decoded, state = stepper(codec)(delta, codec.init(SIZES))
    whole, said = table(delta.item, delta.row), table(decoded.item, decoded.row)
    touched = np.asarray(delta.item)[np.asarray(delta.mask)]
    assert SIZES.items - 1 not in touched
    expected = np.zeros_like(whole)
    expected[touched] = (whole - said)[touched]
    # One subtraction in float32.
    np.testing.assert_allclose(
        table(state.item, state.row), expected, atol=1e-7 * np.abs(whole).max()
    )


@pytest.mark.parametrize("q", [1, 5, 300])
def test_state_and_sizes(q):
    inner = actions(2)
    codec = error_feedback(inner, rows=q)
    state = codec.init(SIZES)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert state.item.shape == (q,)
    assert state.row.shape == (q, SIZES.dim)
    assert codec.fields(SIZES) == inner.fields(SIZES)
    assert (codec.name, codec.max_actions, codec.support) == ("actions", 2, "exact")
    for u in (0, CLIENT, 7):
        payload, _, state = stepper(codec)(one_delta(u), state)
        plain, _, _ = stepper(inner)(one_delta(u), ())
        np.testing.assert_array_equal(payload.counts, plain.counts)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
        used = np.asarray(state.item)[np.asarray(state.item) < SIZES.items]
        assert len(set(used)) == len(used) <= q
        np.testing.assert_array_equal(
            np.asarray(state.row)[np.asarray(state.item) == SIZES.items], 0
        )


def counting(codec: Codec) -> Codec:
    """A codec with a state: how often it was asked to encode."""

    def encode(ctx, key, delta, prepared, k, state):
        payload, _ = codec.encode(ctx, key, delta, prepared, k, ())
        return payload, state + 1

    return codec._replace(init=lambda sizes: jnp.int32(0), encode=encode)


def test_rounds_keep_every_client_s_memory():
    lengths, m = np.array([3, 8, 12, 0, 20, 25, 33, 1]), 100
    codec = error_feedback(counting(actions(1)), rows=6)
    algorithm = federated(
        model=mf(4),
        n_clients=8,
        n_items=m,
        history_lengths=lengths,
        training=factored(mf(4), 0.3, epochs=2, batch_size=32),
        codec=codec,
        sampler=samplers.fixed_size(8, 8),
        negatives=2,
        n_widths=2,
        chunk=4,
    )
    data, step = make_histories(lengths, m), jax.jit(algorithm.step)
    state = algorithm.init()
    assert state.codec.item.shape == (8, 6)
    seen = []
    for _ in range(3):
        state, info = step(state, data)
        seen.append(np.asarray(state.codec.row))
        assert np.isfinite(info.distortion).all()
    live = lengths > 0
    np.testing.assert_array_equal(state.codec.inner, 3 * live)
    remembered = (np.asarray(state.codec.item) < m).sum(1)
    # A client without items owes nothing; all others touch three rows or more, and one mean
    # cannot say them.
    assert np.all(remembered[live] >= 2)
    assert np.all(remembered[~live] == 0)
    assert not np.array_equal(seen[1], seen[2])


def test_refuses():
    with pytest.raises(SpecError) as error:
        error_feedback(rows(), rows=0)
    assert str(error.value) == "error_feedback: rows must be at least 1, not 0"
