"""One table over any number of runs, and SQL over it.

Runs are found anywhere below a path. What a hundred runs and more have left is kept beside them in
`runs-index.parquet`, `rounds-index.parquet` and `ranks-index.parquet`, and read from there while a
run's files don't change; these files may be deleted.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fedras_jax.errors import ResultsError
from fedras_jax.results import find, index
from fedras_jax.results.find import Found, Paths
from fedras_jax.spec import Spec

TABLES = ("runs", "rounds", "ranks", "clients")

_KINDS: dict[Any, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    float | None: pa.float64(),
    bool | None: pa.bool_(),
}
_SPEC_KINDS = {
    field.name: _KINDS.get(field.type, pa.string())
    for field in dataclasses.fields(Spec)
    if not field.name.endswith("_args")
}
_FIRST = ("folder", "digest", "data", "status", "diverged.round", "diverged.message")
# Runs whose rows don't change any more.
_ENDED = {"rounds": ("finished", "diverged"), "ranks": ("finished",)}
# Fields of a Spec that say which run of an arm a row is of.
_OF_RUN = ("folder", "digest", "seed")


def load(paths: Paths, table: str = "runs") -> pa.Table:
    """What runs were and what came of them, as one table.

    - 'runs': a row a run: `folder`, `digest` of the Spec, `data` (digits that name what it is of),
      `status` ('finished', 'diverged' or 'unfinished');
      every field of the Spec, those of arguments as `codec_args.k`; the figures of the summary,
      metrics as `hr@10` and others as `payload.up_bytes_mean`. What a run lacks is null. An
      argument that is a number in some runs and something else in others is a string in all, and
      so are lists.
    - 'rounds': rows of rounds.parquet, of unfinished and diverged runs too.
    - 'ranks': rows of ranks.parquet of finished runs.
    - 'clients': rows of clients.parquet, where there is one.

    The last three begin with `folder`, `digest` and `seed`; no rows, no further columns.

    Args:
      paths: one or several folders. Runs are looked for anywhere below.
      table: one of the above.

    Raises:
      ResultsError: no run below a path, no such table, a file of another version, one that is not
        whole, or one that is missing.
    """
    if table not in TABLES:
        raise ResultsError(f"no table {table!r}: choose one of {', '.join(TABLES)}")
    runs = find.find(paths)
    rows = rows_of(runs)
    if table == "runs":
        return _table(runs, rows)
    pieces = []
    for part, number in _parts(runs, rows, table):
        rest = part.read() if isinstance(part, index.Indexed) else part
        pieces.append(index.renumbered(rest, number))
    empty = pa.table({"run": pa.array([], pa.int32())})
    whole = pa.concat_tables(pieces or [empty], promote_options="permissive")
    codes = whole["run"].to_numpy()
    seeds = np.array([row["seed"] for row in rows], np.int64)
    columns: dict[str, Any] = {
        "folder": find.coded(codes, [str(run.folder) for run in runs]),
        "digest": find.coded(codes, [row["digest"] for row in rows]),
        "seed": seeds[codes],
    }
    for name in whole.column_names:
        if name != "run":
            columns[name] = whole[name]
    return pa.table(columns)


def query(paths: Paths, sql: str) -> pa.Table:
    """The answer of DuckDB to a question in SQL about runs.

    There is a view for each table of `load` that has rows: `runs`, `rounds`, `ranks`, `clients`.
    Names with a dot or an @ are quoted in SQL: `select codec, avg("hr@10") from runs group by all`.

    Args:
      paths: one or several folders. Runs are looked for anywhere below.
      sql: one statement.

    Raises:
      ResultsError: as `load`; DuckDB is not installed, or cannot make sense of the statement.
    """
    try:
        import duckdb
    except ImportError as e:
        raise ResultsError("queries need DuckDB: pip install 'fedras_jax[sql]'") from e
    runs = find.find(paths)
    rows = rows_of(runs)
    with duckdb.connect() as db:
        whole = _table(runs, rows)
        db.register("runs", whole)
        keys = whole.select(list(_OF_RUN)).append_column(
            "run", pa.array(np.arange(len(runs)), pa.int32())
        )
        db.register("run_keys", keys)
        for name in TABLES[1:]:
            if re.search(rf"\b{name}\b", sql, re.IGNORECASE):
                _register(db, name, _parts(runs, rows, name))
        try:
            answer = db.sql(sql)
            if answer is None:
                raise ResultsError(f"the statement asks for nothing: {sql!r}")
            return answer.to_arrow_table()
        except duckdb.Error as e:
            raise ResultsError(f"DuckDB cannot answer: {e}") from e


def _register(db: Any, name: str, parts: Sequence[tuple[Any, np.ndarray]]) -> None:
    """A view over an index where it lies and over tables in memory."""
    selects = []
    for i, (part, number) in enumerate(parts):
        where = f"{name}_{i}"
        numbers = pa.table({"code": np.arange(number.size, dtype=np.int32), "run": number})
        db.register(f"{where}_runs", numbers.filter(pa.array(number >= 0)))
        if isinstance(part, index.Indexed) and part.path is not None:
            source = "read_parquet('" + str(part.path).replace("'", "''") + "')"
        else:
            source = f"{where}_rows"
            db.register(source, part.read() if isinstance(part, index.Indexed) else part)
        selects.append(
            f"select r.run, t.* exclude (run) from {source} t join {where}_runs r on t.run = r.code"
        )
    if selects:
        union = " union all by name ".join(selects)
        db.execute(
            f"create view {name} as select folder, digest, seed, t.* exclude (run) "
            f"from ({union}) t join run_keys k on t.run = k.run"
        )


def rows_of(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """A flat dict a run, with the values that its files have.

    Raises:
      ResultsError: as `load`.
    """
    rows: list[dict[str, Any] | None] = [None] * len(runs)
    for root, members in _by_root(runs).items():
        known = index.refresh(
            root / "runs-index.parquet", [runs[i] for i in members if runs[i].ended], _as_json
        )
        texts = None if known is None else _texts(known)
        for i in members:
            code = None if known is None else known.code.get(index.key(runs[i]))
            if code is not None and texts is not None and code in texts:
                rows[i] = json.loads(texts[code])
    return [find.row(run) if row is None else row for run, row in zip(runs, rows, strict=True)]


def _as_json(run: Found) -> pa.Table:
    return pa.table({"row": [json.dumps(find.row(run))]})


def _texts(known: index.Indexed) -> dict[int, str] | None:
    try:
        table = known.read()
    except ResultsError:  # an index is never worth an error
        return None
    return dict(zip(table["run"].to_pylist(), table["row"].to_pylist(), strict=True))


def _by_root(runs: Sequence[Found]) -> dict[Path, list[int]]:
    roots: dict[Path, list[int]] = {}
    for i, run in enumerate(runs):
        roots.setdefault(run.root, []).append(i)
    return roots


def _parts(
    runs: Sequence[Found], rows: Sequence[Mapping[str, Any]], name: str
) -> list[tuple[index.Indexed | pa.Table, np.ndarray]]:
    """Rows of all runs, in pieces: with each, the number of the run that a code in it stands for.

    A code of -1 stands for none.
    """

    def read(i: int) -> pa.Table | None:
        finished = rows[i]["status"] == "finished"
        if name == "ranks" and not finished:
            return None
        return find.table(runs[i], name, needed=finished and name != "clients")

    parts: list[tuple[index.Indexed | pa.Table, np.ndarray]] = []
    alone: list[int] = []
    for root, members in _by_root(runs).items():
        if name == "clients":  # as large as the runs themselves
            alone += members
            continue
        own = {index.key(runs[i]): i for i in members}
        ended = [runs[i] for i in members if rows[i]["status"] in _ENDED[name]]
        known = index.refresh(root / f"{name}-index.parquet", ended, partial(_by_key, read, own))
        if known is None:
            alone += members
            continue
        number = np.full(max(known.code.values()) + 1, -1, np.int32)
        for key, code in known.code.items():
            number[code] = own.get(key, -1)
        parts.append((known, number))
        alone += [i for key, i in own.items() if key not in known.code]
    tables = [(i, table) for i in alone if (table := read(i)) is not None]
    if tables:
        run = np.repeat([i for i, _ in tables], [table.num_rows for _, table in tables])
        whole = pa.concat_tables([t for _, t in tables], promote_options="permissive")
        whole = whole.append_column("run", pa.array(run, pa.int32()))
        parts.append((whole, np.arange(len(runs), dtype=np.int32)))
    return parts


def _by_key(
    read: Callable[[int], pa.Table | None], own: Mapping[tuple[str, str], int], run: Found
) -> pa.Table | None:
    return read(own[index.key(run)])


def _table(runs: Sequence[Found], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A row a run; the Spec's fields come before the figures."""
    args: dict[str, None] = {}
    others: dict[str, None] = {}
    for row in rows:
        for name in row:
            if name not in _SPEC_KINDS and name not in _FIRST:
                (args if "_args." in name else others)[name] = None
    fields: list[str] = []
    for field in dataclasses.fields(Spec):
        own = sorted(name for name in args if name.startswith(f"{field.name}."))
        fields += own if field.name.endswith("_args") else [field.name]
    columns: dict[str, pa.Array] = {"folder": pa.array([str(run.folder) for run in runs])}
    kinds = {"diverged.round": pa.int64(), "diverged.message": pa.string(), **_SPEC_KINDS}
    for name in (*_FIRST[1:], *fields, *others):
        columns[name] = find.column([row.get(name) for row in rows], kinds.get(name))
    return pa.table(columns)
