"""Profiles from files: every format, every column, and every way in which a file can be wrong."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedras_jax.data.profile_file import read_profile
from fedras_jax.errors import DataError
from fedras_jax.types import Trace

SPEEDS = {
    "compute": [100, 200.5, 300],
    "up": [1e6, 2e6, 3e6],
    "down": [4e6, 5e6, 6e6],
    "latency": [0.1, 0, 0.3],
}
REST = {
    "availability": [0.5, 1, 0.25],
    "session": [1, 2, 3],
    "failure": [0, 0.5, 0.1],
    "jitter": [0.1, 0.2, 0.3],
    "tier": [2, 0, 1],
}


def text(columns: dict[str, list], delimiter: str = ",") -> str:
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    return "".join(delimiter.join(map(str, line)) + "\n" for line in lines)


def check(path: Path, expected: dict[str, list], n_clients: int = 3) -> None:
    found = read_profile(path, n_clients)
    for name, values in expected.items():
        kind = np.int32 if name in ("session", "tier") else np.float32
        column = getattr(found, name)
        assert column.dtype == kind
        np.testing.assert_array_equal(column, np.array(values, kind))


def fails(path: Path, *messages: str, n_clients: int = 3) -> None:
    with pytest.raises(DataError) as caught:
        read_profile(path, n_clients)
    for message in (str(path), *messages):
        assert message in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zip"])
@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.tsv", "\t")])
def test_text(store, name: str, delimiter: str, suffix: str):
    columns = SPEEDS | REST
    check(store(name + suffix, text(columns, delimiter)), columns)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parquet(store, tmp_path: Path, suffix: str):
    columns = SPEEDS | REST
    pq.write_table(pa.table(columns), tmp_path / "plain")
    check(store(f"p.parquet{suffix}", (tmp_path / "plain").read_bytes()), columns)


def test_defaults(store):
    others = {"availability": 1, "session": 1, "failure": 0, "jitter": 0, "tier": 0}
    expected = SPEEDS | {name: [value] * 3 for name, value in others.items()}
    check(store("p.csv", text(SPEEDS)), expected)


def test_any_order_of_columns_and_a_byte_order_mark(store):
    columns = dict(reversed((SPEEDS | REST).items()))
    check(store("p.csv", "\ufeff" + text(columns).replace("tier", " tier ")), columns)


def test_line_ends_and_a_missing_last_one_do_not_matter(store):
    check(store("p.csv", text(SPEEDS).replace("\n", "\r\n").rstrip()), SPEEDS)


def test_of_a_longer_file_the_first_lines_are_taken(store):
    path = store("p.csv", text(SPEEDS))
    check(path, {name: values[:2] for name, values in SPEEDS.items()}, n_clients=2)


def test_lines_say_whose_they_are(store):
    path = store("p.csv", text(SPEEDS | {"client": [1, 2, 0]}))
    check(path, {name: [v[2], v[0], v[1]] for name, v in SPEEDS.items()})
    check(path, {name: [v[2], v[0]] for name, v in SPEEDS.items()}, n_clients=2)


def test_lines_of_clients_beyond_the_last_are_left_out(store):
    path = store("p.csv", text(SPEEDS | {"client": [1, 7, 0]}))
    check(path, {name: [v[2], v[0]] for name, v in SPEEDS.items()}, n_clients=2)


def test_every_client_has_one_line_in_a_longer_file_too(store):
    path = store("p.csv", text(SPEEDS | {"client": [0, 1, 1]}))
    fails(path, "expected one line for client 1, found 2.", n_clients=2)


def test_too_few_lines(store):
    fails(store("p.csv", text(SPEEDS)), "a line for each of 5 clients, found 3", n_clients=5)


def test_a_header_and_no_lines(store):
    path = store("p.csv", text({name: [] for name in SPEEDS}))
    fails(path, "a line for each of 3 clients, found 0")


@pytest.mark.parametrize("name", SPEEDS)
def test_missing_columns(store, name: str):
    columns = {other: values for other, values in SPEEDS.items() if other != name}
    found = f"found the columns {', '.join(columns)}."
    fails(store("p.csv", text(columns)), f"expected the columns {name} too", found)


def test_missing_columns_of_parquet(tmp_path: Path):
    pq.write_table(pa.table({"up": [1.0]}), tmp_path / "p.parquet")
    fails(tmp_path / "p.parquet", "expected the columns compute, down, latency too")


def test_unknown_columns(store):
    path = store("p.csv", text(SPEEDS | {"fialure": [0, 0, 0]}))
    fails(path, "expected no columns but compute, up,", "leave out fialure.")


def test_repeated_columns(store):
    content = text(SPEEDS | {"jitter": [1, 1, 1]}).replace("jitter", "up")
    fails(store("p.csv", content), "expected every column once", "compute, up, down, latency, up")


@pytest.mark.parametrize("name", [*SPEEDS, *REST])
@pytest.mark.parametrize(
    ("value", "problem"),
    [("fast", "not numbers"), ("", "not numbers"), ("nan", "not finite"), ("inf", "not finite")],
)
def test_no_numbers(store, name: str, value: str, problem: str):
    columns = SPEEDS | REST
    columns |= {name: [columns[name][0], value, columns[name][2]]}
    shown = f"({value!r})" if problem == "not numbers" else f"({value})"
    expected = f"1 of 3 {name} values are {problem}, the first in row 2 {shown}"
    fails(store("p.csv", text(columns)), expected)


def test_missing_numbers_of_parquet(tmp_path: Path):
    pq.write_table(pa.table(SPEEDS | {"up": [1.0, None, 2.0]}), tmp_path / "p.parquet")
    fails(tmp_path / "p.parquet", "1 of 3 up values are missing, the first in row 2")


@pytest.mark.parametrize(
    ("name", "value", "choose"),
    [
        ("compute", 0, "more than 0 examples/s"),
        ("up", -5, "more than 0 bit/s"),
        ("down", 0, "more than 0 bit/s"),
        ("latency", -1, "0 s or more"),
        ("availability", 0, "a share in (0, 1]"),
        ("session", 1.5, "whole rounds, 1 or more"),
        ("failure", 1, "a probability in [0, 1)"),
        ("jitter", -1, "a deviation of 0 or more"),
        ("tier", -1, "a whole number, 0 or more"),
    ],
)
def test_values_out_of_range(store, name: str, value: float, choose: str):
    columns = SPEEDS | REST
    columns |= {name: [*columns[name][:2], value], "client": [2, 0, 1]}
    path = store("p.csv", text(columns))
    with pytest.raises(DataError) as caught:
        read_profile(path, 3)
    found = str(caught.value)
    assert found.startswith(f"{path}: the profile's {name} of client 1 is {value}")
    assert found.endswith(f": choose {choose}.")


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ([0, 1, 1], "expected one line for client 1, found 2."),
        ([0, 1, 3], "expected one line for client 2, found 0."),
        ([0, -1, 2], "expected client numbers 0, 1, 2, ..., found -1 in row 2."),
        ([0, 1, 2.5], "expected client numbers 0, 1, 2, ..., found 2.5 in row 3."),
        (["a", 1, 2], "1 of 3 client values are not numbers, the first in row 1 ('a')"),
    ],
)
def test_wrong_client_numbers(store, client: list, message: str):
    fails(store("p.csv", text(SPEEDS | {"client": client})), message)


TRACE = {
    "client": [1, 0, 2, 1, 0],
    "time": [0, 0, 0, 30, 7.5],
    "compute": [10, 20, 30, 40, 50],
    "up": [1e6, 2e6, 3e6, 4e6, 5e6],
    "down": [1, 2, 3, 4, 5],
    "latency": [0.1, 0.2, 0.3, 0.4, 0.5],
    "availability": [1, 0.5, 1, 0, 0.25],
}


@pytest.mark.parametrize("period", [None, 86_400.0])
def test_a_trace_has_lines_for_stretches_of_time(store, period):
    found = read_profile(store("p.csv", text(TRACE)), 3, period)
    assert isinstance(found, Trace)
    np.testing.assert_array_equal(found.offset, [0, 2, 4, 5])
    np.testing.assert_array_equal(found.begin, np.float32([0, 7.5, 0, 30, 0]))
    np.testing.assert_array_equal(found.stretch.compute, np.float32([20, 50, 10, 40, 30]))
    np.testing.assert_array_equal(found.stretch.availability, np.float32([0.5, 0.25, 1, 0, 1]))
    np.testing.assert_array_equal(found.stretch.session, np.ones(5))
    assert found.period == np.float32(np.inf if period is None else period)
    fewer = read_profile(store("p.csv", text(TRACE)), 2, period)
    assert isinstance(fewer, Trace)
    np.testing.assert_array_equal(fewer.offset, [0, 2, 4])


@pytest.mark.parametrize(
    ("changes", "n_clients", "period", "message"),
    [
        ({}, 4, None, "a line for each of 4 clients, found none for client 3"),
        ({}, 6, None, "a line for each of 6 clients, found 5"),
        ({"time": [0, 0, 0, 0, 7.5]}, 3, None, "client 1 at 0 s: a client's first stretch begins"),
        ({"time": [0, 1, 0, 30, 7.5]}, 3, None, "client 0 at 1 s: a client's first stretch begins"),
        (
            {"time": [0, 0, 0, "nan", 7.5]},
            3,
            None,
            "time values are not finite",
        ),
        ({"up": [1, 1, 1, "nan", 1]}, 3, None, "up values are not finite, the first in row 4"),
        ({"up": [1, 1, 1, 0, 1]}, 3, None, "up of client 1 is 0: choose more than 0 bit/s"),
        ({"client": [1, 0, 2, -1, 0]}, 3, None, "client numbers 0, 1, 2, ..., found -1"),
        ({}, 3, 20.0, "client 1 at 30 s: it must lie before the period, 20 s"),
        ({}, 3, "a day", "a period must be positive seconds, not 'a day'"),
        ({}, 3, float("nan"), "a period must be positive seconds, not nan"),
    ],
)
def test_traces_that_are_none(store, changes, n_clients, period, message):
    path = store("p.csv", text(TRACE | changes))
    with pytest.raises(DataError) as caught:
        read_profile(path, n_clients, period)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_trace_says_whose_its_lines_are(store):
    lines = {name: values for name, values in TRACE.items() if name != "client"}
    fails(store("p.csv", text(lines)), "expected the column client beside time")


def test_a_profile_has_no_period(store):
    with pytest.raises(DataError, match="expected a column time, as a period of 60 s is given"):
        read_profile(store("p.csv", text(SPEEDS)), 3, 60.0)


def test_ragged_lines(store):
    fails(store("p.csv", text(SPEEDS) + "1,2\n"), "expected 4 columns in every row")


@pytest.mark.parametrize("name", ["p.json", "p", "p.txt.gz"])
def test_other_kinds_of_file(store, name: str):
    fails(store(name, text(SPEEDS)), "expected *.csv, *.tsv or *.parquet", "another kind")


def test_no_parquet(store):
    fails(store("p.parquet", text(SPEEDS)), "expected a Parquet file")


def test_damaged_compression(store):
    path = store("p.csv.gz", text(SPEEDS))
    path.write_bytes(path.read_bytes()[:-9])
    fails(path, "damaged or cut short")


def test_no_file(tmp_path: Path):
    fails(tmp_path / "p.csv", "no such file")
