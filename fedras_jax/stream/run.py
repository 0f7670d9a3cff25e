"""A streamed run, from a Spec whose dataset is a store to its results folder."""

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedras_jax import assembly, checkpoint, evaluate, frame, hosts, provenance, record
from fedras_jax.data import Split
from fedras_jax.data.store import Store, open_store
from fedras_jax.errors import SpecError
from fedras_jax.options import Options
from fedras_jax.spec import Spec
from fedras_jax.stream import private
from fedras_jax.stream.budget import Plan, plan
from fedras_jax.stream.programs import Programs, rows_of, server_of, split_of, whole
from fedras_jax.stream.segments import Segment, Segments
from fedras_jax.training import drive, next_stop
from fedras_jax.types import Algorithm, Array, FedState, PyTree, Trace

# Share of the memory for the clients that are evaluated at once, and the most of them.
_EVALUATED_SHARE, _EVALUATED = 1 / 32, 1 << 16


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A finished run.

    Attributes:
      spec: what was run.
      plan: how.
      summary: what `summary.json` holds.
      rounds: one dict a round.
      ranks: int32 [U], final rank of each client's held-out item, 0 where it was not evaluated.
      server: the final state, without the clients' rows.
      rows: those, wherever they lie.
    """

    spec: Spec
    plan: Plan
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    ranks: np.ndarray
    server: FedState
    rows: private.Rows


def stream(
    spec: Spec,
    *,
    memory: float = 4.0,
    workdir: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
    rounds_at_once: int | None = None,
    private_on: str | None = None,
    evaluate_clients: int = 0,
    tell: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Streamed:
    """Run one experiment whose dataset is a store.

    The result is that of `run.run` on the same interactions. A folder that holds checkpoints of
    this experiment is where it goes on.

    Args:
      spec: the experiment; `dataset` is the path of a store.
      memory: GiB that arrays may take: see `budget`.
      workdir: results folder; nothing is written when None.
      mesh: devices that share a cohort; one when None.
      rounds_at_once: rounds in a segment; as many as memory allows when None.
      private_on: 'device', 'host' or 'disk', for the clients' private state; by the rule when None.
      evaluate_clients: how many clients are evaluated, the same ones every time, drawn by
        `data_seed`; 0 for all.
      tell: called with a line on sizes and places.
      options: the fields of `Options`; those of data, devices, groups and results in memory do
        not apply.

    Raises:
      DataError: no store, or a damaged one.
      SpecError: what does not fit: into memory, to the store's settings, or to streaming.
      ResultsError: `workdir` belongs to another Spec or other data, or cannot be written.
      DivergedError: training left the finite numbers; rounds until then have been written.
      StoppedError: `stop` said so; what was done has been saved, unless private state is on disk.
    """
    how = Options.of(options, stream)
    asked: dict[str, Any] = {
        "memory": memory,
        "rounds_at_once": rounds_at_once,
        "private_on": private_on,
        "evaluate_clients": evaluate_clients,
    }
    with hosts.watched():
        frame.one_experiment([spec], 1, how, **asked)
        return _stream(spec, how, workdir, mesh, tell, **asked)


def _stream(
    spec: Spec,
    how: Options,
    workdir: str | os.PathLike | None,
    mesh: Mesh | None,
    tell: Callable[[str], None],
    *,
    memory: float,
    rounds_at_once: int | None,
    private_on: str | None,
    evaluate_clients: int,
) -> Streamed:
    started = time.perf_counter()

    def ready() -> tuple[Store, Split, Algorithm]:
        store = open_store(spec.dataset)
        _fits(spec, store, evaluate_clients)
        split = split_of(store)
        return store, split, assembly.assemble(spec, split)[1]

    store, split, algorithm = hosts.together(ready)
    hosts.require_same({"the store's digest": store.digest})  # before what depends on its sizes
    frame.warn_of_few(spec, split)
    arguments = assembly.arguments(spec, store.n_clients)
    if isinstance(arguments.profile, Trace):
        raise SpecError(
            f"profile {spec.profile!r} is a trace and cannot be streamed: who is there depends on "
            "the time, so cohorts are not known ahead; use experiments.run"
        )
    if algorithm.draw is None:
        raise SpecError(
            f"arrival {spec.arrival!r} cannot be streamed: whom it draws depends on who is still "
            "at work, so cohorts are not known ahead; use experiments.run"
        )
    capacity = len(jax.eval_shape(algorithm.draw, np.int32(0)).client)
    sizes = plan(
        algorithm,
        np.diff(store.offsets),
        capacity,
        memory=memory,
        rounds=rounds_at_once,
        private=private_on,
        profiled=arguments.profile is not None,
        devices=_of_one_process(mesh),
        spread=how.spread_items,
    )
    if hosts.is_first():
        tell(str(sizes))
    if sizes.private == "disk" and hosts.count() > 1:
        raise SpecError(
            f"private state of {sizes.kept / 2**30:.2f} GiB goes to disk, which several processes "
            "cannot: allow more --memory"
        )
    if sizes.private == "disk" and workdir is None:
        raise SpecError(
            f"private state of {sizes.kept / 2**30:.2f} GiB goes to disk: give a --workdir, or "
            "allow more --memory"
        )
    data = hosts.together(lambda: provenance.of_store(spec, store))
    (folder,) = frame.claim([spec], [workdir], [data])
    programs = Programs(
        spec, split, sizes, mesh=mesh, chunk=how.chunk_size, spread_items=how.spread_items
    )
    book = hosts.together(lambda: frame.record_of(spec, algorithm, store.n_clients, folder, how))
    segments = Segments(store, sizes, programs.draw, arguments.profile, programs.sharding)
    with contextlib.closing(book), contextlib.closing(segments):
        run = _Run(spec, store, sizes, programs, segments, book, how, evaluate_clients)
        times = drive(run, run.begin(algorithm, folder), how, started)
        more: dict[str, Any] = dict(
            clients=frame.about_clients(spec, split, book.ranks),
            speed={
                "clients_per_s": record.clients_in(book.rows) / max(book.trained_s, 1e-9),
                "runs": 1,
                "compile_s": programs.compile_s,
                **times._asdict(),
            },
            env=frame.environment(mesh),
            stream=sizes._asdict() | {"total": sizes.total, "evaluate_clients": evaluate_clients},
            **run.digest(),
        )
        summary = hosts.together(lambda: book.finish(**more))
        return Streamed(spec, sizes, summary, book.rows, book.ranks, run.server, run.rows)


def _of_one_process(mesh: Mesh | None) -> int:
    """The most devices that a process has in a mesh."""
    if mesh is None:
        return 1
    return max(Counter(device.process_index for device in mesh.devices.flat).values())


def _fits(spec: Spec, store: Store, evaluate_clients: int) -> None:
    """Whether a Spec asks for what the store holds.

    Raises:
      SpecError: it does not.
    """
    for name in ("min_rating", "k_core", "validation"):
        asked, made = getattr(spec, name), store.made.get(name)
        if asked not in (None, 0, made) or (name == "validation" and asked is False and made):
            raise SpecError(
                f"{name}={asked}, but the store {store.path} was made with {name}={made}: leave it "
                "out, or convert again"
            )
    if spec.dataset_args:
        raise SpecError(
            f"dataset_args={dict(spec.dataset_args)}, but a store has columns of its own: name "
            "yours as you convert"
        )
    drawn = None if store.made["timed"] else store.made["data_seed"]
    if drawn not in (None, spec.data_seed):
        raise SpecError(
            f"data_seed={spec.data_seed}, but the held-out items of the store {store.path} were "
            f"drawn with data_seed={drawn}: ask for that, or convert again"
        )
    n_held_out = int((held_out_of(spec, store) >= 0).sum())
    if not n_held_out:
        raise SpecError(f"{store.path}: no client has a {spec.evaluate_on} item to evaluate")
    if not 0 <= evaluate_clients <= n_held_out:
        raise SpecError(
            f"evaluate_clients must be 0 for all, or up to {n_held_out}, as many as have a "
            f"{spec.evaluate_on} item, not {evaluate_clients}"
        )
    if store.n_clients * spec.dim >= 2**32:
        raise SpecError(
            f"{store.n_clients:,} clients with dim={spec.dim} have 2**32 private numbers or more: "
            "take a smaller dim"
        )


def held_out_of(spec: Spec, store: Store) -> np.ndarray:
    """The items that clients are evaluated on, int32 [U], -1 for none."""
    return store.test if spec.evaluate_on == "test" else store.valid


class _Run:
    """A streamed run, for `training.drive`."""

    def __init__(
        self,
        spec: Spec,
        store: Store,
        sizes: Plan,
        programs: Programs,
        segments: Segments,
        book: record.Record,
        how: Options,
        evaluate_clients: int,
    ) -> None:
        self._spec, self._store, self._plan = spec, store, sizes
        self._programs, self._segments, self._book, self._how = programs, segments, book, how
        self.records: Sequence[record.Record] = [book]
        self._evaluated = _some(held_out_of(spec, store), evaluate_clients, spec.data_seed)
        self.server: FedState
        self.rows: private.Rows
        self._owed: Array
        self._in_flight: PyTree = ()
        self._following: Future[Segment] | None = None

    def begin(self, algorithm: Algorithm, folder: Path | None) -> int:
        """Start anew, or go on from a checkpoint; returns rounds that are done."""
        n, where = self._store.n_clients, self._plan.private
        sharding = self._programs.sharding
        shapes = jax.eval_shape(algorithm.init)
        # Nothing is, between rounds.
        self._in_flight = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.flight)
        done, state = self._book.resume(shapes)
        first: Callable[[int], PyTree] = self._programs.first_rows
        if state is not None:
            rows = rows_of(state)
            owed = np.zeros(self._spec.rounds + 1, np.float32)
            owed[rows["last_sync"]] = state.owed
            self.server = hosts.put(server_of(state), self._programs.server_sharding)
            self._owed = hosts.put(owed, sharding)

            def first(start: int) -> PyTree:
                return jax.tree.map(lambda x: x[start : start + private.BLOCK], rows)
        else:
            self.server, self._owed = self._programs.begin(), self._programs.owed()
        self.rows = private.keep(where, n, first, sharding=sharding, folder=folder)
        return done

    def advance(self, done: int, until: int) -> int:
        """One segment; the next one is read meanwhile."""
        ahead = self._following or self._segments.ahead(done, until - done)
        segment = hosts.together(ahead.result)
        done += segment.rounds
        self._following = None
        if done < self._spec.rounds:
            most = next_stop(done, self._spec, self._how) - done
            self._following = self._segments.ahead(done, most)
        rows = self.rows.take(segment.clients, self._plan.slots)
        self.server, rows, self._owed, info, finite = self._programs.advance(
            self.server, rows, self._owed, segment
        )
        host = jax.tree.map(lambda x: np.asarray(x)[: segment.rounds], info)
        self.rows.put(segment.clients, rows)
        self._book.add(host, finite=bool(finite))
        return done

    @property
    def compile_s(self) -> float:
        return self._programs.compile_s

    @property
    def resumable(self) -> bool:
        """Whether checkpoints are made: not of what does not fit into memory."""
        return self._plan.private != "disk"

    def save(self) -> None:
        if self._book.kept:
            self._book.save(self._state())

    def _state(self) -> FedState:
        """The whole state, on the host."""
        server, owed = jax.tree.map(np.asarray, (self.server, self._owed))
        state = whole(server, self.rows.all(), owed)
        return dataclasses.replace(state, flight=self._in_flight)

    def digest(self) -> dict[str, str]:
        """Of the whole state, where it fits into memory."""
        return {"state_digest": checkpoint.digest(self._state())} if self.resumable else {}

    def evaluate(self) -> None:
        """Ranks of the held-out items, some clients at a time."""
        spec, store = self._spec, self._store
        full = spec.candidates == 0
        width = int(np.diff(store.offsets).max()) + 2 if full else spec.candidates
        row = 8 * width + 8 * spec.dim
        most = max(int(_EVALUATED_SHARE * self._plan.allowed) // row, 1)
        size = min(most, _EVALUATED, len(self._evaluated))
        held_out = held_out_of(spec, store)
        server, here = self._programs.to_rank(self.server)
        ranks = np.full(store.n_clients, evaluate.NOT_EVALUATED, np.int32)

        def read(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            clients = self._evaluated[start : start + size]
            others = np.full((size, width), -1, np.int32)
            target = np.full(size, -1, np.int32)
            found = (
                store.seen(clients)
                if full
                else store.candidates(clients, spec.candidates, spec.data_seed)
            )
            others[: len(clients), : found.shape[1]] = found
            target[: len(clients)] = held_out[clients]
            return clients, target, others

        with ThreadPoolExecutor(1) as thread:
            for clients, target, others in _one_ahead(
                thread, read, range(0, len(self._evaluated), size)
            ):
                rows = self.rows.take(clients, size, "clients")
                rows = jax.device_put(hosts.own(rows), here)
                found = self._programs.rank(server, rows, target, others, full)
                ranks[clients] = found[: len(clients)]
        self._book.evaluated(ranks)


def _one_ahead(
    thread: ThreadPoolExecutor, read: Callable[[int], Any], starts: range
) -> Iterator[Any]:
    """What is read from each start, the next one in a thread."""
    following = thread.submit(read, starts[0])
    for i in range(len(starts)):
        found = hosts.together(following.result)
        if i + 1 < len(starts):
            following = thread.submit(read, starts[i + 1])
        yield found


def _some(held_out: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Clients that are evaluated, ascending: so many of those that have an item, or all for 0."""
    if not n:
        return np.arange(len(held_out))
    there = np.flatnonzero(held_out >= 0)
    return np.sort(np.random.default_rng((seed, n)).choice(there, n, replace=False))
