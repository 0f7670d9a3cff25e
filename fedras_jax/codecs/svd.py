"""Truncated singular value decomposition of the touched rows: r directions, r coordinates a row.

State: none. Biased: what lies off the r main directions is lost; of all r-dimensional spans theirs
leaves the least squared error, and orthogonal iteration comes near it. Support: exact, the touched
rows. The server can read: the touched set, the directions and every row's coordinates.

Source: Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika
1936. Konecny et al., arXiv 1610.05492, 2016, keep updates to low rank during training; fitting
directions afterwards, to touched rows alone, is our choice.
"""

import jax.numpy as jnp

from fedras_jax import bits, directions, kmeans
from fedras_jax.errors import SpecError, one_of
from fedras_jax.types import Codec, ItemDelta, unprepared

DTYPES = ("float32", "float16")

# Steps of orthogonal iteration. The error is then at most a tenth above the exact SVD's, on
# clients' deltas and on Gaussian rows, whose singular values lie close together (tested).
ITERATIONS = 5


def svd(rank: int = 2, *, dtype: str = "float16") -> Codec:
    """The touched set, r directions of D values, and r values for each touched item.

    Args:
      rank: directions r, at most D.
      dtype: 'float16' or 'float32', of directions and coordinates. Coordinates are taken along
        the directions as sent.

    Raises:
      SpecError: an unknown dtype, a rank below 1, or above the embedding width.
    """
    one_of("svd", DTYPES, dtype=dtype)
    if rank < 1:
        raise SpecError(f"svd: rank must be at least 1, not {rank}")

    def fields(sizes):
        if rank > sizes.dim:
            raise SpecError(
                f"svd: rank must be at most the embedding width {sizes.dim}, not {rank}"
            )
        return (
            bits.touched(sizes.items),
            bits.values("direction", "once", dtype, rank, sizes.dim),
            bits.values("coordinate", "row", dtype, rank),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        row = bits.in_range(delta.row)
        basis = kmeans.main_directions(row, delta.mask, rank, ITERATIONS)
        basis = bits.as_sent(basis, dtype)
        coords, _ = directions.coordinates(row, basis.astype(jnp.float32))
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "direction": basis,
            "coordinate": bits.as_sent(coords, dtype),
        }
        return bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        coords, basis = (data[leaf].astype(jnp.float32) for leaf in ("coordinate", "direction"))
        row = jnp.dot(coords, basis, precision=kmeans.PRECISION)
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("svd", fields, lambda sizes: (), unprepared, encode, decode)
