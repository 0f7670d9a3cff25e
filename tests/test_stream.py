"""Streamed rounds against rounds with all clients in memory: the same, from a part of them."""

import dataclasses
import errno
import functools
import math
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedras_jax import assembly, checkpoint, cohort, native, registry, results
from fedras_jax.data import leave_one_out, synthetic
from fedras_jax.data.store import open_store, write_split
from fedras_jax.errors import DataError, ResultsError, SpecError, StoppedError
from fedras_jax.run import run
from fedras_jax.spec import Spec
from fedras_jax.stream import private, stream
from fedras_jax.stream.budget import Plan, plan
from fedras_jax.stream.first import rows_from
from fedras_jax.stream.programs import since
from fedras_jax.stream.segments import Segments
from fedras_jax.types import Cohort, FedState, Profile, Sizes

U, M = 60, 40
SIZE = {"mean_interactions": 8, "seed": 3}
ROUNDS, COHORT, AT_ONCE = 9, 12, 3


@functools.cache
def interactions():
    return synthetic(U, M, **SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "store"
    write_split(path, leave_one_out(interactions(), n_candidates=0))
    return path


def spec_of(folder, **changed) -> Spec:
    """Private state of every kind: parameters, a codec's memory, what is owed; and clients fail."""
    fields = {
        "dataset": str(folder),
        "dim": 4,
        "rounds": ROUNDS,
        "eval_every": ROUNDS,
        "cohort_size": COHORT,
        "candidates": 10,
        "codec": "top_rows",
        "codec_args": {"rows": 5},
        "feedback_rows": 4,
        "profile": "mobile",
        "profile_args": {"failure": 0.2},
    }
    return Spec(**(fields | changed))


@pytest.fixture(scope="module")
def unstreamed(folder):
    return run(spec_of(folder), interactions=interactions())


def streamed(spec, **how):
    return stream(spec, **{"memory": 0.5, "rounds_at_once": AT_ONCE, **how})


def assert_same(found, expected):
    for a, b in (
        (found.server.items, expected.state.items),
        (found.server.public, expected.state.public),
        (found.rows.all()["clients"], expected.state.clients),
        (found.rows.all()["codec"].row, expected.state.codec.row),
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(found.rows.all()["last_sync"], expected.state.last_sync)
    for a, b in zip(found.rounds, expected.rounds, strict=True):
        for name in ("clients", "arrived", "failed", "up_bytes", "down_bytes", "published_bytes"):
            assert a[name] == b[name], name
        np.testing.assert_allclose(a["clock_s"], b["clock_s"], rtol=1e-5)
    ranked = found.ranks > 0
    assert (found.ranks != expected.ranks)[ranked].mean() <= 0.02  # near ties


def test_with_rows_on_the_device_and_one_program_for_all_segments(folder, unstreamed, monkeypatch):
    monkeypatch.setattr(private, "BLOCK", 25)
    count, after = [], []

    def compiled(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(event)

    def stop():
        after.append(len(count))
        return False

    jax.monitoring.register_event_duration_secs_listener(compiled)
    found = streamed(spec_of(folder), private_on="device", stop=stop)
    assert len(after) == ROUNDS // AT_ONCE - 1
    assert after == [after[0]] * len(after)
    assert 0 < after[0] < len(count)  # the evaluation, at the end
    assert_same(found, unstreamed)
    assert (found.ranks > 0).sum() == (unstreamed.ranks > 0).sum() > U / 2
    assert found.summary["clients"] == unstreamed.summary["clients"]
    assert found.plan.slots < U


def test_with_tables_spread_over_devices(folder, unstreamed):
    found = streamed(spec_of(folder), mesh=cohort.client_mesh(4), spread_items=True)
    assert_same(found, unstreamed)
    for table in (found.server.items, found.server.public):
        assert table.sharding.shard_shape(table.shape) == (M // 4, 4)
    # All devices together hold what one does otherwise.
    split = leave_one_out(interactions(), n_candidates=0)
    algorithm = assembly.assemble(spec_of(folder), split)[1]
    one, four = (plan(algorithm, np.ones(U), COHORT, memory=1, devices=n) for n in (1, 4))
    assert (found.plan.tables, four.tables) == (one.tables, 4 * one.tables)


def test_with_rows_on_the_host_and_a_stop(folder, unstreamed, tmp_path):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 2

    spec = spec_of(folder)
    with pytest.raises(StoppedError, match="goes on from there"):
        streamed(spec, private_on="host", workdir=tmp_path, stop=stop)
    assert checkpoint.rounds_in(tmp_path) == [6]
    found = streamed(spec, private_on="host", workdir=tmp_path)
    assert_same(found, unstreamed)
    assert results.read_columns(tmp_path / "rounds.parquet")["round"].tolist() == [*range(1, 10)]


def test_with_rows_on_disk_and_a_sample_evaluated(folder, unstreamed, tmp_path):
    found = streamed(spec_of(folder), private_on="disk", workdir=tmp_path, evaluate_clients=20)
    assert_same(found, unstreamed)
    assert 0 < (found.ranks > 0).sum() <= 20
    assert found.summary["clients"]["not_evaluated"] == (found.ranks == 0).sum()
    drawn = (unstreamed.split.candidates >= 0).sum(axis=1)[found.ranks > 0]
    assert found.summary["clients"]["candidates_least"] == drawn.min()
    assert found.summary["clients"]["candidates_mean"] == drawn.mean()
    assert found.summary["stream"]["private"] == "disk"
    names = {path.name for path in (tmp_path / "private").iterdir()}
    assert {"clients.npy", "last_sync.npy"} < names
    np.testing.assert_array_equal(
        np.load(tmp_path / "private/clients.npy"), found.rows.all()["clients"]
    )


def test_clients_come_back_within_and_between_segments(folder, unstreamed):
    """What the tests above rest on."""
    algorithm = assembly.assemble(unstreamed.spec, unstreamed.split)[1]
    draw = jax.jit(algorithm.draw)
    drawn = [set(np.asarray(draw(jnp.int32(r)).client).tolist()) for r in range(AT_ONCE * 2)]
    assert drawn[0] & drawn[1]
    assert drawn[0] & drawn[AT_ONCE]


@pytest.mark.parametrize("name", sorted(registry.MODELS))
def test_a_part_of_the_first_state_is_that_of_the_whole(name):
    model = registry.MODELS[name](6)

    def rows(key, n):
        return model.init(key, n, Sizes(5, 6))[0]

    key = jax.random.fold_in(jax.random.key(8), 3)
    whole = jax.jit(lambda: rows(key, 50))()
    part = jax.jit(lambda first: rows(rows_from(key, first), 11))
    for first in (0, 7, 39):
        np.testing.assert_array_equal(part(jnp.int32(first)), whole[first : first + 11])


def sizes(memory, **how):
    """The plan of 1,000 clients with 50 items and 256 B each, 10 a round, for so many KiB."""

    def init():
        rest = dict.fromkeys(("velocity", "shared", "codec", "server", "budget", "flight"), ())
        return FedState(
            round=jnp.int32(0),
            items=jnp.zeros((64, 16)),
            public=jnp.zeros((64, 16)),
            last_sync=jnp.zeros(1000, jnp.int32),
            owed=jnp.zeros(1000),
            clients=jnp.zeros((1000, 63)),
            **rest,
        )

    algorithm = types.SimpleNamespace(init=init, fields=())
    return plan(algorithm, np.full(1000, 50), 10, memory=memory / 2**20, **how)


def test_private_state_lies_where_it_fits():
    assert sizes(2048).kept == 256_000
    found = {kib: sizes(kib).private for kib in (2048, 1999, 1536, 1499, 512)}
    assert found == {2048: "device", 1999: "host", 1536: "host", 1499: "disk", 512: "disk"}
    assert sizes(1499, private="host").private == "host"
    for kib in found:
        assert sizes(kib).total <= 1024 * kib


def test_segments_are_as_long_as_memory_allows():
    rounds = [sizes(kib).rounds for kib in (400, 1024, 2048, 8192)]
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == 25
    small = sizes(2048, rounds=2)
    assert (small.rounds, small.slots, small.items) == (2, 20, 2048)  # 1.25 x 20 x 50, rounded up
    assert sizes(2**20).slots == 250
    assert sizes(2**20, rounds=25).items == 16384


@pytest.mark.parametrize(
    ("memory", "how", "message"),
    [
        (
            200,
            {},
            r"a segment of 1 rounds of 10 clients takes .* memory=0\.00019.*: allow 0\.001 GiB",
        ),
        (512, {"rounds": 20}, "a segment of 20 rounds of 10 clients takes"),
        (600, {"private": "device"}, r"too little: .* private state on device .* allow"),
        (0, {}, "memory must be above 0"),
        (math.inf, {}, "memory must be above 0 GiB and finite"),
        (512, {"rounds": 0}, "at least 1 round"),
        (512, {"private": "tape"}, "one of device, host, disk"),
    ],
)
def test_what_does_not_fit_is_refused(memory, how, message):
    with pytest.raises(SpecError, match=message):
        sizes(memory, **how)


def planned(**changed) -> Plan:
    fields = {"rounds": 4, "slots": 8, "items": 30, "private": "host", "allowed": 0}
    return Plan(**(fields | dict.fromkeys(("tables", "clients", "kept", "segment"), 0) | changed))


def test_a_segment_holds_its_clients_alone(folder):
    store = open_store(folder)
    lengths = np.diff(store.offsets)
    drawn = np.array([[5, 9], [9, 31], [40, 5], [2, 3]], np.int32)
    mask = np.array([[True, True], [True, True], [True, False], [True, True]])
    ones = np.ones((4, 2), np.float32)

    def draw(first):
        return Cohort(drawn, mask, ones, ones, drawn)

    profile = Profile(*[np.arange(U, dtype=np.float32) + i for i in range(9)])
    fits = int(lengths[[5, 9, 31, 40]].sum())
    made = Segments(store, planned(items=fits), draw, profile).make(7, 25)
    assert (made.first, made.rounds) == (7, 3)  # the fourth round's clients do not fit any more
    assert made.clients.tolist() == [5, 9, 31, 40]
    assert made.data.offset.shape == (9,)
    assert made.data.item.shape == (fits,)
    np.testing.assert_array_equal(made.cohorts.client, drawn)
    slot = np.asarray(made.cohorts.slot)
    np.testing.assert_array_equal(made.clients[slot[:3]][mask[:3]], drawn[:3][mask[:3]])
    np.testing.assert_array_equal(made.cohorts.device.up, drawn + 1.0)
    offset, items = np.asarray(made.data.offset), np.asarray(made.data.item)
    for i, u in enumerate(made.clients):
        expected = store.items[store.offsets[u] : store.offsets[u + 1]]
        np.testing.assert_array_equal(items[offset[i] : offset[i + 1]], expected)
    assert (offset[4:] == fits).all()
    assert Segments(store, planned(items=fits), draw).make(7, 2).rounds == 2
    assert Segments(store, planned(items=fits - 1), draw).make(7, 4).rounds == 2
    nobody = Segments(store, planned(), lambda first: draw(0).replace(mask=mask & False))
    assert nobody.make(0, 4).clients.size == 0


def test_what_is_owed_depends_on_the_last_table_held():
    published = np.array([5.0, 7.0, 100.0], np.float32)
    before = jnp.array([3.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    found = since(before, jnp.asarray(published), jnp.int32(2), jnp.int32(2), 12.0)
    np.testing.assert_array_equal(found, [12, 12, 12, 7, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arrival": "buffered", "arrival_args": {"in_flight": 20}},
            "'buffered' cannot be streamed",
        ),
        ({"profile": "TRACE"}, "is a trace and cannot be streamed"),
        ({"min_rating": 3.0}, r"min_rating=3\.0, but the store .* was made with min_rating=None"),
        ({"validation": False}, "made with validation=True: leave it out"),
        ({"dim": 2**27}, r"2\*\*32 private numbers"),
    ],
)
def test_specs_that_do_not_fit_are_refused(folder, tmp_path, changes, message):
    if "profile" in changes:
        path = tmp_path / "trace.csv"
        lines = [f"{u},0,1e5,1e6,1e6,0.1" for u in range(U)]
        path.write_text("\n".join(["client,time,compute,up,down,latency", *lines]))
        changes = {"profile": str(path), "profile_args": {}}
    with pytest.raises(SpecError, match=message):
        streamed(spec_of(folder, **changes))


def test_other_wrong_calls_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such store"):
        streamed(spec_of(tmp_path / "nowhere"))
    with pytest.raises(SpecError, match="evaluate_clients must be 0 for all, or up to 60"):
        streamed(spec_of(folder), evaluate_clients=61)
    with pytest.raises(SpecError, match="goes to disk: give a --workdir"):
        streamed(spec_of(folder), private_on="disk")
    shapes = jax.tree.map(np.asarray, {"clients": np.zeros((30, 4), np.float32)})

    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResultsError, match=r"cannot hold .* private state .No space left"):
        private.keep("disk", 30, lambda first: shapes, folder=tmp_path)


def test_without_loops_segments_are_drawn_without_them(folder, monkeypatch):
    """Segments are made in a thread, and the switch is the caller's."""
    seen = []
    make = Segments.make

    def told(*args):
        seen.append(native.on())
        return make(*args)

    monkeypatch.setattr(Segments, "make", told)
    with native.use(False):
        stream(spec_of(folder), rounds_at_once=AT_ONCE)
    assert seen
    assert not any(seen)


def test_evaluation_takes_parameters_alone(folder, monkeypatch):
    """Not what codecs remember, which may be much more."""
    taken = []
    take = private.OnHost.take

    def told(self, clients, slots, part=None):
        found = take(self, clients, slots, part)
        taken.append((part, jax.tree.leaves(found)))
        return found

    monkeypatch.setattr(private.OnHost, "take", told)
    stream(spec_of(folder), private_on="host")
    parts = {part for part, _ in taken}
    assert parts == {None, "clients"}
    assert {len(leaves) for part, leaves in taken if part == "clients"} == {1}


def test_only_clients_with_an_item_are_evaluated(tmp_path):
    """However few they are; more cannot be asked for."""
    split = leave_one_out(interactions(), n_candidates=0)
    test = np.where(np.arange(U) == 17, split.test, -1)
    write_split(tmp_path / "store", dataclasses.replace(split, test=test))
    spec = spec_of(tmp_path / "store")
    ranks = streamed(spec, evaluate_clients=1).ranks
    assert np.flatnonzero(ranks).tolist() == [17]
    with pytest.raises(SpecError, match="up to 1, as many as have a test item, not 2"):
        streamed(spec, evaluate_clients=2)


def test_a_full_disk_gives_back_what_it_had(tmp_path, monkeypatch):
    full = iter([None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])

    def allocate(*args):
        error = next(full)
        if error is not None:
            raise error

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    rows = {"a": np.zeros((4, 2), np.float32), "b": np.zeros(4, np.float32)}
    with pytest.raises(ResultsError, match="make room"):
        private.keep("disk", 4, lambda first: rows, folder=tmp_path)
    assert not (tmp_path / "private").exists()
    (tmp_path / "private").mkdir()  # of an earlier call
    private.keep("host", 4, lambda first: rows, folder=tmp_path)
    assert not (tmp_path / "private").exists()
