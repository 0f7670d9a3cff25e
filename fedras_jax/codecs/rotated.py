"""Randomly rotated rows on the normal distribution's best grid: DRIVE and EDEN.

After a random rotation a row's entries are nearly normal, whatever the row was, so one grid fits
all: the Lloyd-Max quantiser of the normal distribution. With q the grid's point for the rotated
row R x, the row's scale is |x|^2 / <R x, q>, which makes the decoded row's part along x exactly x.

Rows are rotated one by one, not the payload as a whole, because rows have no order that both sides
know. A rotation is two rounds of random signs and a Hadamard transform, of D entries filled with
zeros to a power of two. Signs grow from the round's shared key and the item: rows of a client are
often multiples of one vector, and under a common rotation would all err in the same direction.
Clients that send the same item in the same round share its rotation.

State: none. Nearly unbiased, but declared biased, for there are too few rotations of this kind. The
mean of many rounds misses up to 1 % of the squared norm at D = 8 and 1 bit, up to 0.03 % at D = 16,
and at D = 64 nothing that can be told from noise (0.002 %); one round of signs would miss 1.5 %
there. Support: exact, the touched rows. The server can read: which items were touched, and their
rows as decoded; rotations hide nothing from it.

Source: Vargaftik et al., DRIVE: One-bit distributed mean estimation, NeurIPS 2021, and EDEN:
Communication-efficient and robust distributed mean estimation for federated learning, ICML 2022;
Max, Quantizing for minimum distortion, IRE Trans. Inf. Theory 6(1), 1960, for the grid. Rotations
by row and of two rounds, and scales in bfloat16, which has float32's range, are our choice.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fedras_jax import bits as sizes_in_bits
from fedras_jax import kmeans, rng
from fedras_jax.errors import SpecError
from fedras_jax.types import Codec, ItemDelta, unprepared

ROUNDS = 2


def rotated(bits: int = 1) -> Codec:
    """The touched set, a scale and `bits` for each of D (filled to a power of two) entries a row.

    Args:
      bits: 1 to 4; 1 is DRIVE.

    Raises:
      SpecError: bits out of range.
    """
    if not 1 <= bits <= 4:
        raise SpecError(f"rotated: bits must be 1 to 4, not {bits}")
    level = normal_levels(bits).astype(np.float32)
    border = (level[1:] + level[:-1]) / 2

    def fields(sizes):
        return (
            sizes_in_bits.touched(sizes.items),
            sizes_in_bits.values("scale", "row", "bfloat16"),
            sizes_in_bits.codes("code", "row", bits, padded(sizes.dim)),
        )

    def encode(ctx, key, delta, prepared, k, state):
        del key, prepared, k
        width = padded(ctx.sizes.dim)
        largest = sizes_in_bits.largest(delta.row, axis=1)[:, None]
        # Squares of small rows would vanish.
        row = delta.row / jnp.where(largest > 0, largest, 1)
        square = jnp.sum(row * row, axis=1, keepdims=True)
        turned = rotate(signs(ctx.key, delta.item, width), row)
        normal = turned * jnp.sqrt(width / jnp.where(square > 0, square, 1))
        code = jnp.sum(normal[:, :, None] > border, axis=2, dtype=jnp.uint8)
        overlap = jnp.sum(turned * jnp.asarray(level)[code], axis=1, keepdims=True)
        scale = largest * square / jnp.where(square > 0, overlap, 1)
        data = {
            "item": delta.item,
            "mask": delta.mask,
            "scale": sizes_in_bits.as_sent(scale[:, 0], "bfloat16"),
            "code": code,
        }
        return sizes_in_bits.measure(fields(ctx.sizes), ctx.sizes, data), state

    def decode(ctx, payload) -> ItemDelta:
        data, dim = payload.data, ctx.sizes.dim
        sign = signs(ctx.key, data["item"], padded(dim))
        row = rotate_back(sign, jnp.asarray(level)[data["code"]])[:, :dim]
        row = row * data["scale"].astype(jnp.float32)[:, None]
        return ItemDelta(data["item"], jnp.where(data["mask"][:, None], row, 0), data["mask"])

    return Codec("rotated", fields, lambda sizes: (), unprepared, encode, decode)


def padded(dim: int) -> int:
    """The smallest power of two that is not below D."""
    return 1 << (dim - 1).bit_length()


@functools.cache
def normal_levels(n_bits: int) -> np.ndarray:
    """The 2^b ascending levels of least squared error for a standard normal number, float64.

    Levels are the means of their cells and cells end half way between levels; iterated from
    quantiles until nothing moves.
    """
    n = 2**n_bits
    level = np.linspace(-1, 1, n) * (1 + n_bits / 2)
    for _ in range(10_000):
        border = np.concatenate([[-np.inf], (level[1:] + level[:-1]) / 2, [np.inf]])
        below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in border])
        density = np.exp(-(border**2) / 2) / math.sqrt(2 * math.pi)
        mean = -np.diff(density) / np.diff(below)
        mean = (mean - mean[::-1]) / 2  # exactly symmetric
        moved, level = np.abs(mean - level).max(), mean
        if moved < 1e-12:
            break
    return level


def signs(key: Key[Array, ""], item: Int[Array, " n"], width: int) -> Float[Array, "r n p"]:
    """ROUNDS random signs for each entry of each item's row, whatever the order of the items.

    Bits of a keyed hash of the item: the finaliser of MurmurHash3, twice, with words of the key.
    (Keys folded with each item would need a map over items, and hash far longer.)
    """
    words = jax.random.bits(key, (2, ROUNDS, 1, -(-width // 32)), jnp.uint32)
    mixed = rng.mixed(rng.mixed(item.astype(jnp.uint32)[:, None] ^ words[0]) ^ words[1])
    at = np.arange(width)
    bit = (mixed[:, :, at // 32] >> jnp.asarray(at % 32, jnp.uint32)) & 1
    return 1 - 2 * bit.astype(jnp.float32)


def rotate(sign: Float[Array, "r n p"], row: Float[Array, "n d"]) -> Float[Array, "n p"]:
    """Every row filled with zeros and turned by its own signs."""
    turned = jnp.pad(row, ((0, 0), (0, sign.shape[2] - row.shape[1])))
    for one in sign:
        turned = _hadamard(turned * one)
    return turned


def rotate_back(sign: Float[Array, "r n p"], turned: Float[Array, "n p"]) -> Float[Array, "n p"]:
    """The inverse of `rotate`."""
    for one in sign[::-1]:
        turned = _hadamard(turned) * one
    return turned


def _hadamard(rows: Float[Array, "n p"]) -> Float[Array, "n p"]:
    """The orthonormal transform, its own inverse. At widths of embeddings a product is fastest."""
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < rows.shape[1]:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix = matrix / np.float32(math.sqrt(matrix.shape[0]))
    return jnp.dot(rows, jnp.asarray(matrix, jnp.float32), precision=kmeans.PRECISION)
