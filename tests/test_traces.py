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

from fedras_jax import arrivals, budgets, profiles, samplers, traces
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.dense import dense
from fedras_jax.errors import SpecError
from fedras_jax.factored import factored
from fedras_jax.models.mf import mf
from fedras_jax.rounds import federated
from fedras_jax.types import Profile, Trace

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
    now, ahead = jax.jit(traces.now), jax.jit(traces.until_change)
    moments = [0.0, 0.5, *np.unique(trace.begin)[1:6], 77.25, 149.5, 150.0, 153.5, 1000.0]
    spans = list(itertools.pairwise(trace.offset))
    for seconds in moments:
        time = seconds % period
        at = [a + bisect.bisect(trace.begin[a:b], time) - 1 for a, b in spans]
        expected = jax.tree.map(lambda x, at=at: x[at], trace.stretch)
        same(now(on_device(trace), clock(seconds)), expected)
        later = min([*trace.begin[trace.begin > time], period])
        expected = later - time if np.isfinite(later) else 0
        assert ahead(on_device(trace), clock(seconds)) == np.float32(expected)


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
        for name in ("compute", "up", "down", "availability", "jitter"):
            assert getattr(found, name)[u] == getattr(trace.stretch, name)[own].max()
        for name in ("latency", "failure"):
            assert getattr(found, name)[u] == getattr(trace.stretch, name)[own].min()


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
        "training": factored(0.3, 0.01, epochs=2, batch_size=32),
        "codec": dense(),
        "sampler": samplers.fixed_size(U, C),
        "seed": 5,
        "negatives": 2,
        "n_widths": 1,
        "chunk": 4,
        "profile": profile,
    }
    return federated(**{**parts, **changed})


def go(algorithm, rounds: int):
    step, state, infos = jax.jit(algorithm.step), algorithm.init(), []
    for _ in range(rounds):
        state, info = step(state, DATA)
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


def test_a_trace_that_never_changes_is_a_profile():
    profile = profiles.mobile(U, seed=1, failure=0.2, availability=0.6, session=2)
    once = Trace(np.zeros(U, np.float32), np.arange(U + 1), profile, np.float32(np.inf))
    repeated = together(profile, profile, profile, at=[0, 0.02, 0.05], period=0.1)
    expected, told = go(build(profile), 4)
    for trace in (once, repeated):
        found, infos = go(build(trace), 4)
        same(told, infos)
        same(dataclasses.replace(expected, clock=found.clock), found)
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
    same(infos, again[:3])
    into = float(first.clock[0]) - period
    assert 0 < into < change
    np.testing.assert_allclose(again[3].outcome.phases, told[3].outcome.phases, rtol=1e-6)


def test_budgets_see_the_time():
    """A client sends as many actions as its link, as it is now, has time for."""
    fast, slow, _ = fast_and_slow()
    codec = actions(4)
    parts = {"codec": codec, "budget": budgets.bandwidth(2e-4)}
    of_each = [go(build(p, **parts), 1)[1][0].n_actions for p in (fast, slow)]
    assert (of_each[0] > of_each[1]).any()
    _, infos = go(build(together(fast, slow, fast, at=[0, 1e-3, 1e3]), **parts), 2)
    np.testing.assert_array_equal(infos[0].n_actions, of_each[0])
    _, of_slow = go(build(slow, **parts), 2)
    np.testing.assert_array_equal(infos[1].n_actions, of_slow[1].n_actions)


def test_the_server_waits_until_somebody_is_there():
    fast, _, told = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    gone = float(told[0].seconds) / 2
    trace = together(fast, away, fast, at=[0, gone, 1000])
    state, infos = go(build(trace, budget=budgets.fixed()), 3)
    same(told[0], infos[0])
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


def test_an_adaptive_budget_is_not_told_of_the_wait():
    fast, _, told = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    trace = together(fast, away, fast, at=[0, float(told[0].seconds) / 2, 1e6])
    parts = {"codec": actions(4), "budget": budgets.adaptive()}
    one, _ = go(build(trace, **parts), 1)
    two, infos = go(build(trace, **parts), 2)
    assert infos[1].seconds > 9e5
    assert one.budget == two.budget


def test_payloads_in_flight_come_while_the_server_waits():
    """Half of those who could be at work are, and nobody else is there for a while."""
    fast, _, _ = fast_and_slow()
    away = dataclasses.replace(fast, availability=np.zeros(U, np.float32))
    there = dataclasses.replace(fast, availability=np.float32(np.arange(U) < C))
    trace = together(there, away, fast, at=[0, 1, 10])
    state, infos = go(build(trace, arrival=arrivals.buffered(2 * C)), 3)
    sent = infos[0].outcome.seconds
    assert infos[0].mask.all()
    assert sent.max() < 1
    # Nobody is free, and then nobody is there: the round before the last change waits.
    assert [info.mask.sum() for info in infos[1:]] == [0, 0]
    np.testing.assert_allclose([info.seconds for info in infos], [0, 1, 9], rtol=1e-6)
    assert state.clock[0] == 10
    np.testing.assert_array_equal(state.flight.seconds[state.flight.present], np.zeros(C))
    _, infos = go(build(trace, arrival=arrivals.buffered(2 * C)), 4)
    # Four more are sent out, and those that have long been back are taken at once.
    arrived = infos[3].arrived
    assert infos[3].mask.all()
    assert infos[3].seconds == 0
    np.testing.assert_array_equal(np.sort(arrived.client[arrived.weight > 0]), np.arange(C))
    np.testing.assert_array_equal(arrived.staleness[arrived.weight > 0], 3)
