"""One round of federated training, from its parts.

    1 train + prepare    examples -> local training -> transforms -> what a budget may look at
    2 allocate           the client's budget
    3 encode             a payload
    4 arrive             the client's clock, and what the server's policy makes of it
    5 decode + reduce    into one change of the table, and the server's step
    6 publish            the server's change, through a codec of its own, into the public table

What one client does of it is `client_round`; who takes part, `turnout`; how a cohort is gone
through until the server has a sum, `passes`; what becomes of that sum, `server` and `publish`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedras_jax import (
    agreement,
    arrivals,
    bits,
    budgets,
    client_round,
    cohort,
    examples,
    flight,
    network,
    passes,
    publish,
    reducers,
    rng,
    server,
    shards,
    turnout,
)
from fedras_jax.client_round import Own, Told
from fedras_jax.errors import SpecError
from fedras_jax.types import (
    Algorithm,
    Array,
    Arrival,
    Budget,
    Codec,
    Cohort,
    FedState,
    Field,
    Histories,
    LocalTraining,
    Profile,
    RecModel,
    Reducer,
    RoundInfo,
    Sampler,
    Sizes,
    Tally,
    Trace,
    Transform,
)


def federated(
    *,
    model: RecModel,
    n_clients: int,
    n_items: int,
    history_lengths: np.ndarray,
    training: LocalTraining,
    codec: Codec,
    sampler: Sampler,
    seed: int | Array = 0,
    negatives: int = 4,
    budget: Budget | None = None,
    transforms: Sequence[Transform] = (),
    profile: Profile | Trace | None = None,
    arrival: Arrival | None = None,
    encode_work: float | Array = network.ENCODE_WORK,
    flight_gib: float = 4.0,
    reducer: Reducer | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    downlink: Codec | None = None,
    snapshot: Codec | None = None,
    downlink_trend: float = 0.0,
    downlink_feedback: bool = True,
    n_widths: int | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    spread_items: bool = False,
) -> Algorithm:
    """Federated training as a pair of pure functions, init and step.

    Nothing in here is compiled: wrap `step`, or a scan of it, in `jax.jit`. Seed, learning rates
    and every other float may be tracers, so the result can be mapped over them.

    Args:
      model: what is trained.
      n_clients, n_items: U and M.
      history_lengths: integer [U], training items of each client (a host array: it fixes the
        static widths that clients are padded to).
      training: a client's local training, from `factored.factored` or `client.autodiff`.
      codec: from an item delta to a payload.
      sampler: who takes part.
      seed: addresses all randomness.
      negatives: drawn negatives per training item.
      budget: actions per client; the codec's maximum for everyone when None.
      transforms: applied in order to every update before the codec.
      profile: the clients' devices and networks, one entry each (`profiles`), or as they change
        over time (`traces`); None: no time passes, everyone is there and nobody fails.
      arrival: when a round ends, and whose payload counts; the server waits for everyone when None.
      encode_work: examples whose training takes as long as encoding a row with one action.
      flight_gib: memory that payloads in flight may take on a device, where the arrival policy has
        any.
      reducer: from decoded deltas to one change; the mean over those that touched an item when
        None.
      server_optimizer: fed the negated mean change; `optax.sgd(1.0)`, which adds the change, when
        None.
      downlink: codec of the server's change; None: the whole table in float32. Clients hold the
        public table, the sum of what was sent; what a codec loses stays in the server's own table
        and is sent later (error feedback).
      snapshot: codec whose form the public table has, so that clients can fetch it whole in that
        form, `codecs.grid`; None: float32. Rounding to it is part of the feedback as well.
      downlink_trend: share of what the server sends that clients add to what they change by
        themselves in each round from then on; 0 for none.
      downlink_feedback: whether the server keeps a table of its own, for what the downlink loses;
        if not it goes on from the public one.
      n_widths: how many widths clients are padded to; by the number of examples when None, see
        `cohort.plan_widths`.
      chunk: clients run at once on a device; `cohort.round_chunk` when None.
      mesh: devices to share a cohort, from `cohort.client_mesh`; one device when None.
      spread_items: whether item tables are spread over the mesh as well, their rows dealt to its
        devices in blocks, for tables that one device cannot hold (`shards`).

    Raises:
      SpecError: sizes that do not fit together.
    """
    agreement.parts(
        model=(model, RecModel),
        codec=(codec, Codec),
        sampler=(sampler, Sampler),
        budget=(budget, Budget),
        arrival=(arrival, Arrival),
        reducer=(reducer, Reducer),
    )
    sizes = Sizes(n_items, model.dim)
    lengths = agreement.histories(history_lengths, n_clients, n_items)
    if not 0 <= negatives < 2**31 // max(int(lengths.max()), 1) - 1:
        raise SpecError(
            f"negatives must be 0 or more, and fewer than 2**31 for a client's {lengths.max()} "
            f"training items, not {negatives} an item"
        )
    if sampler.capacity > n_clients:
        raise SpecError(f"a cohort of {sampler.capacity} slots, but only {n_clients} clients")
    if chunk is not None and chunk < 1:
        raise SpecError(f"chunk must be at least 1, not {chunk}")
    budget = budget or budgets.fixed()
    agreement.actions(budget, codec)
    arrival = arrival or arrivals.synchronous()
    reducer = reducer or reducers.touched_mean()
    optimizer = server_optimizer or optax.sgd(1.0)
    fields = codec.fields(sizes)  # refuses settings that do not fit M and D
    agreement.declaration(codec, sizes)
    publishing = publish.publisher(downlink, snapshot, sizes, seed, downlink_trend)
    over_mesh = mesh if spread_items else None
    tables = shards.whole(sizes) if over_mesh is None else shards.spread(over_mesh, sizes)
    n_examples = examples.count(lengths, n_items, negatives)
    widths = cohort.plan_widths(n_examples, n_widths)
    devices: Any = network.ideal(n_clients)
    if profile is not None:
        devices = agreement.profile(profile, n_clients)
    clients = None if profile is None else jax.tree.map(jnp.asarray, devices)
    agreement.policies(budget, arrival, sampler.capacity, devices, n_examples, codec, sizes)
    # What the model looks like, without building it: for sizes that must be known statically.
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), n_clients, sizes))
    n_shared = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes[2]))
    all_fields = (*fields, Field("shared", 32))

    turn = turnout.turnout(clients, sampler, n_examples, seed)
    own_round = client_round.client_round(
        sizes=sizes,
        codec=codec,
        fields=all_fields,
        n_shared=n_shared,
        training=training,
        transforms=transforms,
        budget=budget,
        negatives=negatives,
        encode_work=encode_work,
    )

    def fresh() -> FedState:
        """The first state, nothing in flight."""
        private, items, shared = model.init(rng.address(seed, rng.Stream.INIT), n_clients, sizes)
        of_codec = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n_clients, *jnp.shape(x))), codec.init(sizes)
        )
        public, velocity = publishing.start(items)
        moments = optimizer.init((items, shared))
        items, public, velocity, moments = tables.pin((items, public, velocity, moments))
        return FedState(
            round=jnp.int32(0),
            items=items,
            public=jnp.array(public, copy=True),  # buffers of its own, for donation
            velocity=velocity,
            last_sync=jnp.zeros(n_clients, jnp.int32),
            owed=jnp.zeros(n_clients),
            shared=shared,
            clients=private,
            codec=of_codec,
            server=moments,
            budget=budget.init(),
            flight=(),
            clock=turn.begin(),
        )

    def reads(state: FedState, data: Histories) -> Told:
        key = rng.address(seed, rng.Stream.SHARED, state.round)
        return Told(state.round, state.public, state.shared, data, key, state.budget)

    def brings(state: FedState, members: Cohort) -> Own:
        """What clients of a cohort bring, slots and devices filled in.

        What is drawn for them is drawn together, before they are dealt to chunks: deriving keys is
        many small operations.
        """
        of = functools.partial(client_round.lot, seed, state.round)
        lots = cohort.map_at_once(of, members.client, members.device)
        kept = (state.clients, state.codec, state.owed)
        return Own(members, lots, *jax.tree.map(lambda x: x[members.slot], kept))

    def anyone() -> tuple[Told, Own]:
        state = fresh()
        data = Histories(
            jnp.zeros(n_clients + 1, jnp.int32), jnp.zeros(int(lengths.sum()), jnp.int32)
        )
        ones, first = jnp.ones(1), jnp.zeros(1, jnp.int32)
        members = Cohort(first, ones > 0, ones, ones, first)
        own = brings(state, turn.place(members, turn.now(state.clock)))
        return reads(state, data), jax.tree.map(lambda x: x[0], own)

    through = passes.passes(
        own_round=own_round,
        anyone=anyone,
        sizes=sizes,
        tables=tables,
        codec=codec,
        reducer=reducer,
        arrival=arrival,
        capacity=sampler.capacity,
        seed=seed,
        widths=widths,
        chunk=chunk or cohort.round_chunk(widths, sizes.dim),
        mesh=mesh,
        flight_gib=flight_gib,
    )
    serve = server.server(reducer, optimizer, publishing, tables, feedback=downlink_feedback)

    def init() -> FedState:
        state = fresh()
        return dataclasses.replace(state, flight=through.begin(state.shared))

    def gather(state: FedState) -> FedState:
        return dataclasses.replace(state, flight=through.gather(state.flight))

    def step(
        state: FedState, data: Histories, members: Cohort | None = None
    ) -> tuple[FedState, RoundInfo]:
        here = turn.now(state.clock)
        free = flight.at_leisure(state.flight, n_clients) if arrival.in_flight else None
        if members is None:
            members = turn.draw(state.round, here, free)
        members = turn.place(members, here)
        who, mask, slot, n_slots = members.client, members.mask, members.slot, state.owed.shape[0]
        assert slot is not None
        history = data.offset[slot + 1] - data.offset[slot]
        length = jnp.where(mask, examples.count(history, n_items, negatives), 0)
        ran = length > 0

        came = through.run(state.flight, reads(state, data), brings(state, members), length)
        info, settled = came.info, came.settled
        seconds = turn.lasting(settled.seconds, state.clock, here, free)
        after, published = serve(state, came.total)

        # Only clients that were run have something new to keep; others' slots lead nowhere.
        private, of_codec = jax.tree.map(
            lambda old, new: old.at[jnp.where(ran, slot, n_slots)].set(new, mode="drop"),
            (state.clients, state.codec),
            (came.private, came.codec),
        )
        holds = jnp.where(mask & (info["outcome"].share_down >= 1), slot, n_slots)
        owed = state.owed.at[holds].set(0, mode="drop") + published.bits
        tally = Tally(
            round=state.round,
            bits=_mean(bits.float_bits(all_fields, info["counts_up"]), ran),
            seconds=settled.seconds,
            clients=settled.taken.sum().astype(jnp.float32),
            report=_mean(info.pop("report"), settled.taken),
            deadline=jnp.float32(jnp.inf if arrival.deadline is None else arrival.deadline),
        )
        told = RoundInfo(
            client=who,
            mask=mask,
            role=members.role,
            synced=jnp.where(mask, state.last_sync[slot], state.round),
            counts_down=published.counts,
            arrived=came.arrived,
            seconds=seconds,
            spent=came.spent,
            **info,
        )
        after = dataclasses.replace(
            after,
            round=state.round + 1,
            last_sync=state.last_sync.at[holds].set(state.round, mode="drop"),
            owed=jnp.minimum(owed, jnp.float32(publishing.snapshot_bits)),
            clients=private,
            codec=of_codec,
            budget=budget.update(state.budget, tally),
            flight=through.land(came.flight, seconds, settled.kept),
            clock=turn.later(state.clock, seconds),
        )
        return after, told

    return Algorithm(
        init=init,
        step=step,
        sizes=sizes,
        fields=all_fields,
        n_shared=n_shared,
        down_fields=publishing.fields,
        snapshot_bits=publishing.snapshot_bits,
        draw=None if arrival.in_flight else turn.known,
        gather=gather,
    )


def _mean(x: Array, where: Array) -> Array:
    """Mean of the entries that are meant, 0 of none."""
    return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(where.sum(), 1)
