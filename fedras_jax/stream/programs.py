"""The compiled functions of a streamed run: one advances any segment."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from fedras_jax import assembly, bits, evaluate, hosts, rng, shards
from fedras_jax.data import Split
from fedras_jax.data.store import Store
from fedras_jax.simulate import simulate
from fedras_jax.spec import Spec
from fedras_jax.stream.budget import Plan
from fedras_jax.stream.first import rows_from
from fedras_jax.stream.private import BLOCK
from fedras_jax.stream.segments import Segment
from fedras_jax.types import Array, Cohort, FedState, PyTree, RoundInfo


def split_of(store: Store) -> Split:
    """What `assembly` must know of a store's data: all but the interactions."""
    return Split(
        name=store.name,
        n_clients=store.n_clients,
        n_items=store.n_items,
        offsets=store.offsets,
        items=np.zeros(0, np.int32),
        valid=store.valid,
        test=store.test,
        candidates=None,
        n_not_evaluated=int(np.count_nonzero(store.test < 0)),
    )


def server_of(state: FedState) -> FedState:
    """A state without what is the clients', which has a leading axis U, and between two rounds.

    Then nothing is in flight: who is still at work cannot be streamed.
    """
    empty: Any = ()
    return dataclasses.replace(
        state, clients=(), codec=(), last_sync=empty, owed=empty, flight=empty
    )


def rows_of(state: FedState) -> dict[str, PyTree]:
    """What is the clients': a row for each."""
    return {"clients": state.clients, "codec": state.codec, "last_sync": state.last_sync}


def whole(server: FedState, rows: PyTree, owed: PyTree) -> FedState:
    """The state that these are the parts of; `owed` by the round whose table a client holds."""
    return dataclasses.replace(server, **rows, owed=owed[rows["last_sync"]])


def since(owed: Array, published: Array, first: Array, n: Array, whole: float) -> Array:
    """What clients owe after some rounds, by the round whose public table they hold.

    Args:
      owed: f32[R], before; entry s is of those that hold the table of round s.
      published: f32[S] bits of each round.
      first, n: i32[], the first round, and how many there are.
      whole: bits of the whole table, of which nobody owes more.
    """

    def one(i, owed):
        more = jnp.minimum(owed + published[i], whole)
        return jnp.where(jnp.arange(owed.shape[0]) <= first + i, more, owed)

    return jax.lax.fori_loop(0, n, one, owed)


class Programs:
    """The functions of a run.

    Attributes:
      sharding: of what goes to the devices.
      server_sharding: of the server's state, leaf by leaf.
      compile_s: seconds that `advance` has taken to compile.
    """

    def __init__(
        self,
        spec: Spec,
        split: Split,
        plan: Plan,
        *,
        mesh: Mesh | None,
        chunk: int | None,
        spread_items: bool = False,
    ) -> None:
        """Nothing is compiled yet.

        Args:
          spec, split: the experiment, and what is to know of its data.
          plan: sizes.
          mesh: devices that share a cohort; one when None.
          chunk: clients run at once on a device; `cohort.round_chunk` when None.
          spread_items: whether item tables are spread over the devices.
        """
        self._rounds, self._plan = spec.rounds, plan
        self.sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self.compile_s = 0.0
        given = assembly.arguments(spec, split.n_clients)
        # Beside the others, so that cohorts are drawn while these are busy.
        self._home = jax.device_put(given, jax.local_devices()[0])
        # A cohort brings its devices along.
        self._given = hosts.put(dataclasses.replace(given, profile=None), self.sharding)
        self._advance: Any = None
        model, whole_algorithm, _ = assembly.assemble(spec, split)
        self._snapshot_bits = float(whole_algorithm.snapshot_bits)

        parts: dict[str, Any] = {"chunk": chunk, "mesh": mesh, "spread_items": spread_items}

        def algorithm(given):
            return assembly.assemble(spec, split, given=given, **parts)[1]

        def draw(given, first):
            one = assembly.assemble(spec, split, given=given)[1].draw
            assert one is not None
            return jax.lax.map(one, first + jnp.arange(plan.rounds, dtype=jnp.int32))

        def begin(given):
            return server_of(algorithm(given).init())

        def first_rows(given, first):
            key = rng.address(given.seed, rng.Stream.INIT)
            n = min(BLOCK, split.n_clients)
            private = model.init(rows_from(key, first), n, whole_algorithm.sizes)[0]
            state = algorithm(dataclasses.replace(given, profile=None)).init().codec
            codec = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (n, *x.shape[1:])), state)
            return {"clients": private, "codec": codec, "last_sync": jnp.zeros(n, jnp.int32)}

        def advance(given, server, rows, owed, data, cohorts, limit):
            algorithm_ = algorithm(given)
            first = server.round
            start = whole(server, rows, owed)
            start = dataclasses.replace(start, flight=algorithm_.init().flight)
            state, info = simulate(
                algorithm_,
                start,
                data,
                plan.rounds,
                limit=limit,
                cohorts=cohorts,
            )
            # As in a round: where nothing counted nothing was published.
            counted = (info.arrived.weight > 0).any(axis=1)
            sizes = bits.float_bits(algorithm_.down_fields, info.counts_down)
            published = jnp.where(counted, sizes, 0)
            owed = since(owed, published, first, limit, self._snapshot_bits)
            kept = jax.tree.leaves((state.items, state.shared))
            finite = jnp.stack([jnp.isfinite(x).all() for x in kept]).all()
            return server_of(state), rows_of(state), owed, info, finite

        self._draw = jax.jit(draw)
        self.server_sharding: Any = None
        if mesh is not None:
            shapes = jax.eval_shape(begin, self._given)
            self.server_sharding = shards.of_state(shapes, mesh, spread=spread_items)
        self._begin = jax.jit(begin, out_shardings=self.server_sharding)
        self._first_rows = jax.jit(first_rows)
        self._to_compile = jax.jit(
            advance,
            donate_argnums=(1, 2, 3),
            out_shardings=(self.server_sharding, *[self.sharding] * 4),
        )

        # What several processes have brought, on all devices.
        whole_items = jax.jit(lambda item: item[: plan.items], out_shardings=self.sharding)
        self._whole: Any = whole_items if hosts.count() > 1 else lambda item: item

        def rank(public, shared, private, target, others, full):
            ranks = evaluate.full_ranks if full else evaluate.sampled_ranks
            return ranks(model, public, shared, private, target, others)

        self._spread = spread_items and mesh is not None

        self._rank = jax.jit(rank, static_argnames="full")

    def begin(self) -> FedState:
        """The server's first state."""
        return self._begin(self._given)

    def owed(self) -> Array:
        """What clients owe at first, by the round whose public table they hold."""
        return hosts.put(np.zeros(self._rounds + 1, np.float32), self.sharding)

    def first_rows(self, first: int) -> PyTree:
        """The first rows of `BLOCK` clients from one on, on the host."""
        return jax.tree.map(np.asarray, self._first_rows(self._home, np.int32(first)))

    def draw(self, first: int) -> Cohort:
        """The cohorts of a segment's rounds."""
        return self._draw(self._home, np.int32(first))

    def advance(
        self, server: FedState, rows: PyTree, owed: Array, segment: Segment
    ) -> tuple[FedState, PyTree, Array, RoundInfo, Array]:
        """A segment's rounds; the first three are donated."""
        limit = hosts.put(np.int32(segment.rounds), self.sharding)
        data = dataclasses.replace(segment.data, item=self._whole(segment.data.item))
        args = (self._given, server, rows, owed, data, segment.cohorts, limit)
        if self._advance is None:
            began = time.perf_counter()
            # All begin it together, because a collective's first use waits for nobody for long.
            self._advance = hosts.together(lambda: self._to_compile.lower(*args).compile())
            self.compile_s = time.perf_counter() - began
        return self._advance(*args)

    def to_rank(self, server: FedState) -> tuple[tuple[Array, PyTree], Sharding]:
        """What ranks are computed from, and where: on one device, or where tables are spread."""
        read = (server.public, server.shared)
        if self._spread:
            assert self.sharding is not None
            return read, self.sharding
        here = SingleDeviceSharding(jax.local_devices()[0])
        return jax.device_put(hosts.own(read), here), here

    def rank(
        self,
        server: tuple[Array, PyTree],
        private: PyTree,
        target: np.ndarray,
        others: np.ndarray,
        full: bool,
    ) -> np.ndarray:
        """Ranks of some clients' held-out items, as in `evaluate`."""
        return np.asarray(self._rank(*server, private, target, others, full))
