"""One client's examples of one round, drawn on the device from an addressed key.

The examples are the client's whole training history, as positives, and distinct negatives from
outside it, in an order shuffled afresh every round. Because no item comes twice, every example
owns its item row: local training is dense arithmetic on `[L, D]`, without a scatter.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from fedras_jax import native, rng
from fedras_jax.native import forms
from fedras_jax.types import ClientBatch, Histories, ItemDelta


def count(history, n_items: int, negatives: int):
    """Examples of clients whose histories hold `history` items, on the host or traced.

    Positives and their negatives, as far as there are items: h + min(negatives h, M - h).
    """
    return (history * (1 + negatives)).clip(None, n_items)


def orders(negatives_key: Key[Array, ""], shuffle_key: Key[Array, ""]) -> UInt32[Array, "2 r 2"]:
    """What `draw` permutes by, from keys of one client and round.

    Apart from it, as a cohort's are derived together in less time.
    """
    return rng.rounds_of(shuffle_key, negatives_key)


def draw(
    orders: UInt32[Array, "2 r 2"],
    data: Histories,
    client: Int[Array, ""],
    live: Bool[Array, ""],
    *,
    n_items: int,
    negatives: int,
    width: int,
) -> ClientBatch:
    """A client's examples in `width` slots.

    Negatives are uniform over the items outside the history, without replacement: a keyed
    permutation of the unseen items' ranks, its first entries. A client that has fewer unseen
    items than `negatives` x its history gets all there are; `short` says how many are missing.

    Args:
      orders: those of this client's keys in this round.
      data: all histories.
      client: i32[], whose examples.
      live: bool[], False gives an empty batch.
      n_items: M.
      negatives: negatives per positive.
      width: static number of slots L; at least the client's number of examples. (With fewer
        compiled loops draw nothing, and the JAX form the first ones.)
    """
    if native.on():
        drawn = forms.draw(orders, data, client, live, n_items, negatives, width)
        item, label, mask, short = drawn
        return ClientBatch(item, label, mask, client, short)
    first = data.offset[client]
    history = data.offset[client + 1] - first
    unseen = n_items - history
    n_negatives = jnp.minimum(history * negatives, unseen)
    n = jnp.where(live, history + n_negatives, 0)
    slot = jnp.arange(width, dtype=jnp.int32)

    of_shuffle, of_negatives = orders
    source = rng.shuffled(of_shuffle, slot, jnp.maximum(n, 1))
    positive = source < history
    ticket = jnp.where(positive, 0, source - history)
    rank = rng.shuffled(of_negatives, ticket, jnp.maximum(unseen, 1))
    item = jnp.where(
        positive,
        data.item[first + jnp.where(positive, source, 0)],
        rng.outside(data.item, first, history, rank, steps=width.bit_length()),
    )
    mask = slot < n
    return ClientBatch(
        item=jnp.where(mask, item, n_items),
        label=(positive & mask).astype(jnp.float32),
        mask=mask,
        client=client,
        short=jnp.where(live, history * negatives - n_negatives, 0),
    )


def item_delta(batch: ClientBatch, rows: Float[Array, "l d"]) -> ItemDelta:
    """What training did to the rows of a batch: its items are distinct, so slots are items."""
    return ItemDelta(item=batch.item, row=rows, mask=batch.mask)
