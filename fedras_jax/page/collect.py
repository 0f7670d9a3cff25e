"""From folders to what can be compared: groups of the same data, and in them arms over seeds."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fedras_jax import results
from fedras_jax.errors import ResultsError
from fedras_jax.results import find
from fedras_jax.results.load import rows_of
from fedras_jax.spec import DATA_FIELDS, NOT_IN_DIGEST, Spec

# Arms that differ in one of these are not evaluated on the same items, or live in another world:
# their clients cannot be paired, their clocks not compared.
DATA = (*DATA_FIELDS, "profile", "profile_args")
# Fields that don't make another arm.
_NOT_AN_ARMS = ("seed", *(name for name in NOT_IN_DIGEST if name != "rounds"))
METRICS = ("ndcg@10", "hr@10")

Columns = dict[str, np.ndarray]


class Run(NamedTuple):
    """A run, whether it has ended or not.

    Attributes:
      row: as `results.load` has it, with `folder`.
      rounds: columns of its rounds, NaN where nothing was evaluated; None where there are none.
      ranks: int [U] final ranks; None unless it is finished.
    """

    row: dict[str, Any]
    rounds: Columns | None
    ranks: np.ndarray | None

    @property
    def spec(self) -> Spec:
        """What was run."""
        return spec_of(fields(self.row))

    @property
    def logged(self) -> bool:
        """Whether it has a log of its clients."""
        return Path(self.row["folder"], "clients.parquet").exists()


class Arm(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
      name: made of the fields in which the arms of its group differ.
      fields: the Spec's, flat, those of arguments as `codec_args.k`.
      runs: by seed; the finished ones alone, if there are any.
    """

    name: str
    fields: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def finished(self) -> bool:
        """Whether its runs are."""
        return self.runs[0].ranks is not None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its runs."""
        return tuple(run.row["seed"] for run in self.runs)

    def mean(self, name: str) -> float | None:
        """Of a column of `results.load`, over seeds; None where a run lacks it."""
        values = [run.row.get(name) for run in self.runs]
        return None if None in values else float(np.mean(np.array(values, np.float64)))

    def ranks(self, seeds: Iterable[int]) -> np.ndarray:
        """int [S, U], final ranks of some of its seeds, in their order."""
        of = {run.row["seed"]: run.ranks for run in self.runs}
        return np.stack([ranks for s in seeds if (ranks := of[s]) is not None])


class Group(NamedTuple):
    """Arms on the same data.

    Attributes:
      title: the dataset, and what else tells it from the other groups.
      common: fields that all arms share.
      varying: fields in which they differ, with the values that there are.
      arms: in the order of their names.
      baseline: one of them, or None.
    """

    title: str
    common: dict[str, Any]
    varying: dict[str, list[Any]]
    arms: tuple[Arm, ...]
    baseline: Arm | None


class Study(NamedTuple):
    """Everything that was found.

    Attributes:
      groups: largest first.
      rows: of all runs, as `results.load` has them.
      reached: last round of each run that has any, by its folder.
      repeated: folders of experiments that other folders hold as well; they are left out.
    """

    groups: tuple[Group, ...]
    rows: tuple[dict[str, Any], ...]
    reached: dict[str, int]
    repeated: tuple[str, ...]


def collect(paths: find.Paths, *, baseline: str | None = None) -> Study:
    """Sort the runs below one or several paths into groups and arms.

    Args:
      paths: folders; runs are looked for anywhere below.
      baseline: name of the arm that others are compared with, in the groups that have it; by
        default the dense arm that is most like the others.

    Raises:
      ResultsError: as `results.load`, or no group has such an arm.
    """
    found = find.find(paths)
    rows = [
        {"folder": str(run.folder), **row} for run, row in zip(found, rows_of(found), strict=True)
    ]
    rounds = _split(results.load(paths, "rounds"))
    ranks = _split(results.load(paths, "ranks"))
    kept: dict[tuple[str, str | None, int], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["status"] != "finished"):
        kept.setdefault((row["digest"], row["data"], row["rounds"]), row)
    chosen = {row["folder"] for row in kept.values()}
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for row in rows:
        if row["folder"] in chosen:
            mine = ranks.get(row["folder"])
            run = Run(row, rounds.get(row["folder"]), None if mine is None else mine["rank"])
            key = (_key(row, lambda name: name in DATA), row["data"])
            groups.setdefault(key, []).append(run)
    heads = {key: fields(runs[0].row) for key, runs in groups.items()}
    _, telling = _split_fields(list(heads.values()))
    of_data = [name for name in telling if name.partition(".")[0] in DATA]
    built = [
        _group(_title(heads[key], of_data) + _of(key, groups), runs, baseline)
        for key, runs in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    if baseline is not None and not any(
        group.baseline and group.baseline.name == baseline for group in built
    ):
        names = sorted({arm.name for group in built for arm in group.arms if arm.finished})
        raise ResultsError(f"no finished arm is named {baseline!r}: there are {'; '.join(names)}")
    repeated = tuple(row["folder"] for row in rows if row["folder"] not in chosen)
    reached = {folder: int(columns["round"][-1]) for folder, columns in rounds.items()}
    return Study(tuple(built), tuple(rows), reached, repeated)


def fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the Spec in a row, flat."""
    names = [field.name for field in dataclasses.fields(Spec)]
    return {k: v for k, v in row.items() if k in names or k.partition(".")[0] in _ARGS}


_ARGS = tuple(f.name for f in dataclasses.fields(Spec) if f.name.endswith("_args"))


def spec_of(flat: Mapping[str, Any]) -> Spec:
    """The Spec whose fields these are."""
    nested: dict[str, Any] = {name: {} for name in _ARGS}
    for name, value in flat.items():
        head, dot, entry = name.partition(".")
        if dot:
            nested[head][entry] = value
        else:
            nested[name] = json.loads(value) if name == "transforms" else value
    return Spec.from_json(nested)


def told(value: Any) -> str:
    """A field's value in a few characters."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or isinstance(value, str | int):
        return str(value)
    return json.dumps(value)


def _split(table: pa.Table) -> dict[str, Columns]:
    """Columns of each run, by its folder; of one chunk of rows each."""
    if not table.num_rows:
        return {}
    folder = table["folder"].combine_chunks()
    code = folder.indices.to_numpy()
    names = folder.dictionary.to_pylist()
    columns = {}
    for name in table.column_names:
        kind = table[name].type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            columns[name] = table[name].to_numpy()  # NaN for nulls
    edges = np.flatnonzero(np.diff(code)) + 1
    starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(code)]
    return {
        names[code[a]]: {name: values[a:b] for name, values in columns.items()}
        for a, b in zip(starts, ends, strict=True)
    }


def _key(row: Mapping[str, Any], wanted) -> str:
    chosen = {k: v for k, v in fields(row).items() if wanted(k.partition(".")[0])}
    return json.dumps(chosen, sort_keys=True)


def _group(title: str, runs: Sequence[Run], baseline: str | None) -> Group:
    arms: dict[str, list[Run]] = {}
    for run in runs:
        key = _key(run.row, lambda name: name not in _NOT_AN_ARMS)
        arms.setdefault(key, []).append(run)
    heads = [fields(members[0].row) for members in arms.values()]
    for head in heads:
        for name in _NOT_AN_ARMS:
            head.pop(name, None)
    common, varying = _split_fields(heads)
    usual = _usual(heads)
    names = _unique([_name(head, varying, usual) for head in heads])
    built = []
    for name, head, members in zip(names, heads, arms.values(), strict=True):
        done = [run for run in members if run.ranks is not None] or members
        built.append(Arm(name, head, tuple(sorted(done, key=lambda run: run.row["seed"]))))
    built.sort(key=lambda arm: arm.name)
    named = next((arm for arm in built if arm.name == baseline and arm.finished), None)
    return Group(title, common, varying, tuple(built), named or _dense(built))


def _split_fields(heads: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, list]]:
    """Fields with one value, and those with several; a field that some lack varies."""
    common, varying = {}, {}
    order = {field.name: i for i, field in enumerate(dataclasses.fields(Spec))}
    names = dict.fromkeys(name for head in heads for name in head)
    for name in sorted(names, key=lambda name: (order[name.partition(".")[0]], name)):
        values = {json.dumps(head.get(name)): head.get(name) for head in heads}
        if len(values) == 1 and all(name in head for head in heads):
            common[name] = next(iter(values.values()))
        else:
            present = {json.dumps(head[name]): head[name] for head in heads if name in head}
            varying[name] = [v for _, v in sorted(present.items(), key=_by_value)]
    return common, varying


def _by_value(item: tuple[str, Any]):
    text, value = item
    number = isinstance(value, int | float)
    return (not number, value if number else 0, text)


def _usual(heads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Values of fields that more than half of the arms have."""
    found = {}
    for name in {name for head in heads for name in head}:
        values = [json.dumps(head.get(name)) for head in heads]
        for value in set(values):
            if 2 * values.count(value) > len(values):
                found[name] = json.loads(value)
    return found


def _name(head: Mapping[str, Any], varying: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """'directional k=16, client_lr=0.5', of the fields that vary.

    What is usual is left out, so names stay short; but never of the codec.
    """
    codec = [
        f"{k.removeprefix('codec_args.')}={told(v)}"
        for k, v in head.items()
        if k.startswith("codec_args.") and (k in varying or not varying)
    ]
    rest = [
        _transforms(v) if k == "transforms" else f"{k.replace('_args.', '.')}={told(v)}"
        for k, v in head.items()
        if k in varying
        and k != "codec"
        and not k.startswith("codec_args.")
        and (k not in usual or usual[k] != v)
    ]
    if "codec" in varying or codec or not rest:
        rest.insert(0, " ".join([head["codec"], ", ".join(codec)]).strip())
    return ", ".join(rest)


def _transforms(text: str) -> str:
    parts = [
        f"{e['name']}({', '.join(f'{k}={told(v)}' for k, v in e.items() if k != 'name')})"
        for e in json.loads(text)
    ]
    return " + ".join(parts) or "no transforms"


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _title(head: Mapping[str, Any], telling: Sequence[str]) -> str:
    rest = [
        told(head[name])
        if name == "profile"
        else f"{name.replace('_args.', '.')}={told(head[name])}"
        for name in telling
        if name != "dataset" and name in head
    ]
    return ", ".join([head["dataset"], *rest])


def _of(key: tuple[str, str | None], groups: Iterable[tuple[str, str | None]]) -> str:
    """What tells a group from others whose data have the same name."""
    named, data = key
    several = sum(other == named for other, _ in groups) > 1
    return f", data {data or 'unknown'}" if several else ""


def _dense(arms: Sequence[Arm]) -> Arm | None:
    """The finished dense arm that shares most values with the others; None without one."""
    dense = [arm for arm in arms if arm.fields["codec"] == "dense" and arm.finished]
    if not dense:
        return None
    count: dict[tuple[str, str], int] = {}
    for arm in arms:
        for name, value in arm.fields.items():
            key = (name, json.dumps(value))
            count[key] = count.get(key, 0) + 1

    def likeness(arm: Arm) -> tuple[bool, int]:
        alike = sum(
            count[name, json.dumps(v)]
            for name, v in arm.fields.items()
            if not name.startswith(("downlink", "snapshot_bits"))
        )
        plain = arm.fields["downlink"] == "dense" and arm.fields["snapshot_bits"] == 32
        return plain, alike

    return max(dense, key=likeness)
