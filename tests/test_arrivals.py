"""When a round ends and whose payload counts, against a sort written for reading."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import arrivals
from fedras_jax.errors import SpecError

P = 9
COHORT = 3
# Times are multiples of a quarter, so that ties and a limit that is met exactly are common.
LIMIT = 1.5

POLICIES = {
    "synchronous": arrivals.synchronous(),
    "deadline": arrivals.deadline(LIMIT),
    "over_commit": arrivals.over_commit(4),
    "buffered": arrivals.buffered(P),
}


def plainly(policy: str, seconds, present, finished):
    """Who is taken, who stays and how long it takes, as lists of slots."""
    there = [i for i in range(P) if present[i]]
    queue = sorted(there, key=lambda i: (seconds[i], i))
    came = [i for i in queue if finished[i]]
    until = max((seconds[i] for i in there), default=0)
    if policy == "synchronous":
        return came, [], until
    if policy == "deadline":
        return [i for i in came if seconds[i] <= LIMIT], [], min(until, LIMIT)
    if policy == "over_commit":
        return came[:4], [], seconds[came[3]] if len(came) >= 4 else until
    leaving = queue[: max(len(queue) - (P - COHORT), 0)]
    stay = [i for i in queue if i not in leaving]
    taken = [i for i in leaving if finished[i]]
    return taken, stay, max((seconds[i] for i in leaving), default=0)


@functools.cache
def draws(n: int = 500):
    """Random times, with absent and failed entries; rounds from empty to full."""
    random = np.random.default_rng(0)
    present = random.random((n, P)) < random.random((n, 1))
    present[:4], present[4:8] = False, True
    finished = random.random((n, P)) < np.resize([0.3, 0.8, 1.0], (n, 1))
    seconds = random.integers(1, 13, (n, P)) / 4
    # What a free slot says means nothing.
    seconds = np.where(present, seconds, random.choice([-5, 0, 0.1, 100], (n, P)))
    return seconds.astype(np.float32), present, finished


@functools.cache
def settled(policy: str):
    settle = functools.partial(POLICIES[policy].settle, cohort=COHORT)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(settle))(*map(jnp.asarray, draws())))


@pytest.mark.parametrize("policy", POLICIES)
def test_as_a_sort_says(policy):
    found = settled(policy)
    lengths = set()
    for i, (seconds, present, finished) in enumerate(zip(*draws(), strict=True)):
        taken, kept, until = plainly(policy, seconds, present, finished)
        assert np.flatnonzero(found.taken[i]).tolist() == sorted(taken)
        assert np.flatnonzero(found.kept[i]).tolist() == sorted(kept)
        assert found.seconds[i] == until
        lengths.add(len(taken))
    assert len(lengths) > 3  # the draws are of all kinds


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_map(policy):
    """As a round calls it: one row, jitted, and the number of slots not traced."""
    found = settled(policy)
    settle = jax.jit(POLICIES[policy].settle, static_argnums=3)
    for i in (0, 4, 20, 21):
        one = settle(*(jnp.asarray(x[i]) for x in draws()), COHORT)
        np.testing.assert_array_equal(one.taken, found.taken[i])
        np.testing.assert_array_equal(one.kept, found.kept[i])
        assert one.seconds == found.seconds[i]


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_waited_for_where_nobody_is(policy):
    _, present, _ = draws()
    empty = ~present.any(1)
    assert empty.any()
    found = settled(policy)
    assert not found.taken[empty].any()
    assert not found.kept[empty].any()
    np.testing.assert_array_equal(found.seconds[empty], 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_who_fails_is_never_taken_and_nobody_is_twice(policy):
    _, present, finished = draws()
    found = settled(policy)
    assert not (found.taken & ~finished).any()
    assert not ((found.taken | found.kept) & ~present).any()
    assert not (found.taken & found.kept).any()


@pytest.mark.parametrize("policy", ["synchronous", "deadline"])
def test_alone_says_what_settle_says(policy):
    seconds, present, finished = draws()
    alone = np.asarray(jax.jit(jax.vmap(jax.vmap(POLICIES[policy].alone)))(seconds, finished))
    np.testing.assert_array_equal(alone & present, settled(policy).taken)


@pytest.mark.parametrize("policy", ["over_commit", "buffered"])
def test_who_depends_on_others_is_not_judged_alone(policy):
    assert POLICIES[policy].alone is None


def test_a_deadline_is_met_by_who_comes_right_then():
    seconds = jnp.array([LIMIT, np.nextafter(np.float32(LIMIT), np.float32(2))])
    yes = jnp.ones(2, bool)
    found = POLICIES["deadline"].settle(seconds, yes, yes, 2)
    assert found.taken.tolist() == [True, False]
    assert found.seconds == LIMIT
    assert POLICIES["deadline"].deadline == LIMIT


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_over_commit_waits_for_all_where_too_few_deliver(n):
    """n deliver at 1, 2, ...; someone else fails late."""
    seconds = jnp.arange(1.0, P + 1).at[P - 1].set(50.0)
    finished = jnp.arange(P) < n
    found = POLICIES["over_commit"].settle(
        seconds, finished | (jnp.arange(P) == P - 1), finished, P
    )
    assert found.taken.sum() == min(n, 4)
    assert found.seconds == (50 if n < 4 else 4)
    assert not found.kept.any()


@pytest.mark.parametrize("cohort", [1, 3, P])
def test_buffered_leaves_room_for_the_next_cohort(cohort):
    seconds, present, finished = draws()
    settle = functools.partial(POLICIES["buffered"].settle, cohort=cohort)
    found = jax.jit(jax.vmap(settle))(seconds, present, finished)
    stay = np.asarray(found.kept).sum(1)
    np.testing.assert_array_equal(stay, np.minimum(present.sum(1), P - cohort))


def test_buffered_takes_the_earliest_and_lower_slots_of_equals():
    seconds = jnp.array([2.0, 1.0, 2.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0])
    everyone = jnp.ones(P, bool)
    found = POLICIES["buffered"].settle(seconds, everyone, everyone.at[1].set(False), COHORT)
    # 1 and 3 come first, and 0 of those at two seconds; 1 fails, and leaves without being taken.
    assert np.flatnonzero(found.taken).tolist() == [0, 3]
    assert np.flatnonzero(found.kept).tolist() == [2, 4, 5, 6, 7, 8]
    assert found.seconds == 2


def test_buffered_only_sends_out_at_first():
    seconds, finished = jnp.arange(1.0, P + 1), jnp.ones(P, bool)
    for n in range(P - COHORT + 1):
        found = POLICIES["buffered"].settle(seconds, jnp.arange(P) < n, finished, COHORT)
        assert not found.taken.any()
        assert found.kept.sum() == n
        assert found.seconds == 0


@pytest.mark.parametrize("power", [0, 0.5, 2])
def test_stale_payloads_weigh_less(power):
    policy = arrivals.buffered(5, staleness_power=power)
    staleness = jnp.arange(6, dtype=jnp.int32)
    found = jax.jit(policy.weigh)(staleness)
    np.testing.assert_allclose(found, (1.0 + np.arange(6)) ** -power, rtol=1e-6)  # a power
    assert policy.in_flight == 5


def test_only_buffered_payloads_grow_stale():
    for name, policy in POLICIES.items():
        assert (policy.weigh is None) == (name != "buffered")
        assert policy.in_flight == (P if name == "buffered" else 0)
        assert policy.wanted == (4 if name == "over_commit" else 0)
        assert (policy.deadline is None) == (name != "deadline")


@pytest.mark.parametrize("seconds", [0, -1.5, float("inf"), float("nan")])
def test_deadline_refuses(seconds):
    message = f"deadline: seconds must be positive and finite, not {seconds}"
    with pytest.raises(SpecError, match=message):
        arrivals.deadline(seconds)


@pytest.mark.parametrize("wanted", [0, -2])
def test_over_commit_refuses(wanted):
    with pytest.raises(SpecError, match=f"wanted must be an integer of at least 1, not {wanted}"):
        arrivals.over_commit(wanted)


@pytest.mark.parametrize("in_flight", [0, -2])
def test_buffered_refuses_no_slots(in_flight):
    with pytest.raises(
        SpecError, match=f"in_flight must be an integer of at least 1, not {in_flight}"
    ):
        arrivals.buffered(in_flight)


@pytest.mark.parametrize("power", [-0.1, float("inf"), float("nan")])
def test_buffered_refuses_to_favour_the_stale(power):
    with pytest.raises(SpecError, match=f"buffered: staleness_power must be >= 0, not {power}"):
        arrivals.buffered(3, staleness_power=power)
