"""Item tables spread over a mesh: the same training, and no device that holds all of a table."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import make_histories

from fedras_jax import arrivals, cohort, profiles, reducers, samplers
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.grid import grid
from fedras_jax.codecs.top_rows import top_rows
from fedras_jax.errors import SpecError, StoppedError
from fedras_jax.evaluate import full_ranks, sampled_ranks
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.options import Options
from fedras_jax.rounds import federated
from fedras_jax.run import run, run_group
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec

# One client without a history; four devices have 25 rows each.
LENGTHS = np.array([3, 8, 12, 0, 20, 25, 33, 1, 5, 98, 17, 10, 7, 7, 30, 2, 4, 40, 9, 6])
U, M, D, N = len(LENGTHS), 100, 8, 4
DATA = make_histories(LENGTHS, M)
MODEL = mf(D)
PARTS = {
    "dense": {},
    "levels along a direction, to a table in 8 bits": {
        "codec": directional(4, dtype="float32"),
        "snapshot": grid(8),
    },
    "some rows, to a table that is sent through a codec": {
        "codec": top_rows(16),
        "downlink": directional(8, dtype="float32"),
        "downlink_trend": 0.1,
    },
    "all that arrived, through an optimizer with a state": {
        "reducer": reducers.cohort_mean(),
        "server_optimizer": optax.adam(0.1),
    },
    "in flight": {
        "profile": profiles.three_tiers(U),
        "arrival": arrivals.buffered(12),
    },
}
TRAINED = [*PARTS]
LONG = ["levels along a direction, to a table in 8 bits", "in flight"]
TWO_WIDTHS = ["dense"]  # half the time to compile the others
PARTS["some rows"] = {"codec": top_rows(16)}
PARTS["its own reducer"] = {
    "reducer": reducers.touched_mean()._replace(zero=lambda sizes: jnp.zeros(3))
}


def build(case="dense", *, spread, devices=N, n_items=M):
    return federated(
        **{"codec": dense(), **PARTS[case]},
        model=MODEL,
        n_clients=U,
        n_items=n_items,
        history_lengths=LENGTHS,
        training=factored(MODEL, 0.3, 0.01, batch_size=32),
        sampler=samplers.fixed_size(U, 7),
        negatives=2,
        n_widths=2 if case in TWO_WIDTHS else 1,
        chunk=4,
        seed=3,
        mesh=cohort.client_mesh(devices),
        spread_items=spread,
    )


@functools.cache
def trained(case, spread):
    algorithm = build(case, spread=spread)
    state = jax.jit(algorithm.init)()
    return jax.jit(lambda state: simulate(algorithm, state, DATA, 6))(state)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long if case in LONG else ()) for case in TRAINED]
)
def test_a_spread_table_is_trained_as_a_whole_one(case):
    expected, told = trained(case, False)
    found, other = trained(case, True)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name in ("items", "public", "clients"):
        # Values of order 0.1, means of a few float32 terms in another order; six rounds of them.
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), atol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(other.loss, told.loss, rtol=1e-4)
    for name in ("client", "mask", "n_examples", "counts_up", "counts_down", "synced"):
        np.testing.assert_array_equal(getattr(other, name), getattr(told, name), err_msg=name)
    np.testing.assert_array_equal(found.last_sync, expected.last_sync)
    assert np.abs(found.items - build(case, spread=False).init().items).max() > 0.01  # it trained


@pytest.mark.parametrize("case", TRAINED)
def test_a_device_keeps_its_own_rows_of_all_tables(case):
    state, _ = trained(case, True)
    tables = [x for x in jax.tree.leaves(state) if x.shape[:1] == (M,)]
    more = 2 * case.endswith("a state") + case.endswith("a codec")  # moments; a velocity
    assert len(tables) == 2 + more
    for table in tables:
        assert {part.data.shape[0] for part in table.addressable_shards} == {M // N}
    whole, _ = trained(case, False)
    assert {part.data.shape[0] for part in whole.items.addressable_shards} == {M}


def test_the_first_tables_are_the_same_bits():
    one, two = (jax.jit(build(spread=spread).init)() for spread in (False, True))
    jax.tree.map(np.testing.assert_array_equal, two, one)


@functools.cache
def largest(case, spread, n_items):
    """Numbers in the largest array of the compiled round of one device."""
    algorithm = build(case, spread=spread, n_items=n_items)
    mesh = cohort.client_mesh(N)

    def lies(x):
        rows = jax.sharding.PartitionSpec(cohort.AXIS if x.shape[:1] == (n_items,) else None)
        place = jax.sharding.NamedSharding(mesh, rows if x.ndim else jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place if spread else None)

    state = jax.tree.map(lies, jax.eval_shape(algorithm.init))
    program = jax.jit(algorithm.step).lower(state, DATA).compile().as_text()
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", program)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize(
    "case", ["dense", "levels along a direction, to a table in 8 bits", "some rows"]
)
def test_no_device_ever_holds_a_whole_table(case):
    """In the compiled round of one device no array is larger than a device's rows."""
    n_items = 100_000
    assert largest(case, True, n_items) == n_items // N * D
    # It would have been seen.
    assert largest("dense", False, n_items) == n_items * D


def test_ranks_from_a_spread_table_are_those_from_a_whole_one():
    state, _ = trained("dense", True)
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.integers(0, M, U), jnp.int32)
    others = jnp.asarray(np.stack([rng.permutation(M)[:9] for _ in range(U)]), jnp.int32)
    for ranks in (sampled_ranks, full_ranks):
        given = (state.shared, state.clients, target, others)
        found = jax.jit(functools.partial(ranks, MODEL))(state.items, *given)
        expected = jax.jit(functools.partial(ranks, MODEL))(np.asarray(state.items), *given)
        # Scores are dot products of the same numbers; no two of this many are a rounding apart.
        np.testing.assert_array_equal(found, expected)


@pytest.mark.long
def test_a_run_on_a_spread_table_is_the_run_and_goes_on_with_a_whole_one(tmp_path):
    # Without labels: over several rounds a rounding may flip one, and more than rounding differs.
    spec = Spec(
        dataset="synthetic:40x60", dim=4, cohort_size=9, rounds=4, eval_every=4, codec="rows"
    )
    how = {"workdir": tmp_path, "checkpoint_every": 2}
    mesh = cohort.client_mesh(N)
    with pytest.raises(StoppedError):
        run(spec, mesh=mesh, spread_items=True, stop=lambda: True, **how)
    found = run(spec, mesh=mesh, spread_items=True, **how)
    expected = run(spec, mesh=mesh)
    assert found.state.items.sharding.shard_shape(found.state.items.shape) == (60 // N, 4)
    np.testing.assert_allclose(found.state.items, expected.state.items, atol=1e-5)  # as above
    assert found.summary["payload"] == expected.summary["payload"]
    np.testing.assert_array_equal(found.ranks, expected.ranks)  # no two scores are a rounding apart
    again = run(spec, mesh=mesh, spread_items=True, **how)  # read back
    assert again.state.items.sharding.shard_shape((60, 4)) == (60 // N, 4)
    longer = run(spec.replace(rounds=6), mesh=mesh, **how)  # from the spread one's checkpoint
    again = run(spec.replace(rounds=6), mesh=mesh)
    np.testing.assert_allclose(longer.state.items, again.state.items, atol=1e-5)


def test_several_runs_at_once_have_whole_tables():
    specs = [Spec(dataset="synthetic:40x60", cohort_size=9, seed=seed) for seed in range(2)]
    with pytest.raises(SpecError, match="one run at a time, not for 2"):
        run_group(specs, options=Options(spread_items=True))


def test_a_reducer_that_adds_up_something_else_is_refused():
    algorithm = build("its own reducer", spread=True)
    with pytest.raises(SpecError, match=r"array of shape \(3,\): .* leading axis of items"):
        jax.eval_shape(algorithm.step, algorithm.init(), DATA)


def test_rows_that_cannot_be_dealt_evenly_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"100 items .* evenly over 8 devices; over 1, 2, 4, 5"):
        build(spread=True, devices=8)
    spec = Spec(dataset="synthetic:40x61", cohort_size=9)
    with pytest.raises(SpecError, match="61 items"):
        run(spec, mesh=cohort.client_mesh(2), spread_items=True, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # One device has all rows.
    assert build(spread=True, devices=1).init().items.shape == (M, D)
