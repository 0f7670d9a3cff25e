"""Raw columns into checked ones: ids as integers or text, ratings and times as finite numbers.

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
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
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


def as_numbers(values: Any, what: str, where: str) -> np.ndarray:
    """One finite number per row: int64 where all are whole in the source, else float64.

    Arrow timestamps become seconds since 1970.

    Args:
        values: a 1-d array-like or Arrow array, [n]; text is parsed.
        what: the column's role in messages, "rating" or "time".
        where: the file or dataset in messages.

    Returns:
        int64 or float64, [n].

    Raises:
        DataError: values that are missing, no numbers, NaN or infinite, with their number and
            the first one's row.
    """
    array = _to_arrow(values, what, where)
    expected = "a finite number a row"
    _refuse_rows(array.is_null(), array, f"{what} values are missing", expected, where)
    kind = array.type
    if pa.types.is_timestamp(kind):
        return array.cast(pa.int64()).to_numpy() / _PER_SECOND[kind.unit]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = _parse(array, what, where)
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


def _cast(array: pa.Array, kind: pa.DataType, what: str, where: str) -> pa.Array:
    try:
        return array.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: the {what} column does not fit {kind}: {error}.") from error


def _parse(texts: pa.Array, what: str, where: str) -> pa.Array:
    """Text as int64 if all of it is whole numbers, else as float64."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    is_number = pc.call_function(
        "match_substring_regex", [texts], pc.MatchSubstringOptions(_NUMBER)
    )
    what = f"{what} values are not numbers"
    bad = pc.call_function("invert", [is_number])
    _refuse_rows(bad, texts, what, "a finite number a row", where)
    raise DataError(f"{where}: some {what}.")


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
