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
from fedras_jax.types import Outlook, Pace

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


@pytest.mark.parametrize("k_min", [1, 4])
@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_adaptive_weighs_error_against_time(weight, k_min):
    error, _, seconds, _ = exact()
    found = granted(budgets.adaptive(weight, k_min), k_min=k_min)
    np.testing.assert_array_equal(
        found, cheapest(error + weight * seconds / seconds[:, 1:2], k_min)
    )
    assert len(set(found)) > 4


def with_uplink(up: float, **changed) -> Outlook:
    pace = dataclasses.replace(outlooks().pace, up=jnp.full(N, up))
    return dataclasses.replace(outlooks(), pace=pace, **changed)


def test_adaptive_takes_all_that_is_useful_where_uploads_hardly_count():
    """Nothing is gained beyond ten actions here."""
    useful = jnp.where(jnp.arange(K + 1) < 10, outlooks().error, outlooks().error[:, 10:11])
    found = granted(budgets.adaptive(), with_uplink(1e12, error=useful, encode_s=jnp.zeros((N, 1))))
    np.testing.assert_array_equal(found, 10)


def test_adaptive_is_frugal_where_uploads_rule():
    slow = granted(budgets.adaptive(1.0), with_uplink(1.0))
    fast = granted(budgets.adaptive(1.0), with_uplink(1e9))
    assert (slow <= fast).all()
    # With nothing but the upload to wait for, double the bits must save as much error as there is.
    _, size, _, _ = exact()
    assert (size[np.arange(N), slow] < 2.1 * size[:, 1]).all()
    assert slow.mean() < 0.3 * fast.mean()


def test_adaptive_grants_more_to_faster_uplinks():
    """Encoding aside, which is no upload, and weighs the more the faster the others are."""
    budget, zeros = budgets.adaptive(0.3), jnp.zeros(N)
    uplinks = np.geomspace(1e2, 1e8, 13)
    steps = [granted(budget, with_uplink(up, encode_s=zeros[:, None])) for up in uplinks]
    assert (np.diff(steps, axis=0) >= 0).all()
    assert (steps[-1] > steps[0]).mean() > 0.9


def test_adaptive_clients_that_nobody_waits_for_save_no_time():
    """What counts is the time of rounds, where that is longer than the client's own."""
    error, _, seconds, _ = exact()
    usual = float(np.median(seconds[:, 1]))
    found = granted(budgets.adaptive(2.0), state=jnp.float32(usual))
    longer = np.maximum(seconds[:, 1:2], usual)
    np.testing.assert_array_equal(found, cheapest(error + 2.0 * seconds / longer, 1))
    alone = granted(budgets.adaptive(2.0))
    assert (found >= alone).all()
    assert (found > alone).sum() > 5


def test_adaptive_follows_the_time_that_rounds_take():
    budget = budgets.adaptive()
    state, bits_ = budget.init(), jnp.float32(1)
    lasted = [0.0, 10.0, 20.0, 0.0, 5.0]  # nobody came in the first and the fourth
    for seconds in lasted:
        state = budget.update(state, bits_, jnp.float32(seconds))
    assert float(state) == pytest.approx(0.8 * (0.8 * 10 + 0.2 * 20) + 0.2 * 5, rel=1e-6)


def test_adaptive_takes_all_that_is_useful_where_no_time_passes():
    """`network.ideal`: training takes 0 s and uplinks are infinitely fast."""
    zeros = jnp.zeros(N)
    found = granted(
        budgets.adaptive(), with_uplink(jnp.inf, seconds=zeros, encode_s=zeros[:, None])
    )
    np.testing.assert_array_equal(found, K)


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
    state, second = budget.init(), jnp.float32(1)
    update = jax.jit(budget.update)
    # Half of what was allowed, a tenth more, and ten times as much, which counts as double.
    for size, step in ((2000, -0.15), (4400, 0.03), (40_000, 0.3)):
        moved = update(state, jnp.float32(size), second)
        assert float(moved) == pytest.approx(float(state) + step, abs=1e-6)  # ulps of 3
    assert update(state, jnp.float32(0), second) == state  # nobody ran


def test_joint_keeps_the_price_finite():
    """Under budgets that nobody can meet, and that nobody can exhaust."""
    for bytes_mean, end in ((1, 20), (1e9, -20)):
        budget = budgets.joint(bytes_mean, gain=1)
        state = budget.init()
        for _ in range(50):
            state = budget.update(state, jnp.float32(8000), jnp.float32(1))
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
            return budget.update(state, size, jnp.float32(1)), jnp.stack([size, wrong])

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
    "adaptive": (budgets.adaptive, ["weight"]),
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
