"""Reading what one run has left."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedras_jax import metrics
from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.spec import Spec


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
        ranks = pq.read_table(folder / "ranks.parquet")["rank"].to_numpy()
    except (FedrasError, KeyError, TypeError, OSError, pa.ArrowException) as e:
        raise ResultsError(f"{folder} cannot be read as a finished run: {e}") from e
    # A run over this folder that was killed between its two last files leaves ranks of its own.
    return (summary, ranks) if metrics.summarise(ranks) == summary.get("metrics") else None


def read_summary(workdir: str | os.PathLike) -> dict[str, Any]:
    """`summary.json` of a finished run.

    Raises:
      ResultsError: there is none, or it is not JSON.
    """
    path = Path(workdir) / "summary.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as e:
        raise ResultsError(f"{path} does not exist: not a finished run") from e
    except (json.JSONDecodeError, OSError) as e:
        raise ResultsError(f"{path} cannot be read: {e}") from e


def diverged_round(workdir: str | os.PathLike) -> int | None:
    """The round in which a run left the finite numbers; None if it did not.

    Raises:
      ResultsError: its `diverged.json` cannot be read.
    """
    path = Path(workdir) / "diverged.json"
    if not path.exists():
        return None
    try:
        return int(json.loads(path.read_text())["round"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ResultsError(f"{path} cannot be read: {e}") from e


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """A Parquet table that a run has written, NaN where values are missing.

    Raises:
      ResultsError: it cannot be read.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise ResultsError(f"{path} cannot be read: {e}") from e
    return {name: table[name].to_numpy() for name in table.column_names}
