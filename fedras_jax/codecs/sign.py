"""One bit an entry: the signs of the touched rows, times the mean magnitude.

For given signs the mean magnitude is the scale of least squared error, and it makes the codec a
contraction: what is lost of a row x of D entries is |x|^2 - |x|_1^2 / D, never all of it.

State: none. Biased: every entry of a row (or of the payload) becomes equally large. Support: exact,
the touched rows; with a scale a payload a subset of them, those that are not zero. The server can
read: which items were touched, the signs of their rows, and their mean magnitudes or the payload's.

Source: Bernstein, Wang, Azizzadenesheli and Anandkumar, signSGD: Compressed optimisation for
non-convex problems, ICML 2018, for the signs; Karimireddy, Rebjock, Stich and Jaggi, Error feedback
fixes SignSGD and other gradient compression schemes, ICML 2019, for the scale. One for each row,
in bfloat16, which has float32's range, is our choice.
"""

import jax.numpy as jnp

from fedras_jax import bits
from fedras_jax.errors import one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

SCALES = ("row", "payload")


def sign(*, scale: str = "row") -> Codec:
    """The touched set, a scale, and D bits for each touched row.

    Args:
      scale: 'row', one for each row; or 'payload', a single one. A sign is never zero, so rows
        that did not move at all are not sent then, and don't count in the mean.

    Raises:
      SpecError: an unknown scale.
    """
    one_of("sign", SCALES, scale=scale)
    by_row = scale == "row"
    per = ("row", "bfloat16") if by_row else ("once", "bfloat16", 1)

    def fields(sizes):
        return (
            bits.touched(sizes.items),
            bits.values("scale", *per),
            bits.codes("positive", "row", 1, sizes.dim),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        mask = delta.mask if by_row else delta.mask & jnp.any(delta.row != 0, axis=1)
        mean = jnp.mean(jnp.abs(delta.row), axis=1)
        if not by_row:
            mean = jnp.sum(mean, keepdims=True) / jnp.maximum(jnp.sum(mask), 1)
        data = {
            "item": delta.item,
            "mask": mask,
            "scale": bits.as_sent(mean, "bfloat16"),
            "positive": (delta.row > 0).astype(jnp.uint8),
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        reach = data["scale"].astype(jnp.float32)
        row = (2 * data["positive"].astype(jnp.float32) - 1) * reach[:, None]
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec(
        "sign",
        fields,
        lambda sizes: (),
        unprepared,
        encode,
        decode,
        support="exact" if by_row else "subset",
    )
