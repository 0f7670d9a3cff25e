"""A federated round against one that is written in NumPy for reading."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import make_histories, plain_training

from fedras_jax import agreement, bits, budgets, client, examples, rng, samplers
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.rows import rows
from fedras_jax.codecs.svd import svd
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.gmf import gmf
from fedras_jax.models.mf import mf
from fedras_jax.reducers import cohort_mean
from fedras_jax.rounds import federated
from fedras_jax.simulate import simulate
from fedras_jax.types import Codec, Cohort, Field, RecModel, Transform

# Two widths; one client has no history, one has seen all items but two.
LENGTHS = np.array([3, 8, 12, 0, 20, 25, 33, 1, 5, 98, 17, 10])
U, M, D = len(LENGTHS), 100, 4
EMPTY = 3
DATA = make_histories(LENGTHS, M)
SEED = 11
HOW = {"epochs": 2, "batch_size": 32}
LR, DECAY = 0.3, 0.01


def build(**changed):
    parts = {
        "model": mf(D),
        "n_clients": U,
        "n_items": M,
        "history_lengths": LENGTHS,
        "training": factored(mf(D), LR, DECAY, **HOW),
        "codec": dense(),
        "sampler": samplers.fixed_size(U, 7),
        "seed": SEED,
        "negatives": 2,
        "n_widths": 2,
        "chunk": 4,
    }
    return federated(**{**parts, **changed})


def cohort_of(clients, weight=None, mask=None, role=None) -> Cohort:
    n = len(clients)
    return Cohort(
        client=jnp.asarray(clients, jnp.int32),
        mask=jnp.ones(n, bool) if mask is None else jnp.asarray(mask),
        weight=jnp.ones(n) if weight is None else jnp.asarray(weight, jnp.float32),
        inclusion=jnp.ones(n),
        role=jnp.zeros(n, jnp.int32) if role is None else jnp.asarray(role, jnp.int32),
    )


@functools.cache
def basic():
    """Dense codec, MF: the algorithm, and its step compiled once for cohorts of seven."""
    algorithm = build()
    return algorithm, jax.jit(algorithm.step)


@functools.cache
def drawer():
    """(round, client) -> the examples that the round's addresses give."""

    @jax.jit
    def draw(round_, who):
        negatives = rng.address(SEED, rng.Stream.NEGATIVES, round_, who)
        shuffle = rng.address(SEED, rng.Stream.SHUFFLE, round_, who)
        return examples.draw(
            examples.orders(negatives, shuffle),
            DATA,
            who,
            jnp.bool_(True),
            n_items=M,
            negatives=2,
            width=128,
        )

    return lambda round_, who: jax.tree.map(np.asarray, draw(jnp.int32(round_), jnp.int32(who)))


class Reference:
    """Federated training in float64, one client after another."""

    def __init__(self, state, mean="touched"):
        self.items = np.asarray(state.items, np.float64)
        self.private = np.asarray(state.clients, np.float64)
        self.shared = jax.tree.map(lambda x: np.asarray(x, np.float64), state.shared)
        self.mean, self.round, self.loss = mean, 0, {}

    def change(self, clients, weight, scale=1.0):
        """The mean change of the table and of the shared weight and bias; clients keep theirs."""
        total, touched = np.zeros((M, D)), np.zeros(M)
        shared, everyone = [np.zeros(D), 0.0], 0.0
        self.loss = {}
        for u, w in zip(clients, weight, strict=True):
            batch = drawer()(self.round, u)
            if not batch.mask.any():
                continue
            n = batch.mask.sum()
            extra = self.shared or {"weight": None, "bias": 0.0}
            self.private[u], rows_, self.loss[u], h, b = plain_training(
                *(self.private[u], self.items[batch.item[:n]], batch.label[:n], batch.mask[:n]),
                **{"lr": LR, "decay": DECAY, **HOW, **extra},
            )
            total[batch.item[:n]] += w * scale * rows_
            touched[batch.item[:n]] += w
            shared[0] += w * (h - (1 if extra["weight"] is None else extra["weight"]))
            shared[1] += w * (b - extra["bias"])
            everyone += w
        below = touched[:, None] if self.mean == "touched" else np.full((M, 1), everyone)
        below = np.where(below > 0, below, 1)
        return total / below, [s / (everyone or 1) for s in shared]

    def step(self, clients, weight, scale=1.0):
        items, (h, b) = self.change(clients, weight, scale)
        self.items = self.items + items
        if self.shared:
            self.shared = {"weight": self.shared["weight"] + h, "bias": self.shared["bias"] + b}
        self.round += 1

    def agrees(self, state):
        """Changes of order 0.1 in float32, through a few hundred additions."""
        np.testing.assert_allclose(state.items, self.items, atol=1e-5)
        np.testing.assert_allclose(state.clients, self.private, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.shared, self.shared
        )


def test_the_world_has_two_widths():
    n = examples.count(LENGTHS, M, 2)
    assert n.max() > 64
    assert np.sum(n <= 64) > 5


# ---------------------------------------------------------------- training


def test_three_rounds_of_the_sampler():
    algorithm, step = basic()
    state = algorithm.init()
    reference = Reference(state)
    before = np.asarray(state.items)
    for r in range(3):
        clients = algorithm_cohort(r)
        reference.step(clients, np.ones(7))
        state, info = step(state, DATA)
        np.testing.assert_array_equal(info.client, clients)
        reference.agrees(state)
        live = LENGTHS[clients] > 0
        np.testing.assert_allclose(
            np.asarray(info.loss)[live], [reference.loss[u] for u in clients[live]], rtol=1e-5
        )
    assert np.abs(state.items - before).max() > 0.03  # far more than the tolerance
    assert state.round == 3


def algorithm_cohort(round_: int) -> np.ndarray:
    key = rng.address(SEED, rng.Stream.COHORT, round_)
    return np.asarray(samplers.fixed_size(U, 7).sample(key).client)


@pytest.mark.parametrize("mean", ["touched", "cohort"])
def test_weights_and_means(mean):
    algorithm = build(reducer=cohort_mean()) if mean == "cohort" else basic()[0]
    step = jax.jit(algorithm.step)
    state = algorithm.init()
    reference = Reference(state, mean)
    clients, weight = [9, 3, 0, 7, 2, 11, 5], [0.5, 4.0, 1.0, 0.25, 3.0, 1.5, 0.0]
    reference.step(clients, weight)
    state, info = step(state, DATA, cohort_of(clients, weight))
    reference.agrees(state)
    live = np.array(clients) != EMPTY  # it has nothing to send
    np.testing.assert_array_equal(np.asarray(info.weight)[live], np.array(weight)[live])


def test_shared_parameters_are_a_weighted_mean():
    algorithm = build(model=gmf(D), training=client.autodiff(gmf(D), client.sgd(LR, DECAY), **HOW))
    step = jax.jit(algorithm.step)
    state = algorithm.init()
    reference = Reference(state)
    clients, weight = [9, 3, 0, 7, 2, 11, 5], [0.5, 4.0, 1.0, 0.25, 3.0, 1.5, 1.0]
    for _ in range(2):
        reference.step(clients, weight)
        state, info = step(state, DATA, cohort_of(clients, weight))
        reference.agrees(state)
    assert abs(reference.shared["bias"]) > 0.01
    assert algorithm.n_shared == D + 1
    live = np.array(clients) != EMPTY
    np.testing.assert_array_equal(np.asarray(info.counts_up)[live, -1], D + 1)
    assert algorithm.fields[-1] == Field("shared", 32)


def test_server_optimizer_is_fed_the_negated_change():
    algorithm = build(server_optimizer=optax.adam(0.05))
    step = jax.jit(algorithm.step)
    state = algorithm.init()
    reference = Reference(state)
    server, clients = optax.adam(0.05), [9, 1, 0, 7, 2, 11, 5]
    table = jnp.asarray(reference.items, jnp.float32)
    opt_state = server.init(table)
    for _ in range(2):
        change, _ = reference.change(clients, np.ones(7))
        update, opt_state = server.update(jnp.asarray(-change, jnp.float32), opt_state, table)
        table = optax.apply_updates(table, update)
        reference.items, reference.round = np.asarray(table, np.float64), reference.round + 1
        state, _ = step(state, DATA, cohort_of(clients))
        # Adam divides small changes by their own size: only those that are no rounding noise.
        clear = np.abs(change) > 1e-4
        assert clear.mean() > 0.3
        np.testing.assert_allclose(
            np.asarray(state.items)[clear], np.asarray(table)[clear], atol=1e-4
        )
        reference.items = np.asarray(state.items, np.float64)
        table = state.items


# ---------------------------------------------------------------- transforms, arrivals, budgets


def test_transforms_are_applied_in_order_with_keys_of_their_own():
    def scale(ctx, key, role, update):
        items = update.items
        return update.replace(items=items.replace(row=items.row * jnp.where(role == 1, 0.0, 2.0)))

    def add_uniform(ctx, key, role, update):
        noise = jax.random.uniform(key) * update.items.mask[:, None]
        return update.replace(items=update.items.replace(row=update.items.row + noise))

    transforms = [Transform(scale), Transform(add_uniform), Transform(add_uniform)]
    algorithm = build(transforms=transforms)
    state = algorithm.init()
    clients, role = [9, 1, 0, 7, 2, 11, 5], [0, 1, 0, 1, 0, 0, 0]
    found, _ = jax.jit(algorithm.step)(state, DATA, cohort_of(clients, role=role))
    total, touched = np.zeros((M, D)), np.zeros(M)
    for u, r in zip(clients, role, strict=True):
        batch = drawer()(0, u)
        n = batch.mask.sum()
        rows_ = plain_training(
            *(state.clients[u], np.asarray(state.items)[batch.item[:n]]),
            *(batch.label[:n], batch.mask[:n]),
            **{"lr": LR, "decay": DECAY, **HOW},
        )[1]
        key = rng.address(SEED, rng.Stream.TRANSFORM, 0, u)
        one, two = (float(jax.random.uniform(jax.random.fold_in(key, i))) for i in (1, 2))
        assert one != two
        total[batch.item[:n]] += rows_ * (0 if r == 1 else 2) + one + two
        touched[batch.item[:n]] += 1
    expected = np.asarray(state.items) + total / np.maximum(touched, 1)[:, None]
    np.testing.assert_allclose(found.items, expected, atol=1e-5)  # as in `agrees`


@pytest.mark.parametrize("codec", [dense, rows])
def test_transforms_may_drop_rows_by_their_mask_alone(codec):
    def dropping(zeroed):
        def apply(ctx, key, role, update):
            del ctx, key, role
            items = update.items
            mask = items.mask & (items.item % 2 == 0)
            row = jnp.where(mask[:, None], items.row, 0) if zeroed else items.row
            return update.replace(items=items.replace(mask=mask, row=row))

        return Transform(apply)

    tables = []
    for zeroed in (False, True):
        algorithm = build(codec=codec(), transforms=[dropping(zeroed)])
        start = jax.jit(algorithm.init)()
        state, _ = jax.jit(algorithm.step)(start, DATA)
        tables.append(np.asarray(state.items))
        moved = (tables[-1] != np.asarray(start.items)).any(axis=1)
        assert moved[::2].any()
        assert not moved[1::2].any()
    np.testing.assert_array_equal(*tables)


def test_budgets_and_sizes():
    grant = np.array([3, 1, 4, 2, 16, 5, 9, 2, 6, 5, 3, 8])
    algorithm = build(codec=actions(16, rank=1), budget=budgets.by_client(grant), n_widths=1)
    state, info = jax.jit(algorithm.step)(algorithm.init(), DATA)
    info = jax.tree.map(np.asarray, info)
    n = examples.count(LENGTHS, M, 2)[info.client]
    live = n > 0
    np.testing.assert_array_equal(info.n_examples, n)
    np.testing.assert_array_equal(info.n_actions[live], grant[info.client][live])
    used = np.minimum(grant[info.client], n)
    np.testing.assert_array_equal(info.counts_up[live, 1], used[live])
    assert np.all(info.counts_up[:, 0] <= np.minimum(M, 7 * n))
    label = np.array([int(k - 1).bit_length() if k > 1 else 0 for k in used])
    size = 160 + 32 * used * D + info.counts_up[:, 0] + n * label
    found = bits.payload_bits(algorithm.fields, info.counts_up)
    np.testing.assert_array_equal(found[live], size[live])
    assert np.all(info.distortion[live] > 0)
    assert np.all(info.distortion[live] < 1)
    assert np.isfinite(state.items).all()


# ---------------------------------------------------------------- bookkeeping


def test_bookkeeping():
    algorithm, step = basic()
    start = state = algorithm.init()
    last = np.zeros(U)
    took_part = set()
    for r in range(4):
        before = state
        state, info = step(state, DATA)
        clients = np.asarray(info.client)
        last[clients] = r
        took_part |= set(clients.tolist())
        assert state.round == r + 1
        np.testing.assert_array_equal(state.last_sync, last)
        np.testing.assert_array_equal(state.public, state.items)
        assert np.all(np.asarray(info.synced) <= max(r - 1, 0))  # each round has a new table
        others = np.setdiff1d(np.arange(U), clients[LENGTHS[clients] > 0])
        np.testing.assert_array_equal(state.clients[others], before.clients[others])
        moved = clients[LENGTHS[clients] > 0]
        assert np.all(np.any(np.asarray(state.clients != before.clients)[moved], axis=1))
        np.testing.assert_array_equal(info.n_examples, examples.count(LENGTHS, M, 2)[clients])
        np.testing.assert_array_equal(
            info.n_short, np.maximum(2 * LENGTHS - (M - LENGTHS), 0)[clients]
        )
        live = LENGTHS[clients] > 0
        np.testing.assert_array_equal(np.asarray(info.counts_up)[live], [[M, 0]] * live.sum())
        np.testing.assert_array_equal(info.distortion, 0)
        np.testing.assert_array_equal(info.n_actions, 0)
        assert np.asarray(info.mask).all()
    assert len(took_part) > 7
    assert algorithm.snapshot_bits == 160 + 32 * M * D
    assert [(f.name, f.bits) for f in algorithm.fields] == [("row", 32 * D), ("shared", 32)]
    assert jax.tree.structure(state) == jax.tree.structure(start)


def test_the_first_table_is_the_models():
    algorithm, _ = basic()
    state = algorithm.init()
    private, items, _ = mf(D).init(rng.address(SEED, rng.Stream.INIT), U, algorithm.sizes)
    np.testing.assert_array_equal(state.items, items)
    np.testing.assert_array_equal(state.public, items)
    np.testing.assert_array_equal(state.clients, private)


def same_but(before, after, *changed):
    """All of the state is bit-identical but the named parts."""
    for name in ("items", "public", "last_sync", "shared", "clients", "codec", "server"):
        if name not in changed:
            pairs = zip(*(jax.tree.leaves(getattr(s, name)) for s in (before, after)), strict=True)
            for a, b in pairs:
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_without_weight_the_server_learns_nothing():
    algorithm, step = basic()
    state = algorithm.init()
    clients = [9, 1, 0, 7, 2, 11, 5]
    found, info = step(state, DATA, cohort_of(clients, weight=np.zeros(7)))
    same_but(state, found, "clients", "last_sync")
    np.testing.assert_array_equal(info.weight, 0)
    assert np.any(np.asarray(found.clients) != np.asarray(state.clients))


def test_slots_that_nobody_fills():
    algorithm, step = basic()
    state = algorithm.init()
    clients, mask = [9, 1, 0, 0, 0, 11, 11], np.array([1, 1, 1, 0, 0, 1, 0], bool)
    reference = Reference(state)
    reference.step([9, 1, 0, 11], np.ones(4))
    found, info = step(state, DATA, cohort_of(clients, mask=mask))
    reference.agrees(found)
    np.testing.assert_array_equal(info.mask, mask)
    np.testing.assert_array_equal(info.synced, 0)
    np.testing.assert_array_equal(np.asarray(info.weight)[~mask], 0)
    np.testing.assert_array_equal(np.asarray(info.n_examples)[~mask], 0)
    later, _ = step(found, DATA, cohort_of(clients, mask=mask))
    np.testing.assert_array_equal(later.last_sync == 1, np.isin(np.arange(U), [9, 1, 0, 11]))
    nobody, _ = step(state, DATA, cohort_of(clients, mask=np.zeros(7, bool)))
    same_but(state, nobody)
    assert nobody.round == 1


def test_poisson_rounds_with_nobody_in_them():
    algorithm = build(sampler=samplers.poisson(U, 1e-6))
    state = algorithm.init()
    found, info = jax.jit(lambda s: simulate(algorithm, s, DATA, 3))(state)
    assert not np.asarray(info.mask).any()
    same_but(state, found)
    assert found.round == 3
    assert info.client.shape == (3, U)


def test_poisson_rounds():
    algorithm = build(sampler=samplers.poisson(U, 0.4))
    state = algorithm.init()
    drawn = samplers.poisson(U, 0.4).sample(rng.address(SEED, rng.Stream.COHORT, 0))
    clients = np.asarray(drawn.client)[np.asarray(drawn.mask)]
    assert 1 < len(clients) < U
    reference = Reference(state)
    reference.step(clients, np.ones(len(clients)))
    found, _ = jax.jit(algorithm.step)(state, DATA)
    reference.agrees(found)


def test_a_client_without_examples_is_as_if_it_were_not_there():
    """Whether its slot happens to be run with others' must not show anywhere."""
    outcomes = []
    for chunk in (1, 4):
        algorithm = build(codec=rows(), reducer=cohort_mean(), chunk=chunk)
        state = algorithm.init()
        cohort = cohort_of([0, EMPTY, 7], weight=[1.0, 5.0, 1.0])
        outcomes.append(jax.jit(algorithm.step)(state, DATA, cohort))
    (one, info_one), (two, info_two) = outcomes
    np.testing.assert_allclose(one.items, two.items, atol=1e-5)  # as in `agrees`
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), info_one, info_two
    )
    alone, _ = jax.jit(algorithm.step)(state, DATA, cohort_of([0, 7]))
    np.testing.assert_allclose(two.items, alone.items, atol=1e-5)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"history_lengths": LENGTHS[:-1]}, "history_lengths: expected one for each of 12 clients"),
        ({"history_lengths": LENGTHS - 1}, "each must lie between 0 and the number of items"),
        ({"n_items": 50}, "each must lie between 0 and the number of items"),
        (
            {"negatives": -1},
            "fewer than 2**31 for a client's 98 training items, not -1 an item",
        ),
        ({"chunk": 0}, "chunk must be at least 1, not 0"),
        ({"sampler": samplers.fixed_size(13)}, "a cohort of 13 slots, but only 12 clients"),
        (
            {"codec": actions(4), "budget": budgets.fixed()._replace(max_actions=0)},
            "the budget grants no action, but codec actions sends at least one",
        ),
        (
            {"codec": directional(4, rank=9)},
            "directional: rank must be at most the embedding width",
        ),
        (
            {"codec": actions(4), "budget": budgets.fixed(5)},
            "the budget grants up to 5 actions, but codec actions holds at most 4: build it with",
        ),
    ],
)
def test_refusals(changed, message):
    with pytest.raises(SpecError) as error:
        build(**changed)
    assert message in str(error.value)


def test_without_feedback_the_server_goes_on_from_what_it_sent():
    """One direction of a change is sent: with feedback the rest waits, without it is lost."""
    downlink = svd(1)
    with_it, without = (
        build(downlink=downlink, downlink_feedback=f, n_widths=1) for f in (True, False)
    )
    _, step = basic()
    first = with_it.init()
    change = np.asarray(step(first, DATA)[0].items - first.items)
    kept, state = (
        jax.jit(algorithm.step, donate_argnums=0)(algorithm.init(), DATA)[0]
        for algorithm in (with_it, without)
    )
    np.testing.assert_array_equal(kept.public, state.public)
    np.testing.assert_array_equal(state.items, state.public)
    np.testing.assert_allclose(kept.items - first.items, change, atol=1e-6)  # entries of order 0.1
    sent = np.asarray(state.public - first.public)
    sizes = np.linalg.svd(sent, compute_uv=False)
    assert sizes[1] < 1e-5 * sizes[0]  # one direction
    assert 0.1 < np.sum((change - sent) ** 2) / np.sum(change**2) < 0.9


def unmeasured(codec):
    def encode(*args):
        payload, state = codec.encode(*args)
        return dataclasses.replace(payload, counts=payload.counts[:1]), state

    return codec._replace(encode=encode)


def of_an_unknown_kind(codec):
    return codec._replace(fields=lambda sizes: (Field("row", 8, "row", (), "float8"),))


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (unmeasured(rows()), r"codec rows: 2 fields, but counts of shape \(1,\): make payloads"),
        (of_an_unknown_kind(rows()), "codec rows: row is declared as 'float8', expected one of"),
    ],
)
def test_codecs_whose_size_is_not_known_are_refused(codec, message):
    with pytest.raises(SpecError, match=message):
        build(codec=codec).step(basic()[0].init(), DATA)


def test_parts_that_are_none_are_refused():
    """By itself, as the suite's type checks would refuse the call of `federated`."""
    with pytest.raises(SpecError, match=r"codec: expected a Codec, not .*: call it"):
        agreement.parts(model=(mf(D), RecModel), codec=(rows, Codec))
