"""Leave-one-out evaluation: the rank of every client's held-out item.

Ranks are pessimistic: the held-out item comes after every candidate with the same score. A score
that is not a number gives the rank `NOT_FINITE`, which `check` turns into an error; it can never
look like a first place.
"""

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fedras_jax import cohort
from fedras_jax.errors import DivergedError
from fedras_jax.types import PyTree, RecModel

NOT_EVALUATED = 0
NOT_FINITE = -1


def sampled_ranks(
    model: RecModel,
    items: Float[Array, "m d"],
    shared: PyTree,
    private: PyTree,
    target: Int[Array, " u"],
    candidates: Int[Array, "u n"],
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Int[Array, " u"]:
    """Rank of each client's held-out item among sampled candidates.

    Args:
      model: scores rows.
      items: the table that clients hold.
      shared: the model's shared parameters.
      private: private parameters with leading axis U.
      target: held-out item of each client, -1 for clients that are not evaluated.
      candidates: the other items to rank; -1 pads.
      chunk: clients scored at once on a device.
      mesh: devices to share the clients; one device when None.

    Returns:
      i32[U], 1 for the first place, or `NOT_EVALUATED` or `NOT_FINITE`.
    """

    def rank(one, held):
        private, target, others = one
        items, shared = held
        rows = items[jnp.concatenate([target[None], others])]
        score = model.score(private, shared, rows)
        return _place(score[0], score[1:], others >= 0, target)

    own = (private, target, candidates)
    return cohort.map_clients(rank, own, reads=(items, shared), chunk=chunk, mesh=mesh)


def full_ranks(
    model: RecModel,
    items: Float[Array, "m d"],
    shared: PyTree,
    private: PyTree,
    target: Int[Array, " u"],
    seen: Int[Array, "u h"],
    *,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Int[Array, " u"]:
    """Rank of each client's held-out item among all items that it has not seen.

    Args:
      model, items, shared, private, target, chunk, mesh: as in `sampled_ranks`.
      seen: each client's other interactions, -1 pads; they are not ranked.

    Returns:
      As `sampled_ranks`.
    """

    def rank(one, held):
        private, target, seen = one
        items, shared = held
        score = model.score(private, shared, items)
        rank = _place(score[target], score, jnp.arange(score.shape[0]) != target, target)
        # Taken from the same scores, so that what is subtracted is exactly what was counted.
        ahead = (score[seen] >= score[target]) & (seen >= 0) & (seen != target)
        return jnp.where(rank > 0, rank - ahead.sum(dtype=jnp.int32), rank)

    own = (private, target, seen)
    return cohort.map_clients(rank, own, reads=(items, shared), chunk=chunk, mesh=mesh)


def _place(
    score: Float[Array, ""], others: Float[Array, " n"], counts: Array, target: Int[Array, ""]
) -> Int[Array, ""]:
    """1 + how many of `others` that count score at least as high."""
    rank = 1 + jnp.sum((others >= score) & counts, dtype=jnp.int32)
    finite = jnp.isfinite(score) & jnp.all(jnp.isfinite(others) | ~counts)
    return jnp.where(target < 0, NOT_EVALUATED, jnp.where(finite, rank, NOT_FINITE))


def check(rank: Array | np.ndarray) -> np.ndarray:
    """Ranks as a host array.

    Raises:
      DivergedError: a client's scores were not finite.
    """
    ranks = np.asarray(rank)
    bad = np.flatnonzero(ranks == NOT_FINITE)
    if bad.size:
        raise DivergedError(
            f"{bad.size} of {ranks.size} clients have scores that are not finite "
            f"(first: client {bad[0]}): training has diverged, lower the learning rate"
        )
    return ranks
