"""From a cohort's clients to the sum of what the server takes of them, in one pass or in two.

Budgets are local and reducers add. Where an arrival policy is local too, training, encoding and
reduction are one pass over chunks of clients: item deltas and payloads exist for one chunk at a
time. Where it must see several payloads before it knows which of them count, all until encoding is
one pass, payloads wait in flight, and reduction is a second pass over those that were taken.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedras_jax import cohort, flight, network, rng, shards
from fedras_jax.client_round import ClientRound, Own, Told
from fedras_jax.types import (
    Array,
    Arrival,
    Arrived,
    Codec,
    Context,
    Decoded,
    InFlight,
    Outcome,
    Payload,
    PyTree,
    Reducer,
    Settled,
    Sizes,
)


class Came(NamedTuple):
    """What comes of a cohort.

    Attributes:
      total: of the payloads that are taken: the reducer's accumulator, the sum of weighted changes
        of the shared parameters, and that of the weights.
      private, codec: what clients keep, leading axis C; unspecified where they did not run.
      info: diagnostics by their names in `RoundInfo`, leading axis C, and `report`, what comes with
        each payload that could be taken.
      settled: what the arrival policy says. arrived: what is taken.
      spent: f32[5], what the client that the server waited for was busy with meanwhile.
      flight: payloads on their way when the round begins to last; () where none ever are.
    """

    total: tuple[PyTree, PyTree, Array]
    private: PyTree
    codec: PyTree
    info: dict[str, Any]
    settled: Settled
    arrived: Arrived
    spent: Array
    flight: Any


class Passes(NamedTuple):
    """How a cohort is gone through.

    Attributes:
      run: (payloads in flight, Told, Own with leading axis C, examples i32[C]) -> Came.
      begin: shared parameters -> nothing in flight.
      land: (Came.flight, seconds f32[] that the round takes, kept bool[P]) -> what is in flight
        after it.
      gather: payloads in flight -> the same as one device would have them.
    """

    run: Callable[[Any, Told, Own, Array], Came]
    begin: Callable[[PyTree], Any]
    land: Callable[[Any, Array, Array], Any]
    gather: Callable[[Any], Any]


def passes(
    *,
    own_round: ClientRound,
    anyone: Callable[[], tuple[Told, Own]],
    sizes: Sizes,
    tables: shards.Placement,
    codec: Codec,
    reducer: Reducer,
    arrival: Arrival,
    capacity: int,
    seed: int | Array,
    widths: tuple[int, ...],
    chunk: int,
    mesh: Mesh | None,
    flight_gib: float,
) -> Passes:
    """How a cohort is gone through under an arrival policy.

    Args:
      own_round: a client's part.
      anyone: what some client reads and brings, for the shapes of payloads; never computed.
      sizes: M and D.
      tables: where item tables lie.
      codec, reducer, arrival, seed, mesh, flight_gib: as in `rounds.federated`.
      capacity: slots of a cohort, C.
      widths, chunk: as in `cohort.fold_clients`.
    """
    fold = functools.partial(cohort.fold_clients, widths=widths, mesh=mesh)
    whole: Any = shards.WHOLE
    rows: Any = tables.rows
    reads = Told(whole, rows, whole, whole, whole, whole)

    def nothing(shared):
        """The sum over no payload."""
        none_shared = jax.tree.map(jnp.zeros_like, shared)
        return reducer.zero(tables.sizes), none_shared, jnp.zeros(())

    def add(acc, sent):
        items, shared, total = acc
        decoded, change, weight = sent
        shared = jax.tree.map(lambda a, x: a + jnp.tensordot(weight, x, 1), shared, change)
        items = reducer.add(items, *tables.gather(decoded, weight))
        return items, shared, total + weight.sum()

    # ------------------------------------------------------------ one pass

    def at_once(width, told, own):
        """All of a client's round, where arrival is its own business."""
        (payload, update, info), keeps = own_round.run(width, told, own, tables.look_up)
        decoded, distortion = own_round.judge(told.key, payload, update)
        assert arrival.alone is not None
        came = arrival.alone(info["outcome"].seconds, info["outcome"].finished)
        info |= {"distortion": distortion, "weight": info["weight"] * came}
        return _counting(decoded, update.shared, info["weight"]), (*keeps, info)

    def in_one(in_flight, told, own, length):
        zero, who, ran = nothing(told.shared), own.member.client, length > 0
        layout = tables.layout(reads, zero)
        total, (private, state, info) = fold(
            at_once, add, zero, told, own, length, chunk=chunk, layout=layout
        )
        outcome = info["outcome"] = _of_those_who_ran(info["outcome"], ran)
        settled = arrival.settle(outcome.seconds, ran, outcome.finished, who.shape[0])
        arrived = Arrived(who, info["weight"], jnp.zeros_like(who))
        spent = _spent(settled, outcome.seconds, outcome.phases, ran)
        return Came(total, private, state, info, settled, arrived, spent, in_flight)

    # ------------------------------------------------------------ two passes

    n_slots = arrival.in_flight or capacity

    @functools.cache  # shapes alone, so nothing of a trace is kept
    def payload_shapes():
        """Shapes of a payload's leaves at every width."""

        def made(width):
            look_up = shards.whole(sizes).look_up  # outside of a fold there are no devices
            return own_round.run(width, *anyone(), look_up)[0].payload.data

        return {width: jax.eval_shape(functools.partial(made, width)) for width in widths}

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
        return flight.take(held, row, made, width, shapes, sizes.items), *known

    def in_two(in_flight, told, own, length):
        zero, who, ran = nothing(told.shared), own.member.client, length > 0
        slot_of = flight.berths(in_flight.present, ran)
        held, (private, state, info, width) = fold(
            departing,
            flight.put,
            (in_flight.data, in_flight.shared),
            told,
            (own, jnp.where(ran, slot_of + 1, 0)),
            length,
            chunk=chunk,
            layout=tables.layout(reads, ())._replace(
                zero=flight.OWN, acc=flight.OWN, merge=lambda held: held
            ),
        )
        outcome = info["outcome"] = _of_those_who_ran(info["outcome"], ran)
        data, shared = held
        leaving = InFlight(
            client=who,
            round=jnp.full_like(who, told.round),
            width=width,
            home=cohort.homes(length, mesh),
            seconds=outcome.seconds,
            phases=outcome.phases,
            present=ran,
            finished=outcome.finished,
            weight=info["weight"],
            report=info["report"],
            data=data,
            shared=shared,
        )
        out = flight.launch(in_flight, slot_of, leaving)
        settled = arrival.settle(out.seconds, out.present, out.finished, capacity)
        staleness = told.round - out.round
        factor = 1.0 if arrival.weigh is None else arrival.weigh(staleness)
        weight = jnp.where(settled.taken, out.weight * factor, 0)
        total, _ = fold(
            arriving,
            add,
            zero,
            held,
            (1 + jnp.arange(n_slots), out.width, out.round, weight),
            jnp.where(settled.taken, out.width, 0),
            chunk=flight.read_at_once(chunk),
            layout=tables.layout(flight.OWN, zero),
            home=out.home,
            load=functools.partial(unload, payload_shapes()),
        )
        info["weight"] = weight.at[slot_of].get(mode="fill", fill_value=0)
        info["report"] = out.report
        arrived = Arrived(out.client, weight, staleness)
        spent = _spent(settled, out.seconds, out.phases, out.present)
        return Came(total, private, state, info, settled, arrived, spent, out)

    def begin(shared):
        n_devices = 1 if mesh is None else mesh.devices.size
        none = flight.empty(n_slots, payload_shapes(), shared, flight_gib, n_devices)
        return flight.pin(none, mesh)

    def land(in_flight, seconds, kept):
        return flight.pin(flight.land(in_flight, seconds, kept), mesh)

    def gather(in_flight):
        return flight.gather(in_flight, payload_shapes(), sizes.items)

    if arrival.alone:
        return Passes(in_one, lambda shared: (), lambda none, *_: none, lambda none: none)
    return Passes(in_two, begin, land, gather)


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
