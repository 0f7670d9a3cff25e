"""Reductions that XLA makes slow or inexact if they are left to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedras_jax import native, tables
from fedras_jax.native import forms

# Rows of an argmax that XLA:CPU still does fast: from a few more on it takes ten times as long.
GROUP = 16


def squares(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Sum of all squared entries, f32[].

    Columns first: XLA:CPU adds up to one number entry by entry, but columns side by side. Fewer
    terms to a sum also lose less. (The barrier keeps XLA from making one sum of the two.)
    """
    if native.on():
        return forms.squares(x)
    return jax.lax.optimization_barrier(jnp.sum(x * x, axis=0)).sum()


def apart(
    x: Float[Array, "n d"], y: Float[Array, "m d"], label: Int[Array, " n"] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums of all squared differences, and of all squared entries of x: f32[] each.

    Args:
      x: f32[N, D].
      y: of the same shape; or with labels any rows, f32[K, D].
      label: which of these each row of x is compared with; zeros where there is no such row.

    Raises:
      ValueError: without labels, another shape.
    """
    if label is None and x.shape != y.shape:
        raise ValueError(
            f"rows of shape {x.shape} and {y.shape}: without labels they must be alike"
        )
    if native.on():
        label = jnp.arange(x.shape[0]) if label is None else label
        error, total = forms.apart(x, y, label)
        return error, total
    y = y if label is None else tables.look_up(y, label)
    return squares(x - y), squares(x)


def highest(score: Float[Array, "k n"]) -> Int[Array, " n"]:
    """The row of each column's highest entry, the lowest of several, i32[N].

    Among `GROUP` rows each, then among these groups. Every score has one value only: a fused
    kernel may compute it twice, and round it differently.
    """
    score = jax.lax.optimization_barrier(score)
    k, n = score.shape
    if k <= GROUP:
        return jnp.argmax(score, axis=0).astype(jnp.int32)
    groups = jnp.pad(score, [(0, -k % GROUP), (0, 0)], constant_values=-jnp.inf)
    groups = groups.reshape(-1, GROUP, n)
    best = highest(groups.max(axis=1))
    within = jnp.argmax(groups, axis=1).astype(jnp.int32)
    return best * GROUP + jnp.take_along_axis(within, best[None], axis=0)[0]


def some(x: Float[Array, "n d"]) -> Bool[Array, " n"]:
    """Whether a row has an entry that is not zero, bool[N]."""
    if native.on() and x.dtype == jnp.float32:
        return forms.some(x)
    return jnp.any(x != 0, axis=1)


def largest(x: Float[Array, " n"], count: int) -> Int[Array, " k"]:
    """Positions of the largest numbers, in the order of positions; the first of equal ones.

    Args:
      x: f32[N], no NaN and no -0.
      count: how many.

    Raises:
      ValueError: there are not as many.
    """
    if count > x.shape[0]:
        raise ValueError(f"{count} of {x.shape[0]} numbers")
    if native.on():
        return forms.largest(x, count)
    # A partial sort, a small part of a full one's work.
    return jnp.sort(jax.lax.top_k(x, count)[1])
