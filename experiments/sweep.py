"""Run many experiments that differ along axes.

    python -m experiments.sweep --file=experiments/configs/sweep.yaml --workdir=results/sweep
    python -m experiments.sweep --axis=seed=[0,1,2] --axis=client_lr=[0.25,0.5] --rounds=100 \
        --workdir=results/rates

A sweep file holds a base and axes (`fedras_jax/axes.py` has the format); flags override the base,
and --axis adds a grid. Runs that differ in numbers alone share a compiled program and go side by
side; --dry_run shows the groups. A run's folder is named by what it is, so the same command again
runs what is left. Prints a table of all runs.
"""

import math
from typing import Any

from absl import app
from absl import flags as absl_flags

from experiments import flags
from fedras_jax import axes, engines, report, results, sweeps
from fedras_jax.errors import ResultsError, SpecError
from fedras_jax.options import Options

absl_flags.adopt_module_key_flags(flags)  # so that --help shows them

FILE = absl_flags.DEFINE_string("file", None, "Sweep file, YAML or JSON.")
AXIS = absl_flags.DEFINE_multi_string(
    "axis", [], "FIELD=[VALUE,...]: an axis of a grid, on top of the file's, as YAML. Repeatable."
)
DRY_RUN = absl_flags.DEFINE_bool("dry_run", False, "Show the plan, and run nothing.")
SHARD = absl_flags.DEFINE_string("shard", "0/1", "i/n: the i-th of n parts, for job arrays.")
MEMORY_GIB = absl_flags.DEFINE_float("memory_gib", 4.0, "Memory that a group may take, GiB.")
RUNS_AT_ONCE = absl_flags.DEFINE_integer(
    "runs_at_once", None, "Runs of a group that are vmapped on a device; default: by platform."
)
KEEP_MODELS = absl_flags.DEFINE_bool(
    "keep_models", False, "Leave a checkpoint of every finished run."
)
ENGINE = absl_flags.DEFINE_enum("engine", "local", ["local", "ray", "slurm"], "What runs groups.")
RAY_ADDRESS = absl_flags.DEFINE_string(
    "ray_address", None, "Of a Ray cluster; default: start one on this machine."
)
CPUS = absl_flags.DEFINE_integer("cpus", 1, "Of a group on ray or slurm.")
GPUS = absl_flags.DEFINE_float("gpus", 0.0, "Of a group on ray or slurm.")
SLURM_ARG = absl_flags.DEFINE_multi_string(
    "slurm_arg", [], "NAME=VALUE for submitit, as in slurm_partition=gpu. Repeatable."
)

COLUMNS = (("hr@10", "{:.4f}"), ("ndcg@10", "{:.4f}"), ("payload.up_bytes_mean", "{:,.0f}"))


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        flags.no_arguments(argv)
        base, blocks = axes.read(FILE.value) if FILE.value else ({}, [])
        blocks = [*blocks, *_grid()]
        if not blocks:
            raise SpecError("no axes: give --file or --axis=FIELD=[VALUE,...]")
        if flags.WORKDIR.value is None:
            raise SpecError("--workdir is needed: a sweep is too long to be lost")
        specs = axes.expand(flags.spec_from_flags(base), blocks)
        _refuse(blocks)
        flags.start_devices()
        options = Options(
            **flags.options_from_flags(
                devices=_devices(),
                stop=flags.stop_when_told(),
                checkpoint_last=KEEP_MODELS.value,
                runs_at_once=RUNS_AT_ONCE.value,
            )
        )
        planned = sweeps.plan(
            specs,
            flags.WORKDIR.value,
            memory_gib=MEMORY_GIB.value,
            shard=_shard(),
            options=options,
            devices=None if ENGINE.value == "local" else CPUS.value,
        )
        print(planned.describe(), flush=True)
        if DRY_RUN.value:
            return
        failed = []
        done = sweeps.execute(planned, flags.WORKDIR.value, engine=_engine(), options=options)
        for ended in done:
            for folder, why in ended.diverged:
                print(f"{folder} diverged: {why}", flush=True)
            failed += [f"{ended.task.name}: {ended.error}"] if ended.error else []
        folders = [sweeps.folder_of(flags.WORKDIR.value, spec) for spec in specs]
        there = [folder for folder in folders if folder.exists()]
        if there:
            print(report.render(*_table(results.load(there).to_pylist(), blocks)))
        if failed:
            raise ResultsError("failed, and the rest is kept: " + "; ".join(failed))


# Flags of engines, by those that look at them.
_ENGINES: dict[str, tuple[str, ...]] = {
    "local": (),
    "ray": ("ray_address", "cpus", "gpus"),
    "slurm": ("slurm_arg", "cpus", "gpus"),
}


def _refuse(blocks: list[axes.Block]) -> None:
    """Refuse flags that axes or the engine leave without effect.

    Raises:
      SpecError: one of them is given.
    """
    for axis in _varied(blocks):
        name, _, entry = axis.partition(".")
        given = flags.of_field(name)
        if entry and given:
            entries: Any = absl_flags.FLAGS[given[0]].value
            given = given if entry in flags.parse_args(given[0], entries) else ()
        flags.refuse(given, f"{axis} is an axis, leave one of them out")
    every = dict.fromkeys(name for names in _ENGINES.values() for name in names)
    others = (name for name in every if name not in _ENGINES[ENGINE.value])
    flags.refuse(others, f"--engine={ENGINE.value} does without")


def _grid() -> list[axes.Block]:
    """What `--axis` says.

    Raises:
      SpecError: an axis without values, or with values that are no list in Python or YAML.
    """
    found: dict[str, Any] = {}
    for entry in AXIS.value:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            raise SpecError(f"--axis={entry}: expected FIELD=[VALUE,...]")
        if name in found:
            raise SpecError(f"--axis={entry}: {name} is there twice")
        found[name] = axes.parse(name, text)
    return [{"grid": found}] if found else []


def _shard() -> tuple[int, int]:
    i, slash, n = SHARD.value.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal()):
        raise SpecError(f"--shard={SHARD.value}: expected i/n, as in 0/4")
    return int(i), int(n)


def _devices() -> int | None:
    """Devices that share a group.

    Raises:
      SpecError: more than a process of the engine has.
    """
    asked = flags.DEVICES.value
    there = math.ceil(GPUS.value) or CPUS.value
    if asked is not None and ENGINE.value != "local" and asked > there:
        raise SpecError(
            f"--devices={asked}, but a group on {ENGINE.value} has {there}: raise --cpus or --gpus"
        )
    return asked


def _engine() -> engines.Engine:
    if ENGINE.value == "ray":
        return engines.ray(RAY_ADDRESS.value, cpus=CPUS.value, gpus=GPUS.value)
    if ENGINE.value == "slurm":
        args = flags.parse_args("slurm_arg", SLURM_ARG.value)
        folder = f"{flags.WORKDIR.value}/slurm"
        return engines.slurm(folder, cpus=CPUS.value, gpus=int(GPUS.value), **args)
    return engines.local


def _varied(blocks: list[axes.Block]) -> list[str]:
    """Names of the axes."""
    names: dict[str, None] = {}
    for block in blocks:
        for kind, axes_ in block.items():
            for name in axes_:
                if kind != "random" or name not in ("samples", "seed"):
                    names[name] = None
    return list(names)


def _table(rows: list[dict[str, Any]], blocks: list[axes.Block]) -> tuple[Any, Any]:
    """What varies and what came out, for `report.render`."""
    columns = [("status", "status", "{}")]
    for axis in _varied(blocks):
        names = [name for name in rows[0] if name == axis or name.startswith(f"{axis}.")]
        columns += [(name, name, "{}") for name in names]
    columns += [(name, name, form) for name, form in COLUMNS]
    return [{name: row.get(name) for name, _, _ in columns} for row in rows], tuple(columns)


if __name__ == "__main__":
    app.run(main)
