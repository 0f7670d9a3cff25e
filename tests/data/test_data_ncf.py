"""The NCF triple: three files that bring a split."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedras_jax.data import leave_one_out, read
from fedras_jax.errors import DataError

TRAIN = "0\t1\n0\t0\n1\t2\n2\t0\n2\t5\n"
TEST = "0\t2\t5\t900\n1\t3\t4\t800\n"
NEGATIVE = "(0,2)\t3\t4\t5\n(1,3)\t0\t1\t5\n"


@pytest.fixture
def triple(store):
    def write(train=TRAIN, test=TEST, negative=NEGATIVE, ends=("", "", "")) -> Path:
        path = store(f"toy/X.train.rating{ends[0]}", train)
        store(f"toy/X.test.rating{ends[1]}", test)
        store(f"toy/X.test.negative{ends[2]}", negative)
        return path.parent

    return write


def fails(path: Path, *messages: str, **options) -> None:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("ends", [("", "", ""), (".gz", "", ".gz"), (".zip", ".gz", "")])
def test_any_of_the_files_their_prefix_or_their_folder(triple, ends):
    folder = triple(ends=ends)
    names = [path.name for path in folder.iterdir()]
    for name in ("", "X", *names):
        found = read(folder / name)
        assert found.client_ids.tolist() == [0, 1, 2]
        assert found.item_ids.tolist() == [0, 1, 2, 3, 4, 5]
        assert [found.history(u).tolist() for u in range(3)] == [[1, 0, 2], [2, 3], [0, 5]]
        assert found.times is None
        assert found.held_out is not None
        assert found.held_out.test.tolist() == [2, 3, -1]
        assert found.held_out.test.dtype == np.int32
        assert found.held_out.candidates.tolist() == [[3, 4, 5], [0, 1, 5], [-1, -1, -1]]
    assert read(folder / "X").name == "X"
    assert read(folder).name == "toy"


def test_a_triple_inside_an_archive(triple, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        for path in triple(ends=("", ".gz", "")).iterdir():
            archive.write(path, f"Data/{path.name}")
    found = read(tmp_path / "toy.zip")
    assert found.held_out is not None
    assert found.held_out.test.tolist() == [2, 3, -1]


def test_negatives_are_joined_by_user_not_by_line(triple):
    found = read(triple(negative="(1,3)\t0\t1\t5\n( 0, 2 )\t3\t4\t5"))
    assert found.held_out is not None
    assert found.held_out.candidates.tolist()[:2] == [[3, 4, 5], [0, 1, 5]]


def test_original_ids_are_kept_and_text_in_one_file_makes_all_text(triple):
    found = read(triple(negative="(0,2)\t30\t4\n(1,3)\t7\t1\n"))
    assert found.item_ids.tolist() == [0, 1, 2, 3, 4, 5, 7, 30]
    found = read(triple(negative="(0,2)\tx\n(1,3)\ty\n"))
    assert found.item_ids.tolist() == ["0", "1", "2", "3", "5", "x", "y"]


def test_times_in_both_files_order_the_histories(triple):
    found = read(triple(train="0\t1\t5\t70\n0\t0\t5\t60\n1\t2\t5\t10\n"))
    assert found.history(0).tolist() == [0, 1, 2]
    assert found.times is not None
    assert found.times.tolist() == [60, 70, 900, 10, 800]


def test_a_training_pair_that_is_the_test_pair_is_one_interaction(triple):
    found = read(triple(train=TRAIN + "0\t2\n"))
    assert found.history(0).tolist() == [1, 0, 2]
    split = leave_one_out(found, n_candidates=3)
    assert split.items[: split.offsets[1]].tolist() == [0, 1]


@pytest.mark.parametrize("lost", ["X.train.rating", "X.test.rating", "X.test.negative"])
def test_a_missing_file_is_named(triple, lost: str):
    folder = triple()
    (folder / lost).unlink()
    fails(folder, str(folder), f"in one folder, {lost} is missing")


def test_ratings_do_not_count_and_times_may_be_ignored(triple):
    folder = triple(test="0\t2\tx\ty\n1\t4\t1\t1\n", negative="(0,2)\t3\n(1,4)\t5\n")
    assert read(folder, columns={"time": None}).times is None


def test_filters_and_columns_are_refused(triple):
    folder = triple()
    fails(folder, "brings its own split, which filters would break", min_rating=4)
    fails(folder, "brings its own split, which filters would break", k_core=5)
    fails(folder, "this format has no header", columns={"user": "u"})


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"train": "0\n"}, ("X.train.rating", "expected 2 to 4 columns", "found 1")),
        ({"train": TRAIN + "3"}, ("X.train.rating", "expected 2 columns in every row")),
        ({"train": ""}, ("X.train.rating", "found an empty file")),
        ({"test": "0\t2\t1\tx\n"}, ("X.test.rating", "1 of 1 time values are not numbers")),
        ({"test": TEST + "1\t4\t1\t1\n"}, ("one line a user in test.rating, user 1 has several",)),
        ({"test": "0\t2\t5\t9\n"}, ("1 differ, the first for user 1",)),
        (
            {"negative": "(0,9)\t3\t4\n(1,3)\t5\t0\n"},
            ("X.test.negative", "expected the (user,item) pairs of test.rating, 1 differ"),
        ),
        ({"negative": "0\t3\t4\n"}, ("expected '(user,item)' in the first column, found '0'",)),
        ({"negative": "(0,2)\n"}, ("at least one negative a row", "'(0,2)'")),
        ({"negative": "(0,2)\t3\t4\n(1,3)\t5\n"}, ("expected 3 columns in every row",)),
        ({"negative": "(0,2)\t3\t\n(1,3)\t5\t4\n"}, ("item ids are missing",)),
    ],
)
def test_malformed_files(triple, changed: dict, messages: tuple[str, ...]):
    fails(triple(**changed), *messages)
