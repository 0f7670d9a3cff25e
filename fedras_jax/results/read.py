"""Reading what one run has left."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedras_jax import metrics
from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.spec import Spec

DATA = "data.json"


class Diverged(NamedTuple):
    """How a run left the finite numbers.

    Attributes:
      round: in which.
      message: why, for people.
    """

    round: int
    message: str


def read_finished(
    workdir: str | os.PathLike, spec: Spec
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Summary and final ranks (int32 [U]) of a finished run of this very Spec.

    Returns:
      None if the folder holds no such run: nothing, an unfinished one, another Spec, or the same
      with another number of rounds.

    Raises:
      ResultsError: its summary or its ranks cannot be read.
    """
    folder = Path(workdir)
    if not (folder / "summary.json").exists():
        return None
    summary = read_summary(folder)
    try:
        stored = Spec.from_json(summary["spec"])
        if stored.digest() != spec.digest() or stored.rounds != spec.rounds:
            return None
        ranks = read_parquet(folder / "ranks.parquet")["rank"].to_numpy()
    except (FedrasError, KeyError, TypeError) as e:
        raise ResultsError(f"{folder} cannot be read as a finished run: {e}") from e
    # A run over this folder that was killed between its two last files leaves ranks of its own.
    return (summary, ranks) if metrics.summarise(ranks) == summary.get("metrics") else None


def read_summary(workdir: str | os.PathLike) -> dict[str, Any]:
    """`summary.json` of a finished run.

    Raises:
      ResultsError: there is none, or it is not JSON.
    """
    path = Path(workdir) / "summary.json"
    if not path.exists():
        raise ResultsError(f"{path} does not exist: not a finished run")
    return read_json(path)


def read_diverged(workdir: str | os.PathLike) -> Diverged | None:
    """How a run left the finite numbers; None if it did not.

    Raises:
      ResultsError: its `diverged.json` cannot be read.
    """
    path = Path(workdir) / "diverged.json"
    if not path.exists():
        return None
    content = read_json(path)
    try:
        return Diverged(int(content["round"]), str(content["message"]))
    except (KeyError, TypeError, ValueError) as e:
        raise ResultsError(
            f"{path} has no 'round' or no 'message': written by another version?"
        ) from e


def read_data(workdir: str | os.PathLike) -> dict[str, Any]:
    """Digests of the data that a run is of.

    Raises:
      ResultsError: its folder does not say.
    """
    path = Path(workdir) / DATA
    if not path.exists():
        raise ResultsError(
            f"{workdir} does not say what data its run is of: an earlier version's? Choose another "
            "--workdir, nothing has been overwritten"
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ResultsError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ResultsError(f"{path} cannot be read: {e}") from e
    if not isinstance(content, dict):
        raise ResultsError(f"{path} holds no JSON object: written by another version?")
    return content


def read_parquet(path: Path) -> pa.Table:
    """A small Parquet file, whole.

    Raises:
      ResultsError: it cannot be read.
    """
    try:
        # Three times as fast as `pq.read_table`, which sets up threads for every file.
        return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
    except (OSError, pa.ArrowException) as e:
        raise ResultsError(f"{path} cannot be read, it may be half-written: {e}") from e


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """A Parquet table that a run has written, NaN where values are missing.

    Raises:
      ResultsError: it cannot be read.
    """
    table = read_parquet(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def read_log(folder: Path, name: str, *, until: float = math.inf) -> pa.Table | None:
    """Rows of `NAME.parquet` and of the parts that lie beside it while a run goes on.

    Parts are newer than a table that an earlier run has left, and later ones than earlier ones:
    from its first round on a piece takes the place of those before it.

    Args:
      folder: the run's.
      name: of the table; without a column `round` it has no parts.
      until: the last round that is wanted.

    Returns:
      None where there is no file.

    Raises:
      ResultsError: a file that cannot be read.
    """
    whole = folder / f"{name}.parquet"
    newest_first = sorted((folder / f"{name}.parts").glob("*.parquet"), reverse=True)
    newest_first += [whole] if whole.exists() else []
    try:
        return _merged(newest_first, until)
    except ResultsError:
        if all(path.exists() for path in newest_first) or not whole.exists():
            raise
        return _merged([whole], until)  # the run has ended meanwhile


def _merged(newest_first: Sequence[Path], until: float) -> pa.Table | None:
    pieces: list[pa.Table] = []
    for path in newest_first:
        piece = read_parquet(path)
        if "round" in piece.column_names:
            rounds = piece["round"].to_numpy()
            piece = piece.filter(pa.array(rounds <= until))
            until = min(until, rounds.min() - 1) if rounds.size else until
        pieces.insert(0, piece)
    return pa.concat_tables(pieces, promote_options="permissive") if pieces else None


def rows_in(table: pa.Table) -> list[dict[str, Any]]:
    """A dict a row, without what is missing in it."""
    return [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]
