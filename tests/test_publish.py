"""What clients hold is the sum of what was sent, and what they fetch is counted exactly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import bits, publish, registry, wire
from fedras_jax.codecs.actions import actions
from fedras_jax.codecs.directional import directional
from fedras_jax.codecs.grid import grid
from fedras_jax.codecs.rows import rows
from fedras_jax.errors import SpecError
from fedras_jax.types import Context, Field, ItemDelta, Sizes

SIZES = Sizes(items=90, dim=8)


def table(seed=0, scale=0.1):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.normal(size=SIZES) * scale, jnp.float32)


@functools.cache
def moving(downlink: str, snapshot: int):
    """Forty rounds in which the server's table wanders, and what was published of it."""
    codec = {"none": None, "rows": rows(), "actions": actions(4), "directional": directional(8)}
    form = None if snapshot == 32 else grid(snapshot)
    publisher = publish.publisher(codec[downlink], form, SIZES, seed=3)
    random = np.random.default_rng(1)
    items = table()
    public, velocity = publisher.start(items)
    step = jax.jit(publisher.step)
    history = [(items, public, None)]
    for r in range(40):
        moved = np.asarray(random.random(SIZES.items) < 0.4)[:, None]
        items = items + jnp.asarray(moved * random.normal(size=SIZES) * 0.01, jnp.float32)
        public, velocity, counts = step(jnp.int32(r), public, velocity, items, True)
        history.append((items, public, counts))
    return publisher, history


@pytest.mark.parametrize("snapshot", [32, 8, 4])
def test_without_a_codec_the_table_is_sent_in_its_form(snapshot):
    _, history = moving("none", snapshot)
    for items, public, _ in history:
        if snapshot == 32:
            np.testing.assert_array_equal(public, items)
        else:
            # Half a step of each row's grid, which holds its largest entry in at least half.
            top = 2 ** (snapshot - 1) - 1
            step = 2 ** np.ceil(np.log2(np.abs(items).max(1, keepdims=True) / top))
            assert np.all(np.abs(public - items) <= 0.5 * step)


@pytest.mark.parametrize("downlink", ["actions", "directional"])
@pytest.mark.parametrize("snapshot", [32, 8])
def test_feedback_keeps_the_public_table_near_the_servers(downlink, snapshot):
    """What is lost is sent later: the gap does not grow over time, without feedback it would."""
    _, history = moving(downlink, snapshot)
    gap = np.array([float(jnp.sum((items - public) ** 2)) for items, public, _ in history])
    walked = float(jnp.sum((history[-1][0] - history[0][0]) ** 2))
    assert gap[-10:].max() < 0.5 * walked
    assert gap[-10:].mean() < 1.5 * gap[20:30].mean()


# A setting of each that loses something, where the codec has one, and that Spec accepts.
DOWNLINK_ARGS = {
    "actions": {"k": 4},
    "directional": {"k": 8, "rank": 2},
    "top_rows": {"rows": 9},
    "top_entries": {"entries": 60},
    "rotated": {"bits": 1},
}


@pytest.mark.parametrize(
    ("downlink", "snapshot"), [("none", 4), ("directional", 32), ("directional", 8)]
)
def test_nothing_is_published_of_a_round_that_changed_nothing(downlink, snapshot):
    """Also where the codec still has something left to send."""
    publisher, history = moving(downlink, snapshot)
    items, public, _ = history[-1]
    after, _, counts = publisher.step(jnp.int32(40), public, (), items, jnp.bool_(False))
    np.testing.assert_array_equal(after, public)
    assert not np.any(counts)
    if downlink != "none":
        assert np.any(items != public)  # so that there was something to send


@pytest.mark.parametrize("name", registry.DOWNLINKS)
def test_feedback_reaches_a_table_that_stays(name):
    """The gap to a constant table goes to zero: what is lost of it is sent in the next rounds."""
    codec = registry.downlink(name, DOWNLINK_ARGS.get(name, {}))
    publisher = publish.publisher(codec, None, SIZES, seed=3)
    first, items = table(), table(seed=1)
    public, velocity = publisher.start(first)
    step = jax.jit(publisher.step)
    gap = [float(jnp.sum((items - public) ** 2))]
    for r in range(60):
        public, velocity, _ = step(jnp.int32(r), public, velocity, items, True)
        gap.append(float(jnp.sum((items - public) ** 2)))
    assert gap[-1] < 0.02 * gap[0]
    # On the way it never grows by more than a stochastic codec's luck.
    assert np.max(gap[1:]) <= gap[0]


@pytest.mark.parametrize("name", registry.NOT_DOWNLINKS)
def test_other_codecs_are_refused_with_the_reason(name):
    with pytest.raises(SpecError) as error:
        registry.downlink(name, {})
    assert str(error.value) == (
        f"codec {name!r} cannot be a downlink: {registry.NOT_DOWNLINKS[name]}; "
        f"choose one of {', '.join(registry.DOWNLINKS)}"
    )


def test_every_codec_is_a_downlink_or_has_a_reason_not_to_be():
    assert set(registry.DOWNLINKS) | set(registry.NOT_DOWNLINKS) == set(registry.CODECS)
    assert not set(registry.DOWNLINKS) & set(registry.NOT_DOWNLINKS)


@pytest.mark.parametrize("bits_", [1, 2, 3])
def test_coarse_stochastic_rounding_is_refused_as_a_downlink(bits_):
    with pytest.raises(SpecError, match=f"'quantized' with {bits_} bits cannot be a downlink"):
        registry.downlink("quantized", {"bits": bits_})


def test_a_table_of_coded_entries_is_no_downlink():
    with pytest.raises(SpecError, match=r"codes=.entropy. cannot be a downlink: .* an int32"):
        registry.downlink("quantized", {"codes": "entropy"})


def test_a_lossless_codec_sends_everything():
    _, history = moving("rows", 32)
    for items, public, _ in history:
        # Of order 0.1, and each round adds its rounding to what the next one sends.
        np.testing.assert_allclose(public, items, atol=2e-8)


@pytest.mark.parametrize("bits_", [8, 4])
def test_whoever_follows_changes_holds_what_a_snapshot_holds(bits_):
    """A client adds decoded changes and rounds; another reads the snapshot's own bytes."""
    publisher, history = moving("directional", bits_)
    form = grid(bits_)
    ctx = Context(SIZES, jax.random.key(9))
    everyone = jnp.ones(SIZES.items, bool)

    def snapshot_of(public):
        delta = ItemDelta(jnp.arange(SIZES.items, dtype=jnp.int32), public, everyone)
        return form.encode(ctx, ctx.key, delta, form.prepare(ctx, ctx.key, delta), 0, ())[0]

    for _, public, _ in history[::13]:
        payload = jax.tree.map(np.asarray, snapshot_of(public))
        raw = wire.pack(form, SIZES, payload)
        assert len(raw) == -(-publisher.snapshot_bits // 8)
        data, _ = wire.unpack(form, SIZES, raw)
        arrived = payload.replace(data=jax.tree.map(jnp.asarray, data))
        np.testing.assert_array_equal(form.decode(ctx, arrived).row, public)  # to the bit


@pytest.mark.parametrize("bits_", [8, 4])
def test_a_rounded_table_rounds_to_itself(bits_):
    publisher = publish.publisher(None, grid(bits_), SIZES, seed=0)
    rough = jnp.concatenate([table(scale=s)[:15] for s in (0, 1e-30, 1e-6, 0.1, 1, 1e20)])
    once, _ = publisher.start(rough)
    np.testing.assert_array_equal(publisher.start(once)[0], once)
    top = 2 ** (bits_ - 1) - 1
    exact = jnp.asarray([[top, -1, 0, 3, -top, 1, 2, -2]] * 90, jnp.float32) / 16
    np.testing.assert_array_equal(publisher.start(exact)[0], exact)


def test_a_trend_catches_up_with_a_steady_movement():
    """(1 - q) / q of a round's change behind it without one, if the codec keeps q; nothing with."""
    keep = 0.25
    codec = rows()._replace(
        decode=lambda ctx, payload: dataclasses.replace(
            rows().decode(ctx, payload), row=keep * rows().decode(ctx, payload).row
        )
    )
    step_of_a_round = 0.01 * table(seed=2, scale=1.0)
    for trend in (0.0, 0.1):
        publisher = publish.publisher(codec, None, SIZES, 0, trend)
        items = table()
        public, velocity = publisher.start(items)
        step = jax.jit(publisher.step)
        for r in range(120):
            items = items + step_of_a_round
            public, velocity, _ = step(jnp.int32(r), public, velocity, items, True)
        lag = 0 if trend else (1 - keep) / keep * step_of_a_round
        # Both roots of the recurrence are at most .866, and .866^120 is 3e-8; the last places of
        # a table that has moved by 120 steps of up to .03 are not.
        np.testing.assert_allclose(items - public, lag, atol=4e-6)


def test_with_a_trend_a_snapshot_is_of_two_tables():
    one, two = (publish.publisher(rows(), grid(8), SIZES, 0, t).snapshot_bits for t in (0, 0.1))
    # What clients add by themselves is not of the snapshot's form.
    assert two == one + 160 + 32 * SIZES.items * SIZES.dim


@pytest.mark.parametrize(
    ("downlink", "trend", "message"),
    [
        (rows(), 1.0, r"trend must be in \[0, 1\), not 1.0"),
        (rows(), -0.1, "must be in"),
        (None, 0.5, "no use for a trend"),
    ],
)
def test_a_trend_out_of_place(downlink, trend, message):
    with pytest.raises(SpecError, match=message):
        publish.publisher(downlink, None, SIZES, 0, trend)


def ledger(snapshot=10_000, shared=0):
    return publish.Ledger((Field("x", 10),), snapshot, shared)


def test_a_client_fetches_what_it_missed_or_a_snapshot():
    book = ledger()
    np.testing.assert_array_equal(book.fetch(np.array([0, 0])), [0, 0])  # from the seed
    sent = [book.publish(np.array([n])) for n in (100, 200, 50)]
    assert sent == [160 + 1000, 160 + 2000, 160 + 500]
    found = book.fetch(np.array([0, 1, 2, 3]))
    np.testing.assert_array_equal(found, [3980, 2820, 660, 0])
    book.publish(np.array([900]))
    np.testing.assert_array_equal(book.fetch(np.array([0, 3, 4])), [10_000, 9160, 0])


def test_shared_parameters_come_with_every_fetch_once():
    book = ledger(shared=3)
    for n in (1, 2):
        book.publish(np.array([n]))
    np.testing.assert_array_equal(book.fetch(np.array([0, 2])), [350 + 96, 0])


def test_totals_go_beyond_int32():
    book = publish.Ledger((Field("row", 2048),), 2**40, 0)
    for _ in range(3):
        book.publish(np.array([2_000_000], np.int32))
    assert book.fetch(np.array([0]))[0] == 3 * (160 + 2048 * 2_000_000)


def test_counts_are_those_of_the_payload():
    publisher, history = moving("directional", 32)
    names = [field.name for field in publisher.fields]
    for _, _, counts in history[1:]:
        of = dict(zip(names, np.asarray(counts), strict=True))
        assert (of["direction"], of["level"]) == (1, 8)
        assert of["item"] <= SIZES.items
    total = bits.payload_bits(publisher.fields, np.stack([c for _, _, c in history[1:]]))
    assert np.all(total < 160 + 16 * 8 + 16 * 8 + 90 + 3 * 90 + 1)
