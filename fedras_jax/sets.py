"""Items of one list in another."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fedras_jax import native
from fedras_jax.native import forms


def find(
    among: Int[Array, " q"], item: Int[Array, " n"], mask: Bool[Array, " n"]
) -> tuple[Bool[Array, " n"], Int[Array, " n"]]:
    """Whether each unmasked item is among others, and in which slot; 0 where it is not.

    By sorting or hashing, so that it takes no array of all M items. The lowest slot of several.
    """
    if native.on():
        return forms.find(among, item, mask)
    order = jnp.argsort(among)
    place = jnp.searchsorted(among[order], item).astype(jnp.int32)
    at = order[jnp.minimum(place, among.shape[0] - 1)].astype(jnp.int32)
    found = mask & (among[at] == item)
    return found, jnp.where(found, at, 0)
