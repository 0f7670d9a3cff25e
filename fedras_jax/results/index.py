"""What many runs have left, kept in one file, so that it is not read from each of them again."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedras_jax.errors import ResultsError
from fedras_jax.results.find import Found
from fedras_jax.results.read import read_parquet
from fedras_jax.results.write import whole
from fedras_jax.spec import Spec

# Runs that the file does not know and that are read one by one; with more it is written again.
WORTH = 100
_KEY = b"fedras_jax.index"
# Another layout, or other fields of a Spec: read everything again.
_LAYOUT = ["2", *(field.name for field in dataclasses.fields(Spec))]


class Indexed(NamedTuple):
    """Rows of runs in an index.

    Attributes:
      path: of the file; None where it could not be written.
      table: its content; None where there is a file.
      code: of each run that it knows, in the column `run`.
    """

    path: Path | None
    table: pa.Table | None
    code: dict[tuple[str, str], int]

    def read(self) -> pa.Table:
        """All rows, of runs that have gone since, too.

        Raises:
          ResultsError: it cannot be read.
        """
        if self.table is not None:
            return self.table
        assert self.path is not None
        return read_parquet(self.path)


def refresh(
    path: Path, runs: Sequence[Found], read: Callable[[Found], pa.Table | None]
) -> Indexed | None:
    """An index that knows nearly all of the runs, None where it would not pay.

    Args:
      path: of the file. A folder that cannot be written to costs time, nothing else.
      runs: that have ended, of one root.
      read: rows of a run, None if it has none.

    Raises:
      ResultsError: what `read` raises.
    """
    known = _known(path)
    unknown = [run for run in runs if key(run) not in known]
    if len(unknown) < WORTH:
        return Indexed(path, None, known) if known else None
    new = [(run, read(run)) for run in unknown]
    kept = [run for run in runs if key(run) in known]
    tables, code = [], {}
    if kept:
        with contextlib.suppress(ResultsError):
            numbers = np.full(max(known.values()) + 1, -1)
            numbers[[known[key(run)] for run in kept]] = np.arange(len(kept))
            tables.append(renumbered(read_parquet(path), numbers))
            code = {key(run): i for i, run in enumerate(kept)}
    if len(code) < len(kept):  # damaged in between
        new += [(run, read(run)) for run in kept]
    for run, table in new:
        if table is not None:
            number = pa.array(np.full(table.num_rows, len(code), np.int32))
            tables.append(table.append_column("run", number))
        code[key(run)] = len(code)
    if not tables:
        return None
    rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    content = json.dumps({"layout": _LAYOUT, "runs": [list(k) for k in code]})
    return _write(path, rows.replace_schema_metadata({_KEY: content}), code)


def key(run: Found) -> tuple[str, str]:
    """What an index knows a run by."""
    return run.name, run.stamp


def renumbered(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """Rows with other numbers in the column `run`.

    Args:
      table: of an index.
      numbers: int, the new number of each, -1 to leave it out.
    """
    run = numbers[table["run"].to_numpy()]
    here = run >= 0
    if not here.all():
        table, run = table.filter(pa.array(here)), run[here]
    return table.drop_columns("run").append_column("run", pa.array(run, pa.int32()))


def _known(path: Path) -> dict[tuple[str, str], int]:
    """Code of each run in an index; nothing where there is none, or one that cannot be used."""
    try:
        content: Any = json.loads((pq.read_schema(path).metadata or {})[_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return {}
    if content["layout"] != _LAYOUT:
        return {}
    return {(name, stamp): i for i, (name, stamp) in enumerate(content["runs"])}


def _write(path: Path, table: pa.Table, code: dict[tuple[str, str], int]) -> Indexed:
    try:
        with whole(path) as part:
            pq.write_table(table, part, row_group_size=100_000)
    except ResultsError:
        return Indexed(None, table, code)
    return Indexed(path, None, code)
