"""The compiled programs of a group of runs, and what a process keeps of them for its next group."""

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedras_jax import assembly, cohort, flight, hosts, provenance, shards
from fedras_jax.data import Interactions, Split
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.types import Arguments, Array, FedState, InFlight, PyTree

# Rounds in one call of the compiled program, at most: long enough to hide dispatch, short enough
# for a progress bar that moves and for diagnostics that fit in memory.
SEGMENT = 25


def slots_of(size: int, mesh: Mesh | None) -> int:
    """Runs that a program for so many is made for: equally many for each device, or one for all."""
    n_devices = 1 if mesh is None or size == 1 else mesh.devices.size
    return size + -size % n_devices


class Programs:
    """The functions that runs of one program share, and the arrays that live on its devices.

    Runs have a leading axis in states, arguments and what comes of them, which may be longer than
    they are many: what comes out beyond them is of no use.

    Attributes:
      mesh: the devices; one device when None.
      data: the clients' histories.
      init: arguments -> states.
      advance: (arguments, states, data, rounds at most `SEGMENT`) -> states and diagnostics.
      rank: states and held-out items -> their ranks.
      finite: states -> whether tables and shared parameters are.
    """

    def __init__(
        self,
        spec: Spec,
        split: Split,
        size: int,
        *,
        mesh: Mesh | None = None,
        chunk: int | None = None,
        at_once: int | None = None,
        spread_items: bool = False,
    ) -> None:
        """For so many runs like a Spec; nothing is compiled yet.

        Args:
          spec, split: one of the runs, and the data.
          size: how many. One run's clients share the devices; several runs are dealt to them whole.
          mesh: the devices.
          chunk: clients run at once on a device; `cohort.round_chunk` when None.
          at_once: runs that are vmapped; by platform when None.
          spread_items: whether one run's tables are spread over the devices.

        Raises:
          SpecError: sizes that do not fit together, or nothing to evaluate.
        """
        over_clients, over_runs = (mesh, None) if size == 1 else (None, mesh)
        self.mesh = mesh
        # Devices that payloads in flight may lie on; another number may have made them.
        self._n_homes = 1 if over_clients is None else over_clients.devices.size
        self._slots = slots_of(size, mesh)
        self._n_clients, self._split = split.n_clients, split
        self._compiled = False
        parts: dict[str, Any] = {
            "chunk": chunk,
            "mesh": over_clients,
            "spread_items": spread_items,
        }
        model, plain, data = assembly.assemble(spec, split, **parts)
        ranks_of = assembly.ranking(split, model, None if spread_items else over_clients)

        def map_runs(run, runs, common=()):
            return cohort.map_runs(run, runs, common, at_once=at_once, mesh=over_runs)

        def algorithm(given):
            return assembly.assemble(spec, split, given=given, **parts)[1]

        def init(given):
            return map_runs(lambda given, _: algorithm(given).init(), given)

        def advance(given, state, data, limit):
            def one(run, common):
                given, state = run
                data, limit = common
                return simulate(algorithm(given), state, data, SEGMENT, limit=limit)

            return map_runs(one, (given, state), (data, limit))

        def rank(state, target):
            return map_runs(lambda run, _: ranks_of(*run), (state, target))

        def finite(state):
            def sound(state, _):
                kept = jax.tree.leaves((state.items, state.shared))
                return jnp.stack([jnp.isfinite(x).all() for x in kept]).all()

            return map_runs(sound, state)

        def gather(state):
            return map_runs(lambda state, _: plain.gather(state), state)

        everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._of_runs = everywhere
        if over_runs is not None:
            self._of_runs = NamedSharding(over_runs, PartitionSpec(cohort.AXIS))
        self._of_states: Any = self._of_runs
        shapes = jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], plain.init()))
        if over_clients is not None:
            self._of_states = shards.of_state(shapes, over_clients, spread=spread_items, lead=1)
        self.data = hosts.put(data, everywhere)
        compiled = functools.partial(jax.jit, out_shardings=self._of_runs)
        self.init = jax.jit(init, out_shardings=self._of_states)
        both = (self._of_states, self._of_runs)
        self.advance: Any = jax.jit(advance, donate_argnums=1, out_shardings=both)
        self.rank: Any = compiled(rank)
        self.finite: Any = compiled(finite)
        self._gather: Any = None
        if isinstance(shapes.flight, InFlight):
            self._gather = compiled(gather)

    def arguments(self, specs: Sequence[Spec]) -> Arguments:
        """The runs' numbers, on the devices where these run."""
        of_each = [assembly.arguments(spec, self._n_clients) for spec in specs]
        return hosts.put(self._stacked(of_each), self._of_runs)

    def held_out(self, specs: Sequence[Spec]) -> Array:
        """The items that the runs are evaluated on, on the devices where these run.

        Raises:
          SpecError: there is none for one of them.
        """
        of_each = [assembly.held_out(spec, self._split) for spec in specs]
        return hosts.put(self._stacked(of_each), self._of_runs)

    def states(self, of_each: Sequence[FedState]) -> FedState:
        """The runs' states, from host arrays, on the devices where these run."""
        of_each = [
            dataclasses.replace(state, flight=flight.scatter(state.flight, self._n_homes))
            if isinstance(state.flight, InFlight)
            else state
            for state in of_each
        ]
        return hosts.put(self._stacked(of_each), self._of_states)

    def gather(self, state: FedState) -> FedState:
        """The runs' states as one device would have them."""
        return state if self._gather is None else self._gather(state)

    def _stacked(self, trees: Sequence[PyTree]) -> PyTree:
        """Host arrays of every run with a leading axis; the last run fills slots that are left."""
        padded = [*trees, *[trees[-1]] * (self._slots - len(trees))]
        return jax.tree.map(lambda *x: np.stack(x), *padded)

    def compile(self, given: Arguments, state: FedState, target: Array) -> float:
        """Compile what a run needs, once; returns seconds."""
        started = time.perf_counter()
        if not self._compiled:
            self.advance = self.advance.lower(given, state, self.data, SEGMENT).compile()
            self.rank = self.rank.lower(state, target).compile()
            self.finite = self.finite.lower(state).compile()
            self._compiled = True
        return time.perf_counter() - started


def _same(one: Split, other: Split) -> bool:
    fields = (field.name for field in dataclasses.fields(Split))
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


class Kept:
    """The last data and the last programs of a process, for its next group."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._split: tuple[Any, Interactions | None, Split] | None = None
        self._programs: tuple[Any, Programs] | None = None
        self._data: dict[str, provenance.Data] = {}

    def split(
        self, spec: Spec, data_dir: str | os.PathLike | None, interactions: Interactions | None
    ) -> Split:
        """The data of a Spec: the last one's, and so its programs, where it is the same."""
        key = (assembly.data_key(spec), data_dir)
        last = self._split
        if last is None or last[0] != key or last[1] is not interactions:
            found = assembly.split_of(spec, data_dir=data_dir, interactions=interactions)
            if last is not None and _same(last[2], found):
                found = last[2]
            last = self._split = (key, interactions, found)
        return last[2]

    def data(
        self,
        spec: Spec,
        data_dir: str | os.PathLike | None,
        interactions: Interactions | None = None,
    ) -> provenance.Data:
        """Digests of a Spec's data, which is loaded for them once."""
        if interactions is not None:
            return provenance.of_split(spec, self.split(spec, data_dir, interactions))
        about = (assembly.data_key(spec), spec.profile, dict(spec.profile_args), str(data_dir))
        key = repr(about)
        if key not in self._data:
            self._data[key] = provenance.of_split(spec, self.split(spec, data_dir, None))
        return self._data[key]

    def programs(self, spec: Spec, split: Split, size: int, **how: Any) -> Programs:
        """Programs for so many runs like a Spec, with the further arguments of `Programs`."""
        key = (assembly.program(spec), id(split), slots_of(size, how.get("mesh")), how)
        if self._programs is None or self._programs[0] != key:
            self._programs = None  # frees what the last ones hold
            self._programs = (key, Programs(spec, split, size, **how))
        return self._programs[1]
