"""Reads what clients' devices and networks are like from a table: a line a client or stretch."""

from __future__ import annotations

import csv
import numbers
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedras_jax import profiles, traces
from fedras_jax.data.columns import as_numbers
from fedras_jax.data.storage import Folder, plain_name
from fedras_jax.data.tables import first_line, parse_text
from fedras_jax.errors import DataError, SpecError
from fedras_jax.types import Profile, Trace

REQUIRED = ("compute", "up", "down", "latency")
DEFAULTS = {"availability": 1, "session": 1, "failure": 0, "jitter": 0, "tier": 0}
CLIENT = "client"
TIME = "time"

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_profile(
    path: str | PathLike[str], n_clients: int, period: float | None = None
) -> Profile | Trace:
    """Reads a profile or a trace from `*.csv`, `*.tsv` or `*.parquet`, each plain, `.gz` or `.zip`.

    Columns, in any order, named in the first line of a text file:

    - `compute`: training speed, examples per second and epoch;
    - `up`, `down`: bit/s;
    - `latency`: s, before anything happens;
    - optional: `availability` in (0, 1] (1), `session`, whole rounds (1), `failure` in [0, 1)
      (0), `jitter`, the deviation of the logarithm of a round's speeds (0), `tier`, a whole
      number (0); as in `types.Profile`;
    - optional: `client`, 0 and up, whose line this is. Without it lines are in the order of the
      clients.

    With a column `time`, seconds, it is a trace: a client has a line for each stretch of time in
    which it is alike, from that time to its next line, in any order, and the first one begins at 0.
    Then the column `client` is needed, and `availability` may be 0.

    Of a longer file the first clients are taken: those with numbers below `n_clients`, or the
    first `n_clients` lines.

    Args:
        path: the file.
        n_clients: U.
        period: s after which a trace begins anew; its last lines last when None.

    Returns:
        NumPy arrays, float32 or int32, leading axis U, or that of a trace's lines.

    Raises:
        DataError: nothing there, another kind of file, missing or unknown columns, too few
            lines, a client with no line or, in a profile, several, values that are no numbers or
            out of range, a trace's times that do not begin at 0, repeat, or exceed the period.
    """
    if period is not None and not (isinstance(period, numbers.Real) and period > 0):
        raise DataError(f"{path}: a period must be positive seconds, not {period!r}")
    path = Path(path)
    files = Folder(path.parent)
    where = files.where(path.name)
    table = _table(path.name, files.read(path.name), where)
    columns: dict[str, Any] = {name: as_numbers(table[name], name, where) for name in table}
    n_lines = len(columns["compute"])
    if n_lines < n_clients:
        raise DataError(
            f"{where}: expected a line for each of {n_clients} clients, found {n_lines}; "
            "add lines or take fewer clients."
        )
    for name, value in DEFAULTS.items():
        columns.setdefault(name, np.full(n_lines, value))
    client, time = columns.pop(CLIENT, None), columns.pop(TIME, None)
    if time is None and period is not None:
        raise DataError(f"{where}: expected a column {TIME}, as a period of {period:g} s is given.")
    try:
        if time is not None:
            return _trace(columns, client, time, n_clients, period, where)
        lines = np.arange(n_clients) if client is None else _lines(client, n_clients, where)
        columns = {name: values[lines] for name, values in columns.items()}
        return profiles.check(Profile(**columns), n_clients)
    except SpecError as error:
        raise DataError(f"{where}: {error}.") from error


def _trace(
    columns: dict[str, Any],
    client: np.ndarray | None,
    time: np.ndarray,
    n_clients: int,
    period: float | None,
    where: str,
) -> Trace:
    """A trace from its lines."""
    if client is None:
        raise DataError(f"{where}: expected the column {CLIENT} beside {TIME}.")
    _check_clients(client, where)
    order = np.lexsort((time, client))
    order = order[client[order] < n_clients]
    counts = np.bincount(client[order].astype(np.int64), minlength=n_clients)
    if not counts.all():
        raise DataError(
            f"{where}: expected a line for each of {n_clients} clients, found none for client "
            f"{np.argmin(counts)}."
        )
    found = Trace(
        begin=time[order],
        offset=np.concatenate([[0], np.cumsum(counts)]),
        stretch=Profile(**{name: values[order] for name, values in columns.items()}),
        period=np.float32(np.inf if period is None else period),
    )
    return traces.check(found, n_clients)


def _table(name: str, data: bytes, where: str) -> dict[str, Any]:
    """The file's columns by name, as Arrow arrays."""
    suffix = Path(plain_name(name)).suffix
    if suffix == ".parquet":
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            _check_names(file.schema_arrow.names, where)
            table = file.read()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{where}: expected a Parquet file ({error}).") from error
        return {column: table.column(column) for column in table.column_names}
    if suffix not in _DELIMITERS:
        raise DataError(
            f"{where}: expected *.csv, *.tsv or *.parquet, each plain, .gz or .zip; "
            "found a file of another kind."
        )
    delimiter = _DELIMITERS[suffix]
    header = first_line(data).removeprefix("\ufeff")
    names = [column.strip() for column in next(csv.reader([header], delimiter=delimiter), [])]
    _check_names(names, where)
    texts = parse_text(
        data, where, delimiter, len(names), range(len(names)), skip_rows=1, quoted=True
    )
    return dict(zip(names, texts, strict=True))


def _check_names(names: list[str], where: str) -> None:
    """Refuses columns that lack, are not known (a misspelt one would go unnoticed) or repeat."""
    found = f"found the columns {', '.join(names)}"
    if missing := [name for name in REQUIRED if name not in names]:
        raise DataError(f"{where}: expected the columns {', '.join(missing)} too, {found}.")
    known = (*REQUIRED, *DEFAULTS, CLIENT, TIME)
    if unknown := [name for name in names if name not in known]:
        raise DataError(
            f"{where}: expected no columns but {', '.join(known)}; leave out {', '.join(unknown)}."
        )
    if len(set(names)) < len(names):
        raise DataError(f"{where}: expected every column once, {found}.")


def _lines(client: np.ndarray, n_clients: int, where: str) -> np.ndarray:
    """Where each client's line is, int64 [U]."""
    _check_clients(client, where)
    order = np.argsort(client, kind="stable")
    order = order[client[order] < n_clients]
    counts = np.bincount(client[order].astype(np.int64), minlength=n_clients)
    wrong = np.flatnonzero(counts != 1)
    if wrong.size:
        raise DataError(
            f"{where}: expected one line for client {wrong[0]}, found {counts[wrong[0]]}."
        )
    return order


def _check_clients(client: np.ndarray, where: str) -> None:
    """Refuses what is no client's number."""
    bad = np.flatnonzero((client < 0) | (client != np.floor(client)))
    if bad.size:
        raise DataError(
            f"{where}: expected client numbers 0, 1, 2, ..., found {client[bad[0]]} in row "
            f"{bad[0] + 1}."
        )
