"""Error feedback around any codec: what a payload left unsaid is said with the item's next one.

A client adds to each touched row what it still owes that item, encodes the sum, and remembers the
difference between the sum and what the server will read. Errors then do not pile up over rounds:
all that was decoded and all that is remembered add up to all deltas, as long as memory suffices
and payloads arrive (the client does not hear of one that never came).

State: the rows that are owed, at most Q a client, those of largest norm; others are forgotten.
Rows of items that the client does not touch wait. Biased, also around an unbiased codec: what a
payload says depends on what earlier ones left. Support: the inner codec's. The server can read:
what it reads of the inner codec, mixed with what earlier rounds left.

Remembered errors stay bounded where the inner codec always says a part of what it is given. Two
kinds do not: one that scales up what it keeps, to be unbiased, overshoots; and a single action says
the rows' mean and never how they differ.

Sources: Seide et al., 1-bit stochastic gradient descent and its application to data-parallel
distributed training of speech DNNs, Interspeech 2014; Karimireddy et al., Error feedback fixes
SignSGD and other gradient compression schemes, ICML 2019. A memory of few rows is our choice: a
whole table a client does not fit.
"""

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from fedras_jax import reductions, sets, tables
from fedras_jax.errors import SpecError
from fedras_jax.types import Codec, Sizes, unprepared


@struct.dataclass
class Memory:
    """What a client owes.

    Attributes:
      item: i32[Q] distinct items, M in empty slots; in any order.
      row: f32[Q, D], zero in empty slots.
      inner: the inner codec's own state.
    """

    item: Any
    row: Any
    inner: Any


def error_feedback(codec: Codec, rows: int = 64) -> Codec:
    """The codec with a memory: same name, fields and sizes.

    Its `prepare` says no error, because that depends on what is owed: budgets that ask for errors
    do not go with it. The distortion that a round tells is against the delta alone.

    Args:
      codec: what encodes the sum; it may have state of its own.
      rows: static number of rows Q that a client remembers.

    Raises:
      SpecError: fewer than 1 row.
    """
    if rows < 1:
        raise SpecError(f"error_feedback: rows must be at least 1, not {rows}")

    def init(sizes: Sizes) -> Memory:
        return Memory(
            item=jnp.full(rows, sizes.items, jnp.int32),
            row=jnp.zeros((rows, sizes.dim)),
            inner=codec.init(sizes),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del prepared
        n_items = ctx.sizes.items
        owed, at = sets.find(state.item, delta.item, delta.mask)
        row = delta.row + jnp.where(owed[:, None], state.row[at], 0)
        sums = delta.replace(row=row)
        payload, inner = codec.encode(ctx, key, sums, codec.prepare(ctx, key, sums), k, state.inner)

        said = codec.decode(ctx, payload)
        if codec.support == "exact":  # its slots are the delta's
            left = row - said.row
        else:
            told, where = sets.find(said.item, delta.item, delta.mask)
            left = row - jnp.where((told & said.mask[where])[:, None], said.row[where], 0)
        paid = jnp.zeros(rows, bool).at[jnp.where(owed, at, rows)].set(True, mode="drop")
        item = jnp.append(jnp.where(paid, n_items, state.item), delta.item)
        left = jnp.concatenate([state.row, jnp.where(delta.mask[:, None], left, 0)])
        left = jnp.where((item < n_items)[:, None], left, 0)
        norm = _norm(left)
        at = reductions.largest(norm, rows)
        kept = norm[at] > 0
        return payload, Memory(
            item=jnp.where(kept, item[at], n_items),
            row=jnp.where(kept[:, None], tables.look_up(left, at), 0),
            inner=inner,
        )

    return codec._replace(init=init, prepare=unprepared, encode=encode, unbiased=False)


def _norm(row: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Euclidean. The largest entry first: squares of tiny ones would underflow, and their row be
    forgotten. Zero for a row that is not finite: it is sent, where it shows, and not kept."""
    size = jnp.max(jnp.abs(row), axis=1)
    rest = row / jnp.where(size > 0, size, 1)[:, None]
    norm = size * jnp.sqrt(jnp.sum(rest * rest, axis=1))
    return jnp.where(jnp.isfinite(norm), norm, 0)
