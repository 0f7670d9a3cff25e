"""Columns into interactions: validation, thresholds, repeats, cores and indices."""

import re

import numpy as np
import pyarrow as pa
import pytest

from fedras_jax.data import HeldOut, Interactions
from fedras_jax.errors import DataError

build = Interactions.from_columns


def pairs(interactions: Interactions) -> list[tuple]:
    """(user id, item id) of every interaction, in the stored order."""
    users, items = interactions.to_columns()
    return list(zip(users.tolist(), items.tolist(), strict=True))


def fails(message: str, *args, **kwargs) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build(*args, name="toy", **kwargs)


def test_histories_are_in_time_order_and_ties_in_file_order():
    found = build([1, 1, 1, 1], [40, 10, 30, 20], times=[5, 3, 5, 3], name="toy")
    assert pairs(found) == [(1, 10), (1, 20), (1, 40), (1, 30)]
    assert found.times is not None
    assert found.times.tolist() == [3, 3, 5, 5]


def test_histories_without_times_keep_the_file_order():
    found = build([2, 1, 2, 1], [9, 8, 7, 9], name="toy")
    assert pairs(found) == [(1, 8), (1, 9), (2, 9), (2, 7)]
    assert found.times is None


def test_dtypes_sizes_and_history():
    found = build([2, 1, 2], [9, 8, 7], name="toy")
    assert (found.n_clients, found.n_items, found.n_interactions) == (2, 3, 3)
    assert found.offsets.dtype == np.int64
    assert found.items.dtype == np.int32
    assert found.client_ids.dtype == np.int64
    assert found.history(1).tolist() == [2, 0]
    with pytest.raises(IndexError, match="client -1 of 2"):
        found.history(-1)


def test_integer_ids_sort_by_value_and_text_by_code_point():
    assert build([10, 9], [100, 20], name="toy").item_ids.tolist() == [20, 100]
    found = build(["u10", "u9"], ["b", "a"], name="toy")
    assert found.client_ids.tolist() == ["u10", "u9"]
    assert found.item_ids.tolist() == ["a", "b"]
    assert found.item_ids.dtype.kind == "U"


def test_text_ids_are_not_taken_for_integers():
    assert build(["7", "007"], [1, 1], name="toy").client_ids.tolist() == ["007", "7"]


def test_repeats_collapse_to_the_first_in_time():
    found = build([1, 1, 1], [5, 6, 5], times=[30, 20, 10], name="toy")
    assert pairs(found) == [(1, 5), (1, 6)]
    assert found.times is not None
    assert found.times.tolist() == [10, 20]


def test_the_threshold_comes_before_the_repeats():
    found = build([1, 1], [5, 5], [2.0, 4.5], [10, 20], name="toy", min_rating=4)
    assert found.times is not None
    assert found.times.tolist() == [20]


def test_fractions_of_a_second_order_but_are_not_kept():
    found = build([1, 1], [5, 6], times=[7.9, 7.2], name="toy")
    assert pairs(found) == [(1, 6), (1, 5)]
    assert found.times is not None
    assert found.times.tolist() == [7, 7]


def brute_force_core(rows: set[tuple[int, int]], k: int) -> set[tuple[int, int]]:
    while True:
        kept = {
            (u, i)
            for u, i in rows
            if sum(v == u for v, _ in rows) >= k and sum(j == i for _, j in rows) >= k
        }
        if kept == rows:
            return rows
        rows = kept


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_core_is_the_brute_force_one(k: int, seed: int):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 12, 110), rng.integers(0, 14, 110)
    expected = brute_force_core(set(zip(users.tolist(), items.tolist(), strict=True)), k)
    assert expected
    found = build(users, items, name="toy", k_core=k)
    assert set(pairs(found)) == expected
    assert found.client_ids.tolist() == sorted({u for u, _ in expected})
    assert found.item_ids.tolist() == sorted({i for _, i in expected})


def test_titles_follow_the_items():
    found = build([1, 1], [5, 3], name="toy", titles={5: "Five", 4: "Four"})
    assert found.titles is not None
    assert found.titles.tolist() == ["", "Five"]


def test_arrow_columns_are_taken_too():
    users = pa.chunked_array([["a"], ["b", "a"]]).dictionary_encode()
    times = pa.array([3, 2, 1], pa.timestamp("ms"))
    found = build(users, pa.array([1, 2, 3], pa.uint8()), times=times, name="toy")
    assert pairs(found) == [("a", 3), ("a", 1), ("b", 2)]
    assert found.times is not None
    assert found.times.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "times",
    [
        ["2020-01-01 00:00:10", "2020-01-01T00:00:05.250", "2019-12-31 23:59"],
        ["2020-01-01 01:00:10+01:00", "2020-01-01T00:00:05.2500000001Z", "2019-12-31 23:59"],
        np.array(["2020-01-01T00:00:10", "2020-01-01T00:00:05", "2019-12-31T23:59"], "M8[ns]"),
        pa.array([1577836810, 1577836805, 1577836740], pa.timestamp("s", "Asia/Tokyo")),
    ],
)
def test_dates_are_seconds_in_utc(times):
    found = build([1, 1, 1], [30, 20, 10], times=times, name="toy")
    assert found.times is not None
    assert found.times.tolist() == [1577836740, 1577836805, 1577836810]
    assert found.history(0).tolist() == [0, 1, 2]


def test_days_are_times():
    for days in (["2020-01-02", "1969-12-31"], np.array(["2020-01-02", "1969-12-31"], "M8[D]")):
        found = build([1, 1], [1, 2], times=days, name="toy")
        assert found.times is not None
        assert found.times.tolist() == [-86400, 1577923200]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["2020-01-01", "3", "2020-01-01"], "1 of 3 time values are not ISO 8601 times, the first"),
        (["2020-01-01", "3", "3"], "1 of 3 time values are not numbers, the first in row 1"),
        (["2020-01-01", "2020-13-01", "2020-01-01"], "1 of 3 time values are not ISO 8601 times"),
        (["2020-01-01", "2020-02-30", "2020-01-01"], "some time values are not ISO 8601 times"),
        (["01/02/2020", "5", "6"], "1 of 3 time values are not numbers, the first in row 1"),
        (["2020-01-01", None, "2020-01-01"], "1 of 3 time values are missing"),
    ],
)
def test_dates_that_are_none(times, message: str):
    fails(message, [1, 2, 3], [1, 2, 3], times=pa.array(times))
    fails("or no times at all", [1, 2, 3], [1, 2, 3], times=pa.array(times))


def test_columns_of_different_lengths():
    fails("found {'user': 1, 'item': 1, 'rating': 2}", [1], [1], [1, 2])
    fails("toy: expected columns of one length, found {'user': 2, 'item': 1}", [1, 2], [1])


def test_no_rows():
    fails("toy: expected at least one interaction, found none", [], [])


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([3, np.nan, np.nan], "2 of 3 rating values are not finite, the first in row 2 (nan)"),
        ([np.inf, 1, 1], "1 of 3 rating values are not finite, the first in row 1 (inf)"),
        (["3", "x", "1e2"], "1 of 3 rating values are not numbers, the first in row 2 ('x')"),
        (pa.array([1, 2, None]), "1 of 3 rating values are missing, the first in row 3 (None)"),
        ([True, False, True], "expected rating values that are numbers, found bool"),
    ],
)
def test_ratings_that_are_no_numbers(ratings, message: str):
    fails(message, [1, 2, 3], [1, 2, 3], ratings, min_rating=1)
    assert build([1, 2, 3], [1, 2, 3], ratings, name="toy").n_interactions == 3
    fails(message.replace("rating", "time"), [1, 2, 3], [1, 2, 3], times=ratings)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (["a", "", "c"], "1 of 3 user ids are missing, the first in row 2 ('')"),
        (pa.array([1, None, None]), "2 of 3 user ids are missing, the first in row 2 (None)"),
        ([1.0, 2.0, 3.0], "expected user ids that are integers or text, found double"),
        ([[1, 2], [3, 4], [5, 6]], "expected a 1-d user column of one kind of value"),
        (np.array([2**63, 1, 2], np.uint64), "the user column does not fit int64"),
    ],
)
def test_ids_that_cannot_be_used(users, message: str):
    fails(message, users, [1, 2, 3])


def test_filters_that_leave_nothing_say_which_they_were():
    fails(
        "toy: min_rating=6 removed all 2 interactions; the ratings run from 1 to 5, lower it",
        [1, 2],
        [1, 2],
        [1, 5],
        min_rating=6,
    )
    fails(
        "toy: k_core=3 removed all 2 interactions that were left",
        [1, 1, 1],
        [1, 2, 3],
        [5, 5, 1],
        min_rating=4,
        k_core=3,
    )


def test_filters_that_make_no_sense():
    fails("toy: min_rating=4 needs ratings and the source has none", [1], [1], min_rating=4)
    fails("toy: expected k_core of 0 or more, found -1", [1], [1], k_core=-1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offsets": np.array([0, 1])}, "expected offsets of shape (3,), found (2,)"),
        ({"offsets": np.array([0, 2, 1])}, "expected offsets that rise from 0 to 2"),
        ({"items": np.array([0, 3], np.int32)}, "expected item indices in 0..2"),
        ({"times": np.array([0])}, "expected times of shape (2,), found (1,)"),
        ({"titles": np.array(["a"])}, "expected titles of shape (3,), found (1,)"),
        (
            {"held_out": HeldOut(np.array([0]), np.zeros((2, 1), np.int32))},
            "expected held_out.test of shape (2,), found (1,)",
        ),
        (
            {"held_out": HeldOut(np.array([0, 0]), np.zeros((3, 1), np.int32))},
            "expected held_out.candidates of shape (2, 1), found (3, 1)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed: dict, message: str):
    arrays = {
        "client_ids": np.arange(2),
        "item_ids": np.arange(3),
        "offsets": np.array([0, 1, 2]),
        "items": np.array([0, 2], np.int32),
    }
    Interactions(name="toy", **arrays)
    with pytest.raises(DataError, match=re.escape(f"toy: {message}")):
        Interactions(name="toy", **(arrays | changed))
