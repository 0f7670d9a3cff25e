"""Transform coding: coordinates along a few directions, on one grid, entropy-coded.

The delta's rows are turned into their own main directions (the Karhunen-Loeve transform), where
few coordinates hold most of what moved. All coordinates go to multiples of one step: among
directions of such unequal strength that is how bits are best spent, for a direction weaker than
the step falls to zeros, which cost nearly nothing, and each further bit halves the error of every
direction alike. Levels are entropy-coded direction by direction. The step is nearly the
finest whose levels fit the bits that are granted.

Rounding is to the lower level where a number is less than two thirds of a step above it: so many
more zeros save more bits than they cost in error. (With exponentially distributed coordinates any
border from .6 to .7 is within a percent of the best, at the rates that are of interest here.)

State: none. Biased: what lies off the directions is lost, and small coordinates become zero. Sizes
follow from rounded numbers, so another order of sums may change them by a few bits. Support: exact,
the touched rows. The server can read: the touched set, the directions, and every row to within a
step.

Source: Goyal, Theoretical foundations of transform coding, IEEE Signal Processing Magazine 18(5),
2001; Sullivan, Efficient scalar quantization of exponential and Laplacian random variables, IEEE
Trans. Inf. Theory 42(5), 1996, for the border. Item deltas as the source are our choice.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedras_jax import bits as sizes_in_bits
from fedras_jax import directions, kmeans
from fedras_jax.errors import SpecError
from fedras_jax.types import Codec, ItemDelta, unprepared

# Steps of orthogonal iteration; see `svd`.
ITERATIONS = 5
# A number becomes the level below it if it is less than this above that level, in steps.
BORDER = 2 / 3
# Halvings of the interval in which the step is sought, a factor of 48: to a tenth of a percent.
HALVINGS = 12


def transform(rank: int = 2, *, bits: float = 3.0) -> Codec:
    """The touched set, r directions in 8 bits an entry, a step, and r coded levels a touched item.

    Args:
      rank: directions r, at most D.
      bits: coded levels of a row take at most so many bits on the average. The tables that the
        decoder needs come on top, and are counted. Levels end at 31, so that a few directions
        have no use for very many.

    Raises:
      SpecError: a rank below 1 or above the embedding width, or bits that are not positive.
    """
    if rank < 1:
        raise SpecError(f"transform: rank must be at least 1, not {rank}")
    if not bits > 0:
        raise SpecError(f"transform: bits must be positive, not {bits}")

    def fields(sizes):
        if rank > sizes.dim:
            raise SpecError(
                f"transform: rank must be at most the embedding width {sizes.dim}, not {rank}"
            )
        return (
            sizes_in_bits.touched(sizes.items),
            sizes_in_bits.codes("direction", "once", 8, rank, sizes.dim),
            sizes_in_bits.values("step", "once", "float32", 1),
            sizes_in_bits.coded_levels("level", rank),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        row = sizes_in_bits.in_range(delta.row)
        code = _as_codes(main_axes(row, delta.mask, rank))
        coords, _ = directions.coordinates(row, _as_directions(code))
        granted = bits * delta.mask.sum().astype(jnp.float32)
        step = finest_step(coords, delta.mask, granted)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "direction": code,
            "step": step[None],
            "level": quantise(coords, step).astype(jnp.int8),
        }
        return sizes_in_bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        del ctx
        data = payload.data
        coords = data["level"].astype(jnp.float32) * data["step"]
        row = jnp.dot(coords, _as_directions(data["direction"]), precision=kmeans.PRECISION)
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("transform", fields, lambda sizes: (), unprepared, encode, decode)


def main_axes(row: Float[Array, "n d"], mask: Bool[Array, " n"], rank: int) -> Float[Array, "r d"]:
    """The main directions, turned within their span so that coordinates are uncorrelated."""
    span = kmeans.main_directions(row, mask, rank, ITERATIONS)
    along = jnp.dot(row, span.T, precision=kmeans.PRECISION)
    top = jnp.max(jnp.abs(along))  # squares of tiny entries would underflow
    along = along / jnp.where(top > 0, top, 1)
    _, axes = jnp.linalg.eigh(jnp.dot(along.T, along, precision=kmeans.PRECISION))
    return jnp.dot(axes.T[::-1], span, precision=kmeans.PRECISION)


def finest_step(
    coords: Float[Array, "n r"], mask: Bool[Array, " n"], granted: Float[Array, ""]
) -> Float[Array, ""]:
    """Nearly the finest step whose levels neither pass REACH nor take more bits than granted."""
    top = sizes_in_bits.largest(coords * mask[:, None])
    finest, coarsest = top / (sizes_in_bits.REACH + BORDER), top / BORDER * 1.01

    def fits(step):
        _, surprise = sizes_in_bits.level_bits(quantise(coords, step), mask)
        return surprise <= granted

    def halve(_, between):
        low, high = between
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        enough = fits(middle)
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    _, found = jax.lax.fori_loop(0, HALVINGS, halve, (finest, coarsest))
    return jnp.where(fits(finest), finest, found)


def quantise(coords: Float[Array, "n r"], step: Float[Array, ""]) -> Int[Array, "n r"]:
    """Levels of these numbers, i32, within REACH."""
    steps = jnp.abs(coords) / jnp.where(step > 0, step, 1)
    level = jnp.clip(jnp.floor(steps + (1 - BORDER)), 0, sizes_in_bits.REACH)
    return jnp.sign(coords).astype(jnp.int32) * level.astype(jnp.int32)


def _as_codes(basis: Float[Array, "r d"]) -> Array:
    """Directions as unsigned bytes; only what they point at survives, not their length."""
    top = jnp.max(jnp.abs(basis), axis=1, keepdims=True)
    return (jnp.round(127 * basis / jnp.where(top > 0, top, 1)) + 128).astype(jnp.uint8)


def _as_directions(code: Array) -> Float[Array, "r d"]:
    """Unit vectors, and zero for zero."""
    basis = code.astype(jnp.float32) - 128
    length = jnp.sqrt(jnp.sum(basis * basis, axis=1, keepdims=True))
    return basis / jnp.where(length > 0, length, 1)
