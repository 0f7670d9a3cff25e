"""Count sketch: touched rows, with random signs, summed into a few buckets at random.

Each of `depth` hash tables holds `width` buckets of D floats. The server looks an item up in every
table and takes the median. Hashes and signs grow from the round's shared key and the item's id.

State: none. Unbiased over the shared key, for every depth: were all of an item's own signs the
other way round, its error would be too, and the median's with it. One table's squared error is
(n - 1) / width times that of sending nothing, for n touched rows, so it pays only where a few rows
hold most of the delta or where errors cancel over rounds. Support: exact, the touched rows. The
server can read: the touched set, and sums of rows, from which it makes out single rows as well as
its own decoding does.

Source: Charikar, Chen and Farach-Colton, Finding frequent items in data streams, ICALP 2002;
Rothchild et al., FetchSGD, ICML 2020. FetchSGD sketches single entries, adds clients' sketches up
and then looks for heavy hitters, with momentum and error feedback in the sketch. That rows are
hashed whole, and that the touched set travels, so that each client's touched rows and no others
are looked up, are our choice.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from fedras_jax import bits, kmeans
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, Sizes, unprepared

DTYPES = ("float32", "float16")
MAX_DEPTH = 5


def count_sketch(width: int = 64, *, depth: int = 3, dtype: str = "float32") -> Codec:
    """The touched set and depth x width x D values, whatever the number of touched rows.

    Args:
      width: buckets of a hash table.
      depth: hash tables, 1 to 5.
      dtype: 'float32' or 'float16' buckets.

    Raises:
      SpecError: an unknown dtype, or a number out of range.
    """
    one_of("count_sketch", DTYPES, dtype=dtype)
    if width < 1:
        raise SpecError(f"count_sketch: width must be at least 1, not {width}")
    if not 1 <= depth <= MAX_DEPTH:
        raise SpecError(f"count_sketch: depth must be 1 to {MAX_DEPTH}, not {depth}")

    def fields(sizes):
        buckets = bits.values("bucket", "once", dtype, depth, width, sizes.dim)
        return bits.touched(sizes.items), buckets

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        place, sign = _hashes(ctx.key, ctx.sizes, delta.item, depth, width)
        # One-hot matmuls, which have no scatter; masked rows are zero.
        member = (jnp.arange(width)[:, None] == place[:, None, :]) * sign[:, None, :]
        bucket = jnp.dot(member, delta.row, precision=kmeans.PRECISION)
        data = {"item": delta.item, "mask": delta.mask, "bucket": bits.as_sent(bucket, dtype)}
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        data = payload.data
        place, sign = _hashes(ctx.key, ctx.sizes, data["item"], depth, width)
        bucket = data["bucket"].astype(jnp.float32)
        row = _median([sign[t][:, None] * bucket[t][place[t]] for t in range(depth)])
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec(
        "count_sketch", fields, lambda sizes: (), unprepared, encode, decode, unbiased=True
    )


def _hashes(
    key: Key[Array, ""], sizes: Sizes, item: Int[Array, " n"], depth: int, width: int
) -> tuple[Int[Array, "depth n"], Float[Array, "depth n"]]:
    """Each item's bucket and sign in every table.

    Drawn for all M items, because a table by item is the same for every client of a round: mapped
    over clients, it is drawn once.
    """
    word = jax.random.bits(key, (depth, sizes.items), jnp.uint32)[:, item]
    sign = 1 - 2 * (word & 1).astype(jnp.float32)
    return ((word >> 1) % width).astype(jnp.int32), sign


def _median(planes: list[Float[Array, "n d"]]) -> Float[Array, "n d"]:
    """Entry by entry; the mean of the middle two of an even number.

    Sorted by exchanging neighbours: a few minima and maxima of whole arrays, where XLA would sort
    each entry's handful by itself.
    """
    planes, n = list(planes), len(planes)
    for i in range(n):
        for j in range(i % 2, n - 1, 2):
            a, b = planes[j], planes[j + 1]
            planes[j], planes[j + 1] = jnp.minimum(a, b), jnp.maximum(a, b)
    return (planes[(n - 1) // 2] + planes[n // 2]) / 2
