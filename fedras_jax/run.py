"""From a Spec to a result: load, compile once, run rounds in segments, evaluate, write down.

Specs that differ in numbers alone run side by side in one compiled program (`run_group`); a single
run is a group of one.
"""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedras_jax import assembly, checkpoint, cohort, evaluate, examples, record, results
from fedras_jax.data import Interactions, Split
from fedras_jax.errors import DivergedError, SpecError, StoppedError
from fedras_jax.progress import Progress, bar
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.types import Arguments, FedState, PyTree, RoundInfo

# Rounds in one call of the compiled program, at most: long enough to hide dispatch, short enough
# for a progress bar that moves and for diagnostics that fit in memory.
SEGMENT = 25


class ApartError(SpecError):
    """Runs of a group that stand at different rounds, and cannot go on together."""


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


@dataclasses.dataclass(frozen=True)
class Options:
    """How runs are run and recorded; none of it changes what comes out.

    Attributes:
      data_dir: where downloaded or own datasets lie.
      chunk_size: clients run at once on a device; by platform when None.
      progress: show a progress bar (needs the extra `progress`).
      log_clients: write clients.parquet too, a row for each client in each round.
      tensorboard: write event files too (needs the extra `tensorboard`).
      checkpoint_every: rounds between checkpoints; 0: none.
      checkpoint_last: whether one is left of a finished run, so that more rounds extend it and its
        model can be used. If not, the others are removed as well.
      keep: checkpoints to keep.
      keep_states: whether results hold the runs' final states.
      stop: asked between segments of rounds whether to stop there.
      runs_at_once: runs of a group that are vmapped; by platform when None.
    """

    data_dir: str | os.PathLike | None = None
    chunk_size: int | None = None
    progress: bool = False
    log_clients: bool = False
    tensorboard: bool = False
    checkpoint_every: int = 0
    checkpoint_last: bool = True
    keep: int = 2
    keep_states: bool = True
    stop: Callable[[], bool] = lambda: False
    runs_at_once: int | None = None

    def __post_init__(self):
        """Refuse what makes no sense.

        Raises:
          SpecError: a number out of range.
        """
        for name, low in (("checkpoint_every", 0), ("keep", 1), ("runs_at_once", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise SpecError(f"{name} must be at least {low}, not {value}")


def run(
    spec: Spec,
    *,
    workdir: str | os.PathLike | None = None,
    interactions: Interactions | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Result:
    """Run one experiment.

    A folder that holds checkpoints of this experiment is where it goes on.

    Args:
      spec: the experiment.
      workdir: results folder; nothing is written when None.
      interactions: the dataset itself, instead of loading `spec.dataset`.
      mesh: devices that share a cohort; all of `jax.devices()` when None.
      options: the fields of `Options`.

    Raises:
      SpecError: sizes of the Spec and of the data do not fit.
      DataError: the dataset cannot be found or read.
      ResultsError: `workdir` belongs to another Spec or cannot be written.
      DivergedError: training left the finite numbers; rounds until then have been written.
      StoppedError: `stop` said so; what was done has been saved.
    """
    done = run_group(
        [spec], workdirs=[workdir], interactions=interactions, mesh=mesh, options=Options(**options)
    )[0]
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
    kept: "Kept | None" = None,
) -> list[Result | DivergedError]:
    """Run experiments that differ in numbers alone, in one compiled program.

    Several runs are dealt to the devices, and go one after another on a CPU core; a single run's
    clients are. Runs whose folders hold checkpoints must all stand at the same round.

    Args:
      specs: G experiments with the same `assembly.program`, rounds and evaluations.
      workdirs: a results folder each; nothing is written when None.
      interactions, mesh: as in `run`.
      options: how.
      size: compile for at least so many runs, so that groups of several sizes share a program.
      kept: what an earlier group has compiled, used again where it fits.

    Returns:
      For each a result, or why it diverged; the others go on.

    Raises:
      SpecError, DataError, ResultsError, StoppedError: as in `run`.
    """
    started = time.perf_counter()
    options = options or Options()
    first = _same_program(specs)
    folders = _claim(specs, workdirs)
    mesh = mesh or (cohort.client_mesh() if jax.device_count() > 1 else None)
    # One run shares its clients over the devices; several are dealt to them whole.
    size = max(size, len(specs))
    over_clients, over_runs = (mesh, None) if size == 1 else (None, mesh)
    parts: dict[str, Any] = {"chunk": options.chunk_size, "mesh": over_clients}
    kept = kept or Kept()
    split = kept.split(first, options.data_dir, interactions)
    plain = [assembly.assemble(spec, split, **parts) for spec in specs]  # all of them can be run
    records = [
        record.Record(
            spec,
            algorithm,
            split.n_clients,
            folder,
            log_clients=options.log_clients,
            tensorboard=options.tensorboard,
            keep=options.keep,
            keep_last=options.checkpoint_last,
        )
        for spec, (_, algorithm, _), folder in zip(specs, plain, folders, strict=True)
    ]
    programs = kept.programs(first, split, size, over_runs, parts, options)
    with contextlib.ExitStack() as stack:
        for each in records:
            stack.callback(each.close)
        given = programs.arguments(specs)
        done, state = _begin(records, programs, given)
        compile_s = programs.compile(given, state)
        state, startup_s = _train(records, programs, given, state, done, options, started)
        times = {"compile_s": compile_s, "startup_s": startup_s}
        return _results(records, programs, state, split, options.keep_states, times)


class Kept:
    """The last data and the last programs of a process, for its next group."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._split: tuple[Any, Split] | None = None
        self._programs: tuple[Any, _Programs] | None = None

    def split(
        self, spec: Spec, data_dir: str | os.PathLike | None, interactions: Interactions | None
    ) -> Split:
        """The data of a Spec."""
        key = (assembly.data_key(spec), data_dir, id(interactions))
        if self._split is None or self._split[0] != key:
            found = assembly.split_of(spec, data_dir=data_dir, interactions=interactions)
            self._split = (key, found)
        return self._split[1]

    def programs(
        self,
        spec: Spec,
        split: Split,
        size: int,
        mesh: Mesh | None,
        parts: dict[str, Any],
        options: Options,
    ) -> "_Programs":
        """Programs for so many runs like this Spec."""
        key = (assembly.program(spec), id(split), size, mesh, *parts.values(), options.runs_at_once)
        if self._programs is None or self._programs[0] != key:
            self._programs = None  # frees what the last ones hold
            self._programs = (key, _Programs(spec, split, size, mesh, parts, options))
        return self._programs[1]


class _Programs:
    """The compiled functions of a group, and the arrays that live on its devices."""

    def __init__(
        self,
        first: Spec,
        split: Split,
        size: int,
        mesh: Mesh | None,
        parts: dict[str, Any],
        options: Options,
    ) -> None:
        n_devices = 1 if mesh is None else mesh.devices.size
        self._slots = size + -size % n_devices  # equally many for each device
        self._n_clients = split.n_clients
        self._compiled = False
        over: dict[str, Any] = {"at_once": options.runs_at_once, "mesh": mesh}
        model, _, data = assembly.assemble(first, split, **parts)
        ranks_of = assembly.ranking(first, split, model)

        def algorithm(given):
            return assembly.assemble(first, split, given=given, **parts)[1]

        def init(given):
            return cohort.map_runs(lambda g, _: algorithm(g).init(), given, (), **over)

        def advance(given, state, data, limit):
            def one(run, common):
                given, state = run
                data, limit = common
                return simulate(algorithm(given), state, data, SEGMENT, limit=limit)

            return cohort.map_runs(one, (given, state), (data, limit), **over)

        def rank(state):
            return cohort.map_runs(lambda s, _: ranks_of(s), state, (), **over)

        def finite(state):
            def sound(state, _):
                kept = jax.tree.leaves((state.items, state.shared))
                return jnp.stack([jnp.isfinite(x).all() for x in kept]).all()

            return cohort.map_runs(sound, state, (), **over)

        clients = parts["mesh"]
        self._everywhere = None if clients is None else NamedSharding(clients, PartitionSpec())
        if mesh is not None:
            self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._dealt = (
            self._everywhere if mesh is None else NamedSharding(mesh, PartitionSpec(cohort.AXIS))
        )
        self.data = jax.device_put(data, self._everywhere)
        self.init = jax.jit(init, out_shardings=self._dealt)
        self.advance: Any = jax.jit(advance, donate_argnums=1)
        self.rank: Any = jax.jit(rank)
        self.finite = jax.jit(finite)
        self.mesh = mesh or parts["mesh"]

    def arguments(self, specs: Sequence[Spec]) -> Arguments:
        """The runs' numbers, on the devices where these run."""
        return self.deal([assembly.arguments(spec, self._n_clients) for spec in specs])

    def deal(self, trees: Sequence[PyTree]) -> PyTree:
        """Host arrays of every run, stacked, on the devices where these run.

        The last run is repeated in slots that are left; what comes out there is dropped.
        """
        padded = [*trees, *[trees[-1]] * (self._slots - len(trees))]
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *padded), self._dealt)

    def compile(self, given: Arguments, state: FedState) -> float:
        """Compile what a run needs, once; returns seconds."""
        started = time.perf_counter()
        if not self._compiled:
            self.advance = self.advance.lower(given, state, self.data, SEGMENT).compile()
            self.rank = self.rank.lower(state).compile()
            self._compiled = True
        return time.perf_counter() - started


def _same_program(specs: Sequence[Spec]) -> Spec:
    """The first of several Specs.

    Raises:
      SpecError: they need more than one program.
    """
    if not specs:
        raise SpecError("a group needs at least one Spec")
    first = specs[0]
    for other in specs[1:]:
        same = assembly.program(other) == assembly.program(first)
        if not same or (other.rounds, other.eval_every) != (first.rounds, first.eval_every):
            fields = "; ".join(first.differences(other)) or "rounds or eval_every"
            raise SpecError(f"a group shares one program, but these do not: {fields}")
    return first


def _claim(
    specs: Sequence[Spec], workdirs: Sequence[str | os.PathLike | None] | None
) -> list[Path | None]:
    folders = workdirs or [None] * len(specs)
    return [
        None if folder is None else results.claim(folder, spec)
        for folder, spec in zip(folders, specs, strict=True)
    ]


def _begin(
    records: list[record.Record], programs: _Programs, given: Arguments
) -> tuple[int, FedState]:
    """Rounds that are done, and the state after them.

    Raises:
      ApartError: the runs stand at different rounds.
      ResultsError: checkpoints that cannot be used.
    """
    stacked = jax.eval_shape(programs.init, given)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    found = [each.resume(one) for each in records]
    done = {round_ for round_, _ in found}
    if len(done) > 1:
        raise ApartError(f"runs of a group stand at different rounds: {sorted(done)}")
    if done == {0}:
        return 0, programs.init(given)
    return done.pop(), programs.deal([state for _, state in found])


def _train(
    records: list[record.Record],
    programs: _Programs,
    given: Arguments,
    state: FedState,
    done: int,
    options: Options,
    started: float,
) -> tuple[FedState, float]:
    """All rounds that are left; the last state, and seconds until the first were finished.

    Raises:
      StoppedError: asked to stop.
    """
    spec, startup_s = records[0].spec, 0.0
    name = spec.codec if len(records) == 1 else f"{spec.codec}, {len(records)} runs"
    if done == spec.rounds:
        _evaluate(records, programs.rank(state))
    with bar(name, spec.rounds, start=done, enabled=options.progress) as show:
        while done < spec.rounds and any(each.diverged is None for each in records):
            began = time.perf_counter()
            until = _next_stop(done, spec, options)
            state, info = programs.advance(given, state, programs.data, until - done)
            _add(records, info, np.asarray(programs.finite(state)), until - done)
            done = until
            startup_s = startup_s or time.perf_counter() - started
            evaluating = done % spec.eval_every == 0 or done == spec.rounds
            if evaluating:
                _evaluate(records, programs.rank(state))
            stopping = done < spec.rounds and options.stop()
            every = options.checkpoint_every
            seconds = time.perf_counter() - began
            for each in records:
                each.trained_s += seconds / len(records)
            last = done == spec.rounds
            due = every and (options.checkpoint_last if last else done % every == 0)
            if stopping or due:
                host = jax.tree.map(np.asarray, state)
                for i, each in enumerate(records):
                    each.save(jax.tree.map(lambda x, i=i: x[i], host))
            elif evaluating:
                for each in records:
                    each.flush()
            sound = [each.rows[-1] for each in records if each.diverged is None]
            if sound:
                show(Progress(done, _mean(sound)))
            if stopping:
                raise StoppedError(
                    f"stopped after round {done} of {spec.rounds}, as asked: "
                    + ("the same command goes on from there" if records[0].kept else "nothing kept")
                )
    return state, startup_s


def _next_stop(done: int, spec: Spec, options: Options) -> int:
    """The round at which the host has something to do next."""
    marks = [every for every in (spec.eval_every, options.checkpoint_every) if every]
    return min(spec.rounds, done + SEGMENT, *((done // every + 1) * every for every in marks))


def _add(records: list[record.Record], info: RoundInfo, finite: np.ndarray, rounds: int) -> None:
    host = jax.tree.map(np.asarray, info)
    for i, each in enumerate(records):
        each.add(jax.tree.map(lambda x, i=i: x[i, :rounds], host), finite=bool(finite[i]))


def _evaluate(records: list[record.Record], ranks: jax.Array) -> None:
    for each, found in zip(records, np.asarray(ranks), strict=False):  # the rest is padding
        each.evaluated(found)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _results(
    records: list[record.Record],
    programs: _Programs,
    state: FedState,
    split: Split,
    keep_states: bool,
    times: dict[str, float],
) -> list[Result | DivergedError]:
    """Every run's result, written down."""
    done: list[Result | DivergedError] = []
    for i, each in enumerate(records):
        own: FedState | None = jax.tree.map(lambda x, i=i: x[i], state)
        trained = record.clients_in(each.rows)
        try:
            summary = each.finish(
                clients={
                    "total": split.n_clients,
                    "not_evaluated": int((each.ranks == evaluate.NOT_EVALUATED).sum()),
                    "short_of_negatives": _short_clients(each.spec, split),
                },
                # Of all runs that shared the program.
                speed={
                    "clients_per_s": trained / each.trained_s,
                    "runs": len(records),
                    **times,
                },
                env=_environment(programs.mesh),
                state_digest=checkpoint.digest(own),
            )
        except DivergedError as e:
            done.append(e)
        else:
            own = own if keep_states else None
            done.append(Result(each.spec, summary, each.rows, each.ranks, own, split))
    return done


def _short_clients(spec: Spec, split: Split) -> int:
    """Clients that have fewer unseen items than negatives are asked for."""
    history = np.diff(split.offsets)
    asked = history * (1 + spec.negatives)
    return int((examples.count(history, split.n_items, spec.negatives) < asked).sum())


def _environment(mesh: Mesh | None) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": 1 if mesh is None else mesh.devices.size,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }
