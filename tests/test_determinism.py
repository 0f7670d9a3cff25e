"""Runs repeat bit for bit, and what should not matter does not: chunks, order, devices, segments.

Where a different program computes the same numbers, sums are ordered otherwise, and tables agree
to rounding; what is counted agrees exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import OPTIMISED, make_histories

from fedras_jax import cohort, examples, rng, samplers
from fedras_jax.assembly import assemble, split_of
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.rounds import federated
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.types import Cohort, Context, Sizes

# Two widths, one client without a history.
LENGTHS = np.array([3, 8, 12, 0, 20, 25, 33, 1, 5, 98, 17, 10, 7, 7, 30, 2, 4, 40, 9, 6])
U, M, D = len(LENGTHS), 100, 8
DATA = make_histories(LENGTHS, M)
CODECS = {
    "dense": dense,
    "actions": lambda: actions(4, rank=2, iterations=2),
    "directional": lambda: directional(4, dtype="float32"),
}


def build(codec="dense", *, seed=3, lr=0.3, size=0, chunk=4, devices=1, n_widths=2):
    return federated(
        model=mf(D),
        n_clients=U,
        n_items=M,
        history_lengths=LENGTHS,
        training=factored(mf(D), lr, 0.01, batch_size=32),
        codec=CODECS[codec](),
        sampler=samplers.fixed_size(U, size),
        seed=seed,
        negatives=2,
        n_widths=n_widths,
        chunk=chunk,
        mesh=None if devices == 1 else cohort.client_mesh(devices),
    )


@functools.cache
def segment(rounds: int):
    """`simulate` of some rounds of dense training with cohorts of nine, compiled once."""
    algorithm = build(size=9)
    return algorithm, jax.jit(lambda state, data: simulate(algorithm, state, data, rounds))


def identical(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def everyone(order=None) -> Cohort:
    client = jnp.arange(U) if order is None else jnp.asarray(order, jnp.int32)
    ones = jnp.ones(U)
    return Cohort(client, ones > 0, ones, ones, jnp.zeros(U, jnp.int32))


@functools.cache
def one_round(codec: str, chunk: int = 4, devices: int = 1, shuffled: bool = False):
    """The state and diagnostics after a round of everyone, in the order of clients."""
    n_widths = 2 if codec == "dense" else 1  # half the time to compile
    algorithm = build(codec, chunk=chunk, devices=devices, n_widths=n_widths)
    order = np.random.default_rng(0).permutation(U) if shuffled else np.arange(U)
    state, info = jax.jit(algorithm.step)(algorithm.init(), DATA, everyone(order))
    back = np.argsort(order)  # of what there is for each client
    info = jax.tree.map(lambda x: x[back] if x.shape[:1] == (U,) else x, info)
    return jax.tree.map(np.asarray, (state, info))


def test_the_same_seed_gives_the_same_bits():
    algorithm, run = segment(5)
    expected = run(algorithm.init(), DATA)
    identical(run(algorithm.init(), DATA), expected)
    again = build(size=9)  # a program compiled afresh
    identical(jax.jit(lambda s, d: simulate(again, s, d, 5))(again.init(), DATA), expected)


def test_another_seed_gives_another_run():
    algorithm, _ = segment(5)
    one, two = algorithm.init(), build(size=9, seed=4).init()
    assert np.mean(np.asarray(one.items) == np.asarray(two.items)) < 0.01


def test_ten_rounds_are_two_times_five():
    """Bit-identical when the same compiled segment is called again, from its own output."""
    algorithm, five = segment(5)
    state, first = five(algorithm.init(), DATA)
    state, second = five(state, DATA)
    assert state.round == 10
    # Stopped and resumed from host copies, as a checkpoint would be.
    stopped = jax.tree.map(np.asarray, five(algorithm.init(), DATA)[0])
    resumed, after = five(jax.tree.map(jnp.asarray, stopped), DATA)
    identical(resumed, state)
    identical(after, second)
    # And ten in one program: another scan length, the same body.
    _, ten = segment(10)
    whole, infos = ten(algorithm.init(), DATA)
    identical(whole, state)
    identical(infos, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second))


LAYOUTS = {
    "chunk-1": {"chunk": 1},
    "chunk-256": {"chunk": 256},
    "shuffled": {"shuffled": True},
    "devices": {"devices": 8},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_a_client_is_run_does_not_matter(layout):
    expected, info = one_round("dense")
    found, other = one_round("dense", **LAYOUTS[layout])
    # Values of order 0.1, means of a few float32 terms.
    np.testing.assert_allclose(found.items, expected.items, atol=1e-5)
    np.testing.assert_allclose(found.clients, expected.clients, atol=1e-5)
    np.testing.assert_array_equal(found.last_sync, expected.last_sync)
    np.testing.assert_allclose(other.loss, info.loss, rtol=1e-5)
    for name in ("client", "n_examples", "n_short", "n_actions", "counts_up", "synced", "weight"):
        np.testing.assert_array_equal(getattr(other, name), getattr(info, name), err_msg=name)
    assert info.n_examples[3] == 0  # the client without a history is in it


@pytest.mark.parametrize("codec", ["actions", "directional"])
def test_lossy_payloads_do_not_depend_on_where_a_client_is_run(codec):
    """Other devices, other chunks and another order, all at once."""
    expected, info = one_round(codec)
    found, other = one_round(codec, chunk=256, devices=8, shuffled=True)
    np.testing.assert_array_equal(other.counts_up, info.counts_up)
    np.testing.assert_array_equal(other.n_actions, info.n_actions)
    np.testing.assert_allclose(found.items, expected.items, atol=1e-5)  # as above
    np.testing.assert_allclose(other.distortion, info.distortion, rtol=1e-3, atol=1e-6)


@functools.cache
def trained():
    """Real interactions, and the state that thirty rounds of dense training have left."""
    spec = Spec(codec="dense", rounds=30, dim=16)
    split = split_of(spec)
    _, algorithm, data = assemble(spec, split)
    run = jax.jit(lambda s, d: simulate(algorithm, s, d, 30), compiler_options=OPTIMISED)
    state, _ = run(algorithm.init(), data)
    # Those that fit one width, so that there is one program to compile for each layout.
    lengths = np.diff(split.offsets)
    who = np.flatnonzero((lengths >= 25) & (lengths <= 51))[:100]
    return spec, state, data, split.n_items, who


def labels_and_rows(codec: str, chunk: int, devices: int, shuffled: bool):
    """Who is touched, each slot's label and decoded row, by client, for one way to run them."""
    spec, state, data, n_items, who = trained()
    make = {"actions": actions, "directional": directional}[codec](16, dtype="float32")
    training = factored(mf(D), spec.client_lr, spec.weight_decay)
    order = np.random.default_rng(1).permutation(len(who)) if shuffled else np.arange(len(who))

    def client(width, broadcast, inputs):
        state, data = broadcast
        one, private = inputs
        ctx = Context(Sizes(n_items, spec.dim), rng.address(0, rng.Stream.SHARED, 30))
        keys = (rng.address(0, s, 30, one) for s in (rng.Stream.NEGATIVES, rng.Stream.SHUFFLE))
        live = jnp.bool_(True)
        batch = examples.draw(
            examples.orders(*keys), data, one, live, n_items=n_items, negatives=4, width=width
        )
        result = training(private, (), state.public[batch.item], batch.label, batch.mask)
        delta = examples.item_delta(batch, result.rows)
        prepared = make.prepare(ctx, ctx.key, delta)
        payload, _ = make.encode(ctx, ctx.key, delta, prepared, jnp.int32(16), ())
        decoded = make.decode(ctx, payload)
        return jnp.zeros(()), (delta.mask, payload.data["label"], decoded.row)

    members = jnp.asarray(who[order], jnp.int32)
    _, kept = jax.jit(
        # `members` is an argument, so that another order of them is no other program.
        lambda state, data, members: cohort.fold_clients(
            client,
            lambda acc, sent: acc + sent.sum(),
            jnp.zeros(()),
            (state, data),
            (members, state.clients[members]),
            jnp.full(len(who), 256),
            widths=(256,),
            chunk=chunk,
            mesh=None if devices == 1 else cohort.client_mesh(devices),
        ),
        compiler_options=OPTIMISED,
    )(state, data, members)
    return jax.tree.map(lambda x: np.asarray(x)[np.argsort(order)], kept)


@pytest.mark.long
@pytest.mark.parametrize("codec", ["actions", "directional"])
def test_labels_of_real_deltas_do_not_depend_on_where_a_client_is_run(codec):
    """One by one, or at once, on other devices and in another order.

    At least 999 labels of 1,000 are the same, and then the rows are, to 1e-5.
    """
    mask, label, row = labels_and_rows(codec, chunk=1, devices=1, shuffled=False)
    _, other_label, other_row = labels_and_rows(codec, chunk=256, devices=8, shuffled=True)
    same = label == other_label
    assert mask.sum() > 10_000
    assert same[mask].mean() >= 0.999
    np.testing.assert_allclose(other_row[mask & same], row[mask & same], atol=1e-5)


def test_seeds_and_learning_rates_may_be_mapped():
    def final(seed, lr):
        algorithm = build(seed=seed, lr=lr, size=5, n_widths=1)
        state, info = simulate(algorithm, algorithm.init(), DATA, 2)
        return state.items, info.client, info.counts_up

    seeds, rates = jnp.array([0, 1, 0]), jnp.array([0.1, 0.3, 0.3])
    alone = jax.jit(final)
    separate = [alone(s, lr) for s, lr in zip(seeds, rates, strict=True)]
    mapped = jax.jit(jax.vmap(final))(seeds, rates)
    looped = jax.jit(lambda xs: jax.lax.map(lambda x: final(*x), xs))((seeds, rates))
    for i, (items, client, counts) in enumerate(separate):
        for found in (mapped, looped):
            np.testing.assert_allclose(found[0][i], items, atol=1e-5)  # as above
            np.testing.assert_array_equal(found[1][i], client)
            np.testing.assert_array_equal(found[2][i], counts)
    # Seeds and rates both matter.
    assert np.abs(separate[0][0] - separate[2][0]).max() > 1e-3
    assert np.abs(separate[1][0] - separate[2][0]).max() > 1e-2
    np.testing.assert_array_equal(separate[0][1], separate[2][1])


def test_one_program_serves_every_cohort():
    algorithm = build(size=9)
    step = jax.jit(algorithm.step)
    state = algorithm.init()
    rng = np.random.default_rng(0)
    for _ in range(12):
        n = rng.integers(10)
        members = Cohort(
            client=jnp.asarray(rng.permutation(U)[:9], jnp.int32),
            mask=jnp.arange(9) < n,
            weight=jnp.asarray(rng.random(9), jnp.float32),
            inclusion=jnp.ones(9),
            role=jnp.zeros(9, jnp.int32),
        )
        state, _ = step(state, DATA, members)
    assert step._cache_size() == 1
    assert np.isfinite(state.items).all()
