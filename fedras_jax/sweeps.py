"""Many runs: planned into groups that share programs, run by an engine, found again when done.

    WORKDIR/sweep.json      what was asked for last: the fields that all runs share, and each run's
                            digest with the fields in which it differs
    WORKDIR/runs/DIGEST/    a run each (`fedras_jax.results`)

A folder is named by its Spec's digest, so a run that is there is not run again, whichever sweep it
came from.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from fedras_jax import assembly, axes, checkpoint, engines, memory, results
from fedras_jax.axes import expand
from fedras_jax.errors import ResultsError, SpecError
from fedras_jax.options import Options
from fedras_jax.programs import Kept
from fedras_jax.spec import Spec

__all__ = ["Group", "Plan", "execute", "expand", "folder_of", "plan", "sweep"]

MEMORY_GIB = 4.0


class Group(NamedTuple):
    """Runs that share a program.

    Attributes:
      specs: what is run side by side.
      size: runs that the program is compiled for, the same in all groups that share it.
      program: which program, counted from 0.
      start: rounds that are done already.
      memory: what it is expected to take.
    """

    specs: tuple[Spec, ...]
    size: int
    program: int
    start: int
    memory: memory.Estimate


class Plan(NamedTuple):
    """What a sweep will do.

    Attributes:
      groups: to be run, in this order.
      finished, diverged: Specs that need not be run again.
      specs: all of them.
    """

    groups: tuple[Group, ...]
    finished: tuple[Spec, ...]
    diverged: tuple[Spec, ...]
    specs: tuple[Spec, ...]

    def describe(self) -> str:
        """The plan as text: groups, programs, memory."""
        waiting = sum(len(group.specs) for group in self.groups)
        programs = len({group.program for group in self.groups})
        lines = [
            f"{len(self.specs)} runs: {len(self.finished)} finished, {len(self.diverged)} "
            f"diverged, {waiting} to run in {len(self.groups)} groups with {programs} programs"
        ]
        for i, group in enumerate(self.groups):
            first = group.specs[0]
            begun = f", from round {group.start}" if group.start else ""
            lines.append(
                f"  group {i}: {len(group.specs)} runs of {first.dataset}, {first.codec} "
                f"{dict(first.codec_args) or ''}, D={first.dim}, {first.rounds} rounds{begun}; "
                f"program {group.program}; {group.memory}"
            )
        return "\n".join(lines)


def sweep(
    base: Spec,
    along: Sequence[axes.Block] | Mapping[str, Sequence[Any]],
    *,
    workdir: str | os.PathLike | None = None,
    engine: engines.Engine | None = None,
    memory_gib: float = MEMORY_GIB,
    shard: tuple[int, int] = (0, 1),
    **options: Any,
) -> pa.Table:
    """Run a Spec along axes, and give back one table.

    Args:
      base: what the runs have in common.
      along: axis -> values for every combination, or blocks as `fedras_jax.axes` has them.
      workdir: where the runs lie; those that are there are not run again. None: nothing is kept.
      engine: what runs the groups; this process when None (`fedras_jax.engines`).
      memory_gib: what a group may take; larger ones are split.
      shard: (i, n) runs the i-th of n parts of the plan.
      options: the fields of `Options`.

    Returns:
      A row a run, as `results.load` has it.

    Raises:
      SpecError: axes that do not fit, or a run that needs more memory.
      DataError, ResultsError: as in `run`.

    Example:
      >>> table = sweep(Spec(rounds=100), {"seed": range(3), "codec_args.k": [4, 16]})
      >>> table.group_by("codec_args.k").aggregate([("ndcg@10", "mean")])
    """
    specs = expand(base, along)
    settings = Options.of(options, sweep)
    if workdir is None:
        with tempfile.TemporaryDirectory() as folder:
            return _run(specs, Path(folder), engine, memory_gib, shard, settings)
    return _run(specs, Path(workdir), engine, memory_gib, shard, settings)


def _run(
    specs: list[Spec],
    workdir: Path,
    engine: engines.Engine | None,
    memory_gib: float,
    shard: tuple[int, int],
    options: Options,
) -> pa.Table:
    planned = plan(specs, workdir, memory_gib=memory_gib, shard=shard, options=options)
    done = list(execute(planned, workdir, engine=engine, options=options))
    failed = [f"{one.task.name}: {one.error}" for one in done if one.error]
    if failed:
        raise ResultsError("; ".join(failed) + ". What has finished is kept")
    there = [folder for spec in specs if (folder := folder_of(workdir, spec)).exists()]
    return results.load(there) if there else pa.table({})


def folder_of(workdir: str | os.PathLike, spec: Spec) -> Path:
    """Where a run of a sweep lies."""
    return Path(workdir) / "runs" / spec.digest()


def plan(
    specs: Sequence[Spec],
    workdir: str | os.PathLike,
    *,
    memory_gib: float = MEMORY_GIB,
    shard: tuple[int, int] = (0, 1),
    options: Options | None = None,
    devices: int | None = None,
) -> Plan:
    """What is left to do of these runs, in groups.

    Groups of one program come one after another, and those on the same data do. Nothing is
    compiled, and nothing written.

    Args:
      specs: all runs.
      workdir: where they lie.
      memory_gib: what a group may take.
      shard: (i, n) keeps the i-th of n parts: every n-th program, or, where there are fewer, every
        n-th run of each.
      options: how they will be run.
      devices: that a group will have where `options` does not say; all of this process when None.

    Raises:
      SpecError: a run that needs more memory than a group may take, or a shard out of range.
      ResultsError: a folder that cannot be read, or that holds a run on other data.
    """
    i, n = shard
    if not 0 <= i < n:
        raise SpecError(f"shard {i}/{n}: expected i/n with 0 <= i < n")
    options = options or Options()
    budget = memory_gib * 2**30
    kept = Kept()
    shared: dict[tuple[Any, ...], list[Spec]] = {}
    for spec in specs:
        shared.setdefault((assembly.data_key(spec), *_program(spec)), []).append(spec)
    groups: list[Group] = []
    finished: list[Spec] = []
    diverged: list[Spec] = []
    programs = sorted(shared.items(), key=lambda item: str(item[0][0]))  # one dataset at a time
    for number, (_, all_members) in enumerate(programs):
        members = _shard(all_members, number, len(programs), i, n)
        waiting: dict[int, list[Spec]] = {}
        for spec in members:
            folder = folder_of(workdir, spec)
            if folder.exists():
                results.require_data(folder, kept.data(spec, options.data_dir))
            ended, start = _stands(folder, spec)
            if ended == "finished":
                finished.append(spec)
            elif ended == "diverged":
                diverged.append(spec)
            else:
                waiting.setdefault(start, []).append(spec)
        if not waiting:
            continue
        split = kept.split(members[0], options.data_dir, None)
        of_size = memory.estimator(members[0], split, options.devices or devices)
        # All groups of a program have one size, so that it is compiled once.
        size = _size(max(map(len, waiting.values())), of_size, budget, members[0])
        for start, left in sorted(waiting.items()):
            for first in range(0, len(left), size):
                some = tuple(left[first : first + size])
                groups.append(Group(some, size, number, start, of_size(size)))
    return Plan(tuple(groups), tuple(finished), tuple(diverged), tuple(specs))


def _shard(members: list[Spec], number: int, programs: int, i: int, n: int) -> list[Spec]:
    """A shard's part of a program's runs: whole programs where there are enough of them.

    It depends on nothing but the sweep, so that shards agree whatever machine each is on.
    """
    if programs >= n:
        return members if number % n == i else []
    return members[i::n]


def _stands(folder: Path, spec: Spec) -> tuple[str, int]:
    """Whether a run has 'finished', has 'diverged' or is 'waiting', and rounds that are done.

    Raises:
      ResultsError: a folder that cannot be read.
    """
    if results.read_finished(folder, spec) is not None:
        return "finished", spec.rounds
    diverged = results.read_diverged(folder)
    if diverged is not None and diverged.round <= spec.rounds:
        return "diverged", 0
    return "waiting", max(checkpoint.rounds_in(folder), default=0)


def _program(spec: Spec) -> tuple[Any, ...]:
    return assembly.program(spec), spec.rounds, spec.eval_every


def _size(runs: int, of_size: Any, budget: float, spec: Spec) -> int:
    """Runs in a group: as many as fit, in groups of nearly the same size.

    Raises:
      SpecError: one alone does not fit.
    """
    if of_size(1).bytes > budget:
        raise SpecError(
            f"a run of {spec.dataset} with {spec.codec}, D={spec.dim} is expected to take "
            f"{of_size(1).bytes / 2**30:.2f} GiB, above memory_gib={budget / 2**30:g}"
        )
    most = max(k for k in range(1, runs + 1) if k == 1 or of_size(k).bytes <= budget)
    return -(-runs // -(-runs // most))


def _told(specs: Sequence[Spec]) -> dict[str, Any]:
    """What runs share, and what tells each from the others."""
    fields = [spec.to_json() for spec in specs]
    first = next(iter(fields), {})
    shared = {k: v for k, v in first.items() if all(other[k] == v for other in fields)}
    runs = [
        {"digest": spec.digest(), **{k: v for k, v in own.items() if k not in shared}}
        for spec, own in zip(specs, fields, strict=True)
    ]
    return {"shared": shared, "runs": runs}


def execute(
    planned: Plan,
    workdir: str | os.PathLike,
    *,
    engine: engines.Engine | None = None,
    options: Options | None = None,
) -> Iterator[engines.Done]:
    """Run a plan's groups; yields each as it ends.

    Raises:
      ResultsError: a folder that cannot be written; groups that have ended are whole.
      StoppedError: asked to stop.
    """
    folder = Path(workdir)
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResultsError(f"cannot write results to {folder}: {e}") from e
    results.write_json(folder / "sweep.json", _told(planned.specs))
    folder = folder.absolute()  # for processes that are elsewhere
    tasks = [
        engines.Task(
            name=f"group {i}",
            specs=tuple(spec.to_json() for spec in group.specs),
            folders=tuple(str(folder_of(folder, spec)) for spec in group.specs),
            size=group.size,
            bytes=group.memory.bytes,
        )
        for i, group in enumerate(planned.groups)
    ]
    yield from (engine or engines.local)(tasks, options or Options())
