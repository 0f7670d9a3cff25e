"""Raw columns into checked ones: ids as integers or text, ratings and seconds as finite numbers.

Rows are numbered from 1 and a header is not counted, so that a message's row is the n-th
interaction of the file.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedras_jax.errors import DataError

# What counts as a number in a text file; only used to find the offending rows once Arrow's
# own (much faster) parser has refused the column.
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

# What counts as an ISO 8601 time, by its spelling: it may still be a 30th of February.
_ISO = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"([ T]([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d(\.\d+)?)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?$"
)
# From there to what Arrow reads as microseconds in UTC: a time of day, six digits, and a zone.
_TO_UTC = (
    (r"^(.{10})$", r"\1T00:00"),
    (r"(\.\d{6})\d+", r"\1"),
    (r"^(.{11}[\d:.]+)$", r"\1Z"),
)

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def as_ids(values: Any, what: str, where: str) -> pa.Array:
    """One id per row, as int64 where the source has integers and as text where it has text.

    Text stays text: whether "7" means 7 is for the reader to say (`integers_if_canonical`).

    Args:
        values: a 1-d array-like or Arrow array, [n].
        what: the column's role in messages, "user" or "item".
        where: the file or dataset in messages.

    Returns:
        An int64 or string Arrow array, [n], without nulls.

    Raises:
        DataError: ids missing, or neither integers nor text.
    """
    array = _to_arrow(values, what, where)
    if pa.types.is_integer(array.type):
        _refuse_rows(array.is_null(), array, f"{what} ids are missing", "one id a row", where)
        return _cast(array, pa.int64(), what, where)
    if _is_text(array):
        empty = pc.call_function("equal", [array, pa.scalar("", array.type)])
        missing = pc.call_function("or_kleene", [array.is_null(), empty])
        _refuse_rows(missing, array, f"{what} ids are missing", "one id a row", where)
        return _cast(array, pa.large_string(), what, where)
    if len(array) == 0:
        return pa.array([], pa.int64())
    raise DataError(
        f"{where}: expected {what} ids that are integers or text, found {array.type}; "
        "convert that column first."
    )


def integers_if_canonical(ids: pa.Array) -> pa.Array:
    """Text ids as int64 if every one is an integer in its usual spelling, else unchanged.

    "007" and "+7" are not: as integers they would become one with "7".
    """
    if not len(ids) or pa.types.is_integer(ids.type):
        return ids
    try:
        integers = ids.cast(pa.int64())
    except pa.ArrowInvalid:
        return ids
    return integers if integers.cast(ids.type).equals(ids) else ids


def as_numbers(
    values: Any, what: str, where: str, expected: str = "a finite number a row"
) -> np.ndarray:
    """One finite number per row: int64 where all are whole in the source, else float64.

    Args:
        values: a 1-d array-like or Arrow array, [n]; text is parsed.
        what: the column's role in messages, "rating" or "time".
        where: the file or dataset in messages.
        expected: what would do, in messages.

    Returns:
        int64 or float64, [n].

    Raises:
        DataError: values that are missing, no numbers, NaN or infinite, with their number and
            the first one's row.
    """
    array = _to_arrow(values, what, where)
    _refuse_rows(array.is_null(), array, f"{what} values are missing", expected, where)
    kind = array.type
    if _is_text(array):
        array = _parse(array, what, where, expected)
    elif pa.types.is_integer(kind):
        array = _cast(array, pa.int64(), what, where)
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        array = _cast(array, pa.float64(), what, where)
    elif len(array):
        raise DataError(f"{where}: expected {what} values that are numbers, found {kind}.")
    else:
        array = pa.array([], pa.float64())
    numbers = array.to_numpy()
    if numbers.dtype.kind == "f":
        _refuse_rows(
            pa.array(~np.isfinite(numbers)), array, f"{what} values are not finite", expected, where
        )
    return numbers


def as_seconds(values: Any, what: str, where: str, expected: str) -> np.ndarray:
    """One time per row, in seconds: numbers are that, dates and ISO 8601 text count from 1970.

    Times without a zone are in UTC.

    Args:
        values: a 1-d array-like or Arrow array, [n]: numbers, dates, timestamps, or text that is
            all numbers or all ISO 8601 (`2020-01-01`, `2020-01-01 10:00:00`, with fractions and
            zones).
        what, where, expected: as in `as_numbers`.

    Returns:
        int64 where all are whole numbers in the source, else float64, [n].

    Raises:
        DataError: as in `as_numbers`.
    """
    array = _to_arrow(values, what, where)
    _refuse_rows(array.is_null(), array, f"{what} values are missing", expected, where)
    if _is_text(array):
        array = _parse_times(array, what, where, expected)
    if pa.types.is_date(array.type):
        array = array.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(array.type):
        return array.cast(pa.int64()).to_numpy() / _PER_SECOND[array.type.unit]
    return as_numbers(array, what, where, expected)


def is_dated(times: pa.Array) -> bool:
    """Whether times that `as_seconds` takes are dates: the first tells, as all are alike."""
    times = _to_arrow(times, "time", "")
    if _is_text(times):
        return bool(len(times)) and _parse_numbers(times.slice(0, 1)) is None
    return pa.types.is_temporal(times.type)


def index_ids(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Numbers ids by their sorted order.

    Args:
        ids: what `as_ids` returns, [n].

    Returns:
        The distinct ids in ascending order ([k], int64 or str; integers by value, text by code
        point) and each row's index among them (int64 [n]).
    """
    # Hashing first and sorting only the distinct ids is several times faster than np.unique.
    encoded = ids.dictionary_encode()
    distinct = encoded.dictionary.to_numpy(zero_copy_only=False)
    if distinct.dtype.kind == "O":
        distinct = distinct.astype(np.str_)
    order = np.argsort(distinct, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return distinct[order], rank[encoded.indices.to_numpy()]


def _to_arrow(values: Any, what: str, where: str) -> pa.Array:
    """Array-likes and chunked or dictionary-encoded Arrow columns as one plain Arrow array."""
    try:
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        array = values if isinstance(values, pa.Array) else pa.array(np.asarray(values))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(
            f"{where}: expected a 1-d {what} column of one kind of value; {error}."
        ) from error
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    return array


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _cast(array: pa.Array, kind: pa.DataType, what: str, where: str) -> pa.Array:
    try:
        return array.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: the {what} column does not fit {kind}: {error}.") from error


def _parse(texts: pa.Array, what: str, where: str, expected: str) -> pa.Array:
    """Text as int64 if all of it is whole numbers, else as float64."""
    numbers = _parse_numbers(texts)
    if numbers is not None:
        return numbers
    what = f"{what} values are not numbers"
    _refuse_rows(_unlike(texts, _NUMBER), texts, what, expected, where)
    raise DataError(f"{where}: some {what}; expected {expected}.")


def _parse_numbers(texts: pa.Array) -> pa.Array | None:
    """As `_parse`; None where some of it is no number."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _parse_times(texts: pa.Array, what: str, where: str, expected: str) -> pa.Array:
    """Text as numbers or as timestamps; as it is where most of it is neither."""
    numbers = _parse_numbers(texts)
    if numbers is not None:
        return numbers
    bad = _unlike(texts, _ISO)
    if bad.true_count > bad.false_count:
        return texts
    what = f"{what} values are not ISO 8601 times"
    _refuse_rows(bad, texts, what, expected, where)
    try:
        return texts.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        for pattern, spelling in _TO_UTC:
            options = pc.ReplaceSubstringOptions(pattern, spelling)
            texts = pc.call_function("replace_substring_regex", [texts], options)
    try:
        return texts.cast(pa.timestamp("us", "UTC"))
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: some {what} ({error}); expected {expected}.") from error


def _unlike(texts: pa.Array, pattern: str) -> pa.Array:
    """Which texts a regular expression does not match."""
    options = pc.MatchSubstringOptions(pattern)
    matches = pc.call_function("match_substring_regex", [texts], options)
    return pc.call_function("invert", [matches])


def _refuse_rows(bad: pa.Array, values: pa.Array, problem: str, expected: str, where: str) -> None:
    """Raises where any row is bad, saying how many there are, the first one's row and value."""
    rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    if not rows.size:
        return
    first = int(rows[0])
    raise DataError(
        f"{where}: {rows.size} of {len(values)} {problem}, the first in row {first + 1} "
        f"({values[first].as_py()!r}); expected {expected}."
    )
