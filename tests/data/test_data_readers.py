"""Every format, every compression, and every way in which a file can be wrong."""

import gzip
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedras_jax.data import Interactions, read
from fedras_jax.errors import DataError

# The same five events in every format; in client 1's time order 30, 10, 20.
EVENTS = [
    (1, 10, 3.5, 200),
    (1, 20, 5, 300),
    (2, 10, 1, 50),
    (1, 30, 4, 100),
    (2, 30, 2, 60),
]
FILES = {
    "u.data": "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in EVENTS),
    "ratings.dat": "".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in EVENTS),
    "ratings.csv": "userId,movieId,rating,timestamp\n"
    + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in EVENTS),
    "toy.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in EVENTS),
    "toy.tsv": "time\tUser_ID\tasin\tscore\n"
    + "".join(f"{t}\t{u}\t{i}\t{r}\n" for u, i, r, t in EVENTS),
}


def check(found: Interactions) -> None:
    assert found.client_ids.tolist() == [1, 2]
    assert found.item_ids.tolist() == [10, 20, 30]
    assert found.history(0).tolist() == [2, 0, 1]
    assert found.history(1).tolist() == [0, 2]
    assert found.times is not None
    assert found.times.tolist() == [100, 200, 300, 50, 60]


def fails(path: Path, *messages: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
@pytest.mark.parametrize("name", FILES)
def test_text_formats(store, name: str, suffix: str):
    found = read(store(name + suffix, FILES[name]))
    check(found)
    assert found.name == Path(name).name
    assert found.titles is None


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
def test_parquet(store, tmp_path: Path, suffix: str):
    user, item, rating, time = (list(column) for column in zip(*EVENTS, strict=True))
    table = pa.table({"user": user, "item": item, "rating": rating, "timestamp": time})
    pq.write_table(table, tmp_path / "plain")
    check(read(store(f"toy.parquet{suffix}", (tmp_path / "plain").read_bytes())))


def test_filters_and_names_are_passed_on(store):
    found = read(store("ratings.csv", FILES["ratings.csv"]), min_rating=3.5, name="mine")
    assert found.name == "mine"
    assert found.n_interactions == 3
    assert read(store("u.data", FILES["u.data"]), k_core=2).item_ids.tolist() == [10, 30]


@pytest.mark.parametrize("name", FILES)
def test_line_ends_and_a_missing_last_one_do_not_matter(store, name: str):
    check(read(store(name, FILES[name].replace("\n", "\r\n").rstrip())))


def test_a_byte_order_mark_and_quotes_are_understood(store):
    check(read(store("ratings.csv", "\ufeff" + FILES["ratings.csv"].replace("10", '"10"'))))


def test_columns_by_name(store):
    path = store("toy.csv", "who,what,when\na,x,2\na,y,1\n")
    found = read(path, columns={"user": "who", "item": "what", "time": "when"})
    assert found.client_ids.tolist() == ["a"]
    assert found.history(0).tolist() == [1, 0]
    # A role that is neither named nor guessed is not there.
    assert read(path, columns={"user": "who", "item": "what"}).times is None


def test_columns_may_override_a_guess(store):
    path = store("toy.csv", "user,item,rating,stars\n1,1,1,5\n1,2,1,4\n")
    assert read(path, columns={"rating": "stars"}, min_rating=5).n_interactions == 1


@pytest.mark.parametrize("name", FILES)
def test_columns_may_be_ignored(store, name: str):
    path = store(name, FILES[name].replace("200", "late"))
    fails(path, "1 of 5 time values are not numbers", "dataset_arg=time=")
    found = read(path, columns={"time": None}, min_rating=3)
    assert found.times is None
    assert found.history(0).tolist() == [0, 1, 2]
    without = {"rating": None, "time": None}
    fails(path, "min_rating=3 needs ratings", columns=without, min_rating=3)
    fails(path, "expected a column of users", columns={"user": None})


@pytest.mark.parametrize("name", FILES)
def test_dates(store, name: str):
    dated = re.sub(
        r"\b(50|60|\d00)\b", lambda m: f"1970-01-01 00:00:{int(m[0]) // 10}", FILES[name]
    )
    found = read(store(name, dated), columns={"time": None})
    assert found.times is None
    dated = dated.replace("00:00:5", "00:00:05").replace("00:00:6", "00:00:06")
    found = read(store(name, dated))
    assert found.times is not None
    assert found.times.tolist() == [10, 20, 30, 5, 6]


def test_recbole_columns_by_their_name_with_or_without_the_type(store):
    path = store("toy.inter", "u:token\ti:token\n1\t2\n")
    assert read(path, columns={"user": "u", "item": "i:token"}).n_interactions == 1


def test_ids_that_are_not_all_plain_integers_stay_text(store):
    found = read(store("toy.csv", "user,item\n7,1\n007,2\n"))
    assert found.client_ids.tolist() == ["007", "7"]
    assert found.item_ids.tolist() == [1, 2]


def test_half_ratings_of_dat_files(store):
    path = store("ratings.dat", "1::122::4.5::838985046\n1::185::4::838983525\n")
    assert read(path, min_rating=4.5).item_ids.tolist() == [122]


# --- folders, archives and what lies beside the ratings ---


def test_a_folder_is_searched(store):
    check(read(store("ml/ratings.dat.gz", FILES["ratings.dat"]).parent))
    store("ml/users.dat", "1::F\n")
    store("ml/notes.csv", "a,b\n")
    found = read(store("ml/README", "read me").parent)
    check(found)
    assert found.name == "ml"


def make_archive(path: Path, members: Mapping[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_searched_at_any_depth(tmp_path: Path):
    members = {
        "ml-1m/": "",
        "__MACOSX/ml-1m/._ratings.dat": "junk",
        "__MACOSX/ratings.dat": "junk",
        "ml-1m/ratings.dat": FILES["ratings.dat"],
        "ml-1m/movies.dat": "10::Ten::Drama\n30::Thirty::Drama\n",
        "ml-1m/users.dat": "1::F::1::10::48067\n",
    }
    found = read(make_archive(tmp_path / "ml-1m.zip", members))
    check(found)
    assert found.titles is not None
    assert found.titles.tolist() == ["Ten", "", "Thirty"]
    assert found.name == "ml-1m"


def test_the_ml_100k_archive_has_tables_that_are_not_the_ratings(tmp_path: Path):
    members = {
        "ml-100k/u.data": FILES["u.data"],
        "ml-100k/u1.base": "1\t1\t1\t1\n",
        "ml-100k/u.item": "10|Café|01-Jan-1995|\n".encode("latin-1"),
    }
    found = read(make_archive(tmp_path / "ml-100k.zip", members))
    check(found)
    assert found.titles is not None
    assert found.titles[0] == "Café"


def test_ambiguous_folders_and_archives_list_what_they_hold(store, tmp_path: Path):
    archive = make_archive(tmp_path / "two.zip", {"a/x.inter": "", "b/y.inter": ""})
    fails(archive, "two.zip: expected one ratings file, found a/x.inter, b/y.inter")
    store("both/a.csv", "")
    fails(store("both/b.csv", "").parent, "expected one ratings file, found a.csv, b.csv")


def test_folders_and_archives_without_ratings(store, tmp_path: Path):
    archive = make_archive(tmp_path / "none.zip", {"README": "hello"})
    fails(archive, "none.zip: expected a ratings file (u.data, *.dat", "found README")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "found no files")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("ratings", "name", "content"),
    [
        ("ratings.dat", "movies.dat", "10::A::B: Léon::Drama\n20::Two::Drama\n"),
        ("u.data", "u.item", "10|A::B: Léon|01-Jan|\n20|Two|01-Jan|\n"),
    ],
)
def test_titles_in_either_encoding(store, ratings, name, content, encoding):
    store(name, content.encode(encoding))
    found = read(store(ratings, FILES[ratings]))
    assert found.titles is not None
    assert found.titles.tolist() == ["A::B: Léon", "Two", ""]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
def test_titles_in_csv(store, suffix: str):
    store(f"movies.csv{suffix}", 'movieId,title,genres\n10,"American, The",Drama\n99,Other,\n')
    found = read(store("ratings.csv.gz", FILES["ratings.csv"]))
    assert found.titles is not None
    assert found.titles.tolist() == ["American, The", "", ""]


@pytest.mark.parametrize(
    ("ratings", "name", "content", "message"),
    [
        ("ratings.csv", "movies.csv", "id,name\n1,a\n", "expected the columns movieId,title first"),
        ("ratings.dat", "movies.dat", "1::a\n", "expected id::title::genres, found '1::a'"),
        ("u.data", "u.item", "1\ta\n", "expected id|title|..., found '1"),
    ],
)
def test_malformed_titles(store, ratings, name, content, message):
    store(name, content)
    fails(store(ratings, FILES[ratings]), name, message)


# --- what can be wrong ---


def test_nothing_there(tmp_path: Path):
    fails(tmp_path / "x.csv", "x.csv: no such file or folder")
    fails(tmp_path / "no" / "x.csv", "x.csv: no such file or folder")


def test_an_unknown_kind_of_file(store):
    fails(store("toy.json", "{}"), "toy.json: expected u.data", "found a file of another kind")


@pytest.mark.parametrize("name", [*FILES, "u.data.gz", "toy.parquet", "ratings.csv.zip"])
def test_empty_files(store, name: str):
    fails(store(name, ""), name, "expected interactions, found an empty file")


def test_a_header_and_no_rows(store):
    fails(store("toy.csv", "user,item\n"), "toy.csv: expected interactions, found a header and no")


def test_a_gzip_file_cut_short(tmp_path: Path):
    path = tmp_path / "u.data.gz"
    path.write_bytes(gzip.compress(FILES["u.data"].encode())[:-12])
    fails(path, "u.data.gz: the compressed file is damaged or cut short")


def test_a_gzip_file_that_is_none_or_is_corrupt(store, tmp_path: Path):
    path = tmp_path / "u.data.gz"
    path.write_text(FILES["u.data"])
    fails(path, "u.data.gz: the compressed file is damaged")
    data = bytearray(gzip.compress(np.random.default_rng(0).bytes(4096)))
    data[40:60] = b"\xff" * 20
    path.write_bytes(data)
    fails(path, "u.data.gz: the compressed file is damaged")


def test_a_zip_file_cut_short(store):
    path = store("ratings.csv.zip", FILES["ratings.csv"])
    path.write_bytes(path.read_bytes()[:-30])
    fails(path, "ratings.csv.zip: the compressed file is damaged or cut short")


@pytest.mark.parametrize(
    ("name", "cut"), [("u.data", "2\t30"), ("ratings.dat", "2::30"), ("ratings.csv", "2,30")]
)
def test_a_last_line_with_too_few_columns(store, name: str, cut: str):
    content = FILES[name].rstrip().rsplit("\n", 1)[0] + "\n" + cut
    fails(store(name, content), name, "expected 4 columns in every row", "got 2", "cut short")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.data", "1\t2\n", "expected 4 columns (user, item, rating, time), found 2"),
        ("u.data", "1 2 3 4\n", "found 1 in the first line '1 2 3 4'"),
        ("ratings.dat", "1,2,3,4\n", "expected 4 columns"),
        ("toy.csv", "user\n1\n", "expected a first line that names the columns"),
        ("toy.csv", "a,item\n1,2\n", "expected a column of users (user, userid, "),
        ("toy.csv", "a,item\n1,2\n", "found the columns a, item; name yours with columns="),
        ("toy.csv", "user,b\n1,2\n", "expected a column of items (item, itemid"),
        ("ratings.csv", "1,31,2.5,1260759144\n1,2,3,4\n", "found the columns 1, 31, 2.5, 126"),
    ],
)
def test_wrong_columns(store, name: str, content: str, message: str):
    fails(store(name, content), name, message)


@pytest.mark.parametrize("name", FILES)
def test_ratings_that_are_no_numbers(store, name: str):
    for odd, message in (
        ("good", "1 of 5 rating values are not numbers, the first in row 1"),
        ("", "1 of 5 rating values are not numbers, the first in row 1 ('')"),
        ("nan", "1 of 5 rating values are not finite, the first in row 1"),
    ):
        path = store(name, re.sub(r"3\.5", odd, FILES[name]))
        fails(path, name, message, "or no min_rating", min_rating=1)
        check(read(path))  # which nobody asked for


def test_missing_ids_and_times(store):
    path = store("toy.csv", "user,item,time\n1,2,3\n,2,3\n")
    fails(path, "toy.csv: 1 of 2 user ids are missing, the first in row 2")
    path = store("toy.csv", "user,item,time\n1,2,\n1,2,3\n")
    fails(path, "toy.csv: 1 of 2 time values are not numbers, the first in row 1 ('')")


def test_text_that_is_not_utf8(store):
    fails(store("toy.csv", b"user,item\n\xff\xfe,1\n"), "toy.csv", "UTF8")


def test_wrong_uses_of_columns(store):
    path = store("toy.csv", "user,item\n1,2\n")
    fails(path, "expected the keys user, item, rating, time, found stars", columns={"stars": "a"})
    fails(
        path,
        "toy.csv: expected the rating column 'stars', found the columns user, item",
        columns={"rating": "stars"},
    )
    path = store("u.data", FILES["u.data"])
    fails(path, "u.data: this format has no header", columns={"user": "a"})


def test_a_parquet_file_that_is_none_or_has_the_wrong_columns(store, tmp_path: Path):
    fails(store("toy.parquet", "user,item"), "toy.parquet: expected a Parquet file")
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "toy.parquet")
    fails(tmp_path / "toy.parquet", "found the columns a, b")
    pq.write_table(pa.table({"user": [1.5], "item": [2]}), tmp_path / "toy.parquet")
    fails(tmp_path / "toy.parquet", "toy.parquet: expected user ids that are integers or text")
