"""From a Spec to a result: load, compile once, train, evaluate, write down, or read what is there.

Specs that differ in numbers alone run side by side in one compiled program (`run_group`); a single
run is a group of one.
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedras_jax import (
    assembly,
    checkpoint,
    cohort,
    frame,
    hosts,
    record,
    results,
    shards,
    training,
)
from fedras_jax.data import Interactions, Split
from fedras_jax.errors import DivergedError, ResultsError, SpecError
from fedras_jax.options import Options
from fedras_jax.programs import Kept, Programs
from fedras_jax.spec import Spec
from fedras_jax.types import Algorithm, FedState, PyTree


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
      spec: what was run.
      summary: what `summary.json` holds.
      rounds: one dict a round, what `rounds.parquet` holds.
      ranks: int32 [U], final rank of each client's held-out item, 0 where there is none.
      state: the final state, on device; None where `Options.keep_states` says so.
      split: the data it ran on.
    """

    spec: Spec
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    ranks: np.ndarray
    state: FedState | None
    split: Split


def run(
    spec: Spec,
    *,
    workdir: str | os.PathLike | None = None,
    interactions: Interactions | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Result:
    """Run one experiment.

    A folder that holds checkpoints of this experiment is where it goes on; one that holds all that
    it would leave is read instead.

    Args:
      spec: the experiment.
      workdir: results folder; nothing is written when None.
      interactions: the dataset itself, instead of loading `spec.dataset`.
      mesh: devices that share a cohort; as many as `Options.devices` says when None.
      options: the fields of `Options`.

    Raises:
      SpecError: sizes of the Spec and of the data do not fit, or there is no such option.
      DataError: the dataset cannot be found or read.
      ResultsError: `workdir` belongs to another Spec or other data, or cannot be written.
      DivergedError: training left the finite numbers; rounds until then have been written.
      StoppedError: `stop` said so; what was done has been saved.
      LostError: another process of the run is gone.
    """
    how = Options.of(options, run)
    done = run_group([spec], workdirs=[workdir], interactions=interactions, mesh=mesh, options=how)[
        0
    ]
    if isinstance(done, DivergedError):
        raise done
    return done


def run_group(
    specs: Sequence[Spec],
    *,
    workdirs: Sequence[str | os.PathLike | None] | None = None,
    interactions: Interactions | None = None,
    mesh: Mesh | None = None,
    options: Options | None = None,
    size: int = 1,
    kept: Kept | None = None,
) -> list[Result | DivergedError]:
    """Run experiments that differ in numbers alone, in one compiled program.

    Several runs are dealt to the devices, and go one after another on a CPU core; a single run's
    clients are. Runs that stand at different rounds go on in turn, those of a round together.

    Args:
      specs: G experiments with the same `assembly.program`, `assembly.data_key`, rounds and
        evaluations.
      workdirs: a results folder each; nothing is written when None.
      interactions, mesh: as in `run`.
      options: how.
      size: compile for at least so many runs, so that groups of several sizes share a program.
      kept: what an earlier group has compiled, used again where it fits.

    Returns:
      For each a result, or why it diverged; the others go on.

    Raises:
      SpecError, DataError, ResultsError, StoppedError, LostError: as in `run`.
    """
    with hosts.watched():
        return _run_group(
            specs,
            workdirs or [None] * len(specs),
            interactions,
            mesh,
            options or Options(),
            size,
            kept or Kept(),
        )


def _run_group(
    specs: Sequence[Spec],
    workdirs: Sequence[str | os.PathLike | None],
    interactions: Interactions | None,
    mesh: Mesh | None,
    options: Options,
    size: int,
    kept: Kept,
) -> list[Result | DivergedError]:
    started = time.perf_counter()
    first = hosts.together(lambda: _same_program(specs))
    frame.one_experiment(specs, size, options)
    mesh = hosts.together(lambda: _mesh(options.devices, mesh))

    def ready() -> tuple[Split, list[Algorithm]]:
        split = kept.split(first, options.data_dir, interactions)
        how: dict[str, Any] = {}
        if options.spread_items:
            how = {"mesh": mesh, "spread_items": True}
        for spec in specs:
            assembly.held_out(spec, split)
        return split, [assembly.assemble(spec, split, **how)[1] for spec in specs]  # all can be run

    split, algorithms = hosts.together(ready)
    frame.warn_of_few(first, split)
    data = hosts.together(
        lambda: [kept.data(spec, options.data_dir, interactions) for spec in specs]
    )
    folders = frame.claim(specs, workdirs, data)
    done = _stored(specs, algorithms, folders, split, options, mesh)
    left = [i for i in range(len(specs)) if i not in done]
    if not left:
        return [done[i] for i in range(len(specs))]
    how = {
        "mesh": mesh,
        "chunk": options.chunk_size,
        "at_once": options.runs_at_once,
        "spread_items": options.spread_items,
    }
    programs = kept.programs(first, split, max(size, len(left)), **how)
    with contextlib.ExitStack() as stack:
        standing: dict[int, dict[int, tuple[record.Record, PyTree]]] = {}
        for i in left:
            made = functools.partial(
                frame.record_of, specs[i], algorithms[i], split.n_clients, folders[i], options
            )
            each = hosts.together(made)
            stack.callback(each.close)
            round_, state = each.resume(jax.eval_shape(algorithms[i].init))
            standing.setdefault(round_, {})[i] = each, state
        for round_, members in standing.items():
            records, states = zip(*members.values(), strict=True)
            ended = _go_on(records, states, round_, programs, split, options, started)
            done |= zip(members, ended, strict=True)
    return [done[i] for i in range(len(specs))]


def _same_program(specs: Sequence[Spec]) -> Spec:
    """The first of several Specs.

    Raises:
      SpecError: they need more than one program, or may need other data.
    """
    if not specs:
        raise SpecError("a group needs at least one Spec")
    first = specs[0]
    for other in specs[1:]:
        same = assembly.program(other) == assembly.program(first)
        same = same and assembly.data_key(other) == assembly.data_key(first)
        if not same or (other.rounds, other.eval_every) != (first.rounds, first.eval_every):
            fields = "; ".join(first.differences(other)) or "rounds or eval_every"
            raise SpecError(f"a group shares one program and its data, but these do not: {fields}")
    return first


def _mesh(devices: int | None, mesh: Mesh | None) -> Mesh | None:
    """The mesh that is given, or so many devices of each process, or all; None for a single one.

    Raises:
      SpecError: there are fewer, or a process has none in the mesh.
    """
    n = hosts.count()
    if mesh is not None or n > 1:
        mesh = mesh if mesh is not None else _own(devices)
        there = {device.process_index for device in mesh.devices.flat}
        if there != set(range(n)):
            raise SpecError(
                f"a mesh with devices of {len(there)} of {n} processes: every process needs one"
            )
        return mesh
    return _own(devices) if (devices or jax.device_count()) > 1 else None


def _own(devices: int | None) -> Mesh:
    there = jax.local_device_count()
    if devices is not None and devices > there:
        raise SpecError(f"devices={devices}, but there are {there}")
    return cohort.client_mesh(devices)


def _stored(
    specs: Sequence[Spec],
    algorithms: Sequence[Algorithm],
    folders: Sequence[Path | None],
    split: Split,
    options: Options,
    mesh: Mesh | None,
) -> dict[int, Result | DivergedError]:
    """Results of those runs whose folders hold all that they would leave, by their places."""
    found: dict[int, Result | DivergedError] = {}
    for i, (spec, algorithm, folder) in enumerate(zip(specs, algorithms, folders, strict=True)):

        def read(spec=spec, algorithm=algorithm, folder=folder):
            # What cannot be read is run again, which says what is wrong or mends it.
            with contextlib.suppress(ResultsError):
                return folder and _read(folder, spec, algorithm, split.n_clients, options)

        there = hosts.from_first(read)
        if there:
            summary, rows, ranks, state = there
            if state is not None:
                place = None
                if mesh is not None and options.spread_items:
                    place = shards.of_state(state, mesh, spread=True)
                state = hosts.put(state, place)
            found[i] = Result(spec, summary, rows, ranks, state, split)
    return found


def _read(
    folder: Path, spec: Spec, algorithm: Algorithm, n_clients: int, options: Options
) -> tuple[dict[str, Any], list[dict[str, Any]], np.ndarray, PyTree] | None:
    """A finished run's summary, rows, ranks and state; None where its folder lacks something.

    Raises:
      ResultsError: a file that cannot be read.
    """
    finished = results.read_finished(folder, spec)
    if finished is None or not _leaves(folder, spec, options):
        return None
    summary, ranks = finished
    log = results.read_log(folder, "rounds")
    rows = [] if log is None else results.rows_in(log)
    whole = [row["round"] for row in rows] == list(range(1, spec.rounds + 1))
    same = (
        Spec.from_json(summary["spec"]).to_json() == spec.to_json()
    )  # also where fields came later
    if not same or ranks.size != n_clients or not whole:
        return None
    state = None
    if options.keep_states:
        saved = record.last(folder, spec, algorithm, n_clients)
        if saved is None or checkpoint.digest(saved.tree["state"]) != summary.get("state_digest"):
            return None
        state = saved.tree["state"]
    return summary, rows, ranks, state


def _leaves(folder: Path, spec: Spec, options: Options) -> bool:
    """Whether a finished run's folder holds what the options ask for besides its result."""
    last = spec.rounds in checkpoint.rounds_in(folder)
    lacks = (
        last > options.checkpoint_last,
        last < bool(options.checkpoint_every and options.checkpoint_last),
        options.log_clients and not (folder / "clients.parquet").exists(),
        options.tensorboard and not (folder / "tensorboard").exists(),
    )
    return not any(lacks)


def _go_on(
    records: Sequence[record.Record],
    states: Sequence[PyTree],
    done: int,
    programs: Programs,
    split: Split,
    options: Options,
    started: float,
) -> list[Result | DivergedError]:
    """Runs that stand at the same round, from there to their end.

    Raises:
      StoppedError: asked to stop.
    """
    specs = [each.spec for each in records]
    given = programs.arguments(specs)
    target = hosts.together(lambda: programs.held_out(specs))
    state = programs.states(states) if done else programs.init(given)
    compile_s = hosts.together(lambda: programs.compile(given, state, target))
    runs = training.Group(records, programs, given, state, target)
    times = training.drive(runs, done, options, started)
    told = {"compile_s": compile_s, **times._asdict()}
    return _results(records, programs, runs.state, split, options.keep_states, told)


def _results(
    records: Sequence[record.Record],
    programs: Programs,
    state: FedState,
    split: Split,
    keep_states: bool,
    times: dict[str, float],
) -> list[Result | DivergedError]:
    """Every run's result, written down."""
    done: list[Result | DivergedError] = []
    state = programs.gather(state)
    for i, each in enumerate(records):
        own: FedState | None = jax.tree.map(lambda x, i=i: x[i], state)
        trained = record.clients_in(each.rows)
        more = {
            "clients": frame.about_clients(each.spec, split, each.ranks),
            # Of all runs that shared the program.
            "speed": {
                "clients_per_s": trained / each.trained_s,
                "runs": len(records),
                **times,
            },
            "env": frame.environment(programs.mesh),
            "state_digest": checkpoint.digest(own),
        }
        try:
            summary = hosts.together(functools.partial(each.finish, **more))
        except DivergedError as e:
            done.append(e)
        else:
            own = own if keep_states else None
            done.append(Result(each.spec, summary, each.rows, each.ranks, own, split))
    return done
