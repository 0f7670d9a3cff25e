"""One round of federated training, from its parts.

    1 train + prepare    examples -> local training -> transforms -> what a budget may look at
    2 allocate           the client's budget
    3 encode             a payload
    4 arrive             the client's clock, and what the server's policy makes of it
    5 decode + reduce    into one change of the table, and the server's step
    6 publish            the server's change, through a codec of its own, into the public table

Budgets are local and reducers add. Where an arrival policy is local too, 1 to 5 are one pass over
chunks of clients, and item deltas and payloads exist for one chunk at a time. Where it must see
several payloads before it knows which of them count, 1 to 3 are one pass, payloads wait in flight,
and 5 is a second pass over those that were taken.
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
    publish,
    reducers,
    rng,
    shards,
    traces,
)
from fedras_jax.client_round import Own, Told
from fedras_jax.errors import SpecError
from fedras_jax.types import (
    Algorithm,
    Array,
    Arrival,
    Arrived,
    Budget,
    Codec,
    Cohort,
    Context,
    Decoded,
    FedState,
    Field,
    Histories,
    InFlight,
    LocalTraining,
    Outcome,
    Payload,
    Profile,
    PyTree,
    RecModel,
    Reducer,
    RoundInfo,
    Sampler,
    Settled,
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
      chunk: clients run at once on a device; by platform when None.
      mesh: devices to share a cohort, from `cohort.client_mesh`; one device when None.
      spread_items: whether item tables are spread over the mesh as well, their rows dealt to its
        devices in blocks, for tables that one device cannot hold (`shards`).

    Raises:
      SpecError: sizes that do not fit together.
    """
    sizes = Sizes(n_items, model.dim)
    lengths = agreement.histories(history_lengths, n_clients, n_items)
    if negatives < 0:
        raise SpecError(f"negatives must not be negative, not {negatives}")
    if sampler.capacity > n_clients:
        raise SpecError(f"a cohort of {sampler.capacity} slots, but only {n_clients} clients")
    if chunk is not None and chunk < 1:
        raise SpecError(f"chunk must be at least 1, not {chunk}")
    budget = budget or budgets.fixed()
    agreement.actions(budget, codec)
    arrival = arrival or arrivals.synchronous()
    reducer = reducer or reducers.touched_mean()
    server = server_optimizer or optax.sgd(1.0)
    fields = codec.fields(sizes)  # refuses settings that do not fit M and D
    publishing = publish.publisher(downlink, snapshot, sizes, seed, downlink_trend)
    over_mesh = mesh if spread_items else None
    tables = shards.whole(sizes) if over_mesh is None else shards.spread(over_mesh, sizes)
    n_examples = examples.count(lengths, n_items, negatives)
    widths = cohort.plan_widths(n_examples, n_widths)
    chunk = chunk or cohort.round_chunk(widths)
    n_devices = 1 if mesh is None else mesh.devices.size
    devices: Any = network.ideal(n_clients)
    if profile is not None:
        devices = agreement.profile(profile, n_clients)
    clients = None if profile is None else jax.tree.map(jnp.asarray, devices)
    agreement.policies(budget, arrival, sampler.capacity, devices, n_examples, codec, sizes)
    n_flying = 0 if arrival.alone else arrival.in_flight or sampler.capacity

    # What the model looks like, without building it: for sizes that must be known statically.
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), n_clients, sizes))
    n_shared = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes[2]))
    all_fields = (*fields, Field("shared", 32))
    whole_table = jnp.float32(publishing.snapshot_bits)

    def init() -> FedState:
        state = fresh()
        if not n_flying:
            return state
        slots = flight.empty(n_flying, payload_shapes(), state.shared, flight_gib, n_devices)
        return dataclasses.replace(state, flight=flight.pin(slots, mesh))

    def gather(state: FedState) -> FedState:
        if not n_flying:
            return state
        of_all = flight.gather(state.flight, payload_shapes(), n_items)
        return dataclasses.replace(state, flight=of_all)

    def fresh() -> FedState:
        """The first state, nothing in flight."""
        private, items, shared = model.init(rng.address(seed, rng.Stream.INIT), n_clients, sizes)
        state = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (n_clients, *jnp.shape(x))), codec.init(sizes)
        )
        public, velocity = publishing.start(items)
        server_state = server.init((items, shared))
        items, public, velocity, server_state = tables.pin((items, public, velocity, server_state))
        return FedState(
            round=jnp.int32(0),
            items=items,
            public=jnp.array(public, copy=True),  # buffers of its own, for donation
            velocity=velocity,
            last_sync=jnp.zeros(n_clients, jnp.int32),
            owed=jnp.zeros(n_clients),
            shared=shared,
            clients=private,
            codec=state,
            server=server_state,
            budget=budget.init(),
            flight=(),
            clock=traces.begin() if isinstance(clients, Trace) else (),
        )

    def devices_at(clock):
        """What clients are like, leading axis U; None where no time passes."""
        return traces.now(clients, clock) if isinstance(clients, Trace) else clients

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

    def at_once(width, told, own):
        """All of a client's round, where arrival is its own business."""
        (payload, update, info), keeps = own_round.run(width, told, own, tables.look_up)
        decoded, distortion = own_round.judge(told.key, payload, update)
        assert arrival.alone is not None
        came = arrival.alone(info["outcome"].seconds, info["outcome"].finished)
        info |= {"distortion": distortion, "weight": info["weight"] * came}
        return _counting(decoded, update.shared, info["weight"]), (*keeps, info)

    def departing(width, told, inputs):
        """A client's round until its payload is on its way."""
        own, row = inputs
        (payload, update, info), keeps = own_round.run(width, told, own, tables.look_up)
        info |= {"distortion": own_round.judge(told.key, payload, update)[1]}
        return (row, (payload.data, update.shared)), (*keeps, info, jnp.int32(width))

    def arriving(width, held, inputs):
        """The rest of it, when it is there."""
        del width, held
        (data, change), round_, weight = inputs
        round_key = rng.address(seed, rng.Stream.SHARED, round_)
        decoded = codec.decode(Context(sizes, round_key), Payload(data, counts=jnp.zeros(())))
        return _counting(decoded, change, weight), ()

    def unload(shapes, width, held, inputs):
        """What `arriving` sees of a chunk of payloads."""
        row, made, *known = inputs
        return flight.take(held, row, made, width, shapes, n_items), *known

    def add(acc, sent):
        items, shared, total = acc
        decoded, change, weight = sent
        shared = jax.tree.map(lambda a, x: a + jnp.tensordot(weight, x, 1), shared, change)
        items = reducer.add(items, *tables.gather(decoded, weight))
        return items, shared, total + weight.sum()

    @functools.cache  # shapes alone, so nothing of a trace is kept
    def payload_shapes():
        """Shapes of a payload's leaves at every width."""

        def made(width):
            state = fresh()
            data = Histories(
                jnp.zeros(n_clients + 1, jnp.int32), jnp.zeros(int(lengths.sum()), jnp.int32)
            )
            ones = jnp.ones(1)
            first = jnp.zeros(1, jnp.int32)
            members = placed(
                Cohort(first, ones > 0, ones, ones, jnp.int32(ones)), devices_at(state.clock)
            )
            key = rng.address(seed, rng.Stream.SHARED, 0)
            told = Told(state.round, state.public, state.shared, data, key, state.budget)
            own = Own(members, lots(state.round, members), state.clients, state.codec, state.owed)
            one = jax.tree.map(lambda x: x[0], own)
            look_up = shards.whole(sizes).look_up  # outside of a fold there are no devices
            return own_round.run(width, told, one, look_up)[0].payload.data

        return {width: jax.eval_shape(functools.partial(made, width)) for width in widths}

    def draw(round_, free=None, here=clients):
        """The cohort of a round, out of those that are there and free: bool[U], None for all."""
        there = free
        if profile is not None:
            there = network.available(seed, round_, here)
            there = there if free is None else there & free
        if sampler.period == 1:
            return sampler.sample(rng.address(seed, rng.Stream.COHORT, round_), there)
        turn, place = jnp.divmod(round_, sampler.period)
        return sampler.sample(rng.address(seed, rng.Stream.COHORT, turn), there, place)

    def lasting(seconds, here, at_hand, clock):
        """How long a round takes in which the server may have to wait for somebody to be there.

        Who is there for a part of the time will be there in some later round.
        """
        if not isinstance(clients, Trace):
            return seconds
        trained = n_examples > 0
        there = (here.availability > 0) & trained
        there = there if at_hand is None else there & at_hand
        idle = ~there.any() & (seconds == 0)
        return jnp.where(idle, traces.until_somebody(clients, clock, trained), seconds)

    def free(state):
        """Those that are not at work, bool[U]; None where nobody is between rounds."""
        if not arrival.in_flight:
            return None
        at_work = jnp.where(state.flight.present, state.flight.client, n_clients)
        return jnp.ones(n_clients, bool).at[at_work].set(False, mode="drop")

    def placed(members, here):
        """A cohort with its slots, and devices where there are any: else no time passes."""
        if members.slot is None:
            members = dataclasses.replace(members, slot=members.client)
        if members.device is None and profile is not None:
            found = jax.tree.map(lambda x: x[members.client], here)
            members = dataclasses.replace(members, device=found)
        return members

    def lots(round_, members):
        """What is drawn for each client of a cohort: keys, speeds, and whether it fails.

        Together, before clients are dealt to chunks: deriving keys is many small operations.
        """
        of = functools.partial(client_round.lot, seed, round_)
        return cohort.map_at_once(of, members.client, members.device)

    def step(
        state: FedState, data: Histories, members: Cohort | None = None
    ) -> tuple[FedState, RoundInfo]:
        here, at_hand = devices_at(state.clock), free(state)
        if members is None:
            members = draw(state.round, at_hand, here)
        members = placed(members, here)
        who, slot, n_slots = members.client, members.slot, state.owed.shape[0]
        assert slot is not None
        round_key = rng.address(seed, rng.Stream.SHARED, state.round)
        history = data.offset[slot + 1] - data.offset[slot]
        length = jnp.where(members.mask, examples.count(history, n_items, negatives), 0)
        ran = length > 0
        private, codec_state, owed = jax.tree.map(
            lambda x: x[slot], (state.clients, state.codec, state.owed)
        )
        told = Told(state.round, state.public, state.shared, data, round_key, state.budget)
        own = Own(members, lots(state.round, members), private, codec_state, owed)
        none_shared = jax.tree.map(jnp.zeros_like, state.shared)
        zero = (reducer.zero(tables.sizes), none_shared, jnp.zeros(()))
        whole: Any = shards.WHOLE
        rows: Any = tables.rows
        reads = Told(whole, rows, whole, whole, whole, whole)

        fold = functools.partial(cohort.fold_clients, widths=widths, chunk=chunk, mesh=mesh)
        if not n_flying:
            acc, (private, codec_state, info) = fold(
                at_once, add, zero, told, own, length, layout=tables.layout(reads, zero)
            )
            outcome = _of_those_who_ran(info["outcome"], ran)
            settled = arrival.settle(outcome.seconds, ran, outcome.finished, who.shape[0])
            arrived = Arrived(who, info["weight"], jnp.zeros_like(who))
            spent = _spent(settled, outcome.seconds, outcome.phases, ran)
            in_flight: Any = ()
            reports = info["report"]
        else:
            slot_of = flight.berths(state.flight.present, ran)
            (data_held, shared_held), (private, codec_state, info, width) = fold(
                departing,
                flight.put,
                (state.flight.data, state.flight.shared),
                told,
                (own, jnp.where(ran, slot_of + 1, 0)),
                length,
                layout=tables.layout(reads, ())._replace(
                    zero=flight.OWN, acc=flight.OWN, merge=lambda held: held
                ),
            )
            outcome = _of_those_who_ran(info["outcome"], ran)
            in_flight = flight.launch(
                state.flight,
                slot_of,
                InFlight(
                    client=who,
                    round=jnp.full_like(who, state.round),
                    width=width,
                    home=cohort.homes(length, mesh),
                    seconds=outcome.seconds,
                    phases=outcome.phases,
                    present=ran,
                    finished=outcome.finished,
                    weight=info["weight"],
                    report=info["report"],
                    data=data_held,
                    shared=shared_held,
                ),
            )
            settled = arrival.settle(
                in_flight.seconds, in_flight.present, in_flight.finished, sampler.capacity
            )
            staleness = state.round - in_flight.round
            factor = 1.0 if arrival.weigh is None else arrival.weigh(staleness)
            weight = jnp.where(settled.taken, in_flight.weight * factor, 0)
            acc, _ = fold(
                arriving,
                add,
                zero,
                (data_held, shared_held),
                (1 + jnp.arange(n_flying), in_flight.width, in_flight.round, weight),
                jnp.where(settled.taken, in_flight.width, 0),
                layout=tables.layout(flight.OWN, zero),
                home=in_flight.home,
                load=functools.partial(unload, payload_shapes()),
                chunk=flight.read_at_once(chunk),
            )
            info["weight"] = weight.at[slot_of].get(mode="fill", fill_value=0)
            arrived = Arrived(in_flight.client, weight, staleness)
            spent = _spent(settled, in_flight.seconds, in_flight.phases, in_flight.present)
            reports = in_flight.report

        seconds = lasting(settled.seconds, here, at_hand, state.clock)
        if n_flying:
            in_flight = flight.pin(flight.land(in_flight, seconds, settled.kept), mesh)
        acc, shared, total = acc
        change = (
            reducer.finish(acc),
            jax.tree.map(lambda x: x / jnp.where(total > 0, total, 1), shared),
        )
        params = (state.items, state.shared)
        updates, server_state = server.update(
            jax.tree.map(jnp.negative, change), state.server, params
        )
        # A round in which nothing arrives changes nothing, not even a momentum.
        (items, shared), server_state = jax.tree.map(
            lambda new, old: jnp.where(total > 0, new, old),
            (optax.apply_updates(params, updates), server_state),
            (params, state.server),
        )

        # Only clients that were run have something new to keep; others' slots lead nowhere.
        kept = jax.tree.map(
            lambda old, new: old.at[jnp.where(ran, slot, n_slots)].set(new, mode="drop"),
            (state.clients, state.codec),
            (private, codec_state),
        )
        public, velocity, counts_down = publishing.step(
            state.round, state.public, state.velocity, items, total > 0
        )
        if not downlink_feedback:
            items = public
        holds = jnp.where(members.mask & (outcome.share_down >= 1), slot, n_slots)
        published = jnp.where(total > 0, bits.float_bits(publishing.fields, counts_down), 0)
        owed = jnp.minimum(state.owed.at[holds].set(0, mode="drop") + published, whole_table)
        sizes_up = bits.float_bits(all_fields, info["counts_up"])
        tally = Tally(
            round=state.round,
            bits=_mean(sizes_up, ran),
            seconds=settled.seconds,
            clients=settled.taken.sum().astype(jnp.float32),
            report=_mean(reports, settled.taken),
            deadline=jnp.float32(jnp.inf if arrival.deadline is None else arrival.deadline),
        )
        synced = jnp.where(members.mask, state.last_sync[slot], state.round)
        items, public, velocity, server_state = tables.pin((items, public, velocity, server_state))
        state = FedState(
            round=state.round + 1,
            items=items,
            public=public,
            velocity=velocity,
            last_sync=state.last_sync.at[holds].set(state.round, mode="drop"),
            owed=owed,
            shared=shared,
            clients=kept[0],
            codec=kept[1],
            server=server_state,
            budget=budget.update(state.budget, tally),
            flight=in_flight,
            clock=traces.later(state.clock, seconds) if isinstance(clients, Trace) else (),
        )
        del info["report"]
        return state, RoundInfo(
            client=who,
            mask=members.mask,
            role=members.role,
            synced=synced,
            counts_down=counts_down,
            arrived=arrived,
            seconds=seconds,
            spent=spent,
            **(info | {"outcome": outcome}),
        )

    return Algorithm(
        init=init,
        step=step,
        sizes=sizes,
        fields=all_fields,
        n_shared=n_shared,
        down_fields=publishing.fields,
        snapshot_bits=publishing.snapshot_bits,
        draw=None if arrival.in_flight or isinstance(clients, Trace) else draw,
        gather=gather,
    )


def _mean(x: Array, where: Array) -> Array:
    """Mean of the entries that are meant, 0 of none."""
    return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(where.sum(), 1)


def _counting(decoded: Decoded, shared: PyTree, weight: Array) -> tuple[Decoded, PyTree, Array]:
    """What is reduced of a payload: of one that does not count nothing, not even an infinity.

    Of its rows reducers see to that.
    """
    return decoded, jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), shared), weight


def _spent(settled: Settled, seconds: Array, phases: Array, present: Array) -> Array:
    """What the client was busy with that the server waited for, while the round lasted, f32[5]."""
    # It came as the round ended, or was not yet there.
    waited = jnp.where(present & (seconds >= settled.seconds), seconds, jnp.inf)
    i = jnp.argmin(waited)
    begun = jnp.maximum(phases[i].sum() - seconds[i], 0)
    found = network.spent(phases[i], begun, settled.seconds)
    return jnp.where(jnp.isfinite(waited[i]), found, 0)


def _of_those_who_ran(outcome: Outcome, ran: Array) -> Outcome:
    """Clients that had nothing to do have failed in nothing and hold the table."""
    ones = jnp.ones(ran.shape)
    idle = dataclasses.replace(
        jax.tree.map(jnp.zeros_like, outcome), finished=ones > 0, share_down=ones, share_up=ones
    )
    return jax.tree.map(
        lambda x, y: jnp.where(ran.reshape(-1, *[1] * (x.ndim - 1)), x, y), outcome, idle
    )
