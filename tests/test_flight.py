"""Payloads on their way, against a list of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import arrivals, flight
from fedras_jax.errors import SpecError
from fedras_jax.types import InFlight

M = 50  # items
D = 3
K = 4
NARROW, WIDE = 6, 10


def leaves(width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A payload's, with the types that codecs send."""
    return {
        "item": jax.ShapeDtypeStruct((width,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((width,), jnp.bool_),
        "k": jax.ShapeDtypeStruct((), jnp.int32),
        "label": jax.ShapeDtypeStruct((width, 2), jnp.uint8),
        "centroid": jax.ShapeDtypeStruct((K, D), jnp.float16),
    }


SHAPES = {NARROW: leaves(NARROW), WIDE: leaves(WIDE)}
SHARED = {"bias": jnp.zeros(()), "weight": jnp.zeros(D)}


def some(n: int, x, seed: int = 0):
    """Random numbers of a leaf's shape and type, leading axis n."""
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(1, 100, (n, *x.shape)), x.dtype)


def filled(n: int, shapes=SHAPES[WIDE], seed: int = 0, **changed) -> InFlight:
    """n payloads of random numbers, all present unless told otherwise."""
    vectors = {
        "client": jnp.int32,
        "round": jnp.int32,
        "width": jnp.int32,
        "seconds": jnp.float32,
        "finished": bool,
        "weight": jnp.float32,
        "report": jnp.float32,
    }
    given = {
        name: some(n, jax.ShapeDtypeStruct((), dtype), seed + i)
        for i, (name, dtype) in enumerate(vectors.items())
    }
    given |= {"phases": some(n, jax.ShapeDtypeStruct((5,), jnp.float32), seed)}
    given |= {"present": jnp.ones(n, bool), "home": jnp.zeros(n, jnp.int32)}
    given |= {
        name: jax.tree.map(lambda x: some(n + 1, x, seed)[None], leaves)
        for name, leaves in (("data", shapes), ("shared", SHARED))
    }
    return InFlight(**(given | changed))


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize("shapes", [SHAPES, {WIDE: leaves(WIDE)}])
def test_nothing_is_in_flight_at_first(shapes):
    found = flight.empty(7, shapes, SHARED, 1.0)
    assert found.present.tolist() == [False] * 7
    # Slots have the widest form, and the types of what will fly in them.
    wanted = jax.eval_shape(lambda: filled(7))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


def test_memory_is_bounded():
    """1 KiB of payload, with 16 bytes of shared parameters among them."""
    shapes = {8: {"row": jax.ShapeDtypeStruct((8, 31), jnp.float32)}}
    shapes[8]["mask"] = jax.ShapeDtypeStruct((16,), jnp.bool_)
    # Beside a row for what nobody wants.
    assert flight.empty(63, shapes, SHARED, 2.0**-14).present.shape == (63,)
    with pytest.raises(SpecError, match="64 payloads in flight take "):
        flight.empty(64, shapes, SHARED, 2.0**-14)


def test_the_refusal_tells_sizes_and_takes_no_memory():
    """A million payloads of a 10 000 x 64 table: 2.4 TB, which nobody has."""
    shapes = {1: {"row": jax.ShapeDtypeStruct((10_000, 64), jnp.float32)}}
    message = (
        "1000000 payloads in flight take 2384.2 GiB, above flight_gib=4: let fewer be on their "
        "way, take a smaller codec, or allow more memory"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        flight.empty(1_000_000, shapes, (), 4.0)


# ---------------------------------------------------------------- on one device

P = 8
C = 3


@pytest.mark.parametrize("n", [1, 3, flight.FEW + 1])
def test_a_payload_is_read_as_it_was_written(n):
    """One by one and all at once: at its own width, and padded at a wider one."""
    held = filled(n + 2, seed=1)
    before = (held.data, held.shared)
    payload = jax.tree.map(lambda x: some(n, x, 2), (SHAPES[NARROW], SHARED))
    row = jnp.asarray(np.random.default_rng(0).permutation(n + 2)[:n] + 1, jnp.int32)
    after = jax.jit(flight.put)(before, (row, payload))
    # Nothing else has been touched.
    others = np.setdiff1d(np.arange(n + 3), row)
    same(*(jax.tree.map(lambda x: x[:, others], y) for y in (after, before)))

    made = jnp.full(n, NARROW)
    read = jax.jit(functools.partial(flight.take, shapes=SHAPES, n_items=M), static_argnums=3)
    same(read(after, row, made, NARROW), payload)
    data, shared = read(after, row, made, WIDE)
    same(shared, payload[1])
    for name, x in data.items():
        to = SHAPES[WIDE][name]
        assert (x.shape, x.dtype) == ((n, *to.shape), to.dtype)
        if name in ("k", "centroid"):
            np.testing.assert_array_equal(x, payload[0][name])
        else:
            np.testing.assert_array_equal(x[:, :NARROW], payload[0][name])
            np.testing.assert_array_equal(x[:, NARROW:], M if name == "item" else 0)


def test_payloads_of_several_widths_are_read_at_the_widest():
    rows = jnp.asarray([2, 1], jnp.int32)
    held = (filled(2, seed=1).data, {})
    narrow, wide = (
        jax.tree.map(lambda x: some(1, x, 3), SHAPES[width]) for width in (NARROW, WIDE)
    )
    held = flight.put(held, (rows[:1], (narrow, {})))
    held = flight.put(held, (rows[1:], (wide, {})))
    found, _ = flight.take(held, rows, jnp.asarray([NARROW, WIDE]), WIDE, SHAPES, M)
    same(jax.tree.map(lambda x: x[1:], found), wide)
    np.testing.assert_array_equal(found["label"][0, :NARROW], narrow["label"][0])
    assert not np.asarray(found["label"][0, NARROW:]).any()


# ---------------------------------------------------------------- out and in


@functools.cache
def launching():
    def both(old, new):
        slot = flight.berths(old.present, new.present)
        return flight.launch(old, slot, new), slot

    return jax.jit(both)


def known(flying: InFlight) -> InFlight:
    """What is not in the payloads themselves."""
    return flying.replace(data=(), shared=())


@pytest.mark.parametrize("seed", range(8))
def test_launch_fills_free_slots_with_who_is_there(seed):
    random = np.random.default_rng(seed)
    taken = np.zeros(P, bool)
    taken[random.permutation(P)[: random.integers(P - C + 1)]] = True
    going = random.random(C) < 0.7
    if seed == 0:  # just enough room
        taken, going = np.arange(P) >= C, np.ones(C, bool)
    if seed == 1:  # just enough for those who are there
        taken, going = np.arange(P) % 4 > 0, np.arange(C) > 0
    old = filled(P, seed=1, present=jnp.asarray(taken))
    new = filled(C, seed=2, present=jnp.asarray(going), data=old.data, shared=old.shared)
    found, slot = launching()(old, new)
    slot = np.asarray(slot)

    # Each has a free slot of its own, and who is not there has none.
    assert (slot[~going] == P).all()
    assert len(set(slot[going])) == going.sum()
    assert not taken[slot[going]].any()
    # There it is; and nothing else has changed.
    same((found.data, found.shared), (new.data, new.shared))
    found, old, new = (jax.tree.map(np.asarray, known(x)) for x in (found, old, new))
    same(jax.tree.map(lambda x: x[slot[going]], found), jax.tree.map(lambda x: x[going], new))
    others = np.setdiff1d(np.arange(P), slot[going])
    same(*(jax.tree.map(lambda x: x[others], y) for y in (found, old)))
    assert found.present.sum() == taken.sum() + going.sum()


def test_launch_into_as_many_slots():
    """One cohort's worth, as arrival policies have that keep nothing."""
    old = filled(C, seed=1, present=jnp.zeros(C, bool))
    new = filled(C, seed=2)
    found, slot = launching()(old, new)
    assert sorted(slot.tolist()) == list(range(C))
    same(jax.tree.map(lambda x: x[slot], known(found)), known(new))


def test_too_many_are_refused():
    message = "a cohort of 9, but slots for 8 payloads"
    with pytest.raises(SpecError, match=message):
        flight.berths(jnp.zeros(P, bool), jnp.ones(P + 1, bool))


def test_landing_frees_slots_and_takes_time():
    before = filled(4, seconds=jnp.array([2.0, 3.5, 1.0, 9.0]))
    kept = jnp.array([True, True, False, True])
    found = jax.jit(flight.land)(before, jnp.float32(2), kept)
    assert found.present.tolist() == kept.tolist()
    assert found.seconds.tolist() == [0, 1.5, 0, 7]
    same(found.replace(present=kept, seconds=kept), before.replace(present=kept, seconds=kept))


@pytest.mark.parametrize("policy", [arrivals.buffered(P), arrivals.synchronous()])
def test_many_rounds(policy):
    """Sent out, settled and landed, against a list of arrival times by the clock."""
    shapes = {1: {"item": jax.ShapeDtypeStruct((1,), jnp.int32)}}
    random = np.random.default_rng(0)
    state = flight.empty(P if policy.in_flight else C, shapes, (), 1.0)

    @jax.jit
    def step(state, new):
        slot = flight.berths(state.present, new.present)
        row = jnp.where(new.present, slot + 1, 0)
        item = {"item": new.client[:, None]}
        data, shared = flight.put((state.data, ()), (row, (item, ())))
        state = flight.launch(state, slot, new.replace(data=data, shared=shared))
        settled = policy.settle(state.seconds, state.present, state.finished, C)
        return flight.land(state, settled.seconds, settled.kept), settled, state.client

    clock, working, took = 0.0, [], []
    for r in range(40):
        # Exact in float32, and too many to coincide often.
        seconds = random.integers(1, 6400, C) / 64
        going, finished = random.random(C) < 0.8, random.random(C) < 0.7
        client = 10 * r + np.arange(C)
        new = InFlight(
            client=jnp.asarray(client, jnp.int32),
            round=jnp.full(C, r, jnp.int32),
            width=jnp.ones(C, jnp.int32),
            home=jnp.zeros(C, jnp.int32),
            seconds=jnp.asarray(seconds, jnp.float32),
            phases=jnp.zeros((C, 5)),
            present=jnp.asarray(going),
            finished=jnp.asarray(finished),
            weight=jnp.ones(C),
            report=jnp.zeros(C),
            data=(),
            shared=(),
        )
        state, settled, who = step(state, new)

        sent = zip(clock + seconds, client, finished, going, strict=True)
        working = sorted([*working, *(x[:3] for x in sent if x[3])])
        assert len({x[0] for x in working}) == len(working)  # no ties
        leave = max(len(working) - (P - C), 0) if policy.in_flight else len(working)
        back, working = working[:leave], working[leave:]
        now = max((x[0] for x in back), default=clock)
        expected = {x[1] for x in back if x[2]}

        assert set(np.asarray(who)[settled.taken].tolist()) == expected
        assert settled.seconds == now - clock
        clock = now
        there = np.asarray(state.present)
        left = sorted(zip(state.seconds[there].tolist(), state.client[there].tolist(), strict=True))
        assert left == [(x[0] - clock, x[1]) for x in working]
        waiting = state.data["item"][0, 1:, 0]
        np.testing.assert_array_equal(waiting[there], state.client[there])
        took.append(len(expected))
    assert sum(took) > 40
    assert (took[0] == 0) == bool(policy.in_flight)  # at first a buffer only fills


# ---------------------------------------------------------------- on several devices


def test_what_devices_hold_is_gathered_and_scattered():
    """Free slots are empty then, and so is what payloads never wrote."""
    n = 3
    width = jnp.asarray([NARROW, WIDE, NARROW, WIDE])
    home = jnp.asarray([2, 0, 1, 2])
    present = jnp.asarray([True, True, True, False])
    one = filled(4, width=width, home=home, present=present)
    # Each device has numbers of its own in all slots.
    data, shared = jax.tree.map(
        lambda x: jnp.concatenate([(x + i).astype(x.dtype) for i in range(n)]),
        (one.data, one.shared),
    )
    several = one.replace(data=data, shared=shared)
    found = jax.jit(lambda f: flight.gather(f, SHAPES, M))(several)
    same(known(found), known(several))
    for slot in range(4):
        mine = jax.tree.map(lambda x, slot=slot: x[int(home[slot])][None, slot + 1], (data, shared))
        there = jax.tree.map(lambda x, slot=slot: x[0, slot + 1], (found.data, found.shared))
        if not present[slot]:
            assert not any(np.asarray(x).any() for x in jax.tree.leaves(there))
            continue
        end = int(width[slot])
        np.testing.assert_array_equal(there[0]["label"][:end], mine[0]["label"][0, :end])
        assert not np.asarray(there[0]["label"][end:]).any()
        np.testing.assert_array_equal(there[0]["centroid"], mine[0]["centroid"][0])
        np.testing.assert_array_equal(there[1]["weight"], mine[1]["weight"][0])
    assert not any(np.asarray(x[0, 0]).any() for x in jax.tree.leaves((found.data, found.shared)))

    # Whatever number of devices goes on with it, it comes to the same.
    for m in (1, 2, 5):
        again = flight.scatter(jax.tree.map(np.asarray, found), m)
        assert all(x.shape[0] == m for x in jax.tree.leaves((again.data, again.shared)))
        assert (again.home < m).all()
        back = flight.gather(jax.tree.map(jnp.asarray, again), SHAPES, M)
        same(back.replace(home=home), found)
