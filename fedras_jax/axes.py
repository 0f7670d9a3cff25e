"""Which runs a sweep consists of: a base Spec, and axes along which it changes.

Axes come in blocks, and a sweep is the product of its blocks:

    grid    every combination:                      grid:   {seed: [0, 1], client_lr: [0.25, 0.5]}
    zip     first with first, second with second:   zip:    {codec: [dense, actions], dim: [8, 64]}
    random  drawn independently, so many times:     random: {samples: 20, seed: 1,
                                                             client_lr: {log: [0.1, 1.0]}}

An axis is a field of the Spec, or an entry of one of its arguments as in `codec_args.k`. Values of
a random axis come from {uniform: [low, high]}, {log: [low, high]}, {integer: [low, high]} (both
ends included) or {choice: [...]}.
"""

import ast
import dataclasses
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedras_jax.errors import SpecError
from fedras_jax.spec import NOT_IN_DIGEST, Spec, plain

Block = Mapping[str, Mapping[str, Any]]
KINDS = ("grid", "zip", "random")
_FIELDS = {field.name: field for field in dataclasses.fields(Spec)}


def expand(base: Spec, axes: Sequence[Block] | Mapping[str, Sequence[Any]]) -> list[Spec]:
    """The Specs of a sweep, each once, the first block's axes changing slowest.

    Args:
      base: what they have in common.
      axes: blocks as above; a mapping from axes to values stands for one grid.

    Raises:
      SpecError: a field that does not exist or that names no other experiment, an axis that is
        empty, not a list or in two blocks, a value that does not fit; the message says which.
    """
    blocks = [{"grid": axes}] if isinstance(axes, Mapping) else list(axes)
    points = [_points(block) for block in blocks]
    names = [name for block in points for name in block[0]] if all(points) else []
    _no_conflicts(names)
    specs: dict[str, Spec] = {}
    for combination in itertools.product(*points):
        changes = {name: value for point in combination for name, value in point.items()}
        spec = _changed(base, changes)
        specs.setdefault(spec.digest(), spec)
    return list(specs.values())


def read(path: str | Path) -> tuple[dict[str, Any], list[Block]]:
    """The base fields and the blocks of a sweep file, `*.yaml` or `*.json`.

    The file holds `base`, fields of the Spec that differ from their defaults, and `axes`, a list
    of blocks.

    Raises:
      SpecError: no such file, one that cannot be read, or one with other entries.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(f"sweep file {path} cannot be read: {e}") from e
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as e:
            raise SpecError(f"sweep file {path} is no JSON: {e}") from e
    else:
        import yaml

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise SpecError(f"sweep file {path} is no YAML: {e}") from e
    if not isinstance(content, dict) or not content.keys() <= {"base", "axes"}:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise SpecError(f"sweep file {path}: expected the entries base and axes, found {found}")
    base, axes = content.get("base") or {}, content.get("axes") or []
    if not isinstance(base, dict) or not isinstance(axes, list):
        raise SpecError(f"sweep file {path}: base must be a mapping of fields, axes a list")
    return base, axes


def parse(name: str, text: str) -> Any:
    """The values of an axis on a command line: a Python literal, or YAML as in a sweep file.

    Python comes first, because 1e-3 is no number in YAML.

    Raises:
      SpecError: the text is neither.
    """
    import yaml

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        told = " ".join(str(e).split())
        raise SpecError(f"axis {name}: {text!r} is neither Python nor YAML: {told}") from e


def _points(block: Any) -> list[dict[str, Any]]:
    """What a block consists of: changes of the base."""
    if not isinstance(block, Mapping) or len(block) != 1 or next(iter(block)) not in KINDS:
        raise SpecError(f"a block of axes must be one of {', '.join(KINDS)}, not {block!r}")
    ((kind, axes),) = block.items()
    if not isinstance(axes, Mapping) or not axes:
        raise SpecError(f"{kind}: expected axes and their values, not {axes!r}")
    if kind == "random":
        return _drawn(axes)
    for name, values in axes.items():
        _check_axis(name)
        if isinstance(values, str) or not isinstance(values, Sequence | range | np.ndarray):
            raise SpecError(f"axis {name}: expected a list of values, not {values!r}")
        if not len(values):
            raise SpecError(f"axis {name} is empty")
        told = [json.dumps(plain(value), sort_keys=True, default=str) for value in values]
        if kind == "grid" and len(set(told)) < len(told):
            twice = next(value for value in told if told.count(value) > 1)
            raise SpecError(f"axis {name} holds {twice} twice")
    columns = {name: [plain(value) for value in values] for name, values in axes.items()}
    if kind == "grid":
        return [
            dict(zip(columns, point, strict=True)) for point in itertools.product(*columns.values())
        ]
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise SpecError(f"zip: axes of different lengths {lengths}")
    return [dict(zip(columns, point, strict=True)) for point in zip(*columns.values(), strict=True)]


def _drawn(axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = dict(axes)
    samples, seed = axes.pop("samples", None), axes.pop("seed", 0)
    if type(samples) is not int or samples < 1:
        raise SpecError(f"random: samples must be an integer of at least 1, not {samples!r}")
    if type(seed) is not int or seed < 0:
        raise SpecError(
            f"random: seed, an integer, says what is drawn; it is no axis here, and not {seed!r}"
        )
    if not axes:
        raise SpecError("random: expected axes and what to draw their values from")
    draws = {}
    for name, source in axes.items():
        _check_axis(name)
        # Each axis has draws of its own, so another one beside it does not change them.
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        draws[name] = list(_draw(name, source, rng, samples))
    return [dict(zip(draws, point, strict=True)) for point in zip(*draws.values(), strict=True)]


def _draw(name: str, source: Any, rng: np.random.Generator, samples: int) -> Iterator[Any]:
    known = ("uniform", "log", "integer", "choice")
    if not isinstance(source, Mapping) or len(source) != 1 or next(iter(source)) not in known:
        raise SpecError(f"axis {name}: expected one of {', '.join(known)}, not {source!r}")
    ((kind, given),) = source.items()
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise SpecError(f"axis {name}: {kind} takes a list, not {given!r}")
    if kind == "choice":
        yield from (given[i] for i in rng.integers(len(given), size=samples))
        return
    numbers = [x for x in given if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) != 2 or len(given) != 2 or not -math.inf < given[0] <= given[1] < math.inf:
        raise SpecError(f"axis {name}: {kind} takes two ascending numbers, not {given!r}")
    low, high = given
    if kind == "integer":
        if type(low) is not int or type(high) is not int:
            raise SpecError(f"axis {name}: integer takes integers, not {given!r}")
        yield from rng.integers(low, high, size=samples, endpoint=True).tolist()
    elif kind == "uniform":
        yield from rng.uniform(low, high, samples).tolist()
    elif low <= 0:
        raise SpecError(f"axis {name}: log takes numbers above 0, not {given!r}")
    else:
        yield from np.exp(rng.uniform(math.log(low), math.log(high), samples)).tolist()


def _check_axis(name: Any) -> None:
    field, dot, entry = str(name).partition(".")
    if field not in _FIELDS or (dot and not field.endswith("_args")) or (dot and not entry):
        raise SpecError(
            f"unknown axis {name!r}: a Spec has {', '.join(_FIELDS)}; entries of arguments are "
            "named as in codec_args.k"
        )
    if field in NOT_IN_DIGEST:
        raise SpecError(
            f"{name} cannot be an axis: runs that differ in it are the same experiment; set it in "
            "the base"
        )


def _no_conflicts(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"conflicting axes: {name} is in two blocks")
        field, dot, _ = name.partition(".")
        if dot and field in names:
            raise SpecError(f"conflicting axes: {field} and {name} set the same arguments")


def _changed(base: Spec, changes: Mapping[str, Any]) -> Spec:
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        field, dot, entry = name.partition(".")
        if dot:
            fields.setdefault(field, dict(getattr(base, field)))[entry] = value
        else:
            fields[field] = value
    try:
        return base.replace(**fields)
    except SpecError as e:
        told = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        raise SpecError(f"with {told}: {e}") from e
