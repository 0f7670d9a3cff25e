"""A client's clock, and who is there. Seeds are fixed; tolerances are four standard errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedras_jax import network, profiles
from fedras_jax.types import Pace

N = 50_000


def ended(key, failure, phases):
    """`network.outcome` with draws from a key."""
    return network.outcome(jax.random.uniform(key, (2,)), failure, phases)


PHASES = (0.5, 2.0, 3.0, 0.25, 4.0)
# What sqrt(n) times Kolmogorov's statistic exceeds once in 10 000 times.
KOLMOGOROV = 2.23


def one(**changed):
    """A single client's profile: scalars."""
    return jax.tree.map(lambda x: jnp.asarray(x[0]), profiles.homogeneous(1)).replace(**changed)


# ---------------------------------------------------------------- seconds


def test_seconds_of_each_phase():
    random = np.random.default_rng(0)
    compute, up, down, latency = pace = random.lognormal(5, 3, (4, 100)).astype(np.float32)
    sizes = random.uniform(1, 1e7, (4, 100)).astype(np.float32)
    bits_down, work, encoding, bits_up = sizes
    found = jax.jit(jax.vmap(network.phases))(Pace(*pace), *sizes)
    expected = [latency, bits_down / down, work / compute, encoding / compute, bits_up / up]
    assert found.shape == (100, len(network.PHASES))
    np.testing.assert_allclose(found, np.transpose(expected), rtol=3e-7)  # a division each


def test_what_is_known_beforehand_is_the_profile():
    profile = one(jitter=jnp.float32(0.5))
    found = network.pace(profile)
    for name in ("compute", "up", "down", "latency"):
        assert getattr(found, name) == getattr(profile, name)


@functools.cache
def jitter_all():
    return jax.jit(jax.vmap(network.jittered, in_axes=(0, None)))


@functools.cache
def factors(jitter: float) -> dict[str, np.ndarray]:
    """What a round's speeds are of the profile's, for N keys."""
    profile = one(jitter=jnp.float32(jitter))
    found = jitter_all()(jax.random.split(jax.random.key(1), N), profile)
    names = ("compute", "up", "down", "latency")
    return {name: np.asarray(getattr(found, name) / getattr(profile, name)) for name in names}


@pytest.mark.parametrize("jitter", [0.1, 0.37, 1.0])
@pytest.mark.parametrize("name", ["compute", "up"])
def test_jitter_is_lognormal_around_one(name, jitter):
    logs = np.log(factors(jitter)[name].astype(float)) / jitter
    assert abs(np.median(logs)) < 4 * np.sqrt(np.pi / 2 / N)
    assert stats.kstest(logs, "norm").statistic < KOLMOGOROV / np.sqrt(N)


def test_device_and_link_are_jittered_apart():
    logs = {name: np.log(x.astype(float)) for name, x in factors(0.37).items()}
    assert abs(np.corrcoef(logs["compute"], logs["up"])[0, 1]) < 4 / np.sqrt(N)
    # Independent in size as well as in sign.
    sizes = np.abs(logs["compute"]), np.abs(logs["up"])
    assert abs(np.corrcoef(sizes)[0, 1]) < 4 / np.sqrt(N)


def test_a_link_is_fast_or_slow_in_everything():
    found = factors(0.37)
    np.testing.assert_allclose(found["down"], found["up"], rtol=1e-6)  # products' rounding
    np.testing.assert_allclose(found["latency"], 1 / found["up"], rtol=1e-6)


def test_no_jitter_is_the_known_pace():
    profile = one(jitter=jnp.float32(0))
    found, known = network.jittered(jax.random.key(0), profile), network.pace(profile)
    assert jax.tree.leaves(found) == jax.tree.leaves(known)


# ---------------------------------------------------------------- failing


@functools.cache
def end_all():
    return jax.jit(jax.vmap(ended, in_axes=(0, None, None)))


@functools.cache
def ends(failure: float, phases: tuple[float, ...] = PHASES):
    """How N rounds end."""
    keys = jax.random.split(jax.random.key(2), N)
    found = end_all()(keys, jnp.float32(failure), jnp.float32(phases))
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("failure", [0.0, 0.02, 0.3, 0.9])
def test_failures_are_as_frequent_as_told(failure):
    failed = ~ends(failure).finished
    assert abs(failed.mean() - failure) <= 4 * np.sqrt(failure * (1 - failure) / N)


@pytest.mark.parametrize("failure", [0.3, 0.9])
def test_failures_come_at_any_moment(failure):
    """Independent of how likely they were: the moment is not the draw that decided."""
    found = ends(failure)
    moments = found.seconds[~found.finished] / sum(PHASES)
    assert stats.kstest(moments, "uniform").statistic < KOLMOGOROV / np.sqrt(len(moments))


def test_who_finishes_does_everything():
    found = ends(0.3)
    done = found.finished
    np.testing.assert_array_equal(found.seconds[done], np.float32(sum(PHASES)))
    np.testing.assert_array_equal(found.phases[done], np.float32(PHASES) + np.zeros((sum(done), 5)))
    np.testing.assert_array_equal(found.share_down[done], 1)
    np.testing.assert_array_equal(found.share_up[done], 1)


def test_who_fails_does_it_in_order_until_then():
    found = ends(0.9)
    failed = ~found.finished
    seconds = found.seconds[failed].astype(float)
    phases = np.array(PHASES)
    starts = np.cumsum(phases) - phases
    done = np.clip(seconds[:, None] - starts, 0, phases)
    # Seconds of order 10 in float32: an ulp is 1e-6.
    np.testing.assert_allclose(found.phases[failed], done, atol=2e-6)
    np.testing.assert_allclose(found.phases[failed].sum(1), seconds, atol=4e-6)
    np.testing.assert_allclose(found.share_down[failed], (done / phases)[:, 1], atol=2e-6)
    np.testing.assert_allclose(found.share_up[failed], (done / phases)[:, 4], atol=2e-6)


def test_shares_are_shares():
    found = ends(0.9)
    for share in (found.share_down, found.share_up):
        assert share.min() == 0
        assert share.max() == 1
        assert ((share > 0) & (share < 1)).sum() > 1000
    # Nobody sends before it has fetched; and what is fetched is exactly so: clients then hold it.
    assert (found.share_down[found.share_up > 0] == 1).all()
    fetched = found.seconds > 2.5 + 1e-6
    np.testing.assert_array_equal(found.share_down[fetched], 1)
    assert (found.share_down[found.seconds < 2.5 - 1e-6] < 1).all()
    assert (found.share_up[found.seconds < 5.75 - 1e-6] == 0).all()


def test_messages_that_take_no_time_are_sent_when_it_is_their_turn():
    found = ends(0.5, (1.0, 0.0, 1.0, 0.0, 0.0))
    failed = ~found.finished
    np.testing.assert_array_equal(found.share_down[failed], found.seconds[failed] >= 1)
    np.testing.assert_array_equal(found.share_up[failed], 0)
    assert np.isfinite(found.phases).all()


def test_ideal_clients_take_no_time():
    profile = jax.tree.map(jnp.asarray, network.ideal(3))
    size = jnp.float32(1e9)

    @jax.jit
    @jax.vmap
    def run(key, profile):
        pace = network.jittered(key, profile)
        return ended(key, profile.failure, network.phases(pace, size, size, size, size))

    found = run(jax.random.split(jax.random.key(0), 3), profile)
    np.testing.assert_array_equal(found.seconds, 0)
    np.testing.assert_array_equal(found.phases, np.zeros((3, 5)))
    assert found.finished.all()
    np.testing.assert_array_equal(found.share_down, 1)
    np.testing.assert_array_equal(found.share_up, 1)
    assert network.available(0, jnp.int32(5), profile).all()


# ---------------------------------------------------------------- availability

U, ROUNDS = 900, 400
SHARES, SESSIONS = (0.05, 0.5, 0.9), (1, 5, 40)


def crowd(n: int = U):
    """Every share with every session, in turn."""
    share = np.resize(np.float32(SHARES), n)
    session = np.resize(np.repeat(np.int32(SESSIONS), len(SHARES)), n)
    return profiles.homogeneous(n).replace(availability=share, session=session)


@functools.cache
def in_all_rounds():
    return jax.jit(jax.vmap(network.available, in_axes=(None, 0, None)))


@functools.cache
def presence(seed: int = 0) -> np.ndarray:
    """bool[ROUNDS, U]."""
    rounds = jnp.arange(ROUNDS, dtype=jnp.int32)
    return np.asarray(in_all_rounds()(jnp.int32(seed), rounds, crowd()))


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize("share", SHARES)
def test_clients_are_there_for_their_share_of_the_time(share, session):
    these = (crowd().availability == np.float32(share)) & (crowd().session == session)
    # Each client's rounds are about ROUNDS / session draws.
    error = np.sqrt(share * (1 - share) * session / ROUNDS / these.sum())
    assert abs(presence()[:, these].mean() - share) < 4 * error


@functools.cache
def begins() -> list[np.ndarray]:
    """The rounds in which each client comes or goes."""
    return [1 + np.flatnonzero(np.diff(column.astype(int))) for column in presence().T]


def test_sessions_keep_their_length():
    """Whoever comes or goes does so in rounds a multiple of its session apart."""
    changes = 0
    for rounds, session in zip(begins(), crowd().session, strict=True):
        assert (np.diff(rounds) % session == 0).all()
        changes += len(rounds) if session > 1 else 0
    # And they do come and go: at every end of a session with probability 2 p (1 - p).
    p, session = crowd().availability, crowd().session
    expected = (2 * p * (1 - p) * ROUNDS / session)[session > 1].sum()
    # Of some 7000, dependent in pairs.
    assert changes == pytest.approx(expected, rel=4 * np.sqrt(2 / expected))


def test_sessions_begin_in_different_rounds():
    for length in (5, 40):
        rounds = itertools.compress(begins(), crowd().session == length)
        phase = [r[0] % length for r in rounds if len(r)]
        assert stats.chisquare(np.bincount(phase, minlength=length)).pvalue > 1e-3


def test_clients_come_and_go_independently():
    """The number of those present varies as a sum of independent draws does."""
    p, session = crowd().availability, crowd().session
    those = session == 1
    count = presence()[:, those].sum(1)
    variance = np.sum((p * (1 - p))[those])
    # A variance of R draws is off by sqrt(2 / R) of it.
    assert count.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / ROUNDS))


def test_draws_of_a_client_are_independent():
    """Sessions do not echo earlier ones, nor the neighbours'."""
    p, session = crowd().availability, crowd().session
    states = (presence() - p)[:, (session == 1) & (p == 0.5)] / 0.5
    lagged = [np.mean(states[lag:] * states[:-lag]) for lag in range(1, 33)]
    beside = [np.mean(states[:, gap:] * states[:, :-gap]) for gap in range(1, 33)]
    assert np.abs([*lagged, *beside]).max() < 4 / np.sqrt(2 / 3 * states.size)  # what lags leave


def test_a_share_of_one_is_always():
    always = crowd(50).replace(availability=np.ones(50, np.float32))
    for r in (0, 3, 1000):
        assert network.available(0, jnp.int32(r), always).all()


def test_the_seed_decides_who_is_there():
    for r in (0, 7):
        again = network.available(0, jnp.int32(r), crowd(45))
        # Traced or not, and whoever else exists.
        np.testing.assert_array_equal(again, presence()[r, :45])
    assert (presence(1) != presence()).mean() > 0.1
