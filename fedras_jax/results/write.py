"""Writing a run's folder: every file appears whole or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.spec import Spec


def claim(workdir: str | os.PathLike, spec: Spec) -> Path:
    """Make a folder the results folder of this Spec.

    A folder that already holds the same experiment (whatever its number of rounds) is taken over;
    its files are replaced as the new ones are finished.

    Raises:
      ResultsError: it holds another Spec, or files that are not a run's, or cannot be written.
    """
    folder = Path(workdir)
    stored = folder / "spec.json"
    try:
        if stored.exists():
            _check_same(stored, spec)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ResultsError(
                f"{folder} is not empty and holds no run: choose another --workdir, "
                "nothing has been written"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(stored, spec.to_json())
    except OSError as e:
        raise ResultsError(f"cannot write results to {folder}: {e}") from e
    return folder


def _check_same(stored: Path, spec: Spec) -> None:
    try:
        other = Spec.from_json(json.loads(stored.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, FedrasError, TypeError) as e:
        raise ResultsError(f"{stored} cannot be read as a Spec ({e}): nothing overwritten") from e
    if other.digest() != spec.digest():
        raise ResultsError(
            f"{stored.parent} already holds another experiment ("
            + "; ".join(spec.differences(other))
            + "): choose another --workdir, nothing has been overwritten"
        )


def write_json(path: Path, content: Any) -> None:
    """JSON, atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    part.replace(path)


def write_table(path: Path, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """A Parquet table, atomically; None is a missing value."""
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.table(dict(columns)), part)
    part.replace(path)


def write_rounds(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`rounds.parquet` from a dict a round; columns that a row lacks are missing values in it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    write_table(folder / "rounds.parquet", columns)


class ClientLog:
    """`clients.parquet`, written as the run goes, and in its place when the run ends or fails.

    A context manager; without a folder nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        """In a run's folder."""
        self._folder = folder
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "ClientLog":
        return self

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append rows; the first ones say which columns there are."""
        if self._folder is None:
            return
        table = pa.table(dict(columns))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._folder / "clients.parquet.part", table.schema)
        self._writer.write_table(table)

    def __exit__(self, *error: object) -> None:
        if self._folder is not None and self._writer is not None:
            self._writer.close()
            part = self._folder / "clients.parquet.part"
            part.replace(self._folder / "clients.parquet")
