"""How to repeat runs: flags of `experiments.run`, which are named after a Spec's fields, and files
for `experiments.sweep`."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from fedras_jax.spec import NOT_IN_DIGEST, Spec


def command(spec: Spec, *, seeds: tuple[int, ...] = ()) -> str:
    """A line for the shell, with a flag for every field that is not the default.

    Args:
      spec: what to run.
      seeds: instead of the Spec's; several are a loop.
    """
    flags = [_flag(name, value) for name, value in _changed(spec)]
    call = " ".join(["python -m experiments.run", *flags])
    if len(seeds) > 1:
        return f"for seed in {' '.join(map(str, seeds))}; do {call} --seed=$seed; done"
    seed = seeds[0] if seeds else spec.seed
    return f"{call} --seed={seed}"


def sweep_file(arms: Sequence[Sequence[Spec]]) -> dict[str, Any] | None:
    """What a sweep file of these runs holds, None where none can: a sweep has one number of rounds.

    Args:
      arms: the Specs of each arm, one a seed.
    """
    seeds = [[spec.seed for spec in specs] for specs in arms]
    alike = all(of == seeds[0] for of in seeds)
    rows = [s.to_json() for specs in arms for s in (specs[:1] if alike else specs)]
    default = Spec().to_json()
    base: dict[str, Any] = {}
    varying: dict[str, list[Any]] = {}
    for name in default:
        column = [row[name] for row in rows]
        same = all(value == column[0] for value in column)
        if name == "seed" and alike:
            continue
        if same or (name in NOT_IN_DIGEST and name != "rounds"):
            base |= {name: column[0]} if column[0] != default[name] else {}
        else:
            varying[name] = column
    if "rounds" in varying:
        return None
    blocks = [{"zip": varying}] if varying else []
    return {"base": base, "axes": [*blocks, *([{"grid": {"seed": seeds[0]}}] if alike else [])]}


def told(content: dict[str, Any]) -> str:
    """A sweep file as JSON, a line an axis."""
    lines = [
        f'  {{"{kind}": {{\n    '
        + ",\n    ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in axes.items())
        + "}}"
        for block in content["axes"]
        for kind, axes in block.items()
    ]
    return f'{{"base": {json.dumps(content["base"])},\n "axes": [\n' + ",\n".join(lines) + "]}\n"


def _changed(spec: Spec) -> list[tuple[str, Any]]:
    """Flags with their values, of what differs from the defaults."""
    default = Spec()
    found: list[tuple[str, Any]] = []
    for name in spec.to_json():
        value = getattr(spec, name)
        if name == "seed" or value == getattr(default, name):
            continue
        if name.endswith("_args"):
            # A column that is ignored has no name.
            none = "" if name == "dataset_args" else None
            found += [(name[:-1], f"{k}={none if v is None else v}") for k, v in value.items()]
        elif name == "transforms":
            found += [("transform", _transform(**entry)) for entry in value]
        else:
            found.append((name, value))
    return found


def _transform(name: str, **args: Any) -> str:
    told = ",".join(f"{k}={v}" for k, v in args.items())
    return f"{name}:{told}" if told else name


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={shlex.quote(str(value))}"
