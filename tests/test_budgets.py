"""How many actions a client may send, against every k tried out in float64.

Seeds are fixed; none of the draws is within rounding of a tie.
"""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import budgets
from fedras_jax.errors import SpecError
from fedras_jax.types import Outlook, Pace, Tally

K = 16
N = 400


@functools.cache
def outlooks(n: int = N, k: int = K) -> Outlook:
    """Random clients after training: errors fall with k, and sizes rise."""
    random = np.random.default_rng(0)
    floor, saved = random.uniform(0, 0.2, (n, 1)), random.uniform(0.05, 0.9, (n, 1))
    error = np.cumprod(1 - saved * random.random((n, k)), axis=1) * (1 - floor) + floor
    encoding = np.cumsum(random.lognormal(-7, 1, (n, k + 1)), axis=1)
    encoding[::3, -3:] = 0  # as many actions as rows: nothing is clustered
    return Outlook(
        round=jnp.asarray(random.integers(0, 50, n), jnp.int32),
        client=jnp.asarray(random.integers(0, 7, n), jnp.int32),
        error=jnp.asarray(np.append(np.ones((n, 1)), error, 1), jnp.float32),
        bits=jnp.asarray(160 + np.cumsum(random.integers(20, 3000, (n, k + 1)), 1), jnp.float32),
        seconds=jnp.asarray(random.lognormal(-2, 1, n), jnp.float32),
        encode_s=jnp.asarray(encoding, jnp.float32),
        pace=Pace(*jnp.asarray(random.lognormal([11, 12, 12, -3], 1, (n, 4)).T, jnp.float32)),
    )


@functools.cache
def mapped(allocate):
    return jax.jit(jax.vmap(allocate, in_axes=(0, None)))


def granted(budget, outlook=None, state=None, k_min: int = 1) -> np.ndarray:
    """What every client is granted: mapped, jitted, integer and in range."""
    state = budget.init() if state is None else state
    outlook = outlook or outlooks()
    found = mapped(budget.allocate)(outlook, state)
    assert found.dtype == jnp.int32
    assert found.shape == outlook.round.shape
    assert found.min() >= k_min
    assert found.max() <= outlook.bits.shape[1] - 1
    return np.asarray(found)


def exact(outlook=None):
    """In float64: errors, bits, seconds of the round with every k, and the uplink."""
    outlook = jax.tree.map(lambda x: np.asarray(x, float), outlook or outlooks())
    up = outlook.pace.up[:, None]
    seconds = outlook.seconds[:, None] + outlook.encode_s + outlook.bits / up
    return outlook.error, outlook.bits, seconds, up


def largest(fits: np.ndarray, k_min: int) -> list[int]:
    return [max([k for k in range(len(row)) if row[k]] + [k_min]) for row in fits]


def cheapest(cost: np.ndarray, k_min: int) -> np.ndarray:
    return k_min + cost[:, k_min:].argmin(1)


# ---------------------------------------------------------------- told beforehand


def test_fixed():
    budget = budgets.fixed(5)
    assert budget.max_actions == 5
    assert (granted(budget) == 5).all()


@pytest.mark.parametrize("k", [1, 3, K])
def test_fixed_without_a_number_is_what_the_codec_holds(k):
    budget = budgets.fixed()
    assert budget.max_actions is None
    assert (granted(budget, outlooks(5, k)) == k).all()


def test_by_client():
    budget = budgets.by_client(np.array([3, 1, 12, 4, 1, 5, 9]))
    np.testing.assert_array_equal(
        granted(budget), np.array([3, 1, 12, 4, 1, 5, 9])[outlooks().client]
    )
    assert budget.max_actions == 12
    assert budget.n_clients == 7


@pytest.mark.parametrize("wrong", [[], [[1, 2]], [1.0, 2.0], [3, 0], [-1]])
def test_by_client_refuses(wrong):
    with pytest.raises(SpecError, match="1-D integer array of action counts, all >= 1"):
        budgets.by_client(np.array(wrong))


@pytest.mark.parametrize(
    ("k", "until"), [([4], []), ([2, 9], [20]), ([9, 3, 16], [1, 30]), ([1, 2, 3, 4], [7, 8, 49])]
)
def test_schedule(k, until):
    def plainly(round_):
        for bound, value in zip(until, k, strict=False):
            if round_ < bound:
                return value
        return k[-1]

    budget = budgets.schedule(k, until)
    rounds = np.asarray(outlooks().round).tolist()
    assert {0, 7, 8, 19, 20, 29, 30, 48, 49} <= set(rounds)
    np.testing.assert_array_equal(granted(budget), [plainly(r) for r in rounds])
    assert budget.max_actions == max(k)


@pytest.mark.parametrize(
    ("k", "until"),
    [([1], [5]), ([], []), ([1, 2, 3], [5]), ([1, 2, 3], [9, 5]), ([1, 2, 3], [5, 5])],
)
def test_schedule_refuses(k, until):
    message = (
        f"schedule: expected ascending rounds and one k more than rounds, not k={k} until={until}"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        budgets.schedule(k, until)


# ---------------------------------------------------------------- one client by itself


@pytest.mark.parametrize("k_min", [1, 4])
@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_bandwidth(seconds, k_min):
    _, size, _, up = exact()
    found = granted(budgets.bandwidth(seconds, k_min), k_min=k_min)
    np.testing.assert_array_equal(found, largest(size <= seconds * up, k_min))
    assert len(set(found)) == K + 1 - k_min  # every one occurs


@pytest.mark.parametrize("k_min", [1, 4])
@pytest.mark.parametrize("tolerance", [0.15, 0.5])
def test_distortion(tolerance, k_min):
    error, *_ = exact()
    found = granted(budgets.distortion(tolerance, k_min), k_min=k_min)
    fit = [[k for k in range(K + 1) if row[k] <= tolerance] for row in error]
    np.testing.assert_array_equal(found, [max(min(ks, default=K), k_min) for ks in fit])
    assert len(set(found)) > 5
    if tolerance < 0.2:
        assert any(not ks for ks in fit)


@pytest.mark.parametrize("k_min", [1, 4])
@pytest.mark.parametrize("seconds", [0.25, 0.5])
def test_round_time(seconds, k_min):
    error, _, needed, _ = exact()
    found = granted(budgets.round_time(seconds, k_min), k_min=k_min)
    np.testing.assert_array_equal(found, largest(needed <= seconds, k_min))
    assert len(set(found)) == K + 1 - k_min
    # No k that is in time has a smaller error.
    able = needed[:, k_min] <= seconds
    least = np.where(needed <= seconds, error, np.inf).min(1)
    np.testing.assert_array_equal(error[able, found[able]], least[able])
    assert (found[~able] == k_min).all()


def limit(seconds: float, clients: float = 40, gain: float = 0.1) -> budgets.Limit:
    return budgets.Limit(*map(jnp.float32, (seconds, clients, np.inf, gain)))


def late(seconds: np.ndarray, limit_: float) -> np.ndarray:
    """The logarithm of how many times longer than allowed."""
    return np.log(np.maximum(seconds, limit_) / limit_)


@pytest.mark.parametrize("k_min", [1, 4])
@pytest.mark.parametrize("clients", [1, 40])
@pytest.mark.parametrize("weight", [0.01, 0.3])
def test_adaptive_weighs_error_against_lateness(weight, clients, k_min):
    error, _, seconds, _ = exact()
    found = granted(budgets.adaptive(weight, k_min), state=limit(0.2, clients), k_min=k_min)
    np.testing.assert_array_equal(
        found, cheapest(error + clients * weight * late(seconds, 0.2), k_min)
    )
    assert len(set(found)) > 4


def test_adaptive_is_late_for_what_it_saves_and_no_more():
    """Whoever can be in time takes all that is possible; with fewer waiting, some are late."""
    error, _, seconds, _ = exact()
    rows, able = np.arange(N), seconds[:, 1] <= 0.2
    strict = granted(budgets.adaptive(), state=limit(0.2, 1e9))
    in_time = granted(budgets.round_time(0.2))
    np.testing.assert_array_equal(strict[able], in_time[able])
    np.testing.assert_array_equal(strict[~able], seconds[~able, 1:].argmin(1) + 1)
    lenient = granted(budgets.adaptive(), state=limit(0.2, 4))
    assert (lenient >= strict).all()
    more = lenient > strict
    assert more.sum() > 20
    saved = (error[rows, strict] - error[rows, lenient])[more]
    lost = (late(seconds, 0.2)[rows, lenient] - late(seconds, 0.2)[rows, strict])[more]
    assert (saved > 4 * 0.99 * adaptive_weight() * lost).all()


def adaptive_weight() -> float:
    return inspect.signature(budgets.adaptive).parameters["weight"].default


def with_uplink(up: float, **changed) -> Outlook:
    pace = dataclasses.replace(outlooks().pace, up=jnp.full(N, up))
    return dataclasses.replace(outlooks(), pace=pace, **changed)


def test_adaptive_takes_all_that_is_useful_in_the_first_round_and_where_no_time_passes():
    """Nothing is gained beyond ten actions here; `network.ideal`: nothing takes any time."""
    useful = jnp.where(jnp.arange(K + 1) < 10, outlooks().error, outlooks().error[:, 10:11])
    found = granted(budgets.adaptive(), with_uplink(1.0, error=useful))
    np.testing.assert_array_equal(found, 10)
    zeros = jnp.zeros(N)
    ideal = with_uplink(jnp.inf, error=useful, seconds=zeros, encode_s=zeros[:, None])
    for state in (budgets.adaptive().init(), limit(1e-3)):
        np.testing.assert_array_equal(granted(budgets.adaptive(), ideal, state), 10)


def test_adaptive_grants_more_to_faster_uplinks():
    """Encoding aside, which is no upload, and does not fall with its speed."""
    budget, zeros = budgets.adaptive(), jnp.zeros((N, 1))
    uplinks = np.geomspace(1e2, 1e8, 13)
    steps = [granted(budget, with_uplink(up, encode_s=zeros), limit(1.0)) for up in uplinks]
    assert (np.diff(steps, axis=0) >= 0).all()
    assert (steps[-1] > steps[0]).mean() > 0.9


@pytest.mark.parametrize("k_min", [1, 4])
def test_adaptive_reports_what_a_longer_time_would_save(k_min):
    error, _, seconds, _ = exact()
    budget = budgets.adaptive(0.05, k_min)
    found = mapped(budget.report)(outlooks(), limit(0.2, 4))

    def least(limit_):
        return (error + 4 * 0.05 * late(seconds, limit_))[:, k_min:].min(1)

    by_hand = (least(0.2 * np.exp(-0.02)) - least(0.2 * np.exp(0.02))) / 0.04
    # Errors up to 1 in float32, over .04: some ulps of 1.2e-7 / .04.
    np.testing.assert_allclose(found, by_hand, atol=2e-5)
    assert (by_hand > 0.01).sum() > 50
    np.testing.assert_array_equal(mapped(budget.report)(outlooks(), budget.init()), 0)


def tally(**seen) -> Tally:
    names = [field.name for field in dataclasses.fields(Tally)]
    nothing = dict.fromkeys(names, 0) | {"deadline": np.inf}
    return Tally(**{name: jnp.asarray(x, jnp.float32) for name, x in (nothing | seen).items()})


def test_adaptive_moves_the_time_with_what_is_reported():
    """From that of the first round that takes time, in smaller steps at the end than at first."""
    budget = budgets.adaptive(0.2)
    update, state = jax.jit(budget.update), budget.init()
    seen = [
        tally(),  # nobody was there
        tally(seconds=10.0, clients=3, report=0.9),
        tally(seconds=99.0, clients=5, report=0.3),
        tally(seconds=99.0),  # everyone failed
        tally(seconds=99.0, clients=4, report=0.0),
        tally(seconds=99.0, clients=4, report=7.0),  # counts as twice the weight
    ]
    seconds = [0, 10, *10 * np.exp(np.cumsum([0.1, 0, -0.2 * 0.9, 0.2 * 0.81]))]
    for each, expected, clients in zip(seen, seconds, (1, 3, 5, 5, 4, 4), strict=True):
        state = update(state, each)
        assert float(state.seconds) == pytest.approx(expected, rel=1e-6)
        assert state.clients == clients
    for _ in range(100):
        state = update(state, tally(clients=4, report=0.2))
    assert float(state.gain) == pytest.approx(0.1)
    assert state.deadline == np.inf
    for _ in range(100):  # never beyond a deadline, however much a longer time would save
        state = update(state, tally(clients=4, report=0.4, deadline=12.0))
    assert state.seconds == state.deadline == 12


def test_adaptive_meets_deadlines_that_can_be_met():
    """However little lateness costs: what comes later is lost whole."""
    budget = budgets.adaptive(1e-4)
    state = budget.init()
    start = granted(budget, state=state)
    assert (start == cheapest(exact()[0], 1)).all()  # of a deadline nobody knows yet
    state = budget.update(state, tally(seconds=0.3, deadline=0.3))  # and nobody met it
    found = granted(budget, state=state)
    _, _, seconds, _ = exact()
    able = (seconds[:, 1:] <= 0.3).any(1)
    assert 0.2 < able.mean() < 0.9
    assert (seconds[np.arange(N), found] <= 0.3)[able].all()
    np.testing.assert_array_equal(found[~able], seconds[~able, 1:].argmin(1) + 1)
    assert (seconds[np.arange(N), start] > 0.3)[able].sum() > 20


@pytest.mark.parametrize("round_", [0, 49, 50, 200, 5000])
def test_adaptive_takes_its_time_in_later_rounds(round_):
    """The weight stands for 50 rounds, and then falls with the root of the round."""
    outlook = dataclasses.replace(outlooks(), round=jnp.full(N, round_, jnp.int32))
    budget, now = budgets.adaptive(0.1, steady=50), 0.1 * min(1, (50 / max(round_, 1)) ** 0.5)
    same = budgets.adaptive(now, steady=1e9)
    state = limit(0.2)
    np.testing.assert_array_equal(granted(budget, outlook, state), granted(same, state=state))
    np.testing.assert_allclose(
        *(mapped(b.report)(outlook, state) for b in (budget, same)),
        rtol=1e-4,  # rounding of the two weights, over a difference of .04
    )
    seen = tally(round=round_, clients=3, report=0.02)
    found, expected = (b.update(state, seen).seconds for b in (budget, same))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def objective(times: np.ndarray, weight: float, members: np.ndarray) -> list[float]:
    """Mean error + weight x log(longest time) of rounds, for every time that could be named."""
    error, _, seconds, _ = exact(outlooks(2000))
    rows = np.arange(2000)
    found = []
    for each in times:
        k = cheapest(error + members.shape[1] * weight * late(seconds, each), 1)
        longest = seconds[rows, k][members].max(1)
        found.append(error[rows, k].mean() + weight * np.log(longest).mean())
    return found


@pytest.mark.parametrize("weight", [0.05, 0.2])
@pytest.mark.parametrize("up", [2e4, 2e6])
def test_adaptive_finds_the_best_time(weight, up, monkeypatch):
    """Rounds of 40 of 2,000 clients, on slow and on fast uplinks, against 60 times tried out.

    The time is never still, and a round may have more than one late client, each of which thinks
    that it is the only one. Near the minimum both cost less than .001: half a percent of the time
    at weight .2.
    """
    clients = outlooks(2000)
    pace = dataclasses.replace(clients.pace, up=jnp.full(2000, up))
    seconds = jnp.full(2000, 0.05)
    clients = dataclasses.replace(clients, pace=pace, seconds=seconds)
    monkeypatch.setitem(globals(), "outlooks", lambda n=N, k=K: clients)
    budget = budgets.adaptive(weight, steady=1e9)
    random = np.random.default_rng(1)
    members = np.concatenate([random.permutation(2000).reshape(-1, 40) for _ in range(6)])

    @jax.jit
    def run(outlook, members):
        def step(state, who):
            one = jax.tree.map(lambda x: x[who], outlook)
            k, report = (
                jax.vmap(f, in_axes=(0, None))(one, state) for f in (budget.allocate, budget.report)
            )
            rows = jnp.arange(40)
            took = (one.seconds[:, None] + one.encode_s + one.bits / one.pace.up[:, None])[rows, k]
            seen = tally(seconds=took.max(), clients=40, report=report.mean())
            value = one.error[rows, k].mean() + weight * jnp.log(took.max())
            return budget.update(state, seen), (state.seconds, value)

        return jax.lax.scan(step, budget.init(), members)[1]

    times, values = map(np.asarray, run(clients, jnp.asarray(members)))
    settled = slice(100, None)
    tried = np.geomspace(0.06, times[1], 60)
    by_time = objective(tried, weight, members[settled])
    assert values[settled].mean() == pytest.approx(min(by_time), abs=1e-3)
    assert max(by_time) > min(by_time) + 0.02
    assert np.std(np.log(times[settled])) < 0.05


@pytest.mark.parametrize("make", [functools.partial(budgets.joint, 100.0), budgets.adaptive])
def test_a_least_k_above_the_codecs_grants_all_it_holds(make):
    """As bandwidth, distortion and round_time do once a round has clipped them."""
    budget = make(k_min=K + 4)
    state = budget.init()
    one = jax.tree.map(lambda x: x[0], outlooks())
    assert min(int(budget.allocate(one, state)), K) == K


@pytest.mark.parametrize(
    ("bits_", "k", "sent"),
    [
        ([1, 2, 3, 4], 2, 2),  # more actions are larger
        ([1, 5, 6, 4], 1, 3),  # a row for each is smaller
        ([1, 5, 6, 5], 1, 3),  # or as large
        ([1, 5, 4, 6], 1, 2),
        ([1, 2, 2, 2], 1, 3),  # of a client with a single row
        ([1, 2, 3, 4], 9, 3),  # no more than the codec holds
        ([1, 2, 3, 4], -1, 0),
        ([7], 0, 0),  # a codec without actions
    ],
)
def test_actions_that_cost_nothing_are_sent(bits_, k, sent):
    one = jax.tree.map(lambda x: x[0], outlooks())
    one = dataclasses.replace(one, bits=jnp.asarray(bits_, jnp.float32))
    assert int(jax.jit(budgets.at_no_cost)(one, jnp.int32(k))) == sent


def test_only_who_looks_at_errors_needs_them():
    needs = [budgets.distortion(0.1), budgets.joint(100), budgets.adaptive()]
    needs_not = [budgets.fixed(3), budgets.by_client(np.ones(7, int)), budgets.schedule([1], [])]
    assert all(budget.needs_error for budget in needs)
    without = dataclasses.replace(outlooks(), error=None)
    for budget in [*needs_not, budgets.bandwidth(0.1), budgets.round_time(0.1)]:
        assert not budget.needs_error
        assert len(granted(budget, without)) == N


# ---------------------------------------------------------------- one budget for all


@pytest.mark.parametrize("k_min", [1, 4])
def test_joint_at_a_price(k_min):
    error, size, _, _ = exact()
    budget = budgets.joint(500, k_min)
    found = {p: granted(budget, state=jnp.float32(p), k_min=k_min) for p in (-20, -3, -1, 20)}
    for log_price, k in found.items():
        np.testing.assert_array_equal(k, cheapest(error + np.exp(log_price) * size / 4000, k_min))
    assert len(set(found[-1])) > 4
    assert (found[-20] == K).all()  # nearly free
    assert (found[20] == k_min).all()  # nearly unaffordable


def test_joint_moves_the_price_with_the_excess():
    budget = budgets.joint(500, gain=0.3)
    state = budget.init()
    update = jax.jit(budget.update)
    # Half of what was allowed, a tenth more, and ten times as much, which counts as double.
    for size, step in ((2000, -0.15), (4400, 0.03), (40_000, 0.3)):
        moved = update(state, tally(bits=size))
        assert float(moved) == pytest.approx(float(state) + step, abs=1e-6)  # ulps of 3
    assert update(state, tally()) == state  # nobody ran


def test_joint_keeps_the_price_finite():
    """Under budgets that nobody can meet, and that nobody can exhaust."""
    for bytes_mean, end in ((1, 20), (1e9, -20)):
        budget = budgets.joint(bytes_mean, gain=1)
        state = budget.init()
        for _ in range(50):
            state = budget.update(state, tally(bits=8000))
        assert state == end


def dual(price: float, error: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """Mean bits and mean error of the best allocation at a price of a bit."""
    k = cheapest(error + price * size, 1)
    rows = np.arange(len(k))
    return size[rows, k].mean(), error[rows, k].mean()


def least_error(spent: float, error: np.ndarray, size: np.ndarray) -> float:
    """Least mean error for so many mean bits, by Lagrange: bisection for the price.

    The two ends of the last interval bracket the bits; between them the bound is a line.
    """
    low, high = 1e-12, 1e3
    for _ in range(200):
        middle = np.sqrt(low * high)
        above = dual(middle, error, size)[0] > spent
        low, high = (middle, high) if above else (low, middle)
    (more, less_wrong), (less, more_wrong) = dual(low, error, size), dual(high, error, size)
    assert less <= spent <= more
    share = (spent - less) / (more - less) if more > less else 0
    return more_wrong + share * (less_wrong - more_wrong)


@functools.cache
def play(bytes_mean: float, epochs: int = 20, cohort: int = 40) -> np.ndarray:
    """Mean bits and mean error of every round in which 40 of the clients take part, in turn."""
    budget = budgets.joint(bytes_mean)

    @jax.jit
    def run(outlook, order):
        def step(state, who):
            one = jax.tree.map(lambda x: x[who], outlook)
            k = jax.vmap(budget.allocate, in_axes=(0, None))(one, state)[:, None]
            size = jnp.take_along_axis(one.bits, k, 1).mean()
            wrong = jnp.take_along_axis(one.error, k, 1).mean()
            return budget.update(state, tally(bits=size)), jnp.stack([size, wrong])

        return jax.lax.scan(step, budget.init(), order)[1]

    random = np.random.default_rng(1)
    order = np.concatenate([random.permutation(2000).reshape(-1, cohort) for _ in range(epochs)])
    return np.asarray(run(outlooks(2000), order), float)


@pytest.mark.parametrize("bytes_mean", [600, 1200, 2000])
def test_joint_spends_its_budget_and_spends_it_well(bytes_mean):
    """After two passes over all clients, in whole passes: everyone counts as often."""
    rounds = play(bytes_mean)[100:]
    spent, wrong = rounds.mean(0)
    assert spent / 8 == pytest.approx(bytes_mean, rel=0.03)
    error, size, *_ = exact(outlooks(2000))
    best = least_error(spent, error, size)
    assert wrong <= 1.02 * best
    assert wrong >= best * (1 - 1e-5)  # a bound; sums in float32


def test_the_optimum_above_is_the_optimum():
    """The reference itself, against every allocation of three clients."""
    error, size, *_ = exact()
    error, size = error[:3, :6], size[:3, :6]
    every = np.stack(np.meshgrid(*[np.arange(1, 6)] * 3), -1).reshape(-1, 3)
    bits, wrong = (x[np.arange(3), every].mean(1) for x in (size, error))
    met = 0
    for spent, found in zip(bits, wrong, strict=True):
        bound = least_error(spent, error, size)
        best = wrong[bits <= spent].min()
        assert bound <= best + 1e-12
        met += abs(bound - best) < 1e-12 and best == found
    assert met > 5  # at the hull's corners it is attained


def test_joint_beats_the_same_k_for_everyone():
    error, size, *_ = exact(outlooks(2000))
    for k in (4, 8):
        spent, wrong = play(float(size[:, k].mean() / 8))[100:].mean(0)
        assert spent <= 1.03 * size[:, k].mean()
        assert wrong < 0.9 * error[:, k].mean()


# ---------------------------------------------------------------- numbers out of range

MAKERS = {
    "bandwidth": (budgets.bandwidth, ["seconds"]),
    "distortion": (budgets.distortion, ["tolerance"]),
    "round_time": (budgets.round_time, ["seconds"]),
    "joint": (budgets.joint, ["bytes_mean", "gain"]),
    "adaptive": (budgets.adaptive, ["weight", "steady"]),
}


@pytest.mark.parametrize("k", [0, -3, 2.5, float("inf"), float("nan")])
def test_counts_are_positive_integers(k):
    """Without this suite's type checks, which would stop fractions before."""

    def refused(policy, name, make, *args, **kwargs):
        message = f"{policy}: {name} must be an integer of at least 1, not {k}"
        with pytest.raises(SpecError, match=re.escape(message) + "$"):
            inspect.unwrap(make)(*args, **kwargs)

    refused("fixed", "k", budgets.fixed, k)
    refused("schedule", "k", budgets.schedule, [3, k], [5])
    for policy, (make, names) in MAKERS.items():
        refused(policy, "k_min", make, **dict.fromkeys(names, 1.0), k_min=k)


@pytest.mark.parametrize("value", [0, -1.5, float("inf"), float("nan")])
@pytest.mark.parametrize("policy", MAKERS)
def test_the_other_numbers_are_positive(policy, value):
    make, names = MAKERS[policy]
    for name in names:
        message = f"{policy}: {name} must be positive and finite, not {value}"
        with pytest.raises(SpecError, match=re.escape(message) + "$"):
            make(**(dict.fromkeys(names, 1.0) | {name: value}))
