"""The touched rows in float32, and which they are: lossless, and the fair dense baseline.

State: none. Unbiased. Support: exact, the touched rows. The server can read: the touched set and
every row.

Source: ours; sending only what moved is textbook.
"""

from fedras_jax import bits
from fedras_jax.types import Codec, ItemDelta, unprepared


def rows() -> Codec:
    """Lossless; the touched set and n x D float32 values."""

    def fields(sizes):
        return bits.touched(sizes.items), bits.values("row", "row", "float32", sizes.dim)

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        data = {"item": delta.item, "mask": delta.mask, "row": delta.row}
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        return ItemDelta(payload.data["item"], payload.data["row"], payload.data["mask"])

    return Codec(
        "rows", fields, lambda sizes: (), unprepared, encode, decode, lossless=True, unbiased=True
    )
