"""The whole table's change: what FedMF sends, and what reductions are measured against.

On the wire all M rows travel. On the device the payload holds only the rows that are not zero,
because no `[C, M, D]` array can exist; `counts` still says M.

State: none. Biased by the number format's rounding alone, unbiased in float32. Support: a subset of
the touched rows, those that are not zero. The server can read: the whole delta, hence which items
were touched.

Source: FedMF (Chai, Wang, Chen and Yang, Secure federated matrix factorization, IEEE Intelligent
Systems 36(5), 2021), without its encryption.
"""

import jax.numpy as jnp

from fedras_jax import bits, reductions
from fedras_jax.errors import one_of
from fedras_jax.types import Codec, ItemDelta, unprepared


def dense(*, dtype: str = "float32") -> Codec:
    """M rows of D values.

    Args:
      dtype: 'float32', which is lossless, 'float16' or 'bfloat16'.

    Raises:
      SpecError: an unknown dtype.
    """
    one_of("dense", bits.FLOAT_BITS, dtype=dtype)

    def fields(sizes):
        return (bits.values("row", "item", dtype, sizes.dim),)

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        row = bits.as_sent(delta.row, dtype)
        # A row of zeros cannot be told from an untouched one.
        mask = delta.mask & reductions.some(row)
        data = {"item": delta.item, "mask": mask, "row": row}
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        # Where the mask says no, rows are zero as they are.
        row = payload.data["row"].astype(jnp.float32)
        return ItemDelta(payload.data["item"], row, payload.data["mask"])

    return Codec(
        "dense",
        fields,
        lambda sizes: (),
        unprepared,
        encode,
        decode,
        lossless=dtype == "float32",
        support="subset",
    )
