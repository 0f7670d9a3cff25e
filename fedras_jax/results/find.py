"""Where runs lie, and what one of them has left, as tables."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fedras_jax.errors import FedrasError, ResultsError
from fedras_jax.results.read import DATA, read_diverged, read_json, read_log
from fedras_jax.spec import Spec

Paths = str | os.PathLike | Sequence[str | os.PathLike]

# Files that say whether what was read of a run is still what it holds.
_TOLD_BY = (
    "spec.json",
    "summary.json",
    "diverged.json",
    "rounds.parquet",
    "ranks.parquet",
    "data.json",
)
# Groups of a summary, the figures that every version writes, and the prefix of their columns.
GROUPS = {
    "metrics": (("hr@10", "ndcg@10"), ""),
    "payload": (("up_bytes_mean", "down_bytes_mean"), "payload."),
    "clock": ((), "clock."),
    "clients": (("total",), "clients."),
    "speed": (("clients_per_s",), "speed."),
    "env": (("device",), "env."),
}
# Came with the clock; without it no time passed.
_OPTIONAL = ("clock",)


class Found(NamedTuple):
    """The folder of a run.

    Attributes:
      root: the path that was searched.
      name: of the folder, relative to it.
      stamp: changes when the run's files do.
      files: what is in it.
    """

    root: Path
    name: str
    stamp: str
    files: frozenset[str]

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / self.name

    @property
    def ended(self) -> bool:
        """Whether the run wrote its last file."""
        return bool({"summary.json", "diverged.json"} & self.files)


def find(paths: Paths) -> list[Found]:
    """The runs below one or several paths, each once.

    A folder with a spec.json is a run; what is below it belongs to it.

    Raises:
      ResultsError: there is none below one of the paths, or it cannot be read.
    """
    roots = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not roots:
        raise ResultsError("no path given: name one or several folders that hold runs")
    runs: dict[str, Found] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise ResultsError(f"{root} is no folder: expected one that holds runs")
        try:
            found = sorted(_below(root), key=lambda run: run.name)
        except OSError as e:
            raise ResultsError(f"{root} cannot be searched for runs: {e}") from e
        if not found:
            raise ResultsError(f"no run below {root}: there is no folder with a spec.json")
        place = os.path.realpath(root)
        for run in found:
            runs.setdefault(os.path.normpath(os.path.join(place, run.name)), run)
    return list(runs.values())


def _below(root: Path) -> Iterator[Found]:
    waiting = [str(root)]
    while waiting:
        here = waiting.pop()
        entries = {entry.name: entry for entry in os.scandir(here)}
        if "spec.json" not in entries:
            waiting += [e.path for e in entries.values() if e.is_dir(follow_symlinks=False)]
            continue
        stats = [entries[name].stat() if name in entries else None for name in _TOLD_BY]
        stamp = " ".join(f"{s.st_mtime_ns:x}:{s.st_size:x}" if s else "-" for s in stats)
        yield Found(root, os.path.relpath(here, root), stamp, frozenset(entries))


def row(run: Found) -> dict[str, Any]:
    """What a run was and what came of it, flat: a Spec's fields, and a summary's groups.

    Raises:
      ResultsError: a file of another version, or one that is not whole.
    """
    path = run.folder / "spec.json"
    stored = read_json(path)
    spec = _spec(path, stored)
    told: dict[str, Any] = {"status": "unfinished"}
    if "summary.json" in run.files:
        # One of a run with another number of rounds is from before it was taken up again.
        told = _finished(run.folder / "summary.json", spec, stored) or told
    if told["status"] == "unfinished" and (diverged := read_diverged(run.folder)) is not None:
        figures = {f"diverged.{name}": value for name, value in diverged._asdict().items()}
        told = {"status": "diverged", **figures}
    return {"digest": spec.digest(), "data": _data(run), **told, **_flat(spec)}


def _data(run: Found) -> str | None:
    """12 hex digits that name what a run is of; None where it does not say."""
    if DATA not in run.files:
        return None
    text = json.dumps(read_json(run.folder / DATA), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _flat(spec: Spec) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in spec.to_json().items():
        if name.endswith("_args"):
            fields |= {f"{name}.{k}": v for k, v in value.items()}
        else:
            fields[name] = json.dumps(value) if isinstance(value, list) else value
    return fields


def _finished(path: Path, spec: Spec, stored: dict[str, Any]) -> dict[str, Any] | None:
    summary = read_json(path)
    for group, (needed, _) in GROUPS.items():
        figures = summary.get(group, {} if group in _OPTIONAL else None)
        lacks = [] if isinstance(figures, dict) else [group]
        lacks += [f"{group}.{k}" for k in needed if isinstance(figures, dict) and k not in figures]
        if lacks:
            raise ResultsError(f"{path} has no {lacks[0]!r}: written by another version?")
    if summary.get("spec") != stored:
        own = _spec(path, summary.get("spec"))
        own.require_same(
            spec, f"{path} is not of the experiment in spec.json", "the folder has been mixed up"
        )
        if own.rounds != spec.rounds:
            return None
    figures = {
        prefix + name: value
        for group, (_, prefix) in GROUPS.items()
        for name, value in summary.get(group, {}).items()
        if not isinstance(value, dict | list)
    }
    return {"status": "finished", "state_digest": summary.get("state_digest"), **figures}


def _spec(path: Path, content: Any) -> Spec:
    try:
        return Spec.from_json(content)
    except (FedrasError, TypeError, ValueError, AttributeError) as e:
        raise ResultsError(f"{path} holds no Spec of this version: {e}") from e


def table(run: Found, name: str, *, needed: bool = False) -> pa.Table | None:
    """`NAME.parquet` of a run, with the parts that lie beside it while it goes on.

    Raises:
      ResultsError: a file that is not whole, or there is none though it is needed.
    """
    found = read_log(run.folder, name)
    if found is None and needed:
        raise ResultsError(f"{run.folder / name}.parquet is not there, though the run has ended")
    return found


def column(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array:
    """Values as a column; where their types clash, as strings."""
    kinds = {type(value) for value in values if value is not None}
    if kind is None and kinds == {int, float}:
        kind = pa.float64()
    elif kind is None and (len(kinds) > 1 or kinds & {list, dict}):
        kind = pa.string()
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pa.array(values, kind)


def coded(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    """Strings, each of which is there many times."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))
