"""Writing a run's folder: every file appears whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.results.read import DATA, read_data, read_log
from fedras_jax.spec import Spec

_PART = ".part"
# Rows that a log holds in memory before it writes them, whether or not it is asked to.
_ROWS = 100_000


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write to; what is there at the end becomes `path`.

    Raises:
      ResultsError: it cannot be written, for want of space or of permission.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    try:
        yield part
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ResultsError(f"{path} cannot be written ({e}): what was there is as it was") from e


def claim(workdir: str | os.PathLike, spec: Spec, data: Mapping[str, str]) -> Path:
    """Make a folder the results folder of this Spec on this data.

    A folder that already holds as many or fewer rounds of the same experiment is taken over; its
    files are replaced as the new ones are finished.

    Args:
      workdir: the folder.
      spec: the experiment.
      data: digests of what it is run on (`provenance`).

    Raises:
      ResultsError: it holds another Spec, other data, more rounds than are asked for, or files that
        are not a run's, or it cannot be written.
    """
    folder = Path(workdir)
    stored = folder / "spec.json"
    try:
        if stored.exists():
            _check_same(stored, spec)
            require_data(folder, data)
        elif folder.exists() and not (folder.is_dir() and _is_empty(folder)):
            raise ResultsError(
                f"{folder} is not empty and holds no run: choose another --workdir, "
                "nothing has been written"
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResultsError(f"cannot write results to {folder}: {e}") from e
    write_json(folder / DATA, dict(data))
    write_json(stored, spec.to_json())
    return folder


def require_data(folder: Path, data: Mapping[str, str]) -> None:
    """Whether a run that has a folder is of this data; one that holds no run may be of any.

    Raises:
      ResultsError: it is of other data, or does not say of which.
    """
    if not (folder / "spec.json").exists():
        return
    own = read_data(folder)
    differ = sorted(name for name in {*own, *data} if own.get(name) != data.get(name))
    if differ:
        raise ResultsError(
            f"{folder} holds a run on other data, by the digest of its {' and '.join(differ)}: "
            "choose another --workdir, nothing has been overwritten"
        )


def _is_empty(folder: Path) -> bool:
    """But for what a process left that was killed as it claimed the folder."""
    return all(path.name.endswith(_PART) or path.name == DATA for path in folder.iterdir())


def _check_same(stored: Path, spec: Spec) -> None:
    try:
        other = Spec.from_json(json.loads(stored.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, FedrasError, TypeError) as e:
        raise ResultsError(f"{stored} cannot be read as a Spec ({e}): nothing overwritten") from e
    spec.require_same(
        other,
        f"{stored.parent} already holds another experiment",
        "choose another --workdir, nothing has been overwritten",
    )
    summary = stored.with_name("summary.json")
    if summary.exists() and other.rounds > spec.rounds:
        raise ResultsError(
            f"{stored.parent} holds {other.rounds} rounds of this experiment, beyond "
            f"rounds={spec.rounds}: ask for more rounds, or choose another --workdir"
        )


def write_json(path: Path, content: Any) -> None:
    """JSON, atomically."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """A Parquet table, atomically; None is a missing value."""
    with whole(path) as part:
        pq.write_table(pa.table(dict(columns)), part)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns from a dict a row; what a row lacks is a missing value in it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


class Log:
    """A table that grows as the run goes: `NAME.parts/ROUND.parquet`, in the end `NAME.parquet`.

    Parts are named by the last round in them, so those after a checkpoint are known and dropped.
    Without a folder nothing is written.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        """In a run's folder. What earlier runs have left stays until `resume` or `finish`."""
        self._folder, self._name = folder, name
        self._waiting: list[pa.Table] = []

    @property
    def _parts(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}.parts"

    def resume(self, round_: int) -> pa.Table | None:
        """Drop what was written after a round, and give back what was written until then.

        Returns:
          None where there is nothing.

        Raises:
          ResultsError: a part that cannot be read.
        """
        if self._folder is None:
            return None
        found = read_log(self._folder, self._name, until=round_)
        if found is not None and not found.num_rows:
            found = None
        # What is kept is whole on disk before anything is removed.
        place = None if found is None else self._write(found)
        for path in self._parts.glob("*.parquet"):
            if path != place:
                path.unlink()
        return found

    def write(self, columns: Mapping[str, Sequence | np.ndarray]) -> None:
        """Append rows, which have a column `round`."""
        if self._folder is None:
            return
        self._waiting.append(pa.table(dict(columns)))
        if sum(table.num_rows for table in self._waiting) > _ROWS:
            self.flush()

    def flush(self) -> None:
        """Put what has been appended on disk.

        Raises:
          ResultsError: it cannot be written.
        """
        if self._waiting:
            table = pa.concat_tables(self._waiting, promote_options="default")
            self._waiting = []
            if table.num_rows:
                self._write(table)

    def _write(self, table: pa.Table) -> Path:
        try:
            self._parts.mkdir(exist_ok=True)
        except OSError as e:
            raise ResultsError(f"{self._parts} cannot be written: {e}") from e
        last = int(table["round"].to_numpy().max())
        place = self._parts / f"{last:08d}.parquet"
        with whole(place) as part:
            pq.write_table(table, part)
        return place

    def discard(self) -> None:
        """Remove what an earlier run has left of it."""
        if self._folder is not None:
            shutil.rmtree(self._parts, ignore_errors=True)
            (self._folder / f"{self._name}.parquet").unlink(missing_ok=True)

    def finish(self) -> None:
        """Make one file of the parts.

        Raises:
          ResultsError: it cannot be written.
        """
        self.flush()
        if self._folder is None or not self._parts.exists():
            return
        parts = sorted(self._parts.glob("*.parquet"))
        schema = pa.unify_schemas(
            [pq.read_schema(path) for path in parts], promote_options="permissive"
        )
        place = self._folder / f"{self._name}.parquet"
        with whole(place) as part, pq.ParquetWriter(part, schema) as writer:
            for path in parts:
                # Metrics are missing in a part without evaluations.
                padded = [schema.empty_table(), pq.read_table(path)]
                table = pa.concat_tables(padded, promote_options="permissive")
                writer.write_table(table.select(schema.names).cast(schema))
        shutil.rmtree(self._parts)
