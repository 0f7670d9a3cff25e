"""What one client does in a round: it trains, asks its budget, encodes, and takes its time.

Pure functions of what the server tells everyone and of what the client keeps, written for ONE
client; `rounds` maps them over a cohort, and reduces what comes of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedras_jax import agreement, bits, budgets, examples, network, reductions, rng, sets
from fedras_jax.types import (
    Array,
    Budget,
    Codec,
    Cohort,
    Context,
    Decoded,
    Field,
    Histories,
    ItemDelta,
    LocalTraining,
    Outlook,
    Pace,
    Payload,
    Profile,
    PyTree,
    Sizes,
    Transform,
    Update,
)

# What keys are for that a client uses as it goes.
STREAMS = (rng.Stream.CODEC, rng.Stream.TRANSFORM)


class Told(NamedTuple):
    """What all clients of a round read.

    Attributes:
      round: i32[].
      public: f32[M, D], the table that clients hold.
      shared: the model's dense shared parameters.
      histories: all clients' training items.
      key: of the round, which server and clients share.
      budget: state of the budget policy.
    """

    round: Array
    public: Array
    shared: PyTree
    histories: Histories
    key: Array
    budget: PyTree


class Lot(NamedTuple):
    """What is drawn for a client in a round.

    Attributes:
      orders: of its examples.
      keys: key data of each of `STREAMS`.
      pace: its speeds. draws: f32[2], whether it fails, and when. None where no time passes.
    """

    orders: Array
    keys: dict[rng.Stream, Array]
    pace: Pace | None
    draws: Array | None

    def key(self, stream: rng.Stream) -> Array:
        """One of the keys."""
        return jax.random.wrap_key_data(self.keys[stream])


class Own(NamedTuple):
    """What a client brings.

    Attributes:
      member: its slot of the cohort, `slot` and `device` filled in.
      lot: what is drawn for it.
      private: private parameters. codec: its state of the codec.
      owed: f32[], bits that it has to fetch to hold the public table.
    """

    member: Cohort
    lot: Lot
    private: PyTree
    codec: PyTree
    owed: Array


class Sent(NamedTuple):
    """What comes of a client's round.

    Attributes:
      payload: what travels. update: what it says, before the codec.
      info: diagnostics by their names in `RoundInfo`.
    """

    payload: Payload
    update: Update
    info: dict[str, Any]


class ClientRound(NamedTuple):
    """A client's part of a round.

    Attributes:
      run: (static width, Told, Own, look_up: (table, i32[L] items) -> f32[L, D]) -> (Sent, the
        client's new private parameters and codec state).
      judge: (round's key, Payload, Update) -> (Decoded, distortion f32[]).
    """

    run: Callable[..., tuple[Sent, tuple[PyTree, PyTree]]]
    judge: Callable[..., tuple[Decoded, Array]]


def lot(seed: int | Array, round_: Array, who: Array, device: Profile | None) -> Lot:
    """What is drawn for one client.

    Args:
      seed: of the run. round_, who: i32[], a global id.
      device: the client's profile, None where no time passes.
    """
    streams = (rng.Stream.NEGATIVES, rng.Stream.SHUFFLE, *STREAMS)
    of_time = () if device is None else network.STREAMS
    negatives, shuffle, *rest = rng.addresses(seed, (*streams, *of_time), round_, who)
    keys = {s: jax.random.key_data(key) for s, key in zip(STREAMS, rest, strict=False)}
    orders = examples.orders(negatives, shuffle)
    if device is None:
        return Lot(orders, keys, None, None)
    pace, fate = rest[len(STREAMS) :]
    return Lot(orders, keys, *network.chance(pace, fate, device))


def client_round(
    *,
    sizes: Sizes,
    codec: Codec,
    fields: tuple[Field, ...],
    n_shared: int,
    training: LocalTraining,
    transforms: Sequence[Transform],
    budget: Budget,
    negatives: int,
    encode_work: float | Array,
) -> ClientRound:
    """A client's round from its parts; arguments are those of `rounds.federated`.

    Args:
      fields: of the whole payload, the codec's and then that of the shared parameters and of what
        the budget reports.
      n_shared: dense shared parameters of the model.
    """
    report = budget.report
    n_beside = n_shared + (report is not None)  # numbers that go up beside the codec's

    def train(width, told, own, look_up):
        """Local training: the examples, its result, and the update after all transforms."""
        member = own.member
        ctx = Context(sizes, told.key)
        batch = examples.draw(
            own.lot.orders,
            told.histories,
            member.slot,
            member.mask,
            n_items=sizes.items,
            negatives=negatives,
            width=width,
        )
        batch = dataclasses.replace(batch, client=member.client)
        within = {} if codec.basis is None else {"basis": codec.basis(ctx)}
        rows = look_up(told.public, batch.item)
        result = training(own.private, told.shared, rows, batch.label, batch.mask, **within)
        update = Update(examples.item_delta(batch, result.rows), result.shared)
        for i, transform in enumerate(transforms):
            key = jax.random.fold_in(own.lot.key(rng.Stream.TRANSFORM), i)
            update = transform.apply(ctx, key, member.role, update)
            # It may have dropped rows by their mask alone.
            kept = jnp.where(update.items.mask[:, None], update.items.row, 0)
            items = dataclasses.replace(update.items, row=kept)
            update = dataclasses.replace(update, items=items)
        return batch, result, update

    def run(width, told, own, look_up):
        batch, result, update = train(width, told, own, look_up)
        ctx, key = Context(sizes, told.key), own.lot.key(rng.Stream.CODEC)
        prepared = codec.prepare(ctx, key, update.items)

        n_rows = update.items.mask.sum(dtype=jnp.int32)
        work = (batch.mask.sum() * result.epochs).astype(jnp.float32)
        bits_down = jnp.where(own.owed > 0, own.owed + 32 * n_shared, 0)

        def encoding(k):
            """Counted in examples."""
            rows = 0 * n_rows if codec.lossless else n_rows
            return encode_work * network.clustered(rows, k)

        device = own.member.device
        known = network.pace(network.one_ideal() if device is None else device)
        before = network.phases(known, bits_down, work, jnp.zeros(()), jnp.zeros(()))
        size = bits.by_actions(
            codec.fields(sizes), sizes, update.items.item, update.items.mask, codec.max_actions
        )
        outlook = Outlook(
            round=told.round,
            client=own.member.client,
            error=prepared.error,
            bits=size + 32 * n_beside,
            seconds=before.sum(),
            encode_s=encoding(jnp.arange(codec.max_actions + 1)) / known.compute,
            pace=known,
        )
        k = budgets.at_no_cost(outlook, budget.allocate(outlook, told.budget))
        payload, codec_state = codec.encode(ctx, key, update.items, prepared, k, own.codec)
        agreement.counted(codec, sizes, payload)
        k = jnp.minimum(k, n_rows)  # what is sent

        counts = jnp.append(payload.counts, n_beside).astype(jnp.int32)
        bits_up = bits.float_bits(fields, counts)
        if device is None:
            outcome = network.in_no_time()
        else:
            phases = network.phases(own.lot.pace, bits_down, work, encoding(k), bits_up)
            outcome = network.outcome(own.lot.draws, device.failure, phases)
        info = {
            "loss": result.loss,
            "n_examples": batch.mask.sum(dtype=jnp.int32),
            "n_short": batch.short,
            "n_actions": k,
            "report": jnp.zeros(()) if report is None else report(outlook, told.budget),
            "counts_up": counts,
            "outcome": outcome,
            "weight": own.member.weight * outcome.finished,
        }
        # Of a round in which it failed a client keeps nothing.
        keeps = jax.tree.map(
            lambda new, old: jnp.where(outcome.finished, new, old),
            (result.private, codec_state),
            (own.private, own.codec),
        )
        # A client without examples sends nothing, whether or not it is run.
        live = batch.mask.any()
        info = jax.tree.map(lambda x: jnp.where(live, x, jnp.zeros_like(x)), info)
        return Sent(payload, update, info), keeps

    def judge(key, payload, update):
        decoded = codec.decode(Context(sizes, key), payload)
        if codec.lossless:
            return decoded, jnp.zeros(())
        error = _distortion(update.items, decoded, aligned=codec.support == "exact")
        return decoded, jnp.where(update.items.mask.any(), error, 0)

    return ClientRound(run, judge)


def _distortion(delta: ItemDelta, decoded: Decoded, *, aligned: bool) -> Array:
    """Squared error of the decoded rows relative to the delta's; 0 for an empty delta.

    Args:
      delta, decoded: what was encoded, and what the server reads.
      aligned: the decoded rows lie in the delta's slots; otherwise they are found by item.
    """
    if aligned:
        error, total = reductions.apart(delta.row, *decoded.source)
    else:
        total = reductions.squares(delta.row)
        found, slot = sets.find(delta.item, decoded.item, decoded.mask)
        sent = jnp.where(found[:, None], delta.row[slot], 0)
        error = total + reductions.squares(decoded.row - sent) - reductions.squares(sent)
    return jnp.maximum(error, 0) / jnp.where(total > 0, total, 1)
