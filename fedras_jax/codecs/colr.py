"""CoLR: item rows train in the span of a random basis of the round, and coordinates travel.

Both sides grow the basis from the round's shared key, so it costs nothing on the wire, and no
client chooses it: coordinates of several clients may be added up, also under encryption. Local
training is told the basis (`Codec.basis`) and keeps the rows' steps in its span, so that the
projection here loses nothing but rounding.

A random span of r in D directions holds r / D of a step's squared length on average. So steps
within it are sqrt(D / r) times as long, as in the authors' code; the client's own vector steps
as always.

State: none. Biased: what of a delta lies off the span is lost. Support: exact, the touched rows.
The server can read: which items were touched, and their rows' steps within the span.

Source: Nguyen et al., Towards efficient communication and secure federated recommendation system
via low-rank training, WWW 2024, and https://github.com/NNHieu/CoLR-FedRec for the steps' length.
"""

import math

import jax
import jax.numpy as jnp

from fedras_jax import bits, kmeans
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

DTYPES = ("float32", "float16")


def colr(rank: int = 4, *, dtype: str = "float32", stretch: float | None = None) -> Codec:
    """The touched set, and r coordinates for each touched item.

    Args:
      rank: vectors r of the basis.
      dtype: 'float32' or 'float16' coordinates.
      stretch: how many times as long rows' steps are within the span; sqrt(D / r) when None.

    Raises:
      SpecError: an unknown dtype, a rank that is not in 1 to D, or a stretch that is not positive.
    """
    one_of("colr", DTYPES, dtype=dtype)
    if rank < 1:
        raise SpecError(f"colr: rank must be at least 1, not {rank}")

    if stretch is not None and not stretch > 0:
        raise SpecError(f"colr: stretch must be positive, not {stretch}")

    def fields(sizes):
        if rank > sizes.dim:
            raise SpecError(
                f"colr: rank must be at most the embedding width {sizes.dim}, not {rank}"
            )
        return bits.touched(sizes.items), bits.values("coefficient", "row", dtype, rank)

    def orthonormal(ctx):
        q, r = jnp.linalg.qr(jax.random.normal(ctx.key, (ctx.sizes.dim, rank)))
        # QR is unique up to signs, which libraries choose as they like: both sides must agree.
        return (q * jnp.where(jnp.diagonal(r) < 0, -1, 1)).T

    def basis(ctx):
        longer = math.sqrt(ctx.sizes.dim / rank) if stretch is None else stretch
        return math.sqrt(longer) * orthonormal(ctx)

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        coefficient = jnp.dot(delta.row, orthonormal(ctx).T, precision=kmeans.PRECISION)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "coefficient": bits.as_sent(coefficient, dtype),
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        data = payload.data
        coefficient = data["coefficient"].astype(jnp.float32)
        row = jnp.dot(coefficient, orthonormal(ctx), precision=kmeans.PRECISION)
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("colr", fields, lambda sizes: (), unprepared, encode, decode, basis=basis)
