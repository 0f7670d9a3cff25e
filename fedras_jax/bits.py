"""Sizes in bits, exact and integer.

A payload's size is `HEADER_BITS + sum(counts * widths)`. Counts are i32 and live on the device;
widths are static Python ints; the products are taken on the host, because the bits of a cohort
overflow int32 (a 10M x 64 float32 table alone is 20 Gbit).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedras_jax.types import Field, Sizes

# Version and codec (1 byte each), embedding width and action count (2 each), table rows and
# touched rows (4 each), and 2 spare: every payload starts with these 16 bytes. Our choice; the
# paper does not give its layout.
HEADER_BITS = 128

FLOAT_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


def index_width(n: int) -> int:
    """Bits of an index into n things, at least 1: the smallest w with 2**w >= n."""
    return max(1, (n - 1).bit_length())


def label_width(k: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
    """`index_width` for traced counts, from leading zeros: no float logarithm, so never off by one.

    Args:
      k: i32, the number of labels; 0 and 1 need no bits at all (every row says the same).
    """
    return jnp.where(k > 1, 32 - jax.lax.clz(jnp.maximum(k - 1, 0)), 0).astype(jnp.int32)


def set_fields(sizes: Sizes) -> tuple[Field, Field]:
    """The fields of a touched set: a bitmap over all items, or a list of item ids."""
    return Field("bitmap", 1), Field("item_id", index_width(sizes.items))


def set_counts(n: Int[Array, ""], sizes: Sizes) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Entries of `set_fields` for n touched items: whichever of the two is smaller is sent."""
    as_ids = n * index_width(sizes.items) < sizes.items
    return jnp.where(as_ids, 0, sizes.items).astype(jnp.int32), jnp.where(as_ids, n, 0)


def as_sent(x: Float[Array, "*n"], dtype: str) -> Float[Array, "*n"]:
    """x in the number format that it travels in, rounded for good.

    A cast alone would not do: XLA may drop a float32 -> float16 -> float32 pair, and the
    simulated server would then read digits that were never sent.
    """
    if dtype == "float16":
        x = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    elif dtype == "bfloat16":
        x = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return x.astype(dtype)


def dense_bits(sizes: Sizes, shared: int = 0) -> int:
    """Bits of a dense float32 table with `shared` further float32 parameters, header included."""
    return HEADER_BITS + 32 * (sizes.items * sizes.dim + shared)


def row_bytes(sizes: Sizes, n: np.ndarray, shared: int = 0) -> np.ndarray:
    """Bytes of n touched rows in float32 with their set: what `codecs.rows` would send.

    Args:
      n: integer [...], touched rows. shared: dense float32 parameters beside them.
    """
    n = np.asarray(n, np.int64)
    which = np.minimum(n * index_width(sizes.items), sizes.items)
    return (HEADER_BITS + which + 32 * (n * sizes.dim + shared)) / 8


def payload_bits(fields: Sequence[Field], counts: np.ndarray) -> np.ndarray:
    """Exact payload sizes, header included.

    Args:
      fields: the F declared fields.
      counts: integer [..., F] entries sent per field.

    Returns:
      int64 [...] bits.
    """
    counts = np.asarray(counts, np.int64)
    if counts.shape[-1] != len(fields):
        raise ValueError(f"{counts.shape[-1]} counts for {len(fields)} fields")
    return HEADER_BITS + counts @ np.array([f.bits for f in fields], np.int64)
