"""Devices and networks over time, against plain loops."""

import bisect
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import make_histories

import fedras_jax
from fedras_jax import arrivals, assembly, budgets, cohort, profiles, samplers, traces
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.rounds import federated
from fedras_jax.run import run_group
from fedras_jax.spec import Spec
from fedras_jax.types import Budget, Profile, Trace

LENGTHS = np.array([3, 8, 12, 20, 25, 33, 1, 5, 17, 10])
U, M, C = len(LENGTHS), 80, 4
DATA = make_histories(LENGTHS, M)


def stretched(columns: list[Profile]) -> Profile:
    """Profiles of one client each, one after another."""
    return jax.tree.map(lambda *x: np.concatenate(x), *columns)


def ragged(seed: int, period: float = np.inf) -> Trace:
    """Up to nine stretches a client, before 100 s."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 10, U)
    begin = [np.sort(np.append(0, rng.choice(99, n - 1, replace=False) + 1)) for n in counts]
    stretch = profiles.mobile(int(counts.sum()), seed=seed)
    there = rng.random(len(stretch.up)) < 0.5
    stretch = dataclasses.replace(stretch, availability=np.float32(there))
    offset = np.concatenate([[0], np.cumsum(counts)])
    return traces.check(Trace(np.concatenate(begin), offset, stretch, np.float32(period)), U)


def together(*whole: Profile, at: list[float], period: float = np.inf) -> Trace:
    """All clients are as in the first profile, then from a time on as in the next one."""
    order = np.arange(U * len(whole)).reshape(len(whole), U).T.ravel()
    stretch = jax.tree.map(lambda x: x[order], stretched(list(whole)))
    offset = np.arange(U + 1) * len(whole)
    return Trace(np.tile(np.float32(at), U), offset, stretch, np.float32(period))


def on_device(trace: Trace) -> Trace:
    return jax.tree.map(jnp.asarray, trace)


def clock(seconds: float):
    return jnp.array([seconds, 0.0])


# ---------------------------------------------------------------- what holds at a time


@pytest.mark.parametrize("period", [np.inf, 150.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_holds_is_the_last_stretch_that_has_begun(seed, period):
    trace = ragged(seed, period)
    now, ahead = jax.jit(traces.now), jax.jit(traces.until_somebody)
    moments = [0.0, 0.5, *np.unique(trace.begin)[1:6], 77.25, 149.5, 150.0, 153.5, 1000.0]
    spans, wanted = list(itertools.pairwise(trace.offset)), np.arange(U) % 3 > 0
    for seconds in moments:
        time = seconds % period
        at = [a + bisect.bisect(trace.begin[a:b], time) - 1 for a, b in spans]
        expected = jax.tree.map(lambda x, at=at: x[at], trace.stretch)
        same(now(on_device(trace), clock(seconds)), expected)
        owner = np.repeat(np.arange(U), np.diff(trace.offset))
        comes = (trace.begin > time) & (trace.stretch.availability > 0) & wanted[owner]
        later = min([*trace.begin[comes], period])
        expected = later - time if np.isfinite(later) else 0
        assert ahead(on_device(trace), clock(seconds), wanted) == np.float32(expected)


def test_a_clock_of_many_short_rounds_is_right_to_the_last_place():
    """A million rounds of .27 s: plain float32 sums are off by a day in three."""
    start, short = traces.begin(), jnp.float32(0.27)
    found = jax.lax.fori_loop(0, 10**6, lambda _, at: traces.later(at, short), start)[0]
    expected = 10**6 * np.float64(np.float32(0.27))
    np.testing.assert_allclose(found, expected, rtol=2**-23)
    plain = jax.lax.fori_loop(0, 10**6, lambda _, at: at + short, jnp.float32(0))
    assert abs(plain / expected - 1) > 1e-3


def test_everyone_at_their_best():
    trace = ragged(3)
    found = traces.best(trace)
    for u in range(U):
        own = slice(trace.offset[u], trace.offset[u + 1])
        there = trace.stretch.availability[own] > 0
        assert found.availability[u] == there.any()
        for name in ("compute", "up", "down"):
            most = getattr(trace.stretch, name)[own][there].max(initial=0)
            np.testing.assert_allclose(getattr(found, name)[u], most, atol=1e-29)
        assert found.jitter[u] == trace.stretch.jitter[own][there].max(initial=0)
        least = trace.stretch.latency[own][there].min(initial=np.float32(1e30))
        assert found.latency[u] == least


def edited(**changes) -> Trace:
    return dataclasses.replace(together(profiles.mobile(U), profiles.wifi(U), at=[0, 9]), **changes)


def with_entry(name: str, at: int, value: float) -> Trace:
    trace = edited()
    column = np.array(getattr(trace.stretch, name))
    column[at] = value
    return edited(stretch=dataclasses.replace(trace.stretch, **{name: column}))


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (edited(offset=np.arange(U) * 2), f"a trace of {U - 1} clients: expected {U}"),
        (edited(offset=np.arange(U + 1)), "one stretch a client or more, 20 in all"),
        (edited(offset=np.array([0, 0, *range(4, 2 * U + 1, 2)])), "one stretch a client or more"),
        (edited(begin=np.tile([1.0, 9.0], U)), "client 0 at 1 s: a client's first stretch begins"),
        (edited(begin=np.tile([0.0, 0.0], U)), "client 0 at 0 s: a client's first .* each later"),
        (edited(begin=np.tile([0.0, np.nan], U)), "client 0 at nan s: .* each later"),
        (edited(period=np.float32(9)), "client 0 at 9 s: it must lie before the period, 9 s"),
        (edited(period=np.float32(0)), "period must be positive, not 0.0 s"),
        (edited(period=np.float32(np.nan)), "period must be positive, not nan s"),
        (with_entry("up", 5, 0), "up of client 2 is 0.0: choose more than 0 bit/s"),
        (with_entry("down", 6, np.nan), "down of client 3 is nan"),
        (with_entry("availability", 1, -1), r"client 0 is -1.0: choose a share in \[0, 1\]"),
        (with_entry("availability", slice(None), 0), "nobody is ever there"),
    ],
)
def test_what_is_no_trace_is_refused(trace, message):
    with pytest.raises(SpecError, match=message):
        traces.check(trace, U)
    with pytest.raises(SpecError, match=message):
        build(trace)


# ---------------------------------------------------------------- rounds


def build(profile, **changed):
    parts = {
        "model": mf(4),
        "n_clients": U,
        "n_items": M,
        "history_lengths": LENGTHS,
        "training": factored(mf(4), 0.3, 0.01, epochs=2, batch_size=32),
        "codec": dense(),
        "sampler": samplers.fixed_size(U, C),
        "seed": 5,
        "negatives": 2,
        "n_widths": 1,
        "chunk": 4,
        "profile": profile,
    }
    return federated(**{**parts, **changed})


def go(algorithm, rounds: int, data=DATA):
    step, state, infos = jax.jit(algorithm.step), algorithm.init(), []
    for _ in range(rounds):
        state, info = step(state, data)
        infos.append(jax.tree.map(np.asarray, info))
    return state, infos


@functools.cache
def fast_and_slow():
    """Two profiles without jitter, everybody there, and rounds on the first one."""
    fast = profiles.mobile(U, seed=1, jitter=0)
    slow = dataclasses.replace(fast, up=fast.up / 8, compute=fast.compute / 8)
    return fast, slow, go(build(fast), 5)[1]


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def alike(one, two):
    """What two programs give: counts exactly, and float32 to rounding, which fusion may change."""

    def close(a, b):
        exact = not jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating)
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-7)

    jax.tree.map(close, one, two)


def test_a_trace_that_never_changes_is_a_profile():
    profile = profiles.mobile(U, seed=1, failure=0.2, availability=0.6, session=2)
    trace = together(profile, profile, profile, at=[0, 0.02, 0.05], period=0.1)
    expected, told = go(build(profile), 4)
    found, infos = go(build(trace), 4)
    alike(told, infos)
    alike(dataclasses.replace(expected, clock=found.clock), found)
    # Summed in another way: rounding in the last place.
    seconds = sum(float(info.seconds) for info in told)
    np.testing.assert_allclose(found.clock[0], seconds, rtol=2**-23)
    assert seconds > 0.1


def test_rounds_go_by_what_holds_when_they_begin():
    fast, slow, told = fast_and_slow()
    starts = np.cumsum([0, *(float(info.seconds) for info in told)])
    # Rounds 0 and 1 have begun by then.
    change = float(starts[1] + starts[2]) / 2
    state, infos = go(build(together(fast, slow, at=[0, change])), 4)
    for r, info in enumerate(infos):
        np.testing.assert_array_equal(info.client, told[r].client)
        factor = 1 if r < 2 else 8
        expected = told[r].outcome.phases * [1, 1, factor, factor, factor]
        np.testing.assert_allclose(info.outcome.phases, expected, rtol=1e-6)
    np.testing.assert_allclose(state.clock[0], sum(i.seconds for i in infos), rtol=1e-6)


def test_what_is_periodic_comes_again():
    fast, slow, told = fast_and_slow()
    starts = np.cumsum([0, *(float(info.seconds) for info in told)])
    change = float(starts[1] + starts[2]) / 2
    first, infos = go(build(together(fast, slow, at=[0, change])), 3)
    # It begins anew while round 2, the first slow one, is under way.
    period = (float(infos[0].seconds) + float(infos[1].seconds) + float(first.clock[0])) / 2
    _, again = go(build(together(fast, slow, at=[0, change], period=period)), 4)
    alike(infos, again[:3])
    into = float(first.clock[0]) - period
    assert 0 < into < change
    np.testing.assert_allclose(again[3].outcome.phases, told[3].outcome.phases, rtol=1e-6)


def test_budgets_see_the_time():
    """A client sends as many actions as its link, as it is now, has time for."""
    fast, slow, _ = fast_and_slow()
    parts = {"codec": actions(4), "budget": budgets.bandwidth(2e-4)}
    _, of_slow = go(build(slow, **parts), 2)
    _, infos = go(build(together(fast, slow, fast, at=[0, 1e-3, 1e3]), **parts), 2)
    assert (infos[0].n_actions >= of_slow[0].n_actions).all()
    assert (infos[0].n_actions > of_slow[0].n_actions).any()
    np.testing.assert_array_equal(infos[1].n_actions, of_slow[1].n_actions)


def test_the_server_waits_until_somebody_is_there():
    fast, _, told = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    gone = float(told[0].seconds) / 2
    trace = together(fast, away, fast, at=[0, gone, 1000])
    state, infos = go(build(trace, budget=budgets.fixed()), 3)
    alike(told[0], infos[0])
    waited = infos[1]
    assert not waited.mask.any()
    assert not waited.arrived.weight.any()
    np.testing.assert_allclose(waited.seconds, 1000 - told[0].seconds, rtol=1e-6)
    assert waited.spent.sum() == 0
    one, _ = go(build(trace), 1)
    two, _ = go(build(trace), 2)
    same((one.items, one.public, one.clients), (two.items, two.public, two.clients))
    assert infos[2].mask.all()
    np.testing.assert_allclose(state.clock[0], 1000 + infos[2].seconds, rtol=1e-6)
    # Nothing would ever change: a round without anybody takes no time, as without a trace.
    _, infos = go(build(together(fast, away, at=[0, gone])), 3)
    assert [float(info.seconds) for info in infos[1:]] == [0, 0]


@pytest.mark.parametrize(
    "changed",
    [
        {"sampler": samplers.poisson(U, 0.1)},
        {"sampler": samplers.rotation(U, 2)},
        {"history_lengths": np.where(np.arange(U) < 2, LENGTHS, 0)},
    ],
    ids=["poisson", "rotation", "without examples"],
)
def test_a_round_of_nobody_waits_for_nobody_if_there_are_some(changed):
    """As without a trace; people are there, but the draw has missed them or they have no part."""
    profile = profiles.mobile(U, seed=1, availability=0.5)
    trace = together(profile, profile, at=[0, 28_800], period=86_400)
    data = make_histories(changed.get("history_lengths", LENGTHS), M)
    _, told = go(build(profile, **changed), 8, data)
    _, infos = go(build(trace, **changed), 8, data)
    assert any(info.n_examples.sum() == 0 for info in told)
    alike(told, infos)


def test_the_server_waits_for_those_who_come():
    """Not for changes of those who stay away, nor for those who have no part in training."""
    fast, _, told = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    few = dataclasses.replace(fast, availability=np.float32(np.arange(U) < 2))
    trace = together(fast, away, away, few, away, fast, at=[0, 1e-6, 10, 20, 30, 1000])
    _, infos = go(build(trace), 2)
    np.testing.assert_allclose(infos[1].seconds, 20 - told[0].seconds, rtol=1e-6)
    lengths = np.where(np.arange(U) < 2, 0, LENGTHS)
    # The two who are there at 20 s have no examples.
    state, infos = go(build(trace, history_lengths=lengths), 3, make_histories(lengths, M))
    assert [info.n_examples.sum() > 0 for info in infos] == [True, False, True]
    np.testing.assert_allclose(state.clock[0], 1000 + infos[2].seconds, rtol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"arrival": arrivals.deadline(0.05)},
        {"arrival": arrivals.over_commit(2)},
        {"mesh": cohort.client_mesh(4)},
        {"mesh": cohort.client_mesh(2), "spread_items": True},
    ],
    ids=["deadline", "over_commit", "mesh", "spread_items"],
)
def test_rounds_of_all_kinds_follow_a_trace(changed):
    """A first stretch that is over at once, so that the second profile's rounds must come."""
    fast, slow, told = fast_and_slow()
    state, infos = go(build(together(fast, slow, at=[0, 1e-6]), **changed), 3)
    for r, info in enumerate(infos):
        np.testing.assert_array_equal(info.client, told[r].client)
        expected = told[r].outcome.phases * ([1, 1, 1, 1, 1] if r == 0 else [1, 1, 8, 8, 8])
        np.testing.assert_allclose(info.outcome.phases, expected, rtol=1e-6)
    np.testing.assert_allclose(state.clock[0], sum(i.seconds for i in infos), rtol=1e-6)


def test_a_deadline_that_is_met_only_by_those_who_are_away_is_refused():
    fast, slow, _ = fast_and_slow()
    crawl = dataclasses.replace(slow, compute=slow.compute / 1e6)
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    with pytest.raises(SpecError, match="nobody would arrive"):
        build(together(crawl, away, at=[0, 9]), arrival=arrivals.deadline(1.0))
    build(together(crawl, fast, at=[0, 9]), arrival=arrivals.deadline(1.0))
    few = dataclasses.replace(fast, availability=np.float32(np.arange(U) < 2))
    build(together(few, few, at=[0, 9]), arrival=arrivals.deadline(1.0))


def test_a_budget_is_not_told_of_the_wait():
    fast, _, told = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    trace = together(fast, away, fast, at=[0, float(told[0].seconds) / 2, 1e6])
    seen = Budget(
        lambda outlook, state: jnp.int32(2),
        init=lambda: jnp.zeros(3),
        update=lambda state, tally: state.at[tally.round].set(tally.seconds),
    )
    state, infos = go(build(trace, codec=actions(4), budget=seen), 3)
    assert infos[1].seconds > 9e5
    np.testing.assert_array_equal(state.budget, [infos[0].seconds, 0, infos[2].seconds])


def test_payloads_in_flight_come_while_the_server_waits():
    """Half of those who could be at work are, and nobody else is there for a while."""
    fast, _, _ = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    there = dataclasses.replace(fast, availability=np.float32(np.arange(U) < C))
    trace = together(there, away, fast, at=[0, 1, 10])
    state, infos = go(build(trace, arrival=arrivals.buffered(2 * C)), 2)
    assert infos[0].mask.all()
    assert infos[0].outcome.seconds.max() < 1
    assert not infos[1].mask.any()
    np.testing.assert_array_equal([info.seconds for info in infos], [0, 10])
    assert state.clock[0] == 10
    np.testing.assert_array_equal(state.flight.seconds[state.flight.present], np.zeros(C))
    _, infos = go(build(trace, arrival=arrivals.buffered(2 * C)), 3)
    # Four more are sent out, and those that have long been back are taken at once.
    arrived = infos[2].arrived
    assert infos[2].mask.all()
    assert infos[2].seconds == 0
    np.testing.assert_array_equal(np.sort(arrived.client[arrived.weight > 0]), np.arange(C))
    np.testing.assert_array_equal(arrived.staleness[arrived.weight > 0], 2)


# ---------------------------------------------------------------- Specs


def written(path, lines_of_each: int):
    """A trace's file: 30 clients who are ten times as slow from some moment on."""
    lines = ["client,time,compute,up,down,latency,tier"]
    for u in range(30):
        for i in range(lines_of_each):
            lines.append(f"{u},{0.15 * i},1e5,{10.0 ** (6 - i)},1e6,0.1,{u % 3 + i}")
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.long
def test_runs_with_other_periods_are_a_group_and_other_files_are_not(tmp_path):
    path, longer = written(tmp_path / "a.csv", 2), written(tmp_path / "b.csv", 3)
    base = Spec(
        dataset="synthetic:30x60x8", dim=4, rounds=4, cohort_size=5, candidates=10, profile=path
    )
    specs = [base.replace(profile_args={"period": period}) for period in (0.2, 5.0)]
    assert assembly.program(specs[0]) == assembly.program(specs[1]) == assembly.program(base)
    assert assembly.program(base) != assembly.program(base.replace(profile=longer))
    together = run_group(specs)
    alone = fedras_jax.run(specs[1])
    assert [row["seconds"] for row in together[1].rounds] == [r["seconds"] for r in alone.rounds]
    seconds = [[row["seconds"] for row in found.rounds] for found in together]
    assert seconds[0] != seconds[1]


def test_tiers_are_those_of_the_first_stretch(tmp_path):
    spec = Spec(profile=written(tmp_path / "a.csv", 2))
    np.testing.assert_array_equal(assembly.tiers_of(spec, 30), np.arange(30) % 3)
    assert assembly.tiers_of(Spec(), 30) is None
    mobile = assembly.tiers_of(Spec(profile="mobile"), 30)
    np.testing.assert_array_equal(mobile, profiles.mobile(30).tier)
