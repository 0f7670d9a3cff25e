"""From the server's table to the public one, and what clients fetch of it.

The public table is what clients hold: the sum of what the server has sent. After a round the server
sends the difference between its own table and the public one through a codec; what the codec loses
stays in that difference, and is sent later. That is error feedback, with no state of its own; a
server that goes on from the public table has none.

A client that was away fetches the changes it missed or the public table whole, whichever is
smaller. The whole table may travel in a coarser form than float32, but then it must *be* of that
form, for those too who followed change by change: everyone rounds it after every round, the same
deterministic way, and the rounding is part of the difference that is sent later. The first table
is free: it grows from the run's seed, on every client.

Where many clients take part the server's table moves steadily, so clients may go on by themselves
with the movement that they have seen, and the server sends only the difference from there
(`trend`). That movement is learnt from what is sent: a share `trend` of it is added each time. A
codec that keeps a part q of what it is given lags behind a steady movement by (1 - q) / q of a
round's change without it; with it the lag shrinks by a factor of e in some 1 / trend or 2 / q
rounds, whichever is more. A trend above q / 4 or so swings about the movement before it settles,
and one far above it does not settle with codecs that send much at once of what has gathered for
long.

Sources: Seide et al., 1-bit stochastic gradient descent, Interspeech 2014, for error feedback; Tang
et al., DoubleSqueeze, ICML 2019, for feedback on the server's side; Cutler, US patent
2,605,361, 1952, for sending differences from a prediction, and Holt, Forecasting seasonals and
trends by exponentially weighted moving averages, ONR memorandum 52, 1957, for predicting with a
trend; snapshots are ours.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import bits, rng
from fedras_jax.errors import SpecError
from fedras_jax.types import Array, Codec, Context, Field, ItemDelta, PyTree, Sizes


class Publisher(NamedTuple):
    """How the server's table becomes the public one.

    Attributes:
      start: server's table f32[M, D] -> the first public table and the first velocity: f32[M, D]
        what clients add in a round by themselves, or () without a trend.
      step: (round, public table, velocity, server's table, whether it has changed at all) -> (next
        public table, next velocity, i32[G] counts of what is sent for them); if it has not, the
        same ones and zeros.
      fields: what the counts are of.
      snapshot_bits: size of the whole public table, header included.
    """

    start: Callable[[Array], tuple[Array, PyTree]]
    step: Callable[..., tuple[Array, PyTree, Array]]
    fields: tuple[Field, ...]
    snapshot_bits: int


def publisher(
    downlink: Codec | None,
    snapshot: Codec | None,
    sizes: Sizes,
    seed: int | Array,
    trend: float = 0.0,
) -> Publisher:
    """A publisher.

    Args:
      downlink: codec of the change; None sends the whole table, in the snapshot's form.
      snapshot: codec whose form the public table has, deterministic and idempotent, with fields
        by row; None: float32.
      sizes: M and D.
      seed: the run's, for the codec's keys.
      trend: share of what the server sends that clients add to what they change by themselves in
        each round from then on; static. A snapshot is then of two tables, the second in float32,
        because that is part of what clients hold.

    Raises:
      SpecError: a trend out of range, or one without a codec.
    """
    if not 0 <= trend < 1:
        raise SpecError(f"the downlink's trend must be in [0, 1), not {trend}")
    if trend and downlink is None:
        raise SpecError("a dense downlink sends the table itself: it has no use for a trend")
    item = jnp.arange(sizes.items, dtype=jnp.int32)

    def through(codec, ctx, table, mask):
        """What a codec counts for a table's masked rows, and the table that it decodes to."""
        delta = ItemDelta(item, jnp.where(mask[:, None], table, 0), mask)
        prepared = codec.prepare(ctx, ctx.key, delta)
        k = jnp.int32(codec.max_actions)
        payload, _ = codec.encode(ctx, ctx.key, delta, prepared, k, codec.init(sizes))
        sent = codec.decode(ctx, payload)
        return payload.counts, jnp.zeros_like(table).at[sent.item].add(sent.row, mode="drop")

    def rounded(table):
        if snapshot is None:
            return table
        ctx = Context(sizes, jax.random.key(0))  # the same for everyone, always
        return through(snapshot, ctx, table, item >= 0)[1]

    if snapshot is None:
        snapshot_bits = bits.dense_bits(sizes)
    else:
        row = sum(field.bits for field in snapshot.fields(sizes) if field.per == "row")
        snapshot_bits = bits.HEADER_BITS + sizes.items * row
    if trend:
        snapshot_bits += bits.dense_bits(sizes)

    if downlink is None:
        fields: tuple[Field, ...] = (Field("table", snapshot_bits - bits.HEADER_BITS),)
    else:
        fields = downlink.fields(sizes)

    def start(items):
        return rounded(items), jnp.zeros_like(items) if trend else ()

    def step(round_, public, velocity, items, changed):
        if downlink is None:  # what is public already, if nothing has changed
            return rounded(items), velocity, jnp.int32(changed)[None]
        ahead = public + velocity if trend else public
        change = items - ahead
        ctx = Context(sizes, rng.address(seed, rng.Stream.DOWNLINK, round_))
        counts, sent = through(downlink, ctx, change, jnp.any(change != 0, axis=1))
        faster = velocity + trend * sent if trend else ()
        return jax.tree.map(
            lambda new, old: jnp.where(changed, new, old),
            (rounded(ahead + sent), faster, counts),
            (public, velocity, jnp.zeros_like(counts)),
        )

    return Publisher(start, step, fields, snapshot_bits)


class Ledger:
    """What the server has published, and so what a client has to fetch. On the host.

    Attributes:
      total: int list, `total[r]` bits of all changes up to the public table of round r.
    """

    def __init__(self, fields: Sequence[Field], snapshot_bits: int, n_shared: int):
        self.total = [0]
        self._fields, self._snapshot, self._shared = fields, snapshot_bits, 32 * n_shared

    def resume(self, sent: Sequence[int]) -> None:
        """Go on after rounds in which so many bits were sent."""
        self.total = list(itertools.accumulate(sent, initial=0))

    def fetch(self, synced: np.ndarray) -> np.ndarray:
        """Bits that clients download to hold the present public table and shared parameters.

        Args:
          synced: integer [C], the round whose public table each holds; 0 for those that have never
            fetched any, because the first one grows from the run's seed.

        Returns:
          int64 [C]; 0 for those that hold the present one.
        """
        now = len(self.total) - 1
        synced = np.asarray(synced)
        missed = self.total[now] - np.asarray(self.total, np.int64)[synced]
        return np.where(missed > 0, np.minimum(missed, self._snapshot) + self._shared, 0)

    def publish(self, counts: np.ndarray) -> int:
        """Note down what was sent after a round, i32[G] counts, all 0 for nothing; returns bits."""
        sent = int(bits.payload_bits(self._fields, counts)) if np.any(counts) else 0
        self.total.append(self.total[-1] + sent)
        return sent
