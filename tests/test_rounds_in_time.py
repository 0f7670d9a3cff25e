"""Rounds that take time: whoever is late, away, fails, or is still on the way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import make_histories

from fedras_jax import arrivals, bits, budgets, network, profiles, rng, samplers
from fedras_jax import cohort as cohort_file
from fedras_jax.client import autodiff, sgd
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.feedback import error_feedback
from fedras_jax.codecs.rows import rows
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.gmf import gmf
from fedras_jax.models.mf import mf
from fedras_jax.publish import Ledger
from fedras_jax.rounds import federated
from fedras_jax.transforms import pseudo_items
from fedras_jax.types import Budget, Cohort, Tally

# Two widths; one client has no history.
LENGTHS = np.array([3, 8, 12, 0, 20, 25, 33, 1, 5, 60, 17, 10])
U, M, D, C = len(LENGTHS), 100, 4, 7
DATA = make_histories(LENGTHS, M)
SEED = 5
PHONES = profiles.mobile(U, seed=1)


def build(**changed):
    parts = {
        "model": mf(D),
        "n_clients": U,
        "n_items": M,
        "history_lengths": LENGTHS,
        "training": factored(mf(D), 0.3, 0.01, epochs=2, batch_size=32),
        "codec": dense(),
        "sampler": samplers.fixed_size(U, C),
        "seed": SEED,
        "negatives": 2,
        "n_widths": 2,
        "chunk": 4,
        "profile": PHONES,
    }
    return federated(**{**parts, **changed})


def go(algorithm, rounds: int):
    """The state after some rounds, and their diagnostics as a list."""
    step, state, infos = jax.jit(algorithm.step), algorithm.init(), []
    for _ in range(rounds):
        state, info = step(state, DATA)
        infos.append(jax.tree.map(np.asarray, info))
    return state, infos


def test_without_a_profile_no_clock_is_in_the_program():
    fast = np.full(U, 1e30, np.float32)
    quick = dataclasses.replace(network.ideal(U), compute=fast, up=fast, down=fast)
    algorithms = [build(profile=profile) for profile in (None, quick)]
    (state, infos), (timed, timed_infos) = [go(algorithm, 2) for algorithm in algorithms]
    for info, other in zip(infos, timed_infos, strict=True):
        for name in ("client", "mask", "counts_up", "weight", "n_examples", "synced"):
            np.testing.assert_array_equal(getattr(info, name), getattr(other, name))
        ran = info.n_examples > 0
        assert info.outcome.finished.all()
        assert (info.outcome.share_down == 1).all()
        assert (info.outcome.phases == 0).all()
        assert (info.seconds, info.outcome.seconds.sum()) == (0, 0)
        assert other.outcome.seconds[ran].min() > 0
    # Two programs, which XLA may fuse differently: the last place of a float32 near one.
    np.testing.assert_allclose(state.items, timed.items, atol=1e-6)
    text = [str(jax.make_jaxpr(a.step)(a.init(), DATA)) for a in algorithms]
    assert "erf_inv" not in text[0]  # of speeds' jitter
    assert "erf_inv" in text[1]


@functools.cache
def waiting(codec: str = "dense"):
    """Two rounds in which the server waits for everyone."""
    return go(build(codec=CODECS[codec](), **EXTRA.get(codec, {})), 2)


CODECS = {
    "dense": dense,
    "directional": lambda: directional(4, labels="entropy"),
    "feedback": lambda: error_feedback(actions(2, rank=2, iterations=2, index="items"), 20),
    "shared": dense,
}
EXTRA = {
    # Payloads with more rows than their clients have examples.
    "directional": {"transforms": (pseudo_items(0.5),)},
    "feedback": {"n_widths": 1},
    "shared": {
        "model": gmf(D),
        "training": autodiff(gmf(D), sgd(0.3, 0.01), batch_size=32),
        "n_widths": 1,
    },
}
# Policies under which everyone of a cohort counts, in its own round.
ALIKE = {
    "deadline": arrivals.deadline(1e6),
    "over_commit": arrivals.over_commit(C),
    "buffered": arrivals.buffered(C),
}


@pytest.mark.parametrize(
    ("codec", "policy"),
    [("dense", policy) for policy in ALIKE]
    + [pytest.param(codec, "buffered", marks=pytest.mark.long) for codec in list(CODECS)[1:]],
)
def test_waiting_for_everyone_has_one_outcome(codec, policy):
    """Payloads that waited in flight bring what those bring that are reduced at once."""
    expected, told = waiting(codec)
    extra = {"codec": CODECS[codec](), **EXTRA.get(codec, {})}
    found, infos = go(build(arrival=ALIKE[policy], **extra), 2)
    # Sums are ordered otherwise: a few hundred terms of order 1 in float32.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        (found.items, found.public, found.shared, found.clients),
        (expected.items, expected.public, expected.shared, expected.clients),
    )
    for one, two in zip(infos, told, strict=True):
        np.testing.assert_array_equal(one.counts_up, two.counts_up)
        np.testing.assert_array_equal(one.weight, two.weight)
        assert (one.arrived.weight > 0).sum() == (two.arrived.weight > 0).sum()
        np.testing.assert_allclose(one.seconds, two.seconds, rtol=1e-5)


# ---------------------------------------------------------------- the clock


def test_a_round_lasts_as_long_as_its_slowest_client():
    _, infos = waiting()
    for info in infos:
        ran = info.n_examples > 0
        assert info.seconds == info.outcome.seconds[ran].max() > 0
        np.testing.assert_allclose(
            info.outcome.phases.sum(1)[ran], info.outcome.seconds[ran], rtol=1e-5
        )


def test_seconds_are_what_the_profile_says():
    """Without jitter, from the exact payload of each client in each round."""
    profile = profiles.mobile(U, seed=1, jitter=0)
    algorithm = build(profile=profile, codec=directional(4), budget=budgets.fixed(3), n_widths=1)
    _, infos = go(algorithm, 2)
    for r, info in enumerate(infos):
        ran, who = info.n_examples > 0, info.client
        up = bits.payload_bits(algorithm.fields, info.counts_up)
        # The whole table is published anew after every round; the first is there.
        down = np.full(C, algorithm.snapshot_bits * (r > 0), float)
        work = 2.0 * info.n_examples
        # Three rows are sent as they are; a client has three: one item and two negatives.
        encoding = network.ENCODE_WORK * info.n_examples * 3 * (info.n_examples > 3)
        expected = (
            profile.latency[who]
            + down / profile.down[who]
            + (work + encoding) / profile.compute[who]
            + up / profile.up[who]
        )
        np.testing.assert_allclose(info.outcome.seconds[ran], expected[ran], rtol=1e-5)


def test_rows_of_their_own_take_no_clustering():
    """Where that takes ages only those are in time that have an action for every row."""
    profile = profiles.mobile(U, seed=1, jitter=0)
    parts = {"profile": profile, "codec": actions(16), "encode_work": 1e9, "n_widths": 1}
    _, infos = go(build(budget=budgets.round_time(30.0), **parts), 4)
    few = 0
    for info in infos:
        ran, own = info.n_examples > 0, info.n_actions == info.n_examples
        np.testing.assert_array_equal(info.outcome.seconds[ran] <= 30, own[ran])
        np.testing.assert_array_equal(info.n_examples[ran] <= 16, own[ran])
        np.testing.assert_array_equal(info.n_actions[ran & ~own], 1)
        few += (own & ran).sum()
    assert few > 3


def test_who_has_missed_little_fetches_little():
    """What clients owe on device is what the ledger counts on the host."""
    profile = dataclasses.replace(
        profiles.homogeneous(U), latency=np.zeros(U), down=np.ones(U), up=np.full(U, 1e30)
    )
    fast = dataclasses.replace(profile, compute=np.full(U, 1e30, np.float32))
    algorithm = build(profile=fast, downlink=directional(4), n_widths=1)
    ledger = Ledger(algorithm.down_fields, algorithm.snapshot_bits, 0)
    _, infos = go(algorithm, 6)
    few = 0
    for info in infos:
        expected = ledger.fetch(info.synced)
        ran = info.n_examples > 0
        # At one bit a second, and nothing else takes time.
        np.testing.assert_allclose(info.outcome.seconds[ran], expected[ran], rtol=1e-6, atol=1e-9)
        few += (expected[ran] < algorithm.snapshot_bits).sum()
        ledger.publish(info.counts_down)
    assert few > 5


# ---------------------------------------------------------------- late, failed, away


def test_late_payloads_are_dropped_but_were_trained_and_sent():
    _, told = waiting()
    limit = float(np.median(told[0].outcome.seconds[told[0].n_examples > 0])) + 1e-3
    start = build().init()
    found, infos = go(build(arrival=arrivals.deadline(limit)), 1)
    info = infos[0]
    ran = info.n_examples > 0
    late = ran & (info.outcome.seconds > limit)
    assert 0 < late.sum() < ran.sum()
    np.testing.assert_array_equal(info.weight > 0, ran & ~late)
    assert info.seconds == np.float32(limit)
    np.testing.assert_array_equal(info.counts_up, told[0].counts_up)
    moved = np.any(np.asarray(found.clients != start.clients), axis=1)
    assert moved[info.client[late]].all()
    # Nothing of theirs is in the table: the same as a round of the others alone.
    only = jax.jit(build().step)(start, DATA, cohort(info.client[ran & ~late]))[0]
    np.testing.assert_allclose(found.items, only.items, atol=1e-5)


def cohort(clients, size=C):
    """Those clients in the first slots of a cohort."""
    ids = np.zeros(size, np.int32)
    ids[: len(clients)] = clients
    mask = np.arange(size) < len(clients)
    ones = jnp.ones(size)
    return Cohort(jnp.asarray(ids), jnp.asarray(mask), ones * mask, ones, jnp.zeros(size, int))


@pytest.mark.parametrize("arrival", [None, arrivals.over_commit(3)], ids=["alone", "in flight"])
def test_a_client_that_fails_costs_what_it_cost_and_changes_nothing(arrival):
    failing = dataclasses.replace(PHONES, failure=np.full(U, 0.5, np.float32))
    algorithm = build(
        profile=failing, codec=error_feedback(directional(2), 20), arrival=arrival, n_widths=1
    )
    state = algorithm.init()
    synced, step, seen = np.zeros(U, int), jax.jit(algorithm.step), 0
    for r in range(3):
        before = jax.tree.map(np.asarray, (state.clients, state.codec))
        state, info = step(state, DATA)
        info = jax.tree.map(np.asarray, info)
        failed = (info.n_examples > 0) & ~info.outcome.finished
        seen += failed.sum()
        who = info.client[failed]
        jax.tree.map(
            lambda new, old, who=who: np.testing.assert_array_equal(new[who], old[who]),
            jax.tree.map(np.asarray, (state.clients, state.codec)),
            before,
        )
        assert not info.weight[failed].any()
        spent = info.outcome.phases[failed].sum(1)
        np.testing.assert_allclose(spent, info.outcome.seconds[failed], rtol=1e-4)
        # Who had not fetched all of the table does not hold it.
        synced[info.client[info.outcome.share_down >= 1]] = r
        np.testing.assert_array_equal(state.last_sync, synced)
        assert (info.outcome.share_up[failed] < 1).all()
    assert seen > 3


@pytest.mark.parametrize(
    "policy",
    [
        lambda seconds: arrivals.deadline(float(np.median(seconds))),
        lambda _: arrivals.over_commit(3),
    ],
    ids=["deadline", "over_commit"],
)
def test_who_is_late_keeps_what_it_would_keep_in_time(policy):
    """Its vector and its feedback, of which what its payload took off is lost."""
    parts = {"codec": error_feedback(directional(2), 20), "n_widths": 1}
    in_time, (told,) = go(build(**parts), 1)
    arrival = policy(told.outcome.seconds[told.n_examples > 0])
    state, (info,) = go(build(arrival=arrival, **parts), 1)
    late = (info.n_examples > 0) & (info.weight == 0)
    assert 0 < late.sum() < (info.n_examples > 0).sum()
    jax.tree.map(
        # Two programs, whose sums of order 1 may be ordered otherwise.
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        (state.clients, state.codec),
        (in_time.clients, in_time.codec),
    )
    kept = jax.tree.map(np.asarray, state.codec)
    fresh = jax.tree.map(np.asarray, build(**parts).init().codec)
    moved = [
        np.any(a[info.client[late]] != b[info.client[late]])
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(fresh), strict=True)
    ]
    assert any(moved)


def test_a_round_in_which_nobody_arrives_changes_nothing_and_is_recorded():
    # Everyone's upload of the whole table takes ten seconds, but of one who is not drawn.
    drawn = np.asarray(build(n_widths=1).draw(jnp.int32(0)).client)
    up = np.full(U, (160 + 32 * M * D) / 10, np.float32)
    up[np.setdiff1d(np.flatnonzero(LENGTHS), drawn)[0]] = 1e12
    slow = dataclasses.replace(PHONES, up=up, jitter=np.zeros(U, np.float32))
    algorithm = build(
        profile=slow, arrival=arrivals.deadline(2.0), server_optimizer=optax.adam(0.1), n_widths=1
    )
    start = algorithm.init()
    # A momentum that a round without news would go on with.
    start = dataclasses.replace(
        start, server=jax.tree.map(lambda x: x + jnp.ones((), x.dtype), start.server)
    )
    state, info = jax.jit(algorithm.step)(start, DATA)
    np.testing.assert_array_equal(state.public, start.public)
    np.testing.assert_array_equal(state.owed, 0)  # nothing is published either
    assert not np.asarray(info.counts_down).any()
    assert not np.asarray(info.weight).any()
    assert info.seconds == 2.0
    assert state.round == 1
    np.testing.assert_array_equal(state.items, start.items)
    jax.tree.map(np.testing.assert_array_equal, state.server, start.server)
    np.testing.assert_array_equal(info.loss > 0, info.n_examples > 0)


@pytest.mark.parametrize("sampler", [samplers.fixed_size(U, C), samplers.poisson(U, 0.7)])
def test_who_is_away_is_not_drawn(sampler):
    profile = dataclasses.replace(
        PHONES, availability=np.full(U, 0.4, np.float32), session=np.full(U, 2, np.int32)
    )
    _, infos = go(build(profile=profile, sampler=sampler, n_widths=1), 5)
    sizes, on_device = set(), jax.tree.map(jnp.asarray, profile)
    for r, info in enumerate(infos):
        there = np.asarray(network.available(SEED, jnp.int32(r), on_device))
        assert there[info.client[info.mask]].all()
        drawn = info.mask.sum()
        assert len(set(info.client[info.mask])) == drawn
        sizes.add(int(drawn))
        if sampler.capacity == C:
            assert drawn == min(C, there.sum())
    assert len(sizes) > 1


# ---------------------------------------------------------------- in flight


def test_over_commit_takes_the_first():
    _, infos = go(build(arrival=arrivals.over_commit(4), n_widths=1), 3)
    for info in infos:
        seconds = np.where(info.n_examples > 0, info.outcome.seconds, np.inf)
        first = np.argsort(seconds)[:4]
        np.testing.assert_array_equal(np.flatnonzero(info.weight), np.sort(first))
        assert info.seconds == seconds[first].max()


def test_buffered_rounds_are_those_of_a_queue():
    """Against a queue written for reading: who comes when, with which weight, and the clock."""
    in_flight = 10
    algorithm = build(
        arrival=arrivals.buffered(in_flight, staleness_power=0.5),
        sampler=samplers.fixed_size(U, 4),
        profile=dataclasses.replace(PHONES, failure=np.full(U, 0.1, np.float32)),
        n_widths=1,
    )
    _, infos = go(algorithm, 8)
    queue, now, arrivals_seen = [], 0.0, 0
    for r, info in enumerate(infos):
        at_work = {client for _, client, _, _ in queue}
        drawn = [u for u, here in zip(info.client, info.mask, strict=True) if here]
        assert not at_work & set(drawn)
        for u, n, s, ok in zip(
            info.client, info.n_examples, info.outcome.seconds, info.outcome.finished, strict=True
        ):
            if n > 0:
                queue.append((now + float(s), u, r, bool(ok)))
        queue.sort()
        leaving, queue = (
            queue[: max(len(queue) - (in_flight - 4), 0)],
            queue[max(len(queue) - (in_flight - 4), 0) :],
        )
        then = max([now, *(t for t, *_ in leaving)])
        np.testing.assert_allclose(info.seconds, then - now, rtol=1e-4, atol=1e-5)
        now = then
        expected = {u: (1 + r - sent) ** -0.5 for _, u, sent, ok in leaving if ok}
        found = {
            u: w for u, w in zip(info.arrived.client, info.arrived.weight, strict=True) if w > 0
        }
        assert found.keys() == expected.keys()
        for u, w in expected.items():
            assert found[u] == pytest.approx(w, rel=1e-6)
        arrivals_seen += len(found)
    assert arrivals_seen > 10
    assert len(queue) == in_flight - 4


def test_a_stale_payload_is_decoded_with_the_key_of_its_own_round():
    """Told by a codec that decodes every row to a number drawn from the shared key."""

    def decode(ctx, payload):
        delta = rows().decode(ctx, payload)
        number = jax.random.uniform(ctx.key)
        return dataclasses.replace(
            delta, row=jnp.where(delta.mask[:, None], number, jnp.zeros_like(delta.row))
        )

    algorithm = build(
        codec=rows()._replace(decode=decode),
        arrival=arrivals.buffered(3),
        sampler=samplers.fixed_size(U, 1),
        n_widths=1,
    )
    state, step, stale = algorithm.init(), jax.jit(algorithm.step), 0
    for r in range(6):
        before = state.items
        state, info = step(state, DATA)
        change = np.asarray(state.items - before)
        for sent in r - np.asarray(info.arrived.staleness)[np.asarray(info.arrived.weight) > 0]:
            number = jax.random.uniform(rng.address(SEED, rng.Stream.SHARED, int(sent)))
            # One payload a step, so its numbers are the change, but for the table's last place.
            np.testing.assert_allclose(change[change != 0], number, atol=1e-6)
            stale += r > sent
    assert stale > 2


@pytest.mark.parametrize(
    "policy", ["over_commit", pytest.param("buffered", marks=pytest.mark.long)]
)
def test_in_flight_over_a_mesh_and_with_donated_states(policy):
    """Eight devices and one agree, round after round, from states that are given away.

    With rows, because that compiles soon; which codec's leaves are in flight makes no difference.
    """
    arrival = {"over_commit": arrivals.over_commit(4), "buffered": arrivals.buffered(9)}[policy]
    found = []
    for mesh in (None, cohort_file.client_mesh(8)):
        algorithm = build(arrival=arrival, codec=rows(), mesh=mesh, n_widths=1)
        step, state = jax.jit(algorithm.step, donate_argnums=0), algorithm.init()
        infos = []
        for _ in range(3):
            state, info = step(state, DATA)
            infos.append(jax.tree.map(np.asarray, info))
        found.append((state, infos))
    (one, told), (eight, told_eight) = found
    np.testing.assert_allclose(one.items, eight.items, atol=1e-5)  # sums in another order
    for a, b in zip(told, told_eight, strict=True):
        np.testing.assert_array_equal(a.arrived.client, b.arrived.client)
        np.testing.assert_array_equal(a.arrived.weight > 0, b.arrived.weight > 0)
        np.testing.assert_allclose(a.seconds, b.seconds, rtol=1e-5)
        assert (a.arrived.weight > 0).any() or policy == "buffered"


def test_what_the_server_waited_for():
    """The phases of the client that ended the round add up to the round."""
    for arrival in (None, arrivals.over_commit(3), arrivals.deadline(0.5), arrivals.buffered(9)):
        _, infos = go(build(arrival=arrival, n_widths=1), 3)
        for info in infos:
            np.testing.assert_allclose(info.spent.sum(), info.seconds, rtol=1e-4, atol=1e-5)
            assert (info.spent >= 0).all()
        last = infos[-1]
        if arrival is not None and arrival.wanted:
            ender = np.argmin(np.abs(last.outcome.seconds - last.seconds))
            np.testing.assert_allclose(last.spent, last.outcome.phases[ender], rtol=1e-4)


def test_what_is_in_flight_is_bounded():
    with pytest.raises(SpecError, match=r"payloads in flight take .* GiB, above flight_gib=1e-06"):
        build(arrival=arrivals.over_commit(4), flight_gib=1e-6).init()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arrival": arrivals.over_commit(8)}, "over_commit waits for 8 of a cohort of 7"),
        ({"arrival": arrivals.buffered(6)}, "a cohort of 7 clients is more than the 6 in flight"),
        (
            {"arrival": arrivals.buffered(12)},
            "12 clients in flight, but there are only 11 with something to train on",
        ),
        (
            {"arrival": arrivals.synchronous()._replace(in_flight=9)},
            "an arrival policy of single clients has nothing in flight",
        ),
        ({"arrival": arrivals.deadline(1e-5)}, "a deadline of 1e-05 s, but the fastest client"),
        (
            {
                "profile": dataclasses.replace(profiles.homogeneous(U), up=np.full(U, 20.0)),
                "arrival": arrivals.deadline(9.9),
                "codec": rows(),
            },
            "to send 36 bytes: nobody would arrive",
        ),
        ({"budget": budgets.distortion(0.1)}, "looks at errors, which this codec cannot tell"),
        (
            {"codec": actions(4), "budget": budgets.by_client(np.ones(3, int))},
            "the budget knows 3 clients, but there are 12",
        ),
        ({"profile": profiles.mobile(5)}, "expected 12 of them"),
        # A header of 160 bits, and 4 entries: 36 bytes in float32; a direction and a level: 30.
        (
            {"codec": actions(4), "budget": budgets.bandwidth(1e-9)},
            "the budget lets no client send a single action: codec actions needs 36 bytes for one "
            "with its header, but at most",
        ),
        (
            {"codec": directional(4), "budget": budgets.round_time(1e-3)},
            "codec directional needs 30 bytes for one with its header, but at most 0 are granted: "
            "grant more seconds or bytes, or choose a codec with smaller actions",
        ),
        (
            {"codec": directional(4), "budget": budgets.joint(29.9)},
            "codec directional needs 30 bytes for one with its header, but at most 29.9 are",
        ),
        (
            {"codec": actions(4, index="items"), "budget": budgets.joint(48), "profile": None},
            # And a bit for each of 100 items.
            "codec actions needs 49 bytes for one with its header, but at most 48 are",
        ),
    ],
)
def test_refusals(changed, message):
    with pytest.raises(SpecError) as error:
        build(**changed)
    assert message in str(error.value)


def test_a_budget_that_one_client_can_meet_is_taken():
    """The slower ones send `k_min`, and a codec without actions has no budget."""
    fastest = PHONES.up.max()
    for seconds, refused in ((290 / fastest, False), (286 / fastest, True)):
        make = functools.partial(build, codec=actions(4), budget=budgets.bandwidth(float(seconds)))
        if refused:
            with pytest.raises(SpecError, match="no client"):
                make()
        else:
            make()
    build(budget=budgets.bandwidth(1e-9))
    build(codec=directional(4), budget=budgets.joint(30))


@pytest.mark.parametrize("preset", ["constrained", "mobile", "three_tiers", "broadband"])
def test_a_second_is_enough_on_every_preset(preset):
    """As `experiments.heterogeneity` has it, for a table of its width."""
    extra = {"model": mf(64), "profile": getattr(profiles, preset)(U)}
    for codec in (directional(16), actions(16)):
        build(codec=codec, budget=budgets.bandwidth(1.0, k_min=4), **extra)


def test_who_sends_its_rows_for_less_than_it_is_granted_sends_them():
    """Labels of 100 items for two actions are 200 bits, a third action 128."""
    codec = actions(16, index="items")
    everyone = {"sampler": samplers.fixed_size(U, U), "n_widths": 1, "chunk": U}
    _, infos = go(build(codec=codec, budget=budgets.fixed(2), **everyone), 1)
    (info,) = infos
    ran = info.n_examples > 0
    has_three = info.n_examples == 3  # an interaction and two negatives
    assert has_three.sum() == 1
    np.testing.assert_array_equal(info.n_actions[ran], np.where(has_three[ran], 3, 2))
    np.testing.assert_array_equal(info.distortion[ran] == 0, has_three[ran])


def kept_tally(report=None) -> Budget:
    """Two actions for everyone; the state is what the last round has shown."""
    return Budget(
        lambda outlook, state: jnp.int32(2),
        init=lambda: Tally(jnp.int32(-1), *[jnp.float32(-1)] * 5),
        update=lambda state, tally: tally,
        report=report,
    )


@pytest.mark.parametrize(
    "arrival",
    [
        arrivals.synchronous(),
        arrivals.deadline(0.3),
        arrivals.over_commit(3),
        arrivals.buffered(U - 2),
    ],
    ids=["synchronous", "deadline", "over_commit", "buffered"],
)
def test_a_budget_is_told_what_the_round_has_shown(arrival):
    """Uploads of all that ran; and how many payloads were taken, with what came with them."""

    def report(outlook, state):
        """Whose it is, when and how large it was made, the report included."""
        return outlook.client + 100.0 * outlook.round + 1e-3 * outlook.bits[2]

    parts = {
        "profile": profiles.mobile(U, seed=1, failure=0.3),
        "codec": actions(4),
        "arrival": arrival,
        "n_widths": 1,
    }
    algorithm = build(budget=kept_tally(report), **parts)
    state, infos = go(algorithm, 3)
    sizes = [bits.payload_bits(algorithm.fields, info.counts_up) for info in infos]
    told = {
        (r, client): client + 100 * r + 1e-3 * size
        for r, info in enumerate(infos)
        for client, size in zip(info.client, sizes[r], strict=True)
    }
    info = infos[2]
    came = info.arrived.weight > 0
    made = zip(2 - info.arrived.staleness[came], info.arrived.client[came], strict=True)
    reports = [told[r, client] for r, client in made]
    ran = info.n_examples > 0
    assert 0 < len(reports) < len(sizes[2])
    # Some hundreds in float32, over seven of them.
    np.testing.assert_allclose(state.budget.report, np.mean(reports), rtol=1e-6)
    np.testing.assert_allclose(state.budget.bits, sizes[2][ran].mean(), rtol=1e-6)
    assert state.budget.clients == len(reports)
    assert state.budget.seconds == info.seconds
    assert state.budget.round == 2
    assert state.budget.deadline == (np.inf if arrival.deadline is None else np.float32(0.3))

    state, silent = go(build(budget=kept_tally(), **parts), 3)
    np.testing.assert_array_equal(info.counts_up[ran, -1], 1)
    np.testing.assert_array_equal(silent[2].counts_up[ran, -1], 0)
    assert state.budget.report == 0


def test_a_budget_may_be_traced():
    @jax.jit
    def granted(seconds):
        build(codec=actions(4), budget=budgets.bandwidth(seconds), n_widths=1)
        return seconds

    granted(1e-9)


def test_a_profile_may_be_traced():
    """So that a sweep can map over it."""

    @jax.jit
    def seconds(scale):
        slow = jax.tree.map(jnp.asarray, PHONES)
        slow = dataclasses.replace(slow, down=slow.down * scale, up=slow.up * scale)
        algorithm = build(profile=slow, n_widths=1)
        return algorithm.step(algorithm.init(), DATA)[1].outcome.phases

    one, two = seconds(1.0), seconds(0.5)
    np.testing.assert_allclose(two[:, 1], 2 * one[:, 1], rtol=1e-5)
    np.testing.assert_allclose(two[:, 2], one[:, 2], rtol=1e-5)
