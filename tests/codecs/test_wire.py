"""Bytes are what the counted bits say, and a decoder reads the payload back from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import CODECS, CTX_KEY, NO_ROW, ONE_ROW, SIZES, deltas, program

from fedras_jax import bits, registry, wire
from fedras_jax.errors import WireError
from fedras_jax.types import Context, Field, ItemDelta, Payload, Sizes


@functools.cache
def payloads(name: str):
    """The codec, and every client's payload and decoded rows."""
    codec, _, mapped, keys = program(name)
    _, payload, decoded = mapped(keys, deltas(), np.full(8, codec.max_actions, np.int32))
    both = jax.tree.map(np.asarray, (payload, decoded))
    return codec, [jax.tree.map(lambda x, u=u: x[u], both) for u in range(8)]


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_the_counted_bits(name):
    codec, clients = payloads(name)
    for payload, _ in clients:
        counted = int(bits.payload_bits(codec.fields(SIZES), payload.counts))
        written = len(wire.pack(codec, SIZES, payload))
        if "entropy" in name:
            assert written <= -(-counted // 8) <= 1.02 * written + 16
        else:
            assert written == -(-counted // 8)


@pytest.mark.parametrize("name", CODECS)
def test_leaves_come_back_bit_for_bit(name):
    codec, clients = payloads(name)
    for payload, _ in clients:
        sent = wire.canonical(codec, SIZES, payload)
        came, shared = wire.unpack(codec, SIZES, wire.pack(codec, SIZES, payload))
        assert shared.size == 0
        assert set(came) == set(sent)
        for leaf in sent:
            assert came[leaf].dtype == sent[leaf].dtype, leaf
            assert came[leaf].shape == sent[leaf].shape, leaf
            assert np.asarray(came[leaf]).tobytes() == np.asarray(sent[leaf]).tobytes(), leaf


@pytest.mark.parametrize("name", CODECS)
def test_the_server_reads_what_the_simulation_says(name):
    codec, clients = payloads(name)
    ctx = Context(SIZES, CTX_KEY)
    for payload, decoded in (clients[u] for u in (2, ONE_ROW, NO_ROW)):
        came, _ = wire.unpack(codec, SIZES, wire.pack(codec, SIZES, payload))
        arrived = Payload(jax.tree.map(jnp.asarray, came), payload.counts)
        read = codec.decode(ctx, arrived)
        table = np.zeros((SIZES.items + 1, SIZES.dim), np.float32)
        expected = table.copy()
        table[read.item] = read.row
        expected[np.where(decoded.mask, decoded.item, SIZES.items)] = decoded.row
        scale = np.abs(expected).max()
        # The same leaves, decoded in another program: an ulp of a product.
        np.testing.assert_allclose(table[:-1], expected[:-1], rtol=1e-6, atol=1e-6 * scale)
        assert set(np.asarray(read.item)[np.asarray(read.mask)]) == set(decoded.item[decoded.mask])


def spoilt() -> ItemDelta:
    """One round's deltas, of which every full client's went wrong in its own way.

    Late rows, so that codecs that choose rows or entries would not meet them by chance.
    """
    row = np.array(deltas().row)
    for u, (value, entries) in enumerate(
        [
            (np.nan, slice(None)),
            (np.nan, 3),
            (np.inf, slice(None)),
            (-np.inf, 3),
            (3e38, slice(None)),
        ]
    ):
        row[u, np.flatnonzero(deltas().mask[u])[-2], entries] = value
    row[5] *= 1e38 / np.abs(row[5]).max()
    return deltas().replace(row=jnp.asarray(row))


@pytest.mark.parametrize("name", CODECS)
def test_nothing_that_is_not_finite_or_too_large_becomes_finite_and_wrong(name):
    """It decodes to what is not finite, or is refused, or comes back as well as smaller numbers."""
    codec, _, mapped, keys = program(name)
    k = np.full(8, codec.max_actions, np.int32)
    delta = spoilt()
    # The same numbers, but for a power of two and what then underflows.
    small = delta.replace(row=delta.row * 2.0**-90)
    found = [jax.tree.map(np.asarray, mapped(keys, d, k)[1:]) for d in (delta, small)]

    def error(u, which):
        given, (_, decoded) = (delta, small)[which], found[which]
        table, told = (np.zeros((SIZES.items + 1, SIZES.dim)) for _ in range(2))
        table[np.asarray(given.item[u])] = np.asarray(given.row[u], np.float64)
        told[np.where(decoded.mask[u], decoded.item[u], SIZES.items)] = decoded.row[u]
        return np.sum((told - table)[:-1] ** 2) / np.sum(table[:-1] ** 2)

    for u in range(6):
        payload, decoded = jax.tree.map(lambda x, u=u: x[u], found[0])
        if not np.isfinite(decoded.row[decoded.mask]).all():
            continue
        try:
            wire.pack(codec, SIZES, payload)
        except WireError:
            continue
        assert u >= 4, "finite, and wrong"
        # A stochastic codec may round another way at a border.
        assert error(u, 0) <= 1.1 * error(u, 1) + 1e-4
    for u in (ONE_ROW, NO_ROW):  # these go on as ever
        assert np.isfinite(found[0][1].row[u]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_grid_says_what_it_cannot_hold(value):
    codec, _, mapped, keys = program("grid-4")
    row = np.array(deltas().row)
    row[2, 4, 1] = value
    _, payload, decoded = mapped(
        keys, deltas().replace(row=jnp.asarray(row)), np.zeros(8, np.int32)
    )
    assert np.isnan(decoded.row[2, 4]).all()
    assert np.isfinite(np.delete(decoded.row[2], 4, axis=0)).all()
    one = jax.tree.map(lambda x: np.asarray(x)[2], payload)
    with pytest.raises(WireError, match=r"step is not finite.*beyond the range of codec grid"):
        wire.pack(codec, SIZES, one)


def test_every_codec_obeys_the_contract():
    assert {name.split("-")[0] for name in CODECS} == set(registry.CODECS)


def example(name: str = "directional-float16-16"):
    codec, clients = payloads(name)
    return codec, clients[3][0], wire.pack(codec, SIZES, clients[3][0])


@pytest.mark.parametrize("name", ["actions-items-float32-16", "directional-float16-entropy-16"])
def test_shared_parameters_travel_along(name):
    codec, payload, alone = example(name)
    shared = np.array([1.5, -0.0, 3e-39], np.float32)
    raw = wire.pack(codec, SIZES, payload, shared)
    assert abs(len(raw) - len(alone) - 12) <= 1
    came, back = wire.unpack(codec, SIZES, raw, n_shared=3)
    assert back.tobytes() == shared.tobytes()
    np.testing.assert_array_equal(came["label"], wire.canonical(codec, SIZES, payload)["label"])


def test_a_budgets_report_takes_the_bytes_that_are_counted():
    """It is one more number after the shared parameters (`rounds.federated`)."""
    codec, payload, _ = example("actions-items-float32-16")
    shared, report = np.array([1.5, -0.0, 3e-39], np.float32), np.float32(0.25)
    raw = wire.pack(codec, SIZES, payload, np.append(shared, report))
    fields = (*codec.fields(SIZES), Field("shared", 32))
    counted = bits.payload_bits(fields, np.append(np.asarray(payload.counts), 4).astype(int))
    assert len(raw) == -(-int(counted) // 8)


def resealed(raw: bytes) -> bytes:
    """With a checksum that fits, as from an encoder with a bug or a liar."""
    import zlib

    check = zlib.crc32(raw[20:], zlib.crc32(raw[:16]))
    return raw[:16] + check.to_bytes(4, "big") + raw[20:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:12], "12 bytes: a payload has a header of 20"),
        (lambda raw: raw[:-1], "checksum does not match"),
        (lambda raw: b"\x01" + raw[1:], "wire version 1: this library reads version 3"),
        (lambda raw: raw[:30] + bytes([raw[30] ^ 1]) + raw[31:], "checksum does not match"),
        (lambda raw: resealed(raw[:-1]), "truncated"),
        (lambda raw: resealed(raw + b"\0"), "bits left over"),
        (lambda raw: resealed(raw[:1] + b"\x03" + raw[2:]), "unknown form of the touched set"),
        (lambda raw: resealed(raw[:12] + b"\0\0\xff\xff" + raw[16:]), "65535 rows sent out of 300"),
        (lambda raw: resealed(raw[:6] + b"\xff\xff" + raw[8:]), "65535 actions"),
        (lambda raw: resealed(raw[:6] + b"\0\0" + raw[8:]), "0 actions"),
        (lambda raw: resealed(raw[:6] + b"\0\x09" + raw[8:]), "left over|truncated|label"),
        (lambda raw: b"", "0 bytes"),
    ],
)
def test_damage_is_refused(change, message):
    codec, _, raw = example()
    with pytest.raises(WireError, match=message):
        wire.unpack(codec, SIZES, change(raw))


def test_what_the_sizes_leave_no_room_for_is_refused():
    codec, _, raw = example("dense")
    with pytest.raises(WireError, match="a form of the touched set, 1, but no set"):
        wire.unpack(codec, SIZES, resealed(raw[:1] + b"\x01" + raw[2:]))
    codec, _, raw = example()
    with pytest.raises(WireError, match="16 actions for 3 rows"):
        wire.unpack(codec, SIZES, resealed(raw[:12] + b"\0\0\0\x03" + raw[16:]))


def test_another_table_or_codec_is_refused():
    codec, _, raw = example()
    with pytest.raises(WireError, match="a table of 300 x 8, but this one is 301 x 8"):
        wire.unpack(codec, Sizes(301, 8), raw)
    with pytest.raises(WireError, match="another codec than directional, or of other settings"):
        wire.unpack(CODECS["directional-float32-16"](), SIZES, raw)
    with pytest.raises(WireError, match="another codec than rows"):
        wire.unpack(CODECS["rows"](), SIZES, raw)


@pytest.mark.parametrize("name", ["directional-float16-16", "directional-float16-entropy-16"])
def test_what_follows_a_payload_is_not_swallowed(name):
    codec, payload, raw = example(name)
    longer = wire.pack(codec, SIZES, payload, np.ones(6, np.float32))
    for wrong, n_shared in ((longer, 0), (raw, 6), (raw, 99), (resealed(raw + b"\1\2\3\4"), 0)):
        with pytest.raises(WireError, match=r"left over|truncated|more follows|frequencies"):
            wire.unpack(codec, SIZES, wrong, n_shared)


def test_shared_parameters_are_finite():
    codec, payload, _ = example()
    with pytest.raises(WireError, match="a shared parameter is not finite"):
        wire.pack(codec, SIZES, payload, np.array([1, np.nan], np.float32))


def test_what_cannot_be_written_is_refused():
    codec, payload, _ = example()
    data = payload.data
    for leaf, value, message in [
        ("level", np.float16(np.inf), "level is not finite.*beyond the range of float16"),
        ("item", 0, "rows must be distinct and in 0 to 299"),
        ("item", 300, "rows must be distinct and in 0 to 299"),
        ("k", 17, "17 actions, but codec directional holds at most 16"),
        ("k", 0, "90 rows and no action: codec directional sends at least one"),
        ("label", 16, "labels 16 to 16, but only 16 actions"),
    ]:
        broken = Payload(data | {leaf: np.full_like(data[leaf], value)}, payload.counts)
        with pytest.raises(WireError, match=message):
            wire.pack(codec, SIZES, broken)


@pytest.mark.parametrize("name", CODECS)
def test_random_damage_never_does_anything_else(name):
    """A short run of `benchmarks/fuzz.py`: every outcome is a payload or a WireError."""
    from benchmarks.fuzz import fuzz

    codec, clients = payloads(name)
    raws = [wire.pack(codec, SIZES, payload) for payload, _ in clients]
    told = fuzz(codec, SIZES, raws, cases=100, seed=0)
    assert told["refused"] + told["read"] == 100
    assert told["refused"] > 60
