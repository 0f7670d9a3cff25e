"""Delimited text and Parquet into the four columns that interactions are made of."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fedras_jax.data.columns import as_ids, as_numbers, as_seconds, integers_if_canonical
from fedras_jax.errors import DataError

ROLES = ("user", "item", "rating", "time")

# The header's name of a role's column; None: it is ignored.
Columns = Mapping[str, str | None]

# Header names that are recognised without `columns`, in order of preference; case, "_" and "-"
# do not matter, and what follows a ":" (RecBole's types) is cut off.
GUESSES: dict[str, tuple[str, ...]] = {
    "user": ("user", "userid", "uid", "client", "clientid", "reviewerid"),
    "item": ("item", "itemid", "iid", "movie", "movieid", "product", "productid", "asin"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "time": ("timestamp", "time", "unixtime", "unixreviewtime", "ts"),
}


@dataclass(frozen=True, eq=False)
class Events:
    """One row per event, as the file has them.

    Attributes:
        users: [n], int64 or text.
        items: [n], int64 or text.
        ratings: [n], finite, or None where the file has none or they are not asked for.
        times: [n], finite, seconds, or None where the file has none or they are ignored.
    """

    users: pa.Array
    items: pa.Array
    ratings: np.ndarray | None
    times: np.ndarray | None


def headed_events(
    data: bytes, where: str, delimiter: str, columns: Columns | None, *, rated: bool
) -> Events:
    """Events from text whose first line names the columns; with their ratings where `rated`.

    Raises:
        DataError: no header that can be used, ragged or missing rows, values that are no
            numbers where numbers belong.
    """
    found = header(data, where, delimiter)
    chosen = choose_columns(found, columns, where, rated=rated)
    table = parse_text(
        data, where, delimiter, len(found), list(chosen.values()), skip_rows=1, quoted=True
    )
    return _events(dict(zip(chosen, table, strict=True)), where, text=True)


def bare_events(
    data: bytes,
    where: str,
    delimiter: str,
    columns: Columns | None,
    *,
    rated: bool,
    minimum: int = 4,
) -> Events:
    """Events from text without a header: user, item, then rating, then time.

    Args:
        data: the text.
        where: the file in messages.
        delimiter: what lies between two columns; "::" too.
        columns: which are ignored: all names are None.
        rated: whether ratings are asked for.
        minimum: how many of the four columns must be there.

    Raises:
        DataError: too few or too many columns, ragged rows, values that are no numbers.
    """
    if delimiter == "::":
        # Arrow splits at single characters; ids, ratings and times never hold a tab.
        data, delimiter = data.replace(b"::", b"\t"), "\t"
    n_columns = first_line(data).count(delimiter) + 1
    if not minimum <= n_columns <= len(ROLES):
        raise DataError(
            f"{where}: expected {minimum if minimum == 4 else f'{minimum} to 4'} columns "
            f"({', '.join(ROLES)}), found {n_columns} in the first line {first_line(data)!r}."
        )
    chosen = choose_columns(ROLES[:n_columns], columns, where, rated=rated)
    table = parse_text(data, where, delimiter, n_columns, list(chosen.values()))
    return _events(dict(zip(chosen, table, strict=True)), where, text=True)


def parquet_events(data: bytes, where: str, columns: Columns | None, *, rated: bool) -> Events:
    """Events from a Parquet file; its own types decide, text ids stay text.

    Raises:
        DataError: no Parquet file, unusable columns or values.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        found = file.schema_arrow.names
        chosen = choose_columns(found, columns, where, rated=rated)
        table = file.read(columns=[found[i] for i in chosen.values()])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: expected a Parquet file ({error}).") from error
    parts = {role: table.column(found[i]).combine_chunks() for role, i in chosen.items()}
    return _events(parts, where, text=False)


def parse_text(
    data: bytes,
    where: str,
    delimiter: str,
    n_columns: int,
    wanted: Sequence[int],
    *,
    skip_rows: int = 0,
    quoted: bool = False,
) -> list[pa.Array]:
    """The wanted columns of delimited UTF-8 text, as text.

    Nothing is converted here, so that "007" stays what it is and a bad number can be told by
    its row.

    Args:
        data: the text.
        where: the file in messages.
        delimiter: one character.
        n_columns: how many columns every row must have.
        wanted: positions of the columns to return.
        skip_rows: leading lines to leave out.
        quoted: whether `"` quotes a value.

    Raises:
        DataError: a row with another number of columns, or text that is not UTF-8.
    """
    names = [str(position) for position in range(n_columns)]
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            # Threads would lose the row numbers that the messages below give.
            pa_csv.ReadOptions(
                column_names=names, skip_rows=skip_rows, use_threads=False, block_size=1 << 24
            ),
            pa_csv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False),
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string()),
                include_columns=[names[position] for position in wanted],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}: expected {n_columns} columns in every row ({error}); "
            "the file may be cut short."
        ) from error
    return [column.combine_chunks() for column in table.columns]


def _events(parts: Mapping[str, pa.Array], where: str, *, text: bool) -> Events:
    """Checks and types the columns; ids in text files become integers where all of them are."""
    if not len(parts["user"]):
        raise DataError(f"{where}: expected interactions, found a header and no rows.")
    users, items = as_ids(parts["user"], "user", where), as_ids(parts["item"], "item", where)
    if text:
        users, items = integers_if_canonical(users), integers_if_canonical(items)
    ratings, times = ratings_and_times(parts, where)
    return Events(users=users, items=items, ratings=ratings, times=times)


def ratings_and_times(
    parts: Mapping[str, pa.Array], where: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Checked ratings and seconds, [n] each; None for a role that is not there.

    Raises:
        DataError: values that are missing or are neither; says how to do without.
    """
    ratings: np.ndarray | None = None
    times: np.ndarray | None = None
    if "rating" in parts:
        expected = "a finite number a row, or no min_rating, for which alone ratings are read"
        ratings = as_numbers(parts["rating"], "rating", where, expected)
    if "time" in parts:
        expected = (
            "seconds or an ISO 8601 time a row, or columns={'time': None} (on a command line "
            "--dataset_arg=time=), which ignores them"
        )
        times = as_seconds(parts["time"], "time", where, expected)
    return ratings, times


def require_no_names(columns: Columns | None, where: str) -> None:
    """Whether `columns` names none, as for a file without a header: it may ignore some.

    Raises:
        DataError: it names one.
    """
    if any(name is not None for name in (columns or {}).values()):
        raise DataError(f"{where}: this format has no header; leave columns out.")


def header(data: bytes, where: str, delimiter: str) -> list[str]:
    """The first line's column names, in order."""
    line = first_line(data).removeprefix("\ufeff")
    names = next(csv.reader([line], delimiter=delimiter), [])
    if len(names) < 2:
        raise DataError(
            f"{where}: expected a first line that names the columns, separated by "
            f"{delimiter!r}; found {line[:80]!r}."
        )
    return [name.strip() for name in names]


def first_line(data: bytes) -> str:
    """The text before the first line break, undecodable bytes replaced."""
    end = data.find(b"\n")
    line = data if end < 0 else data[:end]
    return line.decode("utf-8", errors="replace").rstrip("\r")


def choose_columns(
    found: Sequence[str], columns: Columns | None, where: str, *, rated: bool
) -> dict[str, int]:
    """The position of each role's column that is to be read.

    Roles that are neither named nor found, or are ignored, are left out, and so are ratings where
    `rated` says that none are asked for.

    Raises:
        DataError: a name that is not there, or no column of users or of items.
    """
    columns = columns or {}
    if unknown := sorted(set(columns) - set(ROLES)):
        raise DataError(
            f"columns: expected the keys {', '.join(ROLES)}, found {', '.join(unknown)}."
        )
    bare = [name.split(":")[0] for name in found]
    plain = [name.lower().replace("_", "").replace("-", "") for name in bare]
    chosen: dict[str, int] = {}
    for role in ROLES:
        if role in columns:
            wanted = columns[role]
            if wanted is None:
                continue
            if wanted not in found and wanted not in bare:
                raise DataError(
                    f"{where}: expected the {role} column {wanted!r}, found the columns "
                    f"{', '.join(found)}."
                )
            chosen[role] = found.index(wanted) if wanted in found else bare.index(wanted)
        else:
            guess = next((name for name in GUESSES[role] if name in plain), None)
            if guess is not None:
                chosen[role] = plain.index(guess)
    for role in ("user", "item"):
        if role not in chosen:
            raise DataError(
                f"{where}: expected a column of {role}s ({', '.join(GUESSES[role])}), found the "
                f"columns {', '.join(found)}; name yours with columns={{'{role}': ...}} (on a "
                f"command line --dataset_arg={role}=NAME)."
            )
    if not rated:
        chosen.pop("rating", None)
    return chosen
