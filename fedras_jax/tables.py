"""Rows of a table, read and added up."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedras_jax import native
from fedras_jax.native import forms


def look_up(table: Float[Array, "m d"], index: Int[Array, " n"]) -> Float[Array, "n d"]:
    """Rows of a table, f32[N, D]; zeros for an index that it does not have."""
    if native.on():
        return forms.look_up(table, index)
    return table.at[index].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def add_rows(
    table: Float[Array, "m d"],
    index: Int[Array, "c n"],
    rows: Float[Array, "c k d"],
    weight: Float[Array, " c"],
    label: Int[Array, "c n"] | None = None,
) -> Float[Array, "m d"]:
    """The table, and to its rows the weighted ones of several clients.

    What a client of weight 0 has counts as nothing, also an infinity.

    Args:
      table: f32[M, D].
      index: i32[C, N], to which rows; those that it does not have are dropped.
      rows: f32[C, N, D]; or with labels any, f32[C, K, D].
      weight: f32[C], not negative.
      label: i32[C, N], which of a client's rows is added; none where it has no such row.

    Raises:
      ValueError: shapes that do not fit together.
    """
    n = index.shape[1] if label is None else rows.shape[1]
    if rows.shape != (len(index), n, table.shape[1]) or (
        weight.shape != index.shape[:1] or (label is not None and label.shape != index.shape)
    ):
        raise ValueError(
            f"rows of shape {rows.shape}, indices {index.shape} and weights {weight.shape} do not "
            f"fit together, or to a table of shape {table.shape}"
        )
    if native.on():
        label = jnp.arange(n)[None] if label is None else label
        return forms.add_rows(table, index, rows, label, weight)
    if label is not None:
        found = jnp.take_along_axis(rows, jnp.clip(label, 0, n - 1)[..., None], axis=1)
        rows = jnp.where(((label >= 0) & (label < n))[..., None], found, 0)
    rows = jnp.where((weight > 0)[:, None, None], rows, 0) * weight[:, None, None]
    into = table.at[index.reshape(-1)]
    rows = rows.reshape(-1, rows.shape[-1])
    return into.add(rows, mode="drop", wrap_negative_indices=False)
