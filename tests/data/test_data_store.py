"""Stores: the same split as in memory, and nothing that is half there."""

import errno
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedras_jax.data import leave_one_out, load, read, synthetic
from fedras_jax.data import store as stores
from fedras_jax.data.convert import convert
from fedras_jax.data.store import open_store, write_split
from fedras_jax.data.synthetic import synthetic_store
from fedras_jax.errors import DataError

# GiB: as little as the rows below allow, so that they go to several partitions.
LITTLE = 3e-4


def table(n=4000, users=120, items=60, seed=0, times=300):
    """Users, items, ratings, times: with repeats, ties and rare users."""
    rng = np.random.default_rng(seed)
    user = (rng.geometric(3 / users, n) * 7) % users
    return user, (rng.zipf(1.3, n) * 11) % items, rng.integers(1, 6, n), rng.integers(0, times, n)


def write_csv(path, columns, names="userId,movieId,rating,timestamp"):
    rows = zip(*(np.asarray(c).tolist() for c in columns), strict=True)
    path.write_text(names + "\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    return path


def write_parquet(path, columns):
    names = ("user_id", "item_id", "rating", "timestamp")
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
    return path


def write_dat(path, columns):
    rows = zip(*(c.tolist() for c in columns), strict=True)
    path.write_text("\n".join("::".join(map(str, row)) for row in rows) + "\n")
    return path


def write_parts(path, columns):
    """A table in two files with several row groups each."""
    path.mkdir()
    names = ("user_id", "item_id", "rating", "timestamp")
    whole = pa.table(dict(zip(names, columns, strict=True)))
    pq.write_table(whole.slice(0, 1500), path / "part-0.parquet", row_group_size=400)
    pq.write_table(whole.slice(1500), path / "part-1.parquet", row_group_size=400)
    return path


def assert_same(store, interactions, *, validation=True):
    expected = leave_one_out(interactions, validation=validation, n_candidates=7)
    found = store.split(candidates=7)
    for name in ("offsets", "items", "valid", "test", "candidates"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert found.n_not_evaluated == expected.n_not_evaluated
    for name in ("client_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(store, name), getattr(interactions, name))


@pytest.mark.parametrize(
    "filters",
    [{}, {"min_rating": 3.0}, {"k_core": 8}, {"min_rating": 2.0, "k_core": 5}],
    ids=str,
)
def test_a_converted_file_is_the_split_in_memory(tmp_path, filters):
    path = write_csv(tmp_path / "ratings.csv", table())
    steps: dict[str, int | None] = {}

    def tell(what, done, total):
        steps[what] = total

    found = convert(path, tmp_path / "s", memory=LITTLE, tell=tell, **filters)
    expected = read(path, **filters)
    assert_same(found, expected)
    assert found.made["k_core"] == filters.get("k_core", 0)
    assert steps["repeats"] > 1  # partitions
    if "k_core" in filters:
        assert expected.n_clients < read(path).n_clients


@pytest.mark.parametrize("write", [write_dat, write_parts])
def test_other_formats(tmp_path, write):
    columns = table()
    path = write(tmp_path / ("u.dat" if write is write_dat else "parts"), columns)
    found = convert(path, tmp_path / "s", memory=LITTLE)
    assert_same(found, read(write_csv(tmp_path / "r.csv", columns)))


def test_compressed_text_without_times_or_validation(tmp_path, store):
    user, item, *_ = table()
    path = write_csv(tmp_path / "r.csv", (user, item), "user,item")
    packed = store("z.csv.gz", path.read_text())
    found = convert(packed, tmp_path / "s", memory=LITTLE, validation=False)
    assert_same(found, read(path), validation=False)
    assert found.made["validation"] is False


@pytest.mark.parametrize("write", [write_csv, write_dat, write_parts])
@pytest.mark.parametrize("unit", ["D", "ms"])
def test_dates_and_ratings_that_nobody_asks_for(tmp_path, write, unit):
    user, item, _, time = table()
    days = time.astype("M8[s]").astype(f"M8[{unit}]") + time * np.timedelta64(1, "D").astype("m8")
    rating = np.where(user % 2 == 0, np.nan, 3.0)
    if write is not write_parts:
        days = np.char.replace(days.astype(str), "T", " ")
        rating = np.where(np.isnan(rating), "", "3")
    name = {write_csv: "r.csv", write_dat: "r.dat", write_parts: "parts"}[write]
    path = write(tmp_path / name, (user, item, rating, days))
    found = convert(path, tmp_path / "s", memory=LITTLE)
    assert_same(found, read(write_csv(tmp_path / "days.csv", (user, item, rating, time))))
    for file in sorted(path.iterdir())[:1] if path.is_dir() else (path,):
        with pytest.raises(DataError, match=r"rating values are not (numbers|finite)"):
            convert(file, tmp_path / "no", min_rating=1)
        convert(file, tmp_path / "sides", columns={"rating": None, "time": None})
        assert read(file, columns={"time": None}).times is None


def test_times_are_of_one_kind_in_all_chunks(tmp_path):
    user, item, rating, time = table(20_000)
    day = np.datetime64("2020-01-01").astype(object)
    columns = (user, item, rating, [*time[:-1], day])
    path = write_csv(tmp_path / "r.csv", [np.asarray(c, object) for c in columns])
    with pytest.raises(DataError, match="time values are not numbers"):
        read(path)
    with pytest.raises(DataError, match="time values are not numbers"):
        convert(path, tmp_path / "s", memory=1e-2)
    parts = write_parts(tmp_path / "parts", (user, item, rating, time))
    second = pq.read_table(parts / "part-1.parquet")
    dated = second.set_column(3, "timestamp", second["timestamp"].cast(pa.timestamp("s")))
    pq.write_table(dated, parts / "part-1.parquet")
    with pytest.raises(DataError, match=r"part-1.parquet: expected times that are all seconds or"):
        convert(parts, tmp_path / "s")


@pytest.mark.parametrize("odd", ["007", "nine"])
def test_ids_are_integers_only_if_all_of_them_are(tmp_path, odd):
    user, item, rating, time = table(20_000)  # several chunks of 64 KiB, the odd one last
    users = [*user.tolist(), odd, odd, odd]
    columns = (users, [*item, 1, 2, 3], [*rating, 5, 5, 5], [*time, 1, 2, 3])
    path = write_csv(tmp_path / "r.csv", [np.asarray(c, object) for c in columns])
    found = convert(path, tmp_path / "s", memory=1e-2)
    assert found.client_ids.dtype.kind == "U"
    assert odd in found.client_ids
    assert_same(found, read(path))


@pytest.mark.parametrize("n_items", [70, 3000])
def test_synthetic_store(tmp_path, n_items):
    size = {"mean_interactions": 9, "seed": 4}
    found = synthetic_store(tmp_path / "s", 300, n_items, **size)
    assert_same(found, synthetic(300, n_items, **size))
    assert found.made["seed"] == 4


@pytest.fixture
def arrow():
    """A pool that knows the most that Arrow has held at once."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(usual)


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_memory_is_bounded(tmp_path, arrow, write):
    """NumPy's arrays and Arrow's, at a tenth of what all rows take."""
    path = tmp_path / ("r.csv" if write is write_csv else "r.parquet")
    write(path, table(150_000, users=3000, items=900, times=10**6))
    tracemalloc.start()
    convert(path, tmp_path / "s", memory=4e-3)
    little = tracemalloc.get_traced_memory()[1]
    assert 0 < arrow.max_memory() < 4e-3 * 2**30
    tracemalloc.reset_peak()
    leave_one_out(read(path), n_candidates=0)
    much = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert little < 4e-3 * 2**30
    assert much > 2 * little


def test_gathered_histories(tmp_path):
    split = leave_one_out(synthetic(50, 40, mean_interactions=8), n_candidates=0)
    found = write_split(tmp_path / "s", split)
    clients = np.array([3, 7, 8, 49])
    offsets, items = found.gather(clients)
    for i, u in enumerate(clients):
        expected = split.items[split.offsets[u] : split.offsets[u + 1]]
        np.testing.assert_array_equal(items[offsets[i] : offsets[i + 1]], expected)
    seen = found.seen(clients)
    for i, u in enumerate(clients):
        own = [split.valid[u], split.test[u], *split.items[split.offsets[u] : split.offsets[u + 1]]]
        assert seen[i][seen[i] >= 0].tolist() == own
    assert found.gather(np.zeros(0, int))[1].size == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "s"
    synthetic_store(folder, 30, 20, mean_interactions=5)
    return folder


def edited(whole, tmp_path, **changes):
    path = tmp_path / "s"
    shutil.copytree(whole, path)
    meta = json.loads((path / "meta.json").read_text()) | changes
    (path / "meta.json").write_text(json.dumps(meta))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "parquet"}, "this is no store"),
        ({"version": 3}, "expected a store of version 2, found 3; convert its source again"),
        ({"interactions": 5}, "is not as it was written"),
    ],
)
def test_another_format_or_version_is_refused(whole, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        open_store(edited(whole, tmp_path, **changes))


def test_a_store_is_no_ratings(whole, tmp_path):
    for wrong in (read, load, lambda path: convert(path, tmp_path / "s")):
        with pytest.raises(DataError, match=r"this is a store: experiments\.stream"):
            wrong(whole)


def test_foreign_folders_are_refused(tmp_path, whole):
    with pytest.raises(DataError, match="no such store"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found no meta\.json, which is written last"):
        open_store(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_store(tmp_path)


@pytest.mark.parametrize("column", ["item", "offsets", "test", "client_ids"])
def test_files_cut_short_are_refused(whole, tmp_path, column):
    path = edited(whole, tmp_path)
    file = path / f"{column}.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=rf"{column}.npy: expected \d+ bytes, found \d+"):
        open_store(path)
    file.unlink()
    with pytest.raises(DataError, match=rf"{column}.npy: cannot be read"):
        open_store(path)


def test_damage_of_the_same_size_is_found(whole, tmp_path):
    path = edited(whole, tmp_path)
    shutil.copy(path / "test.npy", path / "valid.npy")  # fits: not to be told apart
    open_store(path)
    for value, message in ((99, "expected 0..19"), (0, "a client's items do not ascend")):
        items = np.load(whole / "item.npy")
        items[4:7] = value
        np.save(path / "item.npy", items)
        with pytest.raises(DataError, match=f"item.npy is damaged: {message}"):
            open_store(path).gather(np.arange(30))
    offsets = np.load(whole / "offsets.npy")
    offsets[3] = 10**6
    np.save(path / "offsets.npy", offsets)
    with pytest.raises(DataError, match=r"offsets\.npy is damaged"):
        open_store(path)
    np.save(path / "offsets.npy", offsets.view(np.uint64))
    with pytest.raises(DataError, match=r"expected <i8 .* found <u8"):
        open_store(path)


def test_what_is_there_is_left_alone(whole, tmp_path):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    with pytest.raises(DataError, match="already holds a store"):
        synthetic_store(whole, 30, 20)
    assert {path: path.read_bytes() for path in whole.iterdir()} == before
    with pytest.raises(DataError, match="already holds something else"):
        convert(write_csv(tmp_path / "r.csv", table(50)), tmp_path)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyError()])
def test_what_is_cut_short_leaves_nothing(tmp_path, monkeypatch, failure):
    source = write_csv(tmp_path / "r.csv", table())
    calls = []

    def append(self, values, plain=stores._Column.append):
        calls.append(values)
        if len(calls) > 12:
            raise failure
        plain(self, values)

    monkeypatch.setattr(stores._Column, "append", append)
    expected = DataError if isinstance(failure, OSError) else KeyError
    with pytest.raises(expected, match=r"No space left|^$"):
        convert(source, tmp_path / "s", memory=LITTLE)
    assert len(calls) > 12
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_what_a_killed_process_left_is_replaced(tmp_path, whole):
    partial = tmp_path / "s.partial"
    shutil.copytree(whole, partial)
    (partial / "meta.json").unlink()
    assert synthetic_store(tmp_path / "s", 30, 20, mean_interactions=5).n_clients == 30
    assert not partial.exists()
    own = tmp_path / "t.partial/notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(DataError, match="is in the way"):
        synthetic_store(tmp_path / "t", 30, 20)
    assert own.read_text() == "mine"


def test_places_that_cannot_be_written_are_refused_early(tmp_path, monkeypatch):
    source = write_csv(tmp_path / "r.csv", table(50))
    with pytest.raises(DataError, match="cannot be written"):
        convert(source, source / "s")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"GiB are needed and 0\.0 GiB are free"):
        convert(source, tmp_path / "s")


def test_sources_that_do_not_fit_are_refused(tmp_path):
    source = write_csv(tmp_path / "r.csv", table())
    bare = write_csv(tmp_path / "bare.csv", table()[:2], "user,item")
    into = tmp_path / "s"
    for path, settings, message in (
        (source, {"min_rating": 9}, "removed all 4000 interactions; the ratings run from 1 to 5"),
        (source, {"k_core": 900}, "k_core=900 removed all interactions"),
        (source, {"memory": 1e-5}, "needs? .* GiB, and memory is"),
        (source, {"memory": 0}, "memory above 0"),
        (bare, {"min_rating": 2}, "needs ratings and the source has none"),
        (tmp_path / "none.csv", {}, "no such file"),
        (tmp_path, {}, "expected one ratings file"),
        (source, {"columns": {"user": "who"}}, "expected the user column 'who'"),
    ):
        if path == tmp_path:
            (tmp_path / "more.tsv").write_text("user\titem\n")
        with pytest.raises(DataError, match=message):
            convert(path, into, **settings)
        assert not into.exists()
    triple = tmp_path / "x.train.rating"
    triple.write_text("1\t2\n")
    with pytest.raises(DataError, match="brings its own split"):
        convert(triple, into)


def test_a_file_cut_short_is_refused(tmp_path, store):
    source = write_csv(tmp_path / "r.csv", table())
    text = source.read_text()
    packed = store("z.csv.gz", text)
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged or cut short"):
        convert(packed, tmp_path / "s")
    locked = store("locked.csv.zip", text)
    data = locked.read_bytes()
    # The flag of encryption, in both headers: as far as anyone sees without the password.
    for header, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        where = data.index(header) + at
        data = data[:where] + bytes([data[where] | 1]) + data[where + 1 :]
    locked.write_bytes(data)
    for use in (read, lambda path: convert(path, tmp_path / "s")):
        with pytest.raises(DataError, match=r"locked\.csv\.zip.* cannot be read .*encrypted"):
            use(locked)
    ragged = store("ragged.csv", text + "1,2\n")
    with pytest.raises(DataError, match="expected 4 columns in every row"):
        convert(ragged, tmp_path / "s")
    late = store("late.csv", text + "1,2,x,4\n")
    with pytest.raises(DataError, match="rating values are not numbers"):
        convert(late, tmp_path / "s", min_rating=1)
    half = tmp_path / "half.parquet"
    half.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="expected a Parquet file"):
        convert(half, tmp_path / "s")


def test_candidates_of_long_and_short_histories_take_no_padding(tmp_path):
    """One client with all but 200 of the items among many with three."""
    n_clients, n_items = 2000, 5200
    lengths = np.full(n_clients, 3)
    lengths[7] = 5000
    items = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    with stores.writing(tmp_path / "store") as writer:
        writer.add(lengths, items)
        writer.finish("toy", np.arange(n_clients), np.arange(n_items), {})
    store = open_store(tmp_path / "store")
    everyone = np.arange(n_clients)
    store.candidates(everyone[:1], 99, 0)  # so that what is imported late is not counted
    tracemalloc.start()
    drawn = store.candidates(everyone, 99, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Padded histories were 2000 x 5000 x 4 bytes = 40 MB; this is 0.8 MB of candidates and items.
    assert peak < 8e6
    assert (drawn[7] >= 5000).all()
    assert (np.delete(drawn, 7, axis=0) >= 3).all()


def test_two_writers_of_a_place_do_not_mix(tmp_path):
    """The second is refused, and the first one's work is whole."""
    split = leave_one_out(synthetic(20, 30, mean_interactions=8), n_candidates=0)
    with stores.writing(tmp_path / "store") as writer:
        writer.add_split(split.offsets, split.items, split.valid, split.test)
        with pytest.raises(DataError, match="another process is writing there"):
            write_split(tmp_path / "store", split)
        writer.finish("toy", np.arange(20), np.arange(30), {})
    assert open_store(tmp_path / "store").n_clients == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert not (tmp_path / "store/lock").exists()


@pytest.mark.parametrize("name", ["valid", "test"])
@pytest.mark.parametrize("wrong", [-2, 30])
def test_held_out_items_that_do_not_exist_are_refused(tmp_path, name, wrong):
    split = leave_one_out(synthetic(20, 30, mean_interactions=8), n_candidates=0)
    store = write_split(tmp_path / "store", split)
    column = np.array(getattr(store, name))
    column[3] = wrong
    np.save(tmp_path / f"store/{name}.npy", column)
    with pytest.raises(DataError, match=rf"{name}\.npy is damaged: expected -1\.\.29"):
        open_store(tmp_path / "store")


def test_rows_that_a_killed_conversion_has_left_are_removed(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("user,item\n" + "".join(f"{u},{i}\n" for u in range(9) for i in range(4)))
    left = tmp_path / "store.rows"
    left.mkdir()
    (left / "0").write_bytes(b"rows")
    (left / "lock").write_text("")
    assert convert(path, tmp_path / "store").n_clients == 9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "store"]
